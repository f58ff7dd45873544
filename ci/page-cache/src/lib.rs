// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts the pages of a file that the kernel has not written yet (`cachestat(2)`, Linux
//! 6.5), for tests of durability: durable data has no such pages.
//!
//! File systems in memory and stacked ones have no pages to write, so tmpfs and overlayfs
//! are refused. There may be others, so a test should first see unwritten pages after a
//! write ([`Unwritten::any`]) before it takes their absence for a result.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Number of the system call, the same on all architectures.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct Range {
    off: u64,
    len: u64,
}

/// `struct cachestat` of `linux/mman.h`.
#[repr(C)]
#[derive(Default)]
struct Statistics {
    nr_cache: u64,
    nr_dirty: u64,
    nr_writeback: u64,
    nr_evicted: u64,
    nr_recently_evicted: u64,
}

/// Numbers of pages that are not on the disk yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// Dirty pages.
    pub dirty: u64,
    /// Pages under writeback.
    pub writeback: u64,
}

impl Unwritten {
    /// Counts the pages of `length` bytes from `offset` on; a length of 0 means up to the
    /// end.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] on a kernel before Linux 6.5, and on a file system
    /// that never has dirty pages.
    pub fn of(file: &File, offset: u64, length: u64) -> io::Result<Self> {
        check_file_system(file)?;
        let range = Range {
            off: offset,
            len: length,
        };
        let mut statistics = Statistics::default();
        // SAFETY: Both structures are laid out as the kernel's, which reads one and writes
        // the other.
        let result = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                file.as_raw_fd(),
                &raw const range,
                &raw mut statistics,
                0,
            )
        };
        if result != 0 {
            return Err(match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOSYS) => unsupported(
                    "cachestat(2), which tells what is not on the disk yet, needs Linux 6.5 or \
                     later, and a container that allows it",
                ),
                error => error,
            });
        }
        Ok(Self {
            dirty: statistics.nr_dirty,
            writeback: statistics.nr_writeback,
        })
    }

    /// Whether there are any.
    pub const fn any(&self) -> bool {
        self.dirty != 0 || self.writeback != 0
    }
}

fn unsupported(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// # Errors
///
/// The file system is known never to have dirty pages.
fn check_file_system(file: &File) -> io::Result<()> {
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: The kernel writes one such structure.
    if unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The call has succeeded.
    match unsafe { status.assume_init() }.f_type {
        libc::TMPFS_MAGIC => Err(unsupported(
            "tmpfs has no disk to write to: the build folder must be on one, to test what is \
             durable",
        )),
        libc::OVERLAYFS_SUPER_MAGIC => Err(unsupported(
            "overlayfs keeps no pages of its own: the build folder must be on another file \
             system, a volume of the container for example, to test what is durable",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_system_in_memory_is_refused() {
        use std::os::fd::FromRawFd;
        // SAFETY: The name ends with 0.
        let file = unsafe { libc::memfd_create(c"a test".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0);
        // SAFETY: The descriptor was made for us just now.
        let file = unsafe { File::from_raw_fd(file) };
        let error = Unwritten::of(&file, 0, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("tmpfs"), "{error}");
    }

    #[test]
    fn pages_are_unwritten_until_they_are_synced() {
        // The build folder is on a disk, the folder for temporary files may not be.
        let program = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        // The kernel may write the pages at any time.
        let seen = (0..100).any(|_| {
            file.write_all_at(&[1; 10_000], 4096).unwrap();
            Unwritten::of(&file, 4096, 10_000).unwrap().any()
        });
        assert!(
            seen,
            "the build folder is on a file system whose pages are never dirty: no test of \
             durability means anything here, it must be on a disk"
        );
        assert_eq!(
            Unwritten::of(&file, 0, 4096).unwrap(),
            Unwritten::default(),
            "pages before"
        );
        file.sync_data().unwrap();
        assert_eq!(
            Unwritten::of(&file, 0, 0).unwrap(),
            Unwritten::default(),
            "after fdatasync"
        );
    }
}
