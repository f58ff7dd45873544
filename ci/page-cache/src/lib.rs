// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which pages of a file the kernel has not written yet, for tests of durability: what
//! was acknowledged as durable has none (`cachestat(2)`, Linux 6.5).
//!
//! A file system in memory has no pages to write, and neither has a stacked one, whose
//! pages are another's. So a test is to see first that there are any before it takes
//! their absence for a result: [`Unwritten::any`] after a write.

use std::fs::File;
use std::io;
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

/// Pages that are not in the file yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// Pages that nobody has begun to write.
    pub dirty: u64,
    /// Pages that are being written.
    pub writeback: u64,
}

impl Unwritten {
    /// Those of the pages that hold `length` bytes from `offset` on; 0 stands for all up
    /// to the end.
    ///
    /// # Errors
    ///
    /// `ENOSYS` on a kernel before Linux 6.5, `EOPNOTSUPP` on hugetlbfs.
    pub fn of(file: &File, offset: u64, length: u64) -> io::Result<Self> {
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
            return Err(io::Error::last_os_error());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pages_are_unwritten_until_they_are_synced() {
        // The build folder, unlike perhaps the one for temporary files, is on a disk.
        let program = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        // The kernel may write them by itself at any time.
        let seen = (0..100).any(|_| {
            file.write_all_at(&[1; 10_000], 4096).unwrap();
            Unwritten::of(&file, 4096, 10_000).unwrap().any()
        });
        assert!(
            seen,
            "the build folder is on a file system whose pages are never dirty: no test of \
             durability means anything here"
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
