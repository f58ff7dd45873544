// SPDX-License-Identifier: Apache-2.0 OR MIT

//! io_uring.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use io_uring::{IoUring, opcode, types::Fd};

use super::queue::{Completed, Direction};

/// A ring.
pub struct Uring(IoUring);

impl Uring {
    /// A ring for `depth` transfers.
    pub fn new(depth: u32) -> io::Result<Self> {
        IoUring::new(depth).map(Self)
    }

    /// Queues a transfer.
    ///
    /// # Safety
    ///
    /// As for [`Aio::queue`](super::aio::Aio::queue).
    ///
    /// # Panics
    ///
    /// If more transfers are queued than the ring has entries.
    pub unsafe fn queue(
        &mut self,
        slot: usize,
        file: BorrowedFd<'_>,
        direction: Direction,
        address: NonNull<u8>,
        length: u32,
        offset: u64,
    ) {
        let file = Fd(file.as_raw_fd());
        let address = address.as_ptr();
        let entry = match direction {
            Direction::Read => opcode::Read::new(file, address, length)
                .offset(offset)
                .build(),
            Direction::Write => opcode::Write::new(file, address, length)
                .offset(offset)
                .build(),
        };
        // SAFETY: the buffer stays, by the requirement of this function; the entry has no other
        // pointer.
        let result = unsafe { self.0.submission().push(&entry.user_data(slot as u64)) };
        result.expect("the ring has an entry for each slot");
    }

    /// Submits the queued transfers, and waits until at least one has completed.
    pub fn wait(&mut self, completed: &mut Vec<Completed>) -> io::Result<()> {
        while let Err(error) = self.0.submit_and_wait(1) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        completed.extend(self.0.completion().map(|entry| Completed {
            slot: entry.user_data() as usize,
            result: match usize::try_from(entry.result()) {
                Ok(count) => Ok(count),
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
            },
        }));
        Ok(())
    }
}
