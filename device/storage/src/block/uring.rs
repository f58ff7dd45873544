// SPDX-License-Identifier: Apache-2.0 OR MIT

//! io_uring.
//!
//! # Memory that the kernel has
//!
//! The kernel reads and writes the memory of an operation from when it is submitted until its
//! completion is seen, whatever becomes of this process's threads meanwhile. An operation
//! therefore moves into the ring and out again with its completion ([`Uring::in_flight`]), and
//! a ring that is dropped, after a panic too, first waits for all of them. Where it cannot
//! wait, it leaks them.
//!
//! # What a ring can do
//!
//! Seccomp filters do not apply to the operations of a ring. So the kernel restricts the ring itself,
//! before its first operation, to those of this module ([`OPERATIONS`]).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use tracing::error;

use crate::disk::ring::{Action, Io, Ring, Waker};
use crate::disk::wake::Wake;

/// Completions that the kernel keeps for each submission it takes at once.
const COMPLETIONS_PER_ENTRY: u32 = 4;

/// The number of the operation that waits for the waker; others are places.
const WAKE: u64 = u64::MAX;

/// Most bytes of one read or write. The kernel executes no more at once (`MAX_RW_COUNT`).
const MAX_BYTES: usize = 1 << 30;

/// The operations that are used. The kernel refuses all others (io_uring_register(2),
/// `IORING_REGISTER_RESTRICTIONS`), and all further calls of io_uring_register(2).
const OPERATIONS: [u8; 5] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fallocate::CODE,
    opcode::Fsync::CODE,
    opcode::PollAdd::CODE,
];

/// How long to wait for the kernel to have memory again.
const PAUSE: Duration = Duration::from_millis(1);

/// A ring with the operations that the kernel has.
pub(crate) struct Uring {
    ring: IoUring,
    file: Arc<File>,
    /// By place, which is the number that the kernel knows an operation by.
    ///
    /// # Invariants
    ///
    /// What was submitted and has not completed is here, and moves nowhere. (Its memory is
    /// on the heap.)
    in_flight: Vec<Option<Io>>,
    /// Places without an operation.
    free: Vec<usize>,
    wake: Wake,
    /// The kernel waits for the waker.
    armed: bool,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for operations on `file`, which takes `entries` submissions at once. It belongs
    /// to the thread that makes it.
    ///
    /// On a kernel before Linux 5.10, which cannot restrict a ring, this is
    /// [`io::ErrorKind::Unsupported`].
    pub(crate) fn new(file: Arc<File>, entries: u32) -> io::Result<Self> {
        let build = |own_thread: bool| {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
            // Until it is restricted.
            builder.setup_r_disabled();
            if own_thread {
                builder.setup_single_issuer().setup_defer_taskrun();
            }
            builder.build(entries)
        };
        // Linux 6.1 has these two.
        let ring = build(true).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => build(false),
            _ => Err(error),
        });
        let ring = ring.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel cannot restrict a ring of io_uring: Linux 5.10 or later is needed",
            ),
            _ => error,
        })?;
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        // Now the ring belongs to this thread.
        submitter.register_enable_rings()?;
        // One place for the waker: there is never a completion without room.
        let places = ring.params().cq_entries() as usize - 1;
        Ok(Self {
            ring,
            file,
            in_flight: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            wake: Wake::new()?,
            armed: false,
        })
    }

    /// What wakes the thread of this ring.
    pub(crate) fn waker(&self) -> Waker {
        self.wake.waker()
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// Puts an entry into the submission queue. Returns whether there was room.
    fn submit(&mut self, entry: &squeue::Entry) -> bool {
        if self.ring.submission().is_full() {
            // Room where the kernel takes some; an error is met again at the next turn.
            let _ = self.ring.submit();
        }
        // SAFETY: The memory of an entry belongs to an operation of `in_flight` and stays
        // there until the kernel says that it is done; the file and the descriptor of the
        // waker are open as long as the ring.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Submits what is in the submission queue, and waits for `want` completions.
    fn enter(&mut self, want: u32) -> io::Result<()> {
        let count = self.ring.submission().len() as u32;
        // SAFETY: No argument of the call refers to memory. The entries are those of
        // `Self::submit`.
        let entered = unsafe {
            self.ring
                .submitter()
                .enter::<()>(count, want, EnterFlags::GETEVENTS.bits(), None)
        };
        match entered.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) | Err(Some(libc::EINTR)) => Ok(()),
            Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => {
                std::thread::sleep(PAUSE);
                Ok(())
            }
            Err(_) => entered.map(drop),
        }
    }

    /// Has the kernel say when the waker is called.
    fn arm(&mut self) {
        let fd = types::Fd(self.wake.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32);
        self.armed = self.submit(&entry.build().user_data(WAKE));
    }

    /// Takes the completions that there are.
    fn reap(&mut self, ended: &mut Vec<(Io, i32)>) {
        let completions: &mut dyn Iterator<Item = cqueue::Entry> = &mut self.ring.completion();
        for completion in completions {
            match completion.user_data() {
                WAKE => {
                    self.armed = false;
                    self.wake.clear();
                }
                place => {
                    // The kernel returns the numbers that it was given.
                    let io = usize::try_from(place).ok().and_then(|place| {
                        let io = self.in_flight.get_mut(place)?.take()?;
                        self.free.push(place);
                        Some(io)
                    });
                    ended.extend(io.map(|io| (io, completion.result())));
                }
            }
        }
    }
}

/// The entry of an operation.
fn entry(file: &File, io: &Io) -> squeue::Entry {
    let fd = types::Fd(file.as_raw_fd());
    let length = |part: &std::ops::Range<usize>| part.len().min(MAX_BYTES) as u32;
    match &io.action {
        Action::Read { at, memory, part } => {
            let start = memory.as_ptr().wrapping_add(part.start);
            opcode::Read::new(fd, start, length(part))
                .offset(*at)
                .build()
        }
        Action::Write { at, memory, part } => {
            let start = memory.as_ptr().wrapping_add(part.start);
            opcode::Write::new(fd, start, length(part))
                .offset(*at)
                .build()
        }
        Action::WriteZeros { at, memory, part } => {
            let start = memory.as_ptr().wrapping_add(part.start);
            opcode::Write::new(fd, start, length(part))
                .offset(*at)
                .build()
        }
        Action::Allocate { mode, at, length } => opcode::Fallocate::new(fd, *length)
            .offset(*at)
            .mode(mode.bits() as i32)
            .build(),
        Action::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

impl Ring for Uring {
    const NAME: &'static str = "io_uring";

    fn push(&mut self, io: Io) -> Result<(), Io> {
        let Some(place) = self.free.pop() else {
            return Err(io);
        };
        let part = match &io.action {
            Action::Read { memory, part, .. } | Action::Write { memory, part, .. } => {
                Some((part, memory.len()))
            }
            Action::WriteZeros { memory, part, .. } => Some((part, memory.len())),
            Action::Allocate { .. } | Action::Sync => None,
        };
        if let Some((part, length)) = part {
            assert!(part.start <= part.end && part.end <= length);
        }
        let entry = entry(&self.file, &io).user_data(place as u64);
        // INVARIANT: Here before the kernel can know of it.
        self.in_flight[place] = Some(io);
        if self.submit(&entry) {
            return Ok(());
        }
        self.free.push(place);
        // PANIC: It was put there above.
        Err(self.in_flight[place].take().expect("it is in its place"))
    }

    fn turn(&mut self, wait: bool, ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        if wait && !self.armed {
            self.arm();
        }
        // Without the waker nobody may wait, unless for operations.
        let wait = wait && (self.armed || self.in_flight() > 0);
        self.enter(wait.into())?;
        self.reap(ended);
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.in_flight() > 0 {
            if let Err(error) = self.enter(1) {
                error!(%error, "operations of a disk cannot be waited for: their memory is lost");
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
            self.reap(&mut ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of an operation of the ring.
    fn result(uring: &mut Uring, entry: &squeue::Entry) -> i32 {
        assert!(uring.submit(entry));
        uring.enter(1).unwrap();
        let mut completions = uring.ring.completion();
        let completion = completions.next().unwrap();
        assert!(completions.next().is_none());
        completion.result()
    }

    #[test]
    fn the_kernel_refuses_operations_that_are_not_used() {
        let file = File::open("/dev/zero").unwrap();
        let fd = types::Fd(file.as_raw_fd());
        let mut uring = Uring::new(Arc::new(file.try_clone().unwrap()), 4).unwrap();
        let path = c"/etc/passwd";
        let mut byte = 1;
        let forbidden = [
            opcode::Nop::new().build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), c"".as_ptr()).build(),
            opcode::Recv::new(fd, &raw mut byte, 1).build(),
            opcode::Close::new(fd).build(),
        ];
        for entry in &forbidden {
            assert_eq!(result(&mut uring, entry), -libc::EACCES, "{entry:?}");
        }
        let read = opcode::Read::new(fd, &raw mut byte, 1).build();
        assert_eq!(result(&mut uring, &read), 1);
        assert_eq!(byte, 0);
    }

    #[test]
    fn nobody_can_lift_the_restriction() {
        let uring = Uring::new(Arc::new(File::open("/dev/zero").unwrap()), 4).unwrap();
        let submitter = uring.ring.submitter();
        let nop = Restriction::sqe_op(opcode::Nop::CODE);
        let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        assert!(refused(submitter.register_restrictions(&mut [nop])).is_some());
        // No file can come to the ring by another way.
        assert_eq!(refused(submitter.register_files(&[0])), Some(libc::EACCES));
    }
}
