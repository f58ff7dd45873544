// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The system calls on files.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::memory::IoVec;
use super::result::check;

/// Opens a file for reading and writing, or with the access mode in `flags`.
pub fn open(path: &Path, flags: i32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    File::options()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)
}

/// A memfd of this size.
pub fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: the kernel reads the name.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    check(fd as isize)?;
    // SAFETY: the kernel just made this descriptor for us.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Punches a hole into a file.
pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    // SAFETY: the call touches no memory but what maps of the file show, into which no
    // reference exists.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
    check(result as isize).map(drop)
}

// In all of the following, the kernel writes only to buffers that are mapped,
// which means to a `Region`, into which no reference exists.

/// `read`
pub fn read(file: &File, buffer: IoVec) -> io::Result<usize> {
    let IoVec(iov) = buffer;
    // SAFETY: see above.
    check(unsafe { libc::read(file.as_raw_fd(), iov.iov_base, iov.iov_len) })
}

/// `write`
pub fn write(file: &File, buffer: IoVec) -> io::Result<usize> {
    let IoVec(iov) = buffer;
    // SAFETY: the kernel only reads.
    check(unsafe { libc::write(file.as_raw_fd(), iov.iov_base, iov.iov_len) })
}

/// `pread`
pub fn pread(file: &File, buffer: IoVec, offset: u64) -> io::Result<usize> {
    let IoVec(iov) = buffer;
    let offset = offset.cast_signed();
    // SAFETY: see above.
    check(unsafe { libc::pread(file.as_raw_fd(), iov.iov_base, iov.iov_len, offset) })
}

/// `pwrite`
pub fn pwrite(file: &File, buffer: IoVec, offset: u64) -> io::Result<usize> {
    let IoVec(iov) = buffer;
    let offset = offset.cast_signed();
    // SAFETY: the kernel only reads.
    check(unsafe { libc::pwrite(file.as_raw_fd(), iov.iov_base, iov.iov_len, offset) })
}

/// Pointer and count of an array of buffers, as the system calls take it.
pub struct Vectored<'a>(&'a [IoVec]);

impl<'a> Vectored<'a> {
    /// The buffers of one transfer.
    pub fn new(buffers: &'a [IoVec]) -> Self {
        Self(buffers)
    }

    pub(super) fn pointer(&self) -> *const libc::iovec {
        // `IoVec` is transparent.
        self.0.as_ptr().cast()
    }

    pub(super) fn count(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }
}

/// `readv`
pub fn readv(file: &File, buffers: &[IoVec]) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    // SAFETY: see above.
    check(unsafe { libc::readv(file.as_raw_fd(), v.pointer(), v.count()) })
}

/// `writev`
pub fn writev(file: &File, buffers: &[IoVec]) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    // SAFETY: the kernel only reads.
    check(unsafe { libc::writev(file.as_raw_fd(), v.pointer(), v.count()) })
}

/// `preadv`
pub fn preadv(file: &File, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    let offset = offset.cast_signed();
    // SAFETY: see above.
    check(unsafe { libc::preadv(file.as_raw_fd(), v.pointer(), v.count(), offset) })
}

/// `pwritev`
pub fn pwritev(file: &File, buffers: &[IoVec], offset: u64) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    let offset = offset.cast_signed();
    // SAFETY: the kernel only reads.
    check(unsafe { libc::pwritev(file.as_raw_fd(), v.pointer(), v.count(), offset) })
}

/// `preadv2`; without an offset at the position of the file.
pub fn preadv2(
    file: &File,
    buffers: &[IoVec],
    offset: Option<u64>,
    flags: i32,
) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    let offset = offset.map_or(-1, u64::cast_signed);
    // SAFETY: see above.
    check(unsafe { libc::preadv2(file.as_raw_fd(), v.pointer(), v.count(), offset, flags) })
}

/// `pwritev2`; without an offset at the position of the file.
pub fn pwritev2(
    file: &File,
    buffers: &[IoVec],
    offset: Option<u64>,
    flags: i32,
) -> io::Result<usize> {
    let v = Vectored::new(buffers);
    let offset = offset.map_or(-1, u64::cast_signed);
    // SAFETY: the kernel only reads.
    check(unsafe { libc::pwritev2(file.as_raw_fd(), v.pointer(), v.count(), offset, flags) })
}

/// `lseek`
pub fn lseek(file: &File, offset: i64, whence: i32) -> io::Result<u64> {
    // SAFETY: the call touches no memory.
    let position = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(position).map_err(|_| io::Error::last_os_error())
}

/// `fsync`
pub fn fsync(file: &File) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::fsync(file.as_raw_fd()) } as isize).map(drop)
}

/// `fdatasync`
pub fn fdatasync(file: &File) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::fdatasync(file.as_raw_fd()) } as isize).map(drop)
}

/// Seals of a file (`F_GET_SEALS`).
pub fn seals(file: &File) -> io::Result<i32> {
    // SAFETY: the call touches no memory.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    check(seals as isize).map(|_| seals)
}

/// Adds seals to a file (`F_ADD_SEALS`).
pub fn add_seals(file: &File, seals: i32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } as isize).map(drop)
}
