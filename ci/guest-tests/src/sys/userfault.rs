// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory whose page faults user space handles
//! (`Documentation/admin-guide/mm/userfaultfd.rst`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use super::memory::{PAGE, Region};
use super::poll::poll;
use super::result::check;

/// `UFFD_API`
const API_VERSION: u64 = 0xaa;

/// `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE`: read and write, type 0xaa.
const fn request(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | 0xaa << 8 | number
}

/// `UFFDIO_UNREGISTER`: read, type 0xaa.
const UNREGISTER: u64 = 2 << 30 | (size_of::<[u64; 2]>() as u64) << 16 | 0xaa << 8 | 1;

/// `UFFDIO_REGISTER_MODE_MISSING`
const MISSING: u64 = 1;

/// `UFFD_EVENT_PAGEFAULT`
const PAGE_FAULT: u8 = 0x12;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` and `struct uffdio_zeropage`, which differ in names only.
#[repr(C)]
struct RangeArgument {
    start: u64,
    length: u64,
    mode: u64,
    result: u64,
}

/// The page faults of an unpopulated region. A thread that accesses a missing page waits
/// until [`Self::zero_pages`].
///
/// After an early end of a test the region must be unregistered, or its readers wait for
/// ever: see [`Self::unregister_on_drop`].
#[derive(Debug)]
pub struct UserFaults {
    fd: File,
    address: usize,
    length: usize,
}

impl UserFaults {
    /// Registers a region, whose contents are lost.
    pub fn of(region: &Region) -> io::Result<Self> {
        // SAFETY: the call touches no memory.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = i32::try_from(check(fd as isize)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { File::from_raw_fd(fd) };
        let faults = Self {
            fd,
            address: region.address(),
            length: region.len(),
        };
        let mut api = Api {
            api: API_VERSION,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure.
        let result = unsafe {
            libc::ioctl(
                faults.fd.as_raw_fd(),
                request(0x3f, size_of::<Api>()),
                &raw mut api,
            )
        };
        check(result as isize)?;
        faults.range_ioctl(0, region.address(), region.len(), MISSING)?;
        // An untouched region may have pages: a huge page for adjacent memory covers it
        // as well.
        region.advise(libc::MADV_DONTNEED)?;
        Ok(faults)
    }

    /// Waits for the next fault, at most for `timeout`; returns the address of its page.
    pub fn wait_for_fault(&self, timeout: Duration) -> io::Result<usize> {
        // `poll` limits the wait. It needs a non-blocking descriptor.
        if poll(&self.fd, libc::POLLIN, timeout)? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no page fault"));
        }
        // `struct uffd_msg`: the event in the first byte, flags at 8, the address at 16.
        let mut message = [0u64; 4];
        // SAFETY: the kernel writes at most the array.
        let read = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                message.as_mut_ptr().cast(),
                size_of_val(&message),
            )
        };
        check(read)?;
        if message[0].to_ne_bytes()[0] != PAGE_FAULT {
            return Err(io::Error::other("an event that is no page fault"));
        }
        usize::try_from(message[2])
            .map(|address| address & !(PAGE - 1))
            .map_err(io::Error::other)
    }

    /// Maps zero pages and wakes the waiting threads (`UFFDIO_ZEROPAGE`).
    pub fn zero_pages(&self, address: usize, length: usize) -> io::Result<()> {
        self.range_ioctl(4, address, length, 0)
    }

    /// Unregisters the region when the result is dropped: the kernel then handles its
    /// faults, which wakes the waiting threads. To be held within a thread scope whose
    /// threads access the region.
    pub fn unregister_on_drop(&self) -> UnregisterOnDrop<'_> {
        UnregisterOnDrop(self)
    }

    fn range_ioctl(&self, number: u64, start: usize, length: usize, mode: u64) -> io::Result<()> {
        let mut argument = RangeArgument {
            start: start as u64,
            length: length as u64,
            mode,
            result: 0,
        };
        // SAFETY: the kernel reads and writes the structure. It changes no byte but those of
        // pages in a region that nobody could have touched before.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                request(number, size_of::<RangeArgument>()),
                &raw mut argument,
            )
        };
        check(result as isize).map(drop)
    }
}

/// See [`UserFaults::unregister_on_drop`].
#[derive(Debug)]
pub struct UnregisterOnDrop<'a>(&'a UserFaults);

impl Drop for UnregisterOnDrop<'_> {
    fn drop(&mut self) {
        let UserFaults {
            fd,
            address,
            length,
        } = self.0;
        // `struct uffdio_range`
        let mut range = [*address as u64, *length as u64];
        // SAFETY: the kernel reads the structure. An error leaves all as it is; there is none
        // for a range that was registered.
        unsafe { libc::ioctl(fd.as_raw_fd(), UNREGISTER, &raw mut range) };
    }
}
