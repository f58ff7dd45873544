// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Callers that wait for a free slot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::fixture::{BLOCK, Caller, Fixture, data, expect_asleep, expect_whole};
use super::full::FullQueues;
use crate::case::{
    Context, During, Stop, TIMEOUT, Verdict, eventually, expect_bytes, expect_errno,
};
use crate::fixtures::processes::process;
use crate::fixtures::requests::expect_results;
use crate::sys::{self, AioContext, AioOperation, SleepState, Task};
use crate::{check, check_eq};

/// Threads that wait in order.
const WAITERS: usize = 8;

/// The call that waits.
const CALL: i64 = libc::SYS_pwrite64;

/// The CPU on which all waiters of a test run, and so wait for the same queue.
fn cpu() -> Verdict<usize> {
    let first = sys::cpus()?.first().copied();
    first.ok_or_else(|| Stop::Failed("there is no CPU".into()))
}

fn pwrite(b: &Fixture, i: usize) -> std::io::Result<usize> {
    sys::pwrite(&b.file, b.block(i), Fixture::place(i))
}

/// Overlapping writes that show the order in which the device executed them.
///
/// All writes begin at the same offset, and each is one step shorter than the previous
/// one. Executed in order, each leaves the last step of the previous one uncovered. A
/// write that is executed too late covers a later one.
///
/// The order is strict: waiters get slots in the order in which they are woken; on one
/// CPU under `SCHED_FIFO` they run in that order, each until its request is submitted;
/// and the device executes a queue in order. The order in which the calls return is no
/// proof: a call whose request has ended before its wait returns at once, ahead of those
/// that must be woken.
struct OverlappingWrites<'a> {
    fixture: &'a Fixture,
    count: usize,
    cpu: usize,
}

impl<'a> OverlappingWrites<'a> {
    const STEP: usize = 512;

    fn new(fixture: &'a Fixture, count: usize, cpu: usize) -> Self {
        for i in 0..count {
            fixture.prepare_write(i);
        }
        Self {
            fixture,
            count,
            cpu,
        }
    }

    /// Length of write `i`.
    fn length(&self, i: usize) -> usize {
        (self.count - i) * Self::STEP
    }

    /// Makes write `i`.
    fn write(&self, i: usize) -> Verdict {
        let _pinned = sys::pin_to_cpu(self.cpu)?;
        sys::use_sched_fifo()?;
        let buffer = self.fixture.memory.buffer(i * BLOCK, self.length(i));
        let moved = sys::pwrite(&self.fixture.file, buffer, Fixture::place(0))
            .during(|| format!("waiter {i}"))?;
        check_eq!(moved, self.length(i), "bytes of waiter {i}");
        Ok(())
    }

    /// Starts threads that make the first `count` writes and wait, each after the
    /// previous one sleeps.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        count: usize,
    ) -> Verdict<Vec<Caller<'scope, Verdict>>> {
        let mut callers = Vec::new();
        for i in 0..count {
            let caller = Caller::start(scope, move || self.write(i))?;
            caller
                .expect_asleep(CALL, SleepState::Interruptible)
                .during(|| format!("waiter {i}"))?;
            callers.push(caller);
        }
        Ok(callers)
    }

    /// Checks that the device executed the writes in order.
    fn expect_in_order(&self) -> Verdict {
        let place = Fixture::place(0) as usize;
        let mut covered = 0;
        for i in (0..self.count).rev() {
            let end = self.length(i);
            let seen = self.fixture.bar.load(place + covered, end - covered);
            expect_bytes(
                &seen,
                &data(i)[covered..end],
                &format!("what waiter {i} wrote and no later one covers"),
            )?;
            covered = end;
        }
        Ok(())
    }
}

pub(super) fn in_order(context: &Context) -> Verdict {
    let b = Fixture::new(context, WAITERS)?;
    let writes = OverlappingWrites::new(&b, WAITERS, cpu()?);
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    thread::scope(|scope| {
        // Within, so that it ends before the threads are waited for.
        let stall = stall;
        let callers = writes.start(scope, WAITERS)?;
        stall.resume()?;
        callers.into_iter().try_for_each(|caller| caller.join()?)
    })?;
    full.finish(&b.bar)?;
    writes.expect_in_order()?;
    b.finish()
}

/// A newcomer occupies the CPU of the waiters until all slots are free again, and only
/// then requests a slot: it finds free slots, and waiters that were woken but could not
/// run yet.
pub(super) fn newcomer(context: &Context) -> Verdict {
    let [cpu, other, ..] = sys::cpus()?[..] else {
        return Err(Stop::Skipped("needs two CPUs".into()));
    };
    let b = Fixture::new(context, WAITERS + 1)?;
    let writes = OverlappingWrites::new(&b, WAITERS + 1, cpu);
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    let elsewhere = sys::pin_to_cpu(other)?;
    let (running, go) = (AtomicBool::new(false), AtomicBool::new(false));
    let keep_cpu = || -> Verdict {
        let _pinned = sys::pin_to_cpu(cpu)?;
        sys::use_sched_fifo()?;
        running.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        // The timeout ends the loop of a failed test.
        while !go.load(Ordering::SeqCst) && begun.elapsed() < TIMEOUT {
            std::hint::spin_loop();
        }
        writes.write(WAITERS)
    };
    thread::scope(|scope| {
        // Within, so that it ends before the threads are waited for.
        let stall = stall;
        let mut callers = writes.start(scope, WAITERS)?;
        let newcomer = Caller::start(scope, keep_cpu)?;
        eventually("the start of the newcomer", || {
            Ok(running.load(Ordering::SeqCst))
        })?;
        stall.resume()?;
        full.finish(&b.bar)?;
        for (i, caller) in callers.iter().enumerate() {
            check!(!caller.has_ended(), "waiter {i} got the CPU");
        }
        go.store(true, Ordering::SeqCst);
        callers.push(newcomer);
        callers.into_iter().try_for_each(|caller| caller.join()?)
    })?;
    drop(elsewhere);
    writes.expect_in_order()?;
    b.finish()
}

pub(super) fn interrupted(context: &Context) -> Verdict {
    sys::count_signal(libc::SIGUSR1, false)?;
    sys::count_signal(libc::SIGUSR2, true)?;
    let b = Fixture::new(context, 4)?;
    for i in 0..4 {
        b.prepare_write(i);
    }
    let cpu = cpu()?;
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    // The first in the queue, ahead of the remaining waiters.
    let killed = process(0, || {
        let _pinned = sys::pin_to_cpu(cpu)?;
        pwrite(&b, 0)?;
        Ok(())
    })?;
    expect_asleep(Task::of(&killed), CALL, SleepState::Interruptible)?;
    thread::scope(|scope| {
        // Within, so that it ends before the threads are waited for.
        let stall = stall;
        let start = |i: usize| {
            let b = &b;
            let caller = Caller::start(scope, move || -> Verdict<_> {
                let _pinned = sys::pin_to_cpu(cpu)?;
                Ok(pwrite(b, i))
            })?;
            caller.expect_asleep(CALL, SleepState::Interruptible)?;
            Ok::<_, Stop>(caller)
        };
        let interrupted = start(1)?;
        let restarted = start(2)?;
        let undisturbed = start(3)?;

        killed.kill(libc::SIGKILL)?;
        let end = killed.wait(TIMEOUT).during(|| "the killed waiter".into())?;
        check_eq!(end, Err(libc::SIGKILL), "end of the killed waiter");

        interrupted.task.signal(libc::SIGUSR1)?;
        expect_errno(
            interrupted.join()??,
            &[libc::EINTR],
            "the interrupted waiter",
        )?;

        let before = sys::signals_counted();
        restarted.task.signal(libc::SIGUSR2)?;
        eventually("the handling of the signal", || {
            Ok(sys::signals_counted() > before)
        })?;
        restarted.expect_asleep(CALL, SleepState::Interruptible)?;
        undisturbed.expect_asleep(CALL, SleepState::Interruptible)?;

        stall.resume()?;
        expect_whole(restarted.join()??, "the restarted waiter")?;
        expect_whole(undisturbed.join()??, "the waiter behind")
    })?;
    full.finish(&b.bar)?;
    for i in [2, 3] {
        b.expect_written(i)?;
    }
    for i in [0, 1] {
        check!(b.expect_written(i).is_err(), "write {i} was made after all");
    }
    b.finish()
}

/// Submits writes that find no slot, by Linux AIO.
pub(super) fn asynchronous(context: &Context) -> Verdict {
    const REQUESTS: usize = 4;

    sys::count_signal(libc::SIGUSR1, false)?;
    let b = Fixture::new(context, REQUESTS)?;
    for i in 0..REQUESTS {
        b.prepare_write(i);
    }
    let cpu = cpu()?;
    let aio = AioContext::new(REQUESTS as u32)?;
    let submit = |aio: &AioContext| -> Verdict<usize> {
        let _pinned = sys::pin_to_cpu(cpu)?;
        let writes: Vec<_> = (0..REQUESTS)
            .map(|i| AioOperation::pwrite(&b.file, b.block(i), Fixture::place(i)).tag(i as u64))
            .collect();
        Ok(aio.submit(&writes)?)
    };
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    let killed = process(0, || submit(&AioContext::new(REQUESTS as u32)?).map(drop))?;
    expect_asleep(
        Task::of(&killed),
        libc::SYS_io_submit,
        SleepState::Uninterruptible,
    )?;
    thread::scope(|scope| {
        // Within, so that it ends before the thread is waited for.
        let stall = stall;
        let caller = Caller::start(scope, || submit(&aio))?;
        caller.expect_asleep(libc::SYS_io_submit, SleepState::Uninterruptible)?;

        killed.kill(libc::SIGKILL)?;
        let end = killed
            .wait(TIMEOUT)
            .during(|| "the killed submitter".into())?;
        check_eq!(end, Err(libc::SIGKILL), "end of the killed submitter");

        let before = sys::signals_counted();
        caller.task.signal(libc::SIGUSR1)?;
        thread::sleep(Duration::from_millis(100));
        check!(!caller.has_ended(), "a signal ended io_submit");
        let early = aio.results(0, REQUESTS, Duration::ZERO)?;
        check!(early.is_empty(), "a signal ended requests: {early:?}");

        stall.resume()?;
        check_eq!(caller.join()??, REQUESTS, "requests taken");
        check!(
            sys::signals_counted() > before,
            "the signal was not handled"
        );
        expect_results(aio.results(REQUESTS, REQUESTS, TIMEOUT)?, REQUESTS, BLOCK)
    })?;
    full.finish(&b.bar)?;
    for i in 0..REQUESTS {
        b.expect_written(i)?;
    }
    b.finish()
}
