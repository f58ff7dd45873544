// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Synchronous callers that wait for the device.

use std::fs::File;
use std::io;
use std::thread;

use super::fixture::{BLOCK, Caller, Fixture, data, expect_asleep, expect_whole};
use crate::case::{Context, During, TIMEOUT, Verdict, expect_bytes};
use crate::fixtures::device::{all_released, pinned};
use crate::fixtures::processes::process;
use crate::pattern;
use crate::pins::Pins;
use crate::sys::{self, PAGE, Region, SleepState, Task};
use crate::{check, check_eq};

/// Bytes of a transfer that is split into many requests.
const LARGE: usize = 8 << 20;

/// A call that waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Pread,
    Pwrite,
    Preadv,
    Pwritev,
    LargePread,
    LargePwrite,
    Fsync,
}

impl Call {
    const ALL: [Self; 7] = [
        Self::Pread,
        Self::Pwrite,
        Self::Preadv,
        Self::Pwritev,
        Self::LargePread,
        Self::LargePwrite,
        Self::Fsync,
    ];

    /// Number of the system call.
    fn number(self) -> i64 {
        match self {
            Self::Pread | Self::LargePread => libc::SYS_pread64,
            Self::Pwrite | Self::LargePwrite => libc::SYS_pwrite64,
            Self::Preadv => libc::SYS_preadv,
            Self::Pwritev => libc::SYS_pwritev,
            Self::Fsync => libc::SYS_fsync,
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Pwrite | Self::Pwritev | Self::LargePwrite)
    }

    fn reads(self) -> bool {
        matches!(self, Self::Pread | Self::Preadv | Self::LargePread)
    }

    /// Number of bytes of the call.
    fn length(self) -> usize {
        match self {
            Self::Fsync => 0,
            Self::LargePread | Self::LargePwrite => LARGE,
            _ => BLOCK,
        }
    }

    /// Number of pages that the call pins. A page in two buffers counts twice.
    fn pins(self) -> usize {
        match self {
            Self::Preadv | Self::Pwritev => BLOCK / PAGE + 2,
            _ => self.length() / PAGE,
        }
    }

    fn data(self) -> &'static [u8] {
        pattern::bytes(900 + self as u64, self.length())
    }

    /// Makes the call at offset 0 of the device. Returns the number of bytes.
    fn make(self, file: &File, memory: &Region) -> io::Result<usize> {
        let whole = memory.buffer(0, self.length());
        let parts = [
            memory.buffer(0, 1000),
            memory.buffer(1000, 5001),
            memory.buffer(6001, BLOCK - 6001),
        ];
        match self {
            Self::Pread | Self::LargePread => sys::pread(file, whole, 0),
            Self::Pwrite | Self::LargePwrite => sys::pwrite(file, whole, 0),
            Self::Preadv => sys::preadv(file, &parts, 0),
            Self::Pwritev => sys::pwritev(file, &parts, 0),
            Self::Fsync => sys::fsync(file).map(|()| 0),
        }
    }

    /// Stores test data in the source of the call, and other bytes in its target.
    fn prepare(self, bar: &Region, memory: &Region) {
        if self.writes() {
            memory.store(0, self.data());
            bar.fill(0, self.length(), 0xaa);
        } else {
            bar.store(0, self.data());
            memory.fill(0, self.length().max(1), 0xbb);
        }
    }

    /// Checks the test data in the target of the call.
    fn expect_moved(self, bar: &Region, memory: &Region) -> Verdict {
        let place = if self.writes() { bar } else { memory };
        let seen = place.load(0, self.length());
        expect_bytes(&seen, self.data(), &format!("data of {self:?}"))
    }
}

pub(super) fn killed(context: &Context) -> Verdict {
    let b = Fixture::new(context, LARGE / BLOCK)?;
    for call in Call::ALL {
        let during = || format!("{call:?}");
        call.prepare(&b.bar, &b.memory);
        let stall = b.host.stall()?;
        let child = process(0, || {
            // Fresh pages, because the parent's are shared until written to.
            let memory = Region::anonymous(LARGE)?;
            memory.fill(0, LARGE, 0);
            memory.store(0, call.data());
            call.make(&b.file, &memory)?;
            Ok(())
        })?;
        expect_asleep(Task::of(&child), call.number(), SleepState::Uninterruptible)
            .during(during)?;
        child.kill(libc::SIGKILL)?;
        let end = child.wait(TIMEOUT).during(during)?;
        check_eq!(end, Err(libc::SIGKILL), "end of the process in {call:?}");
        let held = Pins::read()?.pinned();
        check_eq!(held, call.pins() as u64, "pages pinned after {call:?}");
        stall.resume()?;
        all_released().during(during)?;
        if call.writes() {
            // The device has the request, and executes it.
            call.expect_moved(&b.bar, &b.memory)?;
        }
        b.finish().during(during)?;
    }
    Ok(())
}

pub(super) fn signals(context: &Context) -> Verdict {
    /// Number of signals sent while the device is stalled.
    const SIGNALS: usize = 20;

    sys::count_signal(libc::SIGUSR1, false)?;
    let b = Fixture::new(context, LARGE / BLOCK)?;
    for call in Call::ALL {
        let during = || format!("{call:?}");
        let before = sys::signals_counted();
        call.prepare(&b.bar, &b.memory);
        let stall = b.host.stall()?;
        let result = thread::scope(|scope| {
            // Within, so that it ends before the thread is waited for.
            let stall = stall;
            let caller = Caller::start(scope, || call.make(&b.file, &b.memory))?;
            caller.expect_asleep(call.number(), SleepState::Uninterruptible)?;
            for _ in 0..SIGNALS {
                caller.task.signal(libc::SIGUSR1)?;
            }
            caller.expect_asleep(call.number(), SleepState::Uninterruptible)?;
            check!(!caller.has_ended(), "a signal ended the call");
            stall.resume()?;
            // Further signals while the call ends.
            while !caller.has_ended() {
                if caller.task.signal(libc::SIGUSR1).is_err() {
                    break;
                }
                thread::yield_now();
            }
            caller.join()
        });
        let moved = result.during(during)?.during(during)?;
        check_eq!(moved, call.length(), "bytes of {call:?}");
        if call.writes() || call.reads() {
            call.expect_moved(&b.bar, &b.memory)?;
        }
        check!(
            sys::signals_counted() > before,
            "no signal was handled in {call:?}"
        );
    }
    b.finish()
}

/// Reads into pages that are removed from their file during the read, and so are clean
/// when the device has written to them.
pub(super) fn cleaned(context: &Context) -> Verdict {
    const ROUNDS: usize = 3;

    let b = Fixture::new(context, 1)?;
    let memfd = sys::memfd(BLOCK as u64)?;
    let memory = Region::shared(&memfd, 0, BLOCK)?;
    let read = || sys::pread(&b.file, memory.buffer(0, BLOCK), Fixture::place(0));
    for round in 0..ROUNDS {
        b.prepare_read(0);
        let stall = b.host.stall()?;
        let result: Verdict<_> = thread::scope(|scope| {
            // Within, so that it ends before the thread is waited for.
            let stall = stall;
            let caller = Caller::start(scope, read)?;
            caller.expect_asleep(libc::SYS_pread64, SleepState::Uninterruptible)?;
            pinned(BLOCK / PAGE)?;
            sys::punch_hole(&memfd, 0, BLOCK as u64)?;
            stall.resume()?;
            caller.join()
        });
        expect_whole(result?, &format!("read {round}"))?;
        all_released()?;
        expect_bytes(&memory.load(0, BLOCK), &[0; BLOCK], "what the file has now")?;
    }
    // A read into pages that are not removed.
    expect_whole(read(), "the last read")?;
    expect_bytes(&memory.load(0, BLOCK), data(0), "what was read last")?;
    b.finish()
}

pub(super) fn vectored(context: &Context) -> Verdict {
    let b = Fixture::new(context, 2)?;
    b.prepare_write(0);
    b.prepare_read(1);
    let split = |i: usize| {
        let at = i * BLOCK;
        [
            b.memory.buffer(at, 1),
            b.memory.buffer(at + 1, 9000),
            b.memory.buffer(at + 9001, BLOCK - 9001),
        ]
    };
    // Two files with a position each.
    let (writer, reader) = (context.open()?, context.open()?);
    for (file, i) in [(&writer, 0), (&reader, 1)] {
        sys::lseek(file, Fixture::place(i).cast_signed(), libc::SEEK_SET)?;
    }
    let stall = b.host.stall()?;
    let results: Verdict<_> = thread::scope(|scope| {
        let stall = stall;
        let write = Caller::start(scope, || sys::writev(&writer, &split(0)))?;
        let read = Caller::start(scope, || sys::readv(&reader, &split(1)))?;
        write.expect_asleep(libc::SYS_writev, SleepState::Uninterruptible)?;
        read.expect_asleep(libc::SYS_readv, SleepState::Uninterruptible)?;
        stall.resume()?;
        Ok((write.join()?, read.join()?))
    });
    let (written, read) = results?;
    expect_whole(written, "writev")?;
    expect_whole(read, "readv")?;
    b.expect_written(0)?;
    b.expect_read(1)?;
    for (file, i) in [(&writer, 0), (&reader, 1)] {
        let position = sys::lseek(file, 0, libc::SEEK_CUR)?;
        let end = Fixture::place(i) + data(i).len() as u64;
        check_eq!(position, end, "position of file {i}");
    }
    b.finish()
}
