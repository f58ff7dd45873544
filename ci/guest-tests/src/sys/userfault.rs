// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory whose pages come only when somebody in user space brings them
//! (`Documentation/admin-guide/mm/userfaultfd.rst`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::memory::{PAGE, Region};

/// `UFFD_API`
const API_VERSION: u64 = 0xaa;

/// `UFFDIO_API`, `UFFDIO_REGISTER`, `UFFDIO_ZEROPAGE`: read and write, type 0xaa.
const fn request(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | 0xaa << 8 | number
}

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
struct OnRange {
    start: u64,
    length: u64,
    mode: u64,
    result: u64,
}

/// The page faults of a region that is not populated. Who touches a page that is not
/// there waits until [`Self::bring`].
#[derive(Debug)]
pub struct UserFaults(OwnedFd);

impl UserFaults {
    /// Takes over the faults of a region.
    pub fn of(region: &Region) -> io::Result<Self> {
        // SAFETY: the call touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let fd = i32::try_from(check(fd as isize)?).map_err(io::Error::other)?;
        // SAFETY: the kernel just made this descriptor for us.
        let faults = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = Api {
            api: API_VERSION,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the structure.
        let result = unsafe {
            libc::ioctl(
                faults.0.as_raw_fd(),
                request(0x3f, size_of::<Api>()),
                &raw mut api,
            )
        };
        check(result as isize)?;
        faults.on_range(0, region.address(), region.len(), MISSING)?;
        Ok(faults)
    }

    /// Waits for a fault that nobody has taken yet; returns the address of its page.
    pub fn next(&self) -> io::Result<usize> {
        // `struct uffd_msg`: the event in the first byte, flags at 8, the address at 16.
        let mut message = [0u64; 4];
        // SAFETY: the kernel writes at most the array.
        let read = unsafe {
            libc::read(
                self.0.as_raw_fd(),
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

    /// Brings pages full of zeros, and wakes those who wait for them.
    pub fn bring(&self, address: usize, length: usize) -> io::Result<()> {
        self.on_range(4, address, length, 0)
    }

    fn on_range(&self, number: u64, start: usize, length: usize, mode: u64) -> io::Result<()> {
        let mut argument = OnRange {
            start: start as u64,
            length: length as u64,
            mode,
            result: 0,
        };
        // SAFETY: the kernel reads and writes the structure. It changes no byte but those of
        // pages in a region that nobody could have touched before.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                request(number, size_of::<OnRange>()),
                &raw mut argument,
            )
        };
        check(result as isize).map(drop)
    }
}
