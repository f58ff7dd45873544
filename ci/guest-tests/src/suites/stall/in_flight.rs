// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Asynchronous requests while the device stalls.

use std::os::fd::AsFd;
use std::time::Duration;

use super::fixture::{BLOCK, Fixture};
use crate::case::{Context, TIMEOUT, Verdict};
use crate::fixtures::requests::{expect_results, expect_signals};
use crate::sys::{self, AioContext, AioOperation, Buffers, Ring, UringOperation};
use crate::{check, check_eq};

/// Requests in flight: half of them writes, half of them reads.
const REQUESTS: usize = 16;

fn is_write(i: usize) -> bool {
    i.is_multiple_of(2)
}

fn prepare(b: &Fixture) {
    for i in 0..REQUESTS {
        if is_write(i) {
            b.prepare_write(i);
        } else {
            b.prepare_read(i);
        }
    }
}

fn expect_moved(b: &Fixture) -> Verdict {
    for i in 0..REQUESTS {
        if is_write(i) {
            b.expect_written(i)?;
        } else {
            b.expect_read(i)?;
        }
    }
    Ok(())
}

fn aio_operations(b: &Fixture) -> Vec<AioOperation<'static>> {
    (0..REQUESTS)
        .map(|i| {
            let (buffer, place) = (b.block(i), Fixture::place(i));
            let operation = if is_write(i) {
                AioOperation::pwrite(&b.file, buffer, place)
            } else {
                AioOperation::pread(&b.file, buffer, place)
            };
            operation.tag(i as u64)
        })
        .collect()
}

fn uring_operations(b: &Fixture) -> Vec<UringOperation<'static>> {
    (0..REQUESTS)
        .map(|i| {
            let (buffer, place) = (Buffers::One(b.block(i)), Fixture::place(i));
            let operation = if is_write(i) {
                UringOperation::write(&b.file, buffer, place)
            } else {
                UringOperation::read(&b.file, buffer, place)
            };
            operation.tag(i as u64)
        })
        .collect()
}

pub(super) fn aio(context: &Context) -> Verdict {
    let b = Fixture::new(context, REQUESTS)?;
    let aio = AioContext::new(REQUESTS as u32)?;
    prepare(&b);
    let stall = b.host.stall()?;
    check_eq!(aio.submit(&aio_operations(&b))?, REQUESTS, "requests taken");
    let early = aio.results(0, REQUESTS, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    stall.resume()?;
    expect_results(aio.results(REQUESTS, REQUESTS, TIMEOUT)?, REQUESTS, BLOCK)?;
    expect_moved(&b)?;
    b.finish()
}

pub(super) fn uring(context: &Context) -> Verdict {
    let b = Fixture::new(context, REQUESTS)?;
    let mut ring = Ring::new(REQUESTS as u32)?;
    prepare(&b);
    let stall = b.host.stall()?;
    let operations = uring_operations(&b);
    check_eq!(ring.submit(&operations)?, REQUESTS, "requests taken");
    let early = ring.results(REQUESTS, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    stall.resume()?;
    expect_results(ring.results(REQUESTS, TIMEOUT)?, REQUESTS, BLOCK)?;
    expect_moved(&b)?;
    b.finish()
}

pub(super) fn aio_eventfd(context: &Context) -> Verdict {
    let b = Fixture::new(context, REQUESTS)?;
    let aio = AioContext::new(REQUESTS as u32)?;
    let eventfd = sys::eventfd()?;
    prepare(&b);
    let stall = b.host.stall()?;
    let operations: Vec<_> = aio_operations(&b)
        .into_iter()
        .map(|operation| operation.notify(eventfd.as_fd()))
        .collect();
    check_eq!(aio.submit(&operations)?, REQUESTS, "requests taken");
    let early = sys::eventfd_wait(&eventfd, Duration::ZERO)?;
    check_eq!(early, 0, "signals while the device stalls");
    stall.resume()?;
    expect_signals(&eventfd, REQUESTS as u64, TIMEOUT)?;
    // All results are available by now.
    let results = aio.results(REQUESTS, REQUESTS, Duration::ZERO)?;
    expect_results(results, REQUESTS, BLOCK)?;
    expect_moved(&b)?;
    b.finish()
}

pub(super) fn uring_eventfd(context: &Context) -> Verdict {
    let b = Fixture::new(context, REQUESTS)?;
    let mut ring = Ring::new(REQUESTS as u32)?;
    let eventfd = sys::eventfd()?;
    ring.register_eventfd(eventfd.as_fd())?;
    prepare(&b);
    let stall = b.host.stall()?;
    let operations = uring_operations(&b);
    check_eq!(ring.submit(&operations)?, REQUESTS, "requests taken");
    let early = sys::eventfd_wait(&eventfd, Duration::ZERO)?;
    check_eq!(early, 0, "signals while the device stalls");
    stall.resume()?;
    // One signal may stand for many results, and each comes after its result.
    let mut results = Vec::new();
    while results.len() < REQUESTS {
        let signals = sys::eventfd_wait(&eventfd, TIMEOUT)?;
        check!(signals > 0, "no signal after {} results", results.len());
        results.extend(ring.results(REQUESTS - results.len(), Duration::ZERO)?);
    }
    expect_results(results, REQUESTS, BLOCK)?;
    expect_moved(&b)?;
    b.finish()
}
