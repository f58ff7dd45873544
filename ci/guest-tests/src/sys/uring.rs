// SPDX-License-Identifier: Apache-2.0 OR MIT

//! io_uring.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::file::Vectored;
use super::memory::{IoVec, Region};
use super::result::check_result;

/// Buffers of an operation.
#[derive(Clone, Copy, Debug)]
pub enum Buffers<'a> {
    /// One buffer.
    One(IoVec),
    /// A list of buffers.
    List(&'a [IoVec]),
    /// One buffer within the registered buffer of this index.
    Registered(IoVec, u16),
}

/// A timeout for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Delay(Timespec);

impl Delay {
    /// A timeout of this duration.
    pub fn new(delay: Duration) -> Self {
        Self(delay.into())
    }
}

/// One operation to submit. A vectored operation refers to its list of buffers.
#[derive(Clone, Debug)]
pub struct UringOperation<'a> {
    entry: squeue::Entry,
    /// The kernel copies the list during submission, but not before.
    _buffers: Option<Buffers<'a>>,
}

/// Builds the entry for a plain file descriptor or a registered one.
macro_rules! entry {
    ($fd:expr, $build:expr) => {
        match $fd {
            Target::File(fd) => $build(fd),
            Target::Registered(index) => $build(index),
        }
    };
}

#[derive(Clone, Copy)]
enum Target {
    File(Fd),
    Registered(Fixed),
}

impl<'a> UringOperation<'a> {
    /// An operation whose entry refers to no memory of the caller's.
    pub(super) fn without_buffers(entry: squeue::Entry) -> Self {
        Self {
            entry,
            _buffers: None,
        }
    }

    /// A read.
    pub fn read(file: &File, buffers: Buffers<'a>, offset: u64) -> Self {
        Self::read_from(Target::File(Fd(file.as_raw_fd())), buffers, offset)
    }

    /// A read from the registered file of this index.
    pub fn read_registered_file(index: u32, buffers: Buffers<'a>, offset: u64) -> Self {
        Self::read_from(Target::Registered(Fixed(index)), buffers, offset)
    }

    fn read_from(target: Target, buffers: Buffers<'a>, offset: u64) -> Self {
        let entry = match buffers {
            Buffers::One(IoVec(iov)) => {
                let (base, length) = (iov.iov_base.cast(), length(iov.iov_len));
                entry!(target, |fd| opcode::Read::new(fd, base, length)
                    .offset(offset)
                    .build())
            }
            Buffers::List(list) => {
                let v = Vectored::new(list);
                let count = v.count().cast_unsigned();
                entry!(target, |fd| opcode::Readv::new(fd, v.pointer(), count)
                    .offset(offset)
                    .build())
            }
            Buffers::Registered(IoVec(iov), index) => {
                let (base, length) = (iov.iov_base.cast(), length(iov.iov_len));
                entry!(target, |fd| opcode::ReadFixed::new(fd, base, length, index)
                    .offset(offset)
                    .build())
            }
        };
        Self {
            entry,
            _buffers: Some(buffers),
        }
    }

    /// A read that is refused if it would have to wait for a slot (`RWF_NOWAIT`).
    pub fn read_nowait(file: &File, buffer: IoVec, offset: u64) -> Self {
        let IoVec(iov) = buffer;
        let fd = Fd(file.as_raw_fd());
        Self {
            entry: opcode::Read::new(fd, iov.iov_base.cast(), length(iov.iov_len))
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build(),
            _buffers: Some(Buffers::One(buffer)),
        }
    }

    /// A write.
    pub fn write(file: &File, buffers: Buffers<'a>, offset: u64) -> Self {
        Self::write_to(Target::File(Fd(file.as_raw_fd())), buffers, offset)
    }

    /// A write to the registered file of this index.
    pub fn write_registered_file(index: u32, buffers: Buffers<'a>, offset: u64) -> Self {
        Self::write_to(Target::Registered(Fixed(index)), buffers, offset)
    }

    fn write_to(target: Target, buffers: Buffers<'a>, offset: u64) -> Self {
        let entry = match buffers {
            Buffers::One(IoVec(iov)) => {
                let (base, length) = (iov.iov_base.cast_const().cast(), length(iov.iov_len));
                entry!(target, |fd| opcode::Write::new(fd, base, length)
                    .offset(offset)
                    .build())
            }
            Buffers::List(list) => {
                let v = Vectored::new(list);
                let count = v.count().cast_unsigned();
                entry!(target, |fd| opcode::Writev::new(fd, v.pointer(), count)
                    .offset(offset)
                    .build())
            }
            Buffers::Registered(IoVec(iov), index) => {
                let (base, length) = (iov.iov_base.cast_const().cast(), length(iov.iov_len));
                entry!(target, |fd| opcode::WriteFixed::new(
                    fd, base, length, index
                )
                .offset(offset)
                .build())
            }
        };
        Self {
            entry,
            _buffers: Some(buffers),
        }
    }

    /// A splice from the device to a pipe.
    pub fn splice(file: &File, offset: u64, pipe: &PipeWriter, bytes: usize) -> Self {
        let entry = opcode::Splice::new(
            Fd(file.as_raw_fd()),
            offset.cast_signed(),
            Fd(pipe.as_raw_fd()),
            -1,
            length(bytes),
        );
        Self {
            entry: entry.build(),
            _buffers: None,
        }
    }

    /// Makes earlier writes durable.
    pub fn fsync(file: &File, data_only: bool) -> Self {
        let flags = if data_only {
            FsyncFlags::DATASYNC
        } else {
            FsyncFlags::empty()
        };
        Self {
            entry: opcode::Fsync::new(Fd(file.as_raw_fd()))
                .flags(flags)
                .build(),
            _buffers: None,
        }
    }

    /// Cancels the operation with this tag.
    pub fn cancel(tag: u64) -> Self {
        Self {
            entry: opcode::AsyncCancel::new(tag).build(),
            _buffers: None,
        }
    }

    /// Cancels the previous, linked operation after this time.
    pub fn link_timeout(delay: &'a Delay) -> Self {
        Self {
            entry: opcode::LinkTimeout::new(&raw const delay.0).build(),
            _buffers: None,
        }
    }

    /// Waits for one of these poll events.
    pub fn poll(file: &File, events: i16) -> Self {
        let events = u32::from(events.cast_unsigned());
        Self {
            entry: opcode::PollAdd::new(Fd(file.as_raw_fd()), events).build(),
            _buffers: None,
        }
    }

    /// The entry, for a ring of longer ones.
    pub(super) fn into_entry(self) -> squeue::Entry {
        self.entry
    }

    /// Sets the tag of the result.
    pub fn tag(mut self, tag: u64) -> Self {
        self.entry = self.entry.user_data(tag);
        self
    }

    /// Makes a worker thread execute the operation (`IOSQE_ASYNC`).
    pub fn on_worker(mut self) -> Self {
        self.entry = self.entry.flags(squeue::Flags::ASYNC);
        self
    }

    /// Starts the next operation only after this one (`IOSQE_IO_LINK`).
    pub fn linked(mut self) -> Self {
        self.entry = self.entry.flags(squeue::Flags::IO_LINK);
        self
    }
}

pub(super) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Mode of an io_uring instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Completions arrive by task work at any system call.
    Plain,
    /// A kernel thread submits (`IORING_SETUP_SQPOLL`).
    SqPoll,
    /// Completions arrive only during a wait (`IORING_SETUP_DEFER_TASKRUN`).
    DeferTaskrun,
    /// Completions are polled for (`IORING_SETUP_IOPOLL`). Files need `O_DIRECT`.
    IoPoll,
}

/// An io_uring instance. The rules of [`super::AioContext`] for buffers apply.
pub struct Ring(IoUring);

impl Ring {
    /// A ring for this many operations in flight.
    pub fn new(depth: u32) -> io::Result<Self> {
        Ok(Self(IoUring::new(depth)?))
    }

    /// A ring of this kind.
    pub fn of_kind(kind: Kind, depth: u32) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        match kind {
            Kind::Plain => &mut builder,
            // Milliseconds after which the thread sleeps.
            Kind::SqPoll => builder.setup_sqpoll(50),
            Kind::DeferTaskrun => builder.setup_single_issuer().setup_defer_taskrun(),
            Kind::IoPoll => builder.setup_iopoll(),
        };
        builder.build(depth).map(Self)
    }

    /// Registers a ring of buffers.
    ///
    /// # Safety
    ///
    /// `address` must point to memory for this many entries that only the kernel and the
    /// caller use.
    pub(super) unsafe fn register_buffer_ring(
        &self,
        address: u64,
        entries: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()> {
        // SAFETY: by the requirement; the kernel pins the memory.
        unsafe {
            self.0
                .submitter()
                .register_buf_ring_with_flags(address, entries, group, flags)
        }
    }

    /// Submits an entry that refers to no memory, and waits for its result.
    pub(super) fn run_entry(&mut self, entry: squeue::Entry) -> io::Result<usize> {
        self.run(&UringOperation::without_buffers(entry))
    }

    /// Registers regions as fixed buffers, in this order. They must stay mapped
    /// as long as the ring is used with them.
    pub fn register_buffers(&self, regions: &[&Region]) -> io::Result<()> {
        let buffers: Vec<libc::iovec> = regions
            .iter()
            .map(|region| region.buffer(0, region.len()).0)
            .collect();
        // SAFETY: the kernel pins the pages; a region unmapped too early leaves
        // it with pages that nobody else sees, not with foreign memory.
        unsafe { self.0.submitter().register_buffers(&buffers) }
    }

    /// Registers files, in this order.
    pub fn register_files(&self, files: &[&File]) -> io::Result<()> {
        let fds: Vec<i32> = files.iter().map(|file| file.as_raw_fd()).collect();
        self.0.submitter().register_files(&fds)
    }

    /// Makes the kernel signal an eventfd for each result.
    pub fn register_eventfd(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Cancels the operation with this tag and waits until that succeeds or is refused.
    pub fn cancel_now(&self, tag: u64) -> io::Result<()> {
        self.0
            .submitter()
            .register_sync_cancel(Some(Timespec::new()), CancelBuilder::user_data(tag))
    }

    /// Queues and submits operations; returns how many the kernel took. With `SqPoll`, a
    /// kernel thread takes them later.
    pub fn submit(&mut self, operations: &[UringOperation<'_>]) -> io::Result<usize> {
        let by_thread = self.0.params().is_setup_sqpoll();
        for operation in operations {
            // The wait also ends for task work, without room in the queue.
            while by_thread && self.0.submission().is_full() {
                self.0.submit()?;
                self.0.submitter().squeue_wait()?;
            }
            // SAFETY: lists of buffers are copied during the submission below;
            // buffers lie in regions, into which no reference exists, and the
            // kernel holds on to their pages.
            unsafe { self.0.submission().push(&operation.entry) }
                .map_err(|_| io::Error::other("the submission queue is full"))?;
        }
        let taken = self.0.submit()?;
        Ok(if by_thread { operations.len() } else { taken })
    }

    /// Takes exactly `count` results: tag, and bytes or error. Returns fewer only after
    /// `timeout`.
    pub fn results(
        &mut self,
        count: usize,
        timeout: Duration,
    ) -> io::Result<Vec<(u64, io::Result<usize>)>> {
        self.entries(count, timeout, |entry| {
            (entry.user_data(), check_result(i64::from(entry.result())))
        })
    }

    /// Takes completions, each converted.
    pub(super) fn entries<T>(
        &mut self,
        count: usize,
        timeout: Duration,
        convert: impl Fn(cqueue::Entry) -> T,
    ) -> io::Result<Vec<T>> {
        let deadline = Instant::now() + timeout;
        let mut results = Vec::with_capacity(count);
        loop {
            let missing = count - results.len();
            results.extend(self.0.completion().take(missing).map(&convert));
            let missing = count - results.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if missing == 0 || left.is_zero() {
                return Ok(results);
            }
            let left = Timespec::new()
                .sec(left.as_secs())
                .nsec(left.subsec_nanos());
            let arguments = SubmitArgs::new().timespec(&left);
            // A polled ring comes back as soon as there is any result.
            match self.0.submitter().submit_with_args(missing, &arguments) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
                // A suspend interrupts the wait.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Submits one operation and waits for its result.
    pub fn run(&mut self, operation: &UringOperation<'_>) -> io::Result<usize> {
        if self.submit(std::slice::from_ref(operation))? != 1 {
            return Err(io::Error::other("the operation was not taken"));
        }
        let results = self.results(1, Duration::from_secs(60))?;
        match results.into_iter().next() {
            Some((_, result)) => result,
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
