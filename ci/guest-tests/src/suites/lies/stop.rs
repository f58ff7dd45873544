// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies about the end of DMA.
//!
//! The virtual machine monitor implements the status register, and shows a reset only
//! when it is complete: the write of 0 does not return before. So over this transport a
//! reset can be late, but cannot fail.

use std::time::{Duration, Instant};

use ringbar_agent_protocol::host::{Lie, UsedLie};

use super::device::{BLOCK, LyingDevice};
use crate::case::{Case, Context, TIMEOUT, Verdict, expect_errno};
use crate::fixtures::device::all_released;
use crate::fixtures::driver::{bind, unbind};
use crate::pins::Pins;
use crate::sys::{AioContext, AioOperation, Region};
use crate::{check, check_eq};

/// Delay of a reset.
const DELAY: Duration = Duration::from_millis(1500);

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("dr3_unbind_waits_for_a_late_reset", unbind_late),
        Case::new(
            "dr3_pages_stay_pinned_until_a_late_reset",
            out_of_service_late,
        )
        .provokes("the device broke queue "),
    ]
}

/// Requests that the device never answers.
pub(super) struct InFlight {
    aio: AioContext,
    memory: Region,
}

impl InFlight {
    const REQUESTS: usize = 4;

    pub(super) fn new(liar: &LyingDevice<'_>) -> Verdict<Self> {
        let file = liar.context.open()?;
        let aio = AioContext::new(Self::REQUESTS as u32)?;
        let memory = Region::anonymous(Self::REQUESTS * BLOCK)?;
        for i in 0..Self::REQUESTS {
            liar.lie(UsedLie::Never)?;
            let read = AioOperation::pread(&file, memory.buffer(i * BLOCK, BLOCK), 0);
            check_eq!(aio.submit(&[read])?, 1, "requests taken");
        }
        liar.expect_told(Self::REQUESTS as u64)?;
        let early = aio.results(0, Self::REQUESTS, Duration::ZERO)?;
        check!(early.is_empty(), "results without an answer: {early:?}");
        let pages = (Self::REQUESTS * BLOCK / crate::sys::PAGE) as u64;
        check_eq!(Pins::read()?.pinned(), pages, "pinned pages");
        Ok(Self { aio, memory })
    }

    pub(super) fn expect_ended(self, errno: i32) -> Verdict {
        let results = self.aio.results(Self::REQUESTS, Self::REQUESTS, TIMEOUT)?;
        check_eq!(results.len(), Self::REQUESTS, "results");
        for (_, result) in results {
            expect_errno(result, &[errno], "a request without an answer")?;
        }
        all_released()?;
        drop(self.memory);
        Ok(())
    }
}

fn unbind_late(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let requests = InFlight::new(&liar)?;
    liar.tell(Lie::SlowStop(DELAY.as_millis() as u32))?;
    let begun = Instant::now();
    unbind(&liar.address)?;
    let took = begun.elapsed();
    let ended = requests.expect_ended(libc::ENODEV);
    bind(context, &liar.address)?;
    ended?;
    check!(took >= DELAY, "unbind took {took:?}, the reset {DELAY:?}");
    liar.expect_in_order()
}

fn out_of_service_late(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let requests = InFlight::new(&liar)?;
    liar.tell(Lie::SlowStop(DELAY.as_millis() as u32))?;
    let begun = Instant::now();
    let file = context.open()?;
    let memory = Region::anonymous(BLOCK)?;
    liar.lie(UsedLie::Id(u32::MAX))?;
    let read = crate::sys::pread(&file, memory.buffer(0, BLOCK), 0);
    expect_errno(read, &[libc::EIO], "the read that is lied about")?;
    // This read was in flight, too, so it ends after the reset.
    let took = begun.elapsed();
    check!(took >= DELAY, "the read took {took:?}, the reset {DELAY:?}");
    requests.expect_ended(libc::EIO)?;
    liar.expect_out_of_service()?;
    liar.expect_line(&["the device broke queue "])?;
    liar.bring_back()
}
