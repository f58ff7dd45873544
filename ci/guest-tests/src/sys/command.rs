// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device commands by `ioctl` and io_uring (`driver/uapi/src/ringbar.rs`).

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use ringbar_uapi::{self as uapi, Command, Info};

use super::memory::IoVec;
use super::result::{check, check_result};
use super::uring::UringOperation;

/// `ioctl` with any number and argument.
pub fn ioctl(file: &File, number: u32, argument: IoVec) -> io::Result<()> {
    let IoVec(iov) = argument;
    // SAFETY: the kernel writes only to what is mapped, which means to a
    // `Region`, into which no reference exists.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number.into(), iov.iov_base) };
    check(result as isize).map(drop)
}

/// `ioctl` as a 32-bit program makes it. The argument must be below 4 GiB.
pub fn compat_ioctl(file: &File, number: u32, argument: IoVec) -> io::Result<()> {
    /// `__NR_ioctl` of i386.
    const IOCTL: u64 = 54;

    let IoVec(iov) = argument;
    let address = u32::try_from(iov.iov_base.addr()).map_err(io::Error::other)?;
    let fd = u64::from(file.as_raw_fd().cast_unsigned());
    let mut result = IOCTL;
    // SAFETY: the kernel writes only to what is mapped, as above. It preserves all registers but
    // the result's; the compiler keeps `rbx` for itself, so it is exchanged.
    unsafe {
        std::arch::asm!(
            "xchg {fd}, rbx",
            "int 0x80",
            "xchg {fd}, rbx",
            fd = inout(reg) fd => _,
            inout("rax") result,
            in("rcx") u64::from(number),
            in("rdx") u64::from(address),
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    // CAST: a result of 32 bits.
    super::result::check_result(i64::from(result as u32 as i32)).map(drop)
}

/// Information about the device, as the bytes that the kernel wrote.
pub(crate) fn info(file: &File) -> io::Result<[u8; Info::SIZE]> {
    // Bytes that the kernel does not write keep this value.
    let mut bytes = [0xa5; Info::SIZE];
    let argument = bytes.as_mut_ptr();
    // SAFETY: the number says that the kernel writes as many bytes as there are.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), uapi::IOC_INFO.into(), argument) };
    check(result as isize)?;
    Ok(bytes)
}

/// Resets the device.
pub(crate) fn reset(file: &File) -> io::Result<()> {
    // SAFETY: the call has no argument.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), uapi::IOC_RESET.into(), 0) };
    check(result as isize).map(drop)
}

/// Executes a command. The result is also set after an error.
pub(crate) fn execute(file: &File, command: &mut Command) -> io::Result<()> {
    let mut bytes = command.to_bytes();
    let argument = bytes.as_mut_ptr();
    // SAFETY: the number says that the kernel reads and writes as many bytes as
    // there are.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), uapi::IOC_COMMAND.into(), argument) };
    let ended = check(result as isize);
    *command = Command::from_bytes(&bytes);
    ended.map(drop)
}

/// An operation for a [`CommandRing`].
#[derive(Clone, Debug)]
pub(crate) struct CommandEntry<'a> {
    entry: squeue::Entry128,
    /// Lists of buffers that the kernel reads during submission.
    _buffers: PhantomData<&'a [IoVec]>,
}

impl CommandEntry<'static> {
    /// A command.
    pub(crate) fn new(file: &File, command: &Command) -> Self {
        Self::numbered(file, uapi::IOC_COMMAND, command)
    }

    /// A command under another number.
    pub(crate) fn numbered(file: &File, number: u32, command: &Command) -> Self {
        let mut payload = [0; 80];
        payload[..Command::SIZE].copy_from_slice(&command.to_bytes());
        Self {
            entry: opcode::UringCmd80::new(Fd(file.as_raw_fd()), number)
                .cmd(payload)
                .build(),
            _buffers: PhantomData,
        }
    }
}

impl<'a> CommandEntry<'a> {
    /// An ordinary operation.
    pub(crate) fn operation(operation: UringOperation<'a>) -> Self {
        Self {
            entry: operation.into_entry().into(),
            _buffers: PhantomData,
        }
    }

    /// Sets the number that the result carries.
    pub(crate) fn tag(mut self, tag: u64) -> Self {
        self.entry = self.entry.user_data(tag);
        self
    }

    /// Starts the next operation only after this one (`IOSQE_IO_LINK`).
    pub(crate) fn linked(mut self) -> Self {
        self.entry = self.entry.flags(squeue::Flags::IO_LINK);
        self
    }
}

/// Completion of an operation of a [`CommandRing`].
#[derive(Debug)]
pub(crate) struct Completed {
    /// The number of the operation.
    pub(crate) tag: u64,
    /// Bytes of a transfer, 0 of a command.
    pub(crate) result: io::Result<usize>,
    /// Value of a command: the first additional word.
    pub(crate) value: u64,
}

/// An io_uring instance with long submission and completion entries
/// (`IORING_SETUP_SQE128`, `IORING_SETUP_CQE32`).
pub(crate) struct CommandRing(IoUring<squeue::Entry128, cqueue::Entry32>);

impl CommandRing {
    /// A ring for this many operations in flight.
    pub(crate) fn new(depth: u32) -> io::Result<Self> {
        Ok(Self(IoUring::builder().build(depth)?))
    }

    /// Queues operations and submits them; returns how many the kernel took.
    pub(crate) fn submit(&mut self, entries: &[CommandEntry<'_>]) -> io::Result<usize> {
        for entry in entries {
            // SAFETY: as in `Ring::submit`.
            unsafe { self.0.submission().push(&entry.entry) }
                .map_err(|_| io::Error::other("the submission queue is full"))?;
        }
        self.0.submit()
    }

    /// Takes `count` results. Returns fewer only after `timeout`.
    pub(crate) fn results(
        &mut self,
        count: usize,
        timeout: Duration,
    ) -> io::Result<Vec<Completed>> {
        let deadline = Instant::now() + timeout;
        let mut results = Vec::with_capacity(count);
        loop {
            let missing = count - results.len();
            results.extend(self.0.completion().take(missing).map(|entry| Completed {
                tag: entry.user_data(),
                result: check_result(entry.result().into()),
                value: entry.big_cqe()[0],
            }));
            let missing = count - results.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if missing == 0 || left.is_zero() {
                return Ok(results);
            }
            let left = Timespec::from(left);
            let arguments = SubmitArgs::new().timespec(&left);
            match self.0.submitter().submit_with_args(missing, &arguments) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Submits one operation and waits for its end.
    pub(crate) fn run(&mut self, entry: &CommandEntry<'_>) -> io::Result<Completed> {
        if self.submit(std::slice::from_ref(entry))? != 1 {
            return Err(io::Error::other("the operation was not taken"));
        }
        self.results(1, Duration::from_secs(60))?
            .pop()
            .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

/// Executes a command by a ring whose completion entries have no room for the value.
/// Returns the result of the completion.
pub(crate) fn execute_without_value(file: &File, command: &Command) -> io::Result<usize> {
    let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(2)?;
    let entry = CommandEntry::new(file, command).entry;
    // SAFETY: the entry refers to no memory.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    first_result(&mut ring)
}

/// Submits the start of a command in a short submission entry, which has no room for all
/// of it.
pub(crate) fn execute_in_short_entry(file: &File, command: &Command) -> io::Result<usize> {
    let mut ring = IoUring::new(2)?;
    let mut start = [0; 16];
    start.copy_from_slice(&command.to_bytes()[..16]);
    let entry = opcode::UringCmd16::new(Fd(file.as_raw_fd()), uapi::IOC_COMMAND)
        .cmd(start)
        .build();
    // SAFETY: the entry refers to no memory.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    first_result(&mut ring)
}

fn first_result<S: squeue::EntryMarker>(ring: &mut IoUring<S, cqueue::Entry>) -> io::Result<usize> {
    ring.submit_and_wait(1)?;
    let entry = ring
        .completion()
        .next()
        .ok_or_else(|| io::Error::other("no result"))?;
    check_result(entry.result().into())
}
