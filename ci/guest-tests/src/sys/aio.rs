// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Linux asynchronous I/O by its system calls, without libaio.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringbar_uapi::linux_aio::{
    IOCB_CMD_FDSYNC, IOCB_CMD_FSYNC, IOCB_CMD_PREAD, IOCB_CMD_PREADV, IOCB_CMD_PWRITE,
    IOCB_CMD_PWRITEV, IOCB_FLAG_RESFD, IoEvent, Iocb,
};

use super::file::Vectored;
use super::memory::IoVec;
use super::result::{check, check_result};

/// `struct aio_ring` of the kernel's `fs/aio.c`, with the events behind it. It is
/// mapped into the process, and libraries rely on its layout.
#[repr(C)]
struct AioRing {
    id: AtomicU32,
    nr: AtomicU32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: AtomicU32,
    compat_features: AtomicU32,
    incompat_features: AtomicU32,
    header_length: AtomicU32,
}

/// `AIO_RING_MAGIC`
const AIO_RING_MAGIC: u32 = 0xa10a_10a1;

/// One operation to submit. A vectored operation refers to its list of buffers.
#[derive(Clone, Copy, Debug)]
pub struct AioOperation<'a> {
    iocb: Iocb,
    /// The kernel copies the list during submission, but not before.
    buffers: &'a [IoVec],
}

impl<'a> AioOperation<'a> {
    fn new(opcode: u16, file: &File, offset: u64) -> Self {
        Self {
            iocb: Iocb {
                opcode,
                fildes: file.as_raw_fd().cast_unsigned(),
                offset: offset.cast_signed(),
                ..Iocb::default()
            },
            buffers: &[],
        }
    }

    fn single(mut self, buffer: IoVec) -> Self {
        self.iocb.buf = buffer.0.iov_base.expose_provenance() as u64;
        self.iocb.nbytes = buffer.len() as u64;
        self
    }

    fn vectored(mut self, buffers: &'a [IoVec]) -> Self {
        self.iocb.buf = Vectored::new(buffers).pointer().expose_provenance() as u64;
        self.iocb.nbytes = buffers.len() as u64;
        self.buffers = buffers;
        self
    }

    /// `IOCB_CMD_PREAD`
    pub fn pread(file: &File, buffer: IoVec, offset: u64) -> Self {
        Self::new(IOCB_CMD_PREAD, file, offset).single(buffer)
    }

    /// `IOCB_CMD_PWRITE`
    pub fn pwrite(file: &File, buffer: IoVec, offset: u64) -> Self {
        Self::new(IOCB_CMD_PWRITE, file, offset).single(buffer)
    }

    /// `IOCB_CMD_PREADV`
    pub fn preadv(file: &File, buffers: &'a [IoVec], offset: u64) -> Self {
        Self::new(IOCB_CMD_PREADV, file, offset).vectored(buffers)
    }

    /// `IOCB_CMD_PWRITEV`
    pub fn pwritev(file: &File, buffers: &'a [IoVec], offset: u64) -> Self {
        Self::new(IOCB_CMD_PWRITEV, file, offset).vectored(buffers)
    }

    /// `IOCB_CMD_FSYNC`, or `IOCB_CMD_FDSYNC` for the data only.
    pub fn fsync(file: &File, data_only: bool) -> Self {
        let opcode = if data_only {
            IOCB_CMD_FDSYNC
        } else {
            IOCB_CMD_FSYNC
        };
        Self::new(opcode, file, 0)
    }

    /// Sets the number that the result carries.
    pub fn tag(mut self, tag: u64) -> Self {
        self.iocb.data = tag;
        self
    }

    /// Adds flags (`RWF_*`).
    pub fn flags(mut self, flags: i32) -> Self {
        self.iocb.rw_flags |= flags;
        self
    }

    /// Makes the kernel signal an eventfd when the operation has ended.
    pub fn notify(mut self, eventfd: BorrowedFd<'_>) -> Self {
        self.iocb.flags |= IOCB_FLAG_RESFD;
        self.iocb.resfd = eventfd.as_raw_fd().cast_unsigned();
        self
    }
}

/// An asynchronous I/O context.
///
/// The buffers of an operation in flight must stay mapped until its result was taken. If
/// a `Region` is unmapped earlier, the operation ends on pages that no process sees,
/// never on foreign memory, because the kernel holds pages, not addresses.
#[derive(Debug)]
pub struct AioContext(u64);

impl AioContext {
    /// A context for this many operations in flight.
    pub fn new(depth: u32) -> io::Result<Self> {
        let mut context = 0u64;
        // SAFETY: the kernel writes one word.
        let result =
            unsafe { libc::syscall(libc::SYS_io_setup, u64::from(depth), &raw mut context) };
        check(result as isize)?;
        Ok(Self(context))
    }

    /// Submits operations; returns how many the kernel took.
    pub fn submit(&self, operations: &[AioOperation<'_>]) -> io::Result<usize> {
        let mut iocbs: Vec<Iocb> = operations.iter().map(|operation| operation.iocb).collect();
        let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(ptr::from_mut).collect();
        // SAFETY: the kernel copies the control blocks and the lists of buffers
        // before it returns; it writes only their key and, later, to buffers
        // that are mapped, into which no reference exists.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.0,
                pointers.len() as i64,
                pointers.as_ptr(),
            )
        };
        check(result as isize)
    }

    /// Submits one operation that [`Self::cancel`] can name: the kernel identifies it by
    /// its address.
    pub fn submit_in_place(&self, operation: &mut AioOperation<'_>) -> io::Result<()> {
        let pointer = ptr::from_mut(&mut operation.iocb);
        // SAFETY: as in `submit`; the kernel writes the key before it returns.
        let result =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1i64, &raw const pointer) };
        match check(result as isize)? {
            1 => Ok(()),
            _ => Err(io::Error::other("the operation was not taken")),
        }
    }

    /// Asks the kernel to cancel an operation (`io_cancel`).
    pub fn cancel(&self, operation: &AioOperation<'_>) -> io::Result<()> {
        let mut event = IoEvent::default();
        let pointer = ptr::from_ref(&operation.iocb);
        // SAFETY: the kernel reads the key, and writes at most the event.
        let result = unsafe { libc::syscall(libc::SYS_io_cancel, self.0, pointer, &raw mut event) };
        check(result as isize).map(drop)
    }

    /// Takes at least `min` and at most `max` results: tag, and bytes or error. Returns
    /// fewer only after `timeout`.
    pub fn results(
        &self,
        min: usize,
        max: usize,
        timeout: Duration,
    ) -> io::Result<Vec<(u64, io::Result<usize>)>> {
        let deadline = Instant::now() + timeout;
        let mut results = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let missing = min.saturating_sub(results.len());
            // The wait also ends early for a signal, or for io_uring's task work.
            match self.getevents(missing, max - results.len(), left) {
                Ok(more) => results.extend(more),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if results.len() >= min || left.is_zero() {
                return Ok(results);
            }
        }
    }

    /// `io_getevents`
    fn getevents(
        &self,
        min: usize,
        max: usize,
        timeout: Duration,
    ) -> io::Result<Vec<(u64, io::Result<usize>)>> {
        let mut events = vec![IoEvent::default(); max];
        let mut timeout = libc::timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // SAFETY: the kernel writes at most `max` events.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                min as i64,
                max as i64,
                events.as_mut_ptr(),
                &raw mut timeout,
            )
        };
        let count = check(result as isize)?;
        Ok(events[..count]
            .iter()
            .map(|event| (event.data, check_result(event.res)))
            .collect())
    }

    /// Takes the available results without a system call, from the ring that the kernel
    /// maps at the address that is the context's number.
    pub fn reap(&self) -> io::Result<Vec<(u64, io::Result<usize>)>> {
        let start: *const AioRing = ptr::with_exposed_provenance(self.0 as usize);
        // SAFETY: the ring is mapped as long as the context, at the start of a page;
        // all words may change at any time.
        let ring = unsafe { &*start };
        let magic = ring.magic.load(Ordering::Relaxed);
        let incompatible = ring.incompat_features.load(Ordering::Relaxed);
        let header = ring.header_length.load(Ordering::Relaxed);
        let entries = ring.nr.load(Ordering::Relaxed);
        if magic != AIO_RING_MAGIC || incompatible != 0 || header as usize != size_of::<AioRing>() {
            return Err(io::Error::other(format!(
                "no ring that user space may read: {magic:#x}, {incompatible:#x}, {header}"
            )));
        }
        let events: *const IoEvent = start.wrapping_add(1).cast();
        let mut results = Vec::new();
        let mut at = ring.head.load(Ordering::Relaxed);
        // Acquire: the events were written before the tail.
        while at != ring.tail.load(Ordering::Acquire) {
            let place = events.wrapping_add(at as usize);
            // SAFETY: between head and tail, so within the ring, and written.
            let event = unsafe { place.read_volatile() };
            results.push((event.data, check_result(event.res)));
            at = (at + 1) % entries;
            // The kernel may reuse the entry.
            ring.head.store(at, Ordering::Release);
        }
        Ok(results)
    }

    /// Submits one operation and waits for its result.
    pub fn run(&self, operation: AioOperation<'_>) -> io::Result<usize> {
        if self.submit(&[operation])? != 1 {
            return Err(io::Error::other("the operation was not taken"));
        }
        let results = self.results(1, 1, Duration::from_secs(60))?;
        match results.into_iter().next() {
            Some((_, result)) => result,
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for AioContext {
    fn drop(&mut self) {
        // SAFETY: the context belongs to this value. The call waits for what is
        // in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
