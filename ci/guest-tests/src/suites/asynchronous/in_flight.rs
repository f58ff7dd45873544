// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that exit, and buffers that are unmapped, while requests are in flight.

use super::fixture::{BLOCK, DEPTH, Fixture, TIMEOUT};
use crate::case::{Context, During, Verdict, expect_bytes};
use crate::check_eq;
use crate::fixtures::requests::expect_results;
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, Buffers, Region, Ring, UringOperation};

/// Size of requests that are still in flight when their process exits.
const LONG: usize = 1 << 20;

/// Lets processes exit with requests in flight, then checks that the device still works.
fn exit_in_flight(context: &Context, start: impl Fn(&Fixture) -> Verdict) -> Verdict {
    const PROCESSES: usize = 20;
    for number in 0..PROCESSES {
        let child = sys::fork(|| {
            let begin = || -> Verdict {
                let b = Fixture::new(context, 8 * LONG)?;
                start(&b)?;
                // No destructor runs, because it would wait for the requests.
                sys::exit_now(0)
            };
            i32::from(begin().is_err())
        })?;
        let end = child
            .wait(TIMEOUT)
            .during(|| format!("waiting for process {number}"))?;
        check_eq!(end, Ok(0), "end of process {number}");
    }
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    window_after(&b)
}

/// A few requests that must simply work.
fn window_after(b: &Fixture) -> Verdict {
    for seed in 0..10 {
        let data = pattern::bytes(seed, BLOCK);
        b.memory.store(0, data);
        let offset = seed * 100_003;
        check_eq!(
            sys::pwrite(&b.file, b.block(0), offset)?,
            BLOCK,
            "bytes written"
        );
        expect_bytes(&b.bar.load(offset as usize, BLOCK), data, "afterwards")?;
    }
    Ok(())
}

pub(super) fn exit_with_aio(context: &Context) -> Verdict {
    exit_in_flight(context, |b| {
        let aio = AioContext::new(8)?;
        let operations: Vec<_> = (0..8)
            .map(|i| {
                let buffer = b.memory.buffer(i * LONG, LONG);
                let offset = (i * LONG) as u64;
                if i % 2 == 0 {
                    AioOperation::pwrite(&b.file, buffer, offset)
                } else {
                    AioOperation::pread(&b.file, buffer, offset)
                }
            })
            .collect();
        check_eq!(aio.submit(&operations)?, 8, "operations taken");
        sys::exit_now(0)
    })
}

pub(super) fn exit_with_uring(context: &Context) -> Verdict {
    exit_in_flight(context, |b| {
        let mut ring = Ring::new(8)?;
        let operations: Vec<_> = (0..8)
            .map(|i| {
                let buffer = Buffers::One(b.memory.buffer(i * LONG, LONG));
                let offset = (i * LONG) as u64;
                if i % 2 == 0 {
                    UringOperation::write(&b.file, buffer, offset)
                } else {
                    UringOperation::read(&b.file, buffer, offset)
                }
            })
            .collect();
        check_eq!(ring.submit(&operations)?, 8, "operations taken");
        sys::exit_now(0)
    })
}

pub(super) fn unmap_in_flight(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    for round in 0..10 {
        let data = pattern::bytes(round, LONG);
        let source = Region::anonymous(LONG)?;
        source.store(0, data);
        let target = Region::anonymous(LONG)?;
        let aio = AioContext::new(2)?;
        let operations = [
            AioOperation::pwrite(&b.file, source.buffer(0, LONG), 0).tag(0),
            AioOperation::pread(&b.file, target.buffer(0, LONG), LONG as u64).tag(1),
        ];
        check_eq!(aio.submit(&operations)?, 2, "operations taken");
        drop(source);
        drop(target);
        expect_results(aio.results(2, 2, TIMEOUT)?, 2, LONG)?;
        // The device got the original bytes, whoever owns the pages now.
        expect_bytes(&b.bar.load(0, LONG), data, "the device")?;
    }
    Ok(())
}
