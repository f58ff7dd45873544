// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Mapped regions of memory of any kind and protection.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Size of a page.
pub const PAGE: usize = 4096;

/// A mapped region of memory, unmapped when dropped.
///
/// The content is shared with the kernel, with devices and, for shared mappings, with
/// other processes. So no reference into a region ever exists; all access copies.
///
/// # Invariants
///
/// `address .. address + length` is a mapping of this process that belongs to
/// this value alone.
#[derive(Debug)]
pub struct Region {
    address: *mut u8,
    length: usize,
    readable: bool,
    writable: bool,
}

// SAFETY: the memory belongs to the process, not to a thread; it is only copied
// from and to, and what races with a copy is the tests' own business: the
// result is bytes, which have no invalid values.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// One buffer of a transfer.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoVec(pub(super) libc::iovec);

// SAFETY: an address and a length; what is behind them is only touched by the
// kernel, which checks.
unsafe impl Send for IoVec {}

impl IoVec {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// A buffer in the kernel's half of the address space, which no process may access.
    pub fn in_kernel_space(length: usize) -> Self {
        Self(libc::iovec {
            iov_base: ptr::without_provenance_mut(0xffff_8880_0000_0000),
            iov_len: length,
        })
    }

    /// A buffer at address 0, where nothing is mapped.
    pub fn null(length: usize) -> Self {
        Self(libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: length,
        })
    }
}

impl Region {
    /// Private anonymous memory, readable and writable.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        Self::anonymous_with(length, libc::PROT_READ | libc::PROT_WRITE, 0)
    }

    /// Private anonymous memory with this protection and further flags.
    pub fn anonymous_with(length: usize, protection: i32, flags: i32) -> io::Result<Self> {
        Self::map(
            length,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    }

    /// Anonymous memory that processes made by `fork` share.
    pub fn shared_anonymous(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Self::map(length, protection, flags, -1, 0)
    }

    /// A mapping of a file.
    pub fn of_file(
        file: &File,
        offset: u64,
        length: usize,
        protection: i32,
        flags: i32,
    ) -> io::Result<Self> {
        Self::map(length, protection, flags, file.as_raw_fd(), offset)
    }

    /// A shared mapping of a file, readable and writable.
    pub fn shared(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::of_file(file, offset, length, protection, libc::MAP_SHARED)
    }

    fn map(length: usize, protection: i32, flags: i32, fd: i32, offset: u64) -> io::Result<Self> {
        assert!(flags & libc::MAP_FIXED == 0, "would replace foreign memory");
        // SAFETY: without MAP_FIXED a new mapping touches no existing memory.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                flags,
                fd,
                // As many bits; the kernel reads them as an unsigned number.
                offset.cast_signed(),
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // INVARIANT: just mapped.
        Ok(Self {
            address: address.cast(),
            length,
            readable: protection & libc::PROT_READ != 0,
            writable: protection & libc::PROT_WRITE != 0,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the length is 0, which no mapping has.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.address.addr()
    }

    pub(super) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset <= self.length && length <= self.length - offset,
            "{length} bytes at {offset} of a region of {}",
            self.length
        );
        // SAFETY: just checked to lie within the mapping.
        unsafe { self.address.add(offset) }
    }

    /// A buffer within the region, for the kernel to read or write.
    pub fn buffer(&self, offset: usize, length: usize) -> IoVec {
        IoVec(libc::iovec {
            iov_base: self.at(offset, length).cast(),
            iov_len: length,
        })
    }

    /// Stores bytes.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(self.writable, "the region is not writable");
        let to = self.at(offset, bytes.len());
        // SAFETY: `to` is valid for as many bytes; a slice of Rust's never lies
        // in a region.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Stores the same byte many times.
    pub fn fill(&self, offset: usize, length: usize, byte: u8) {
        assert!(self.writable, "the region is not writable");
        let to = self.at(offset, length);
        // SAFETY: `to` is valid for as many bytes.
        unsafe { ptr::write_bytes(to, byte, length) };
    }

    /// Loads bytes.
    pub fn load(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.load_into(offset, &mut bytes);
        bytes
    }

    /// Loads bytes into a buffer.
    pub fn load_into(&self, offset: usize, bytes: &mut [u8]) {
        assert!(self.readable, "the region is not readable");
        let from = self.at(offset, bytes.len());
        // SAFETY: `from` is valid for as many bytes; a slice of Rust's never
        // lies in a region.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Sets the protection of the whole region.
    pub fn protect(&mut self, protection: i32) -> io::Result<()> {
        // SAFETY: the region belongs to this value, and no reference into it
        // exists.
        let result = unsafe { libc::mprotect(self.address.cast(), self.length, protection) };
        super::result::check(result as isize)?;
        self.readable = protection & libc::PROT_READ != 0;
        self.writable = protection & libc::PROT_WRITE != 0;
        Ok(())
    }

    /// `madvise` for the whole region.
    pub fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the region belongs to this value; advice at worst changes its
        // bytes, which nobody refers to.
        let result = unsafe { libc::madvise(self.address.cast(), self.length, advice) };
        super::result::check(result as isize)?;
        Ok(())
    }

    /// Locks the whole region in memory (`mlock`).
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: this changes no byte of the region.
        super::result::check(unsafe { libc::mlock(self.address.cast(), self.length) } as isize)
            .map(drop)
    }

    /// Writes stored bytes to the file (`msync`).
    pub fn sync(&self, flags: i32) -> io::Result<()> {
        // SAFETY: this changes no byte of the region.
        let result = unsafe { libc::msync(self.address.cast(), self.length, flags) };
        super::result::check(result as isize).map(drop)
    }

    /// A second map of the same pages (`mremap` with an old size of 0).
    pub fn duplicate(&self) -> io::Result<Self> {
        let flags = libc::MREMAP_MAYMOVE;
        // SAFETY: the region itself stays as it is, and the new one touches no existing memory.
        let address = unsafe { libc::mremap(self.address.cast(), 0, self.length, flags) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // INVARIANT: just mapped.
        Ok(Self {
            address: address.cast(),
            ..*self
        })
    }

    /// Moves the region to the address of another region of equal length, which is
    /// unmapped.
    pub fn move_to(&mut self, place: Self) -> io::Result<()> {
        assert_eq!(self.length, place.length, "a place of another length");
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both regions belong to their values, and no reference into them exists.
        let address = unsafe {
            libc::mremap(
                self.address.cast(),
                self.length,
                self.length,
                flags,
                place.address,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // INVARIANT: what was there is gone.
        std::mem::forget(place);
        self.address = address.cast();
        Ok(())
    }

    /// Grows or shrinks the mapping, and moves it if needed.
    pub fn resize(&mut self, length: usize) -> io::Result<()> {
        // SAFETY: the region belongs to this value, and no reference into it
        // exists.
        let address = unsafe {
            libc::mremap(
                self.address.cast(),
                self.length,
                length,
                libc::MREMAP_MAYMOVE,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // INVARIANT: what is mapped now.
        self.address = address.cast();
        self.length = length;
        Ok(())
    }

    /// Unmaps the pages from `offset` on.
    pub fn truncate(&mut self, offset: usize) -> io::Result<()> {
        assert!(offset > 0 && offset.is_multiple_of(PAGE));
        let length = self.length - offset;
        let from = self.at(offset, length);
        // SAFETY: these pages belong to this value, and no reference into them
        // exists.
        let result = unsafe { libc::munmap(from.cast(), length) };
        super::result::check(result as isize)?;
        // INVARIANT: the rest is still mapped.
        self.length = offset;
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region belongs to this value, and no reference into it
        // exists.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// The error number of a failed mapping; `None` if it succeeded.
pub fn map_error(result: io::Result<Region>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded() {
        let region = Region::anonymous(2 * PAGE).unwrap();
        region.store(PAGE - 1, b"abc");
        region.fill(PAGE, 1, b'x');
        assert_eq!(region.load(PAGE - 2, 5), b"\0axc\0");
    }

    #[test]
    #[should_panic(expected = "3 bytes at 4094")]
    fn access_stays_within_the_region() {
        Region::anonymous(PAGE).unwrap().load(PAGE - 2, 3);
    }

    #[test]
    #[should_panic(expected = "not writable")]
    fn a_read_only_region_is_not_stored_to() {
        Region::anonymous_with(PAGE, libc::PROT_READ, 0)
            .unwrap()
            .store(0, b"a");
    }

    #[test]
    fn regions_shrink_and_grow() {
        let mut region = Region::anonymous(4 * PAGE).unwrap();
        region.store(0, b"kept");
        region.truncate(PAGE).unwrap();
        assert_eq!(region.len(), PAGE);
        region.resize(3 * PAGE).unwrap();
        assert_eq!(region.load(0, 4), b"kept");
        assert_eq!(region.load(2 * PAGE, 1), [0]);
    }
}
