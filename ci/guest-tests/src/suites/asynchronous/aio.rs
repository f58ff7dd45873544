// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Linux AIO.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::fixture::{BLOCK, DEPTH, Fixture, TIMEOUT};
use super::window::{SLOT, WIDTH, expect_failures, window};
use crate::case::{Context, Verdict, expect_bytes};
use crate::fixtures::requests::{expect_results, expect_signals};
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, IoVec};
use crate::{check, check_eq};

pub(super) fn aio_depth(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    b.fill_blocks(1000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pwrite(&b.file, b.block(i), Fixture::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&writes)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_device(1000)?;

    b.fill_device(2000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pread(&b.file, b.block(i), Fixture::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&reads)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_memory(2000)
}

/// Splits buffer `i` into three parts.
fn split(b: &Fixture, i: usize) -> [IoVec; 3] {
    let at = i * BLOCK;
    [
        b.memory.buffer(at, 1),
        b.memory.buffer(at + 1, 2047),
        b.memory.buffer(at + 2048, BLOCK - 2048),
    ]
}

pub(super) fn aio_vectored(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    let lists: Vec<_> = (0..DEPTH).map(|i| split(&b, i)).collect();
    b.fill_blocks(3000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::pwritev(&b.file, &lists[i], Fixture::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&writes)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_device(3000)?;

    b.fill_device(4000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| AioOperation::preadv(&b.file, &lists[i], Fixture::place(i)).tag(i as u64))
        .collect();
    check_eq!(aio.submit(&reads)?, DEPTH, "operations taken");
    expect_results(aio.results(DEPTH, DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_memory(4000)
}

pub(super) fn aio_window(context: &Context) -> Verdict {
    let b = Fixture::new(context, WIDTH * SLOT)?;
    window(&b, &mut AioContext::new(WIDTH as u32)?)
}

pub(super) fn aio_eventfd(context: &Context) -> Verdict {
    const REQUESTS: usize = 5;

    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    let eventfd = sys::eventfd()?;
    b.fill_blocks(5000);
    let writes: Vec<_> = (0..REQUESTS)
        .map(|i| {
            AioOperation::pwrite(&b.file, b.block(i), Fixture::place(i))
                .tag(i as u64)
                .notify(eventfd.as_fd())
        })
        .collect();
    check_eq!(aio.submit(&writes)?, REQUESTS, "operations taken");
    expect_signals(&eventfd, REQUESTS as u64, TIMEOUT)?;
    // All results are available by now.
    let results = aio.results(REQUESTS, REQUESTS, Duration::ZERO)?;
    expect_results(results, REQUESTS, BLOCK)
}

pub(super) fn aio_many(context: &Context) -> Verdict {
    /// More than the entries of all queues together.
    const REQUESTS: usize = 2048;
    const LENGTH: usize = 512;

    let b = Fixture::new(context, REQUESTS * LENGTH)?;
    let aio = AioContext::new(REQUESTS as u32)?;
    let data = pattern::bytes(6000, REQUESTS * LENGTH);
    b.memory.store(0, data);
    let writes: Vec<_> = (0..REQUESTS)
        .map(|i| {
            let buffer = b.memory.buffer(i * LENGTH, LENGTH);
            AioOperation::pwrite(&b.file, buffer, (i * LENGTH) as u64).tag(i as u64)
        })
        .collect();
    let mut taken = 0;
    while taken < REQUESTS {
        let more = aio.submit(&writes[taken..])?;
        check!(more > 0, "only {taken} of {REQUESTS} operations taken");
        taken += more;
    }
    let results = aio.results(REQUESTS, REQUESTS, TIMEOUT)?;
    expect_results(results, REQUESTS, LENGTH)?;
    expect_bytes(&b.bar.load(0, data.len()), data, "the device")
}

pub(super) fn aio_errors(context: &Context) -> Verdict {
    expect_failures(context, &mut AioContext::new(4)?)
}

pub(super) fn aio_user_space(context: &Context) -> Verdict {
    /// Enough rounds for the event ring, which is larger than requested, to wrap.
    const ROUNDS: u64 = 30;

    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let aio = AioContext::new(DEPTH as u32)?;
    for seed in 0..ROUNDS {
        b.fill_blocks(seed);
        let writes: Vec<_> = (0..DEPTH)
            .map(|i| AioOperation::pwrite(&b.file, b.block(i), Fixture::place(i)).tag(i as u64))
            .collect();
        check_eq!(aio.submit(&writes)?, DEPTH, "operations taken");
        let deadline = Instant::now() + TIMEOUT;
        let mut results = Vec::new();
        while results.len() < DEPTH {
            results.extend(aio.reap()?);
            check!(Instant::now() < deadline, "only {} results", results.len());
            std::thread::yield_now();
        }
        expect_results(results, DEPTH, BLOCK)?;
        b.expect_in_device(seed)?;
        // The kernel does not return them again.
        let again = aio.results(0, 1, Duration::ZERO)?;
        check_eq!(again.len(), 0, "results that come again");
    }
    Ok(())
}
