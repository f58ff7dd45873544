// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A file of the client as memory of this process.

use std::fs::File;
use std::ptr;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::DmaError;

/// Identity of a file: two descriptors of one file have the same.
///
/// The number of a file that is deleted may be given to a new one, but not as long as the file
/// is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

/// A client's descriptor, examined and not mapped yet.
#[derive(Debug)]
pub(super) struct Examined {
    file: File,
    /// Which file it is.
    pub(super) id: FileId,
    /// Length of the file in bytes when it was examined.
    pub(super) length: u64,
    /// Whether the descriptor is open for writing.
    pub(super) writable: bool,
}

impl Examined {
    /// Asks for identity, length and mode of `file`.
    pub(super) fn new(file: File) -> Result<Self, DmaError> {
        let stat = fstat(&file).map_err(DmaError::File)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(DmaError::NotRegular);
        }
        let mode = fcntl_getfl(&file).map_err(DmaError::File)? & OFlags::ACCMODE;
        Ok(Self {
            file,
            id: FileId {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
            length: u64::try_from(stat.st_size).map_err(|_| DmaError::File(Errno::INVAL))?,
            writable: mode == OFlags::RDWR,
        })
    }

    /// Maps the whole file, for writing too where descriptor and seals allow it.
    ///
    /// The mapping starts at offset 0, so a range needs no alignment of its offset for it, and
    /// files of huge pages need no case of their own.
    pub(super) fn map(&self) -> Result<FileMapping, DmaError> {
        if self.writable {
            match self.map_as(true) {
                // A seal forbids new mappings for writing (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE).
                Err(Errno::PERM | Errno::ACCESS) => {}
                done => return done.map_err(DmaError::File),
            }
        }
        self.map_as(false).map_err(DmaError::File)
    }

    fn map_as(&self, writable: bool) -> Result<FileMapping, Errno> {
        let length = usize::try_from(self.length).map_err(|_| Errno::OVERFLOW)?;
        let mut protection = ProtFlags::READ;
        if writable {
            protection |= ProtFlags::WRITE;
        }
        // SAFETY: The kernel chooses the address, so no other memory is replaced.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &self.file,
                0,
            )
        }?;
        // INVARIANT: mapped just now, from the start of the file, and nobody else's.
        Ok(FileMapping {
            id: self.id,
            base: base.cast(),
            length,
            writable,
        })
    }
}

/// A file of the client in the memory of this process, as a whole. Unmapped when it is dropped.
///
/// # Invariants
///
/// The `length` bytes at `base` are a shared mapping of the file `id` from its start on, readable,
/// and writable if `writable`. It exists as long as this does.
#[derive(Debug)]
pub(super) struct FileMapping {
    /// Which file it is.
    pub(super) id: FileId,
    base: *mut u8,
    length: usize,
    /// Whether the mapping can be written.
    pub(super) writable: bool,
}

// SAFETY: The mapping belongs to the process, and nothing in here is bound to a thread.
unsafe impl Send for FileMapping {}
// SAFETY: Nothing in here changes after it is made. The memory itself is only handed out as
// pointers.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Number of bytes of the file that are mapped.
    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    /// Address of the byte at `offset` of the file, if it is mapped and with it the `size - 1`
    /// bytes that follow.
    pub(super) fn address(&self, offset: u64, size: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(size)?;
        // `wrapping_add`: needs no proof, and is within the mapping by the comparison.
        (end <= self.length).then(|| self.base.wrapping_add(offset))
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is mapped, and the bytes belong to this value. Slices of it
        // borrow a `DmaMemory` that refers to this value, so there are none.
        let result = unsafe { munmap(self.base.cast(), self.length) };
        debug_assert_eq!(result, Ok(()));
    }
}
