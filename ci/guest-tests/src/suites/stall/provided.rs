// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads into provided buffers of io_uring, while the device is stalled.

use std::thread;
use std::time::Duration;

use super::super::provided::{MAX_READS, PROVISIONS, Reads};
use super::fixture::{Caller, Fixture, expect_asleep};
use crate::case::{Context, During, TIMEOUT, Verdict};
use crate::fixtures::processes::process;
use crate::sys::{Kind, Provision, SleepState, Task};
use crate::{check, check_eq};

pub(super) fn in_flight(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    let direct = context.open_with(libc::O_RDWR | libc::O_DIRECT)?;
    for kind in [Kind::Plain, Kind::SqPoll, Kind::DeferTaskrun, Kind::IoPoll] {
        let file = match kind {
            Kind::IoPoll => &direct,
            _ => &b.file,
        };
        for provision in PROVISIONS {
            for count in [1, 2, MAX_READS] {
                let what = || format!("{kind:?}, {provision:?}, {count} reads");
                let mut reads = Reads::new(kind, provision, count, 4096).during(what)?;
                reads.prepare(&b.bar, 4700);
                let stall = b.host.stall()?;
                reads.submit(file).during(what)?;
                let early = reads.ring.results(count, Duration::ZERO)?;
                check!(
                    early.is_empty(),
                    "{}: results of a stalled device: {early:?}",
                    what()
                );
                stall.resume()?;
                reads
                    .expect(4700)
                    .and_then(|()| reads.again(file))
                    .during(what)?;
            }
        }
    }
    b.finish()
}

/// On a pollable file the caller waits, and can be killed.
pub(super) fn nonblock(context: &Context) -> Verdict {
    const CALL: i64 = libc::SYS_io_uring_enter;

    let b = Fixture::new(context, 1)?;
    let file = context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    for provision in PROVISIONS {
        let mut reads = Reads::new(Kind::Plain, provision, 16, 4096)?;
        reads.prepare(&b.bar, 4800);
        let reads = &mut reads;
        thread::scope(|scope| {
            // Within, so that it ends before the threads are waited for.
            let stall = b.host.stall()?;
            let file = &file;
            let caller = Caller::start(scope, move || -> Verdict<_> {
                reads.submit(file)?;
                Ok(reads)
            })?;
            caller.expect_asleep(CALL, SleepState::Uninterruptible)?;
            stall.resume()?;
            let reads = caller.join()??;
            reads.expect(4800).and_then(|()| reads.again(file))
        })
        .during(|| format!("{provision:?}"))?;
    }

    let stall = b.host.stall()?;
    let killed = process(0, || {
        Reads::new(Kind::Plain, Provision::Ring, 1, 4096)?.submit(&file)
    })?;
    expect_asleep(Task::of(&killed), CALL, SleepState::Uninterruptible)?;
    killed.kill(libc::SIGKILL)?;
    let end = killed.wait(TIMEOUT)?;
    check_eq!(end, Err(libc::SIGKILL), "end of the killed process");
    stall.resume()?;
    b.finish()
}
