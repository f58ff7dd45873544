// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies about used rings. Each takes the device out of service: all requests in flight
//! end with EIO, on all queues, and so do later ones.

use std::thread;

use ringbar_agent_protocol::host::UsedLie;
use ringbar_uapi as uapi;

use super::device::{BLOCK, LyingDevice, QUEUE_SIZE};
use crate::case::{Case, Context, Stop, TIMEOUT, Verdict, eventually, expect_errno};
use crate::fixtures::device::{info, statistics};
use crate::sys::{self, AioContext, AioOperation, PAGE, Region};
use crate::{check, check_eq};

/// Requests in flight on the queue with the lie, besides a synchronous one.
const REQUESTS: usize = 8;

pub(super) fn cases() -> Vec<Case> {
    // The lie, the fault in the driver's message, and the number of requests that succeed
    // before the driver detects it.
    let rows = [
        (
            "used_index_one_too_far",
            UsedLie::IndexAhead(QUEUE_SIZE),
            "UsedIndex",
            0,
        ),
        (
            "used_index_that_goes_back",
            UsedLie::IndexAhead(u16::MAX - 1),
            "UsedIndex",
            0,
        ),
        (
            "used_id_just_beyond_the_ring",
            UsedLie::Id(QUEUE_SIZE as u32),
            "UsedEntry",
            0,
        ),
        (
            "used_id_of_more_than_16_bits",
            UsedLie::Id(1 << 16),
            "UsedEntry",
            0,
        ),
        (
            "used_id_with_all_bits",
            UsedLie::Id(u32::MAX),
            "UsedEntry",
            0,
        ),
        ("used_id_that_comes_twice", UsedLie::Twice, "NotInFlight", 1),
        (
            "used_id_that_is_not_in_flight",
            UsedLie::NotInFlight,
            "NotInFlight",
            0,
        ),
    ];
    let mut cases: Vec<_> = rows
        .map(|(name, lie, fault, good)| {
            Case::new(format!("c7_{name}"), move |context| {
                broken(context, lie, fault, good)
            })
            .provokes(BROKEN)
        })
        .into();
    cases.extend([
        Case::new("dr5_maps_of_a_device_out_of_service_get_sigbus", maps).provokes(BROKEN),
        Case::new("dr5_device_out_of_service_is_reset_many_times", again).provokes(BROKEN),
    ]);
    cases
}

/// The driver's message, which each test provokes.
pub(super) const BROKEN: &str = "the device broke queue ";

/// The first I/O queue, which CPU 0 uses.
const QUEUE: &str = "the device broke queue 2: ";

fn broken(context: &Context, lie: UsedLie, fault: &str, good: usize) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let memory = Region::anonymous((REQUESTS + 2) * BLOCK)?;
    let buffer = |i: usize| memory.buffer(i * BLOCK, BLOCK);
    let aio = AioContext::new(REQUESTS as u32)?;
    let cpus = sys::cpus()?;
    let (here, there) = (cpus[0], cpus[cpus.len() - 1]);

    let (results, mine, theirs) = thread::scope(|scope| -> Verdict<_> {
        // The device never answers this request on another queue, so it is in flight
        // during the lie.
        liar.lie(UsedLie::Never)?;
        let theirs = scope.spawn(|| {
            let _pinned = sys::pin_to_cpu(there)?;
            sys::pread(&file, buffer(REQUESTS), 0)
        });
        liar.expect_told(1)?;

        let stall = liar.host.stall()?;
        let before = context.counter("requests")?;
        let operations: Vec<_> = (0..REQUESTS)
            .map(|i| match i % 2 {
                0 => AioOperation::pread(&file, buffer(i), 0).tag(i as u64),
                _ => AioOperation::pwrite(&file, buffer(i), 1 << 20).tag(i as u64),
            })
            .collect();
        {
            let _pinned = sys::pin_to_cpu(here)?;
            check_eq!(aio.submit(&operations)?, REQUESTS, "requests taken");
        }
        let mine = scope.spawn(|| {
            let _pinned = sys::pin_to_cpu(here)?;
            sys::pwrite(&file, buffer(REQUESTS + 1), 1 << 20)
        });
        eventually("the requests in flight", || {
            Ok(context.counter("requests")? == before + REQUESTS as u64 + 1)
        })?;
        liar.lie(lie)?;
        stall.resume()?;
        let results = aio.results(REQUESTS, REQUESTS, TIMEOUT)?;
        let panicked = |_| Stop::Failed("a caller panicked".into());
        Ok((
            results,
            mine.join().map_err(panicked)?,
            theirs.join().map_err(panicked)?,
        ))
    })?;

    check_eq!(results.len(), REQUESTS, "results");
    let (mut well, mut badly) = (0, 0);
    for (tag, result) in results {
        match result {
            Ok(BLOCK) => well += 1,
            other => {
                expect_errno(other, &[libc::EIO], &format!("request {tag}"))?;
                badly += 1;
            }
        }
    }
    check_eq!(
        (well, badly),
        (good, REQUESTS - good),
        "requests well and badly ended"
    );
    expect_errno(mine, &[libc::EIO], "the synchronous caller")?;
    expect_errno(theirs, &[libc::EIO], "the caller on another queue")?;
    liar.expect_out_of_service()?;
    liar.expect_line(&[QUEUE, fault])?;
    liar.bring_back()
}

/// Makes the driver take the device out of service.
pub(super) fn take_out_of_service(liar: &LyingDevice<'_>) -> Verdict {
    let file = liar.context.open()?;
    let memory = Region::anonymous(PAGE)?;
    liar.lie(UsedLie::Id(u32::MAX))?;
    let read = sys::pread(&file, memory.buffer(0, PAGE), 0);
    expect_errno(read, &[libc::EIO], "the read that is lied about")
}

fn maps(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let board = Region::shared_anonymous(PAGE)?;
    let told = |at: usize| board.load(at, 1) == [1];
    let user = sys::fork(|| {
        let Ok(map) = context.map() else {
            return 1;
        };
        map.store(12345, b"mapped");
        board.store(0, &[1]);
        while !told(1) {
            thread::yield_now();
        }
        map.store(12345, b"lost");
        2
    })?;
    eventually("the map", || Ok(told(0)))?;
    take_out_of_service(&liar)?;
    board.store(1, &[1]);
    let end = user.wait(TIMEOUT)?;
    check!(
        matches!(end, Err(libc::SIGBUS)),
        "the process with a map ended with {end:?}, not SIGBUS"
    );
    let map = Region::shared(&file, 0, PAGE).map(drop);
    expect_errno(map, &[libc::ENODEV], "a new map")?;
    let info = info(&file)?;
    check_eq!(
        info.capabilities & uapi::CAP_MMAP,
        0,
        "the capability to map"
    );
    check_eq!(info.aperture, 0, "bytes that can be mapped");
    // The driver's own memory is still there.
    let counters = statistics(&file)?;
    counters.load(0, 8);
    liar.bring_back()
}

fn again(context: &Context) -> Verdict {
    const ROUNDS: usize = 5;
    let mut liar = LyingDevice::new(context)?;
    for _ in 0..ROUNDS {
        liar.log.of_driver()?;
        take_out_of_service(&liar)?;
        liar.expect_line(&[BROKEN])?;
        liar.bring_back()?;
    }
    Ok(())
}
