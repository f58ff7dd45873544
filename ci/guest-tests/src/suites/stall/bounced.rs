// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All bounce buffers in use, because the device is stalled.

use std::thread;

use super::fixture::{Caller, Fixture, expect_whole};
use super::full::FullQueues;
use crate::case::{Context, Verdict, expect_errno};
use crate::check;
use crate::sys::{self, SleepState};

/// A call waits for bounce buffers, a nonblocking call is refused, and a signal ends the
/// wait.
pub(super) fn all_in_use(context: &Context) -> Verdict {
    sys::count_signal(libc::SIGUSR1, false)?;
    let b = Fixture::new(context, 1)?;
    b.prepare_read(0);
    let place = Fixture::place(0);
    let stall = b.host.stall()?;
    // Bounce buffers run out first: there are fewer than ring entries.
    let full = FullQueues::fill(&b.file)?;
    let nowait = sys::preadv2(&b.file, &[b.block(0)], Some(place), libc::RWF_NOWAIT);
    expect_errno(nowait, &[libc::EAGAIN], "preadv2 with RWF_NOWAIT")?;
    let read = thread::scope(|scope| {
        // Within, so that it ends before the threads are waited for.
        let stall = stall;
        let read = || sys::pread(&b.file, b.block(0), place);
        let patient = Caller::start(scope, read)?;
        let impatient = Caller::start(scope, read)?;
        for caller in [&patient, &impatient] {
            caller.expect_asleep(libc::SYS_pread64, SleepState::Interruptible)?;
        }
        impatient.task.signal(libc::SIGUSR1)?;
        expect_errno(impatient.join()?, &[libc::EINTR], "an interrupted call")?;
        check!(!patient.has_ended(), "the read did not wait");
        stall.resume()?;
        patient.join()
    })?;
    expect_whole(read, "pread")?;
    b.expect_read(0)?;
    full.finish(&b.bar)?;
    b.finish()
}
