// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Doorbells and interrupts of requests that are submitted together.

use super::fixture::{BLOCK, DEPTH, Fixture, TIMEOUT};
use crate::case::{Context, Verdict};
use crate::fixtures::requests::expect_results;
use crate::sys::{AioContext, AioOperation, Buffers, Ring, UringOperation};
use crate::{check, check_eq};

/// Batches of [`DEPTH`] requests.
const ROUNDS: u64 = 10;

/// Numbers of doorbells and interrupts.
#[derive(Clone, Copy, Debug)]
struct NotificationCounts {
    requests: u64,
    doorbells: u64,
    interrupts: u64,
}

impl NotificationCounts {
    fn now(context: &Context) -> Verdict<Self> {
        Ok(Self {
            requests: context.counter("requests")?,
            doorbells: context.counter("doorbells")?,
            interrupts: context.interrupts()?,
        })
    }

    /// During [`ROUNDS`] calls.
    fn during(context: &Context, mut round: impl FnMut() -> Verdict) -> Verdict<Self> {
        let before = Self::now(context)?;
        for _ in 0..ROUNDS {
            round()?;
        }
        let after = Self::now(context)?;
        let counted = Self {
            requests: after.requests - before.requests,
            doorbells: after.doorbells - before.doorbells,
            interrupts: after.interrupts - before.interrupts,
        };
        check_eq!(counted.requests, ROUNDS * DEPTH as u64, "requests");
        Ok(counted)
    }
}

fn expect_batches(counted: NotificationCounts) -> Verdict {
    // One of each per batch, and one more if the submitter migrated to another CPU, and
    // so to another queue.
    check!(
        counted.doorbells <= 2 * ROUNDS,
        "{ROUNDS} batches of {DEPTH}: {counted:?}"
    );
    check!(
        counted.interrupts < counted.requests,
        "{ROUNDS} batches of {DEPTH}: {counted:?}"
    );
    Ok(())
}

pub(super) fn aio(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    b.fill_blocks(0);
    let aio = AioContext::new(DEPTH as u32)?;
    let counted = NotificationCounts::during(context, || {
        let reads: Vec<_> = (0..DEPTH)
            .map(|i| AioOperation::pread(&b.file, b.block(i), Fixture::place(i)).tag(i as u64))
            .collect();
        check_eq!(aio.submit(&reads)?, DEPTH, "operations taken");
        expect_results(aio.results(DEPTH, DEPTH, TIMEOUT)?, DEPTH, BLOCK)
    })?;
    expect_batches(counted)
}

pub(super) fn uring(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    b.fill_blocks(0);
    let mut ring = Ring::new(DEPTH as u32)?;
    let counted = NotificationCounts::during(context, || {
        let reads: Vec<_> = (0..DEPTH)
            .map(|i| {
                let buffer = Buffers::One(b.block(i));
                UringOperation::read(&b.file, buffer, Fixture::place(i)).tag(i as u64)
            })
            .collect();
        check_eq!(ring.submit(&reads)?, DEPTH, "operations taken");
        expect_results(ring.results(DEPTH, TIMEOUT)?, DEPTH, BLOCK)
    })?;
    expect_batches(counted)
}
