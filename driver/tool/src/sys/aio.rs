// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Linux AIO by its system calls. The library libaio adds nothing that is needed here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use ringbar_uapi::linux_aio::{IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IoEvent, Iocb};

use super::queue::{Completed, Direction};

/// A context of Linux AIO. Dropping it waits for the transfers in flight.
#[derive(Debug)]
pub struct Aio {
    context: libc::c_ulong,
    /// Transfers that were not submitted yet.
    queued: Vec<Iocb>,
    events: Vec<IoEvent>,
}

impl Aio {
    /// A context for `depth` transfers.
    pub fn new(depth: u32) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call writes to `context` only.
        check(unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) })?;
        Ok(Self {
            context,
            queued: Vec::new(),
            events: vec![IoEvent::default(); depth as usize],
        })
    }

    /// Queues a transfer.
    ///
    /// # Safety
    ///
    /// `address` and `length` are memory that nothing else accesses until the transfer has
    /// completed, or for ever if it does not complete.
    pub unsafe fn queue(
        &mut self,
        slot: usize,
        file: BorrowedFd<'_>,
        direction: Direction,
        address: NonNull<u8>,
        length: usize,
        offset: u64,
    ) {
        self.queued.push(Iocb {
            data: slot as u64,
            opcode: match direction {
                Direction::Read => IOCB_CMD_PREAD,
                Direction::Write => IOCB_CMD_PWRITE,
            },
            fildes: file.as_raw_fd().cast_unsigned(),
            buf: address.as_ptr().expose_provenance() as u64,
            nbytes: length as u64,
            offset: offset.cast_signed(),
            ..Iocb::default()
        });
    }

    /// Submits the queued transfers, and waits until at least one has completed.
    pub fn wait(&mut self, completed: &mut Vec<Completed>) -> io::Result<()> {
        let before = completed.len();
        while !self.queued.is_empty() {
            let mut pointers: Vec<*mut Iocb> = self.queued.iter_mut().map(ptr::from_mut).collect();
            let count = pointers.len();
            // SAFETY: pointers to structures, which the call does not keep. Their buffers are those
            // of `queue`.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_submit,
                    self.context,
                    count,
                    pointers.as_mut_ptr(),
                )
            };
            match check(result) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(submitted) => drop(self.queued.drain(..submitted)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The error is that of the first transfer, which was not submitted.
                Err(error) => {
                    let first = self.queued.remove(0);
                    completed.push(Completed {
                        slot: first.data as usize,
                        result: Err(error),
                    });
                }
            }
        }
        if completed.len() > before {
            return Ok(());
        }
        let result = loop {
            // SAFETY: the call writes at most as many events as the array has.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.context,
                    1,
                    self.events.len(),
                    self.events.as_mut_ptr(),
                    ptr::null_mut::<libc::timespec>(),
                )
            };
            match check(result) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        completed.extend(self.events[..result].iter().map(|event| Completed {
            slot: event.data as usize,
            result: match usize::try_from(event.res) {
                Ok(count) => Ok(count),
                Err(_) => Err(io::Error::from_raw_os_error(-event.res as i32)),
            },
        }));
        Ok(())
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context belongs to this value.
        let result = check(unsafe { libc::syscall(libc::SYS_io_destroy, self.context) });
        debug_assert!(result.is_ok());
    }
}

/// The result of a system call that returns a number.
fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
