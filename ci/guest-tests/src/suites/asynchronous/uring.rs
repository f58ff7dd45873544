// SPDX-License-Identifier: Apache-2.0 OR MIT

//! io_uring.

use std::fs;

use super::fixture::{BLOCK, DEPTH, Fixture, TIMEOUT};
use super::window::{SLOT, WIDTH, expect_failures, window};
use crate::case::{Context, Stop, Verdict, eventually, expect_bytes};
use crate::check_eq;
use crate::fixtures::requests::expect_results;
use crate::pattern;
use crate::sys::{self, Buffers, Region, Ring, UringOperation};

pub(super) fn uring_window(context: &Context) -> Verdict {
    let b = Fixture::new(context, WIDTH * SLOT)?;
    window(&b, &mut Ring::new(WIDTH as u32)?)
}

pub(super) fn uring_errors(context: &Context) -> Verdict {
    expect_failures(context, &mut Ring::new(4)?)
}

pub(super) fn uring_depth(context: &Context) -> Verdict {
    uring_rounds(
        &Fixture::new(context, DEPTH * BLOCK)?,
        Ring::new(DEPTH as u32)?,
        |b, i| Buffers::One(b.block(i)),
        |operation| operation,
    )
}

pub(super) fn uring_polled(context: &Context) -> Verdict {
    let b = Fixture {
        // io_uring polls only for direct I/O.
        file: context.open_with(libc::O_RDWR | libc::O_DIRECT)?,
        ..Fixture::new(context, DEPTH * BLOCK)?
    };
    let before = context.interrupts()?;
    uring_rounds(
        &b,
        Ring::of_kind(sys::Kind::IoPoll, DEPTH as u32)?,
        |b, i| Buffers::One(b.block(i)),
        |operation| operation,
    )?;
    check_eq!(context.interrupts()?, before, "interrupts");
    Ok(())
}

/// Two processes share the queue for polled requests. One fills it and never polls again;
/// the other must still make progress.
pub(super) fn uring_polled_by_nobody(context: &Context) -> Verdict {
    /// More than the queue has entries.
    const MANY: usize = 600;
    const LENGTH: usize = 512;

    let open = || context.open_with(libc::O_RDWR | libc::O_DIRECT);
    let (file, memory) = (open()?, Region::anonymous(MANY * LENGTH)?);
    memory.fill(0, memory.len(), 1);
    let mut left_alone = Ring::of_kind(sys::Kind::IoPoll, 1024)?;
    let operations: Vec<_> = (0..MANY)
        .map(|i| {
            let buffer = Buffers::One(memory.buffer(i * LENGTH, LENGTH));
            UringOperation::write(&file, buffer, (i * LENGTH) as u64).tag(i as u64)
        })
        .collect();
    check_eq!(left_alone.submit(&operations)?, MANY, "operations taken");

    std::thread::scope(|scope| {
        let other = scope.spawn(|| -> Verdict {
            let (file, memory) = (open()?, Region::anonymous(BLOCK)?);
            let read = UringOperation::read(&file, Buffers::One(memory.buffer(0, BLOCK)), 0);
            check_eq!(
                Ring::of_kind(sys::Kind::IoPoll, 1)?.run(&read)?,
                BLOCK,
                "bytes of another"
            );
            Ok(())
        });
        let ended = eventually("the read of another", || Ok(other.is_finished()));
        // The first poll happens only here.
        let results = left_alone.results(MANY, TIMEOUT)?;
        expect_results(results, MANY, LENGTH)?;
        ended?;
        other
            .join()
            .map_err(|_| Stop::Failed("the other one panicked".into()))?
    })
}

pub(super) fn uring_fixed(context: &Context) -> Verdict {
    let place = |b: &Fixture, i| Buffers::Registered(b.block(i), 0);
    uring_rounds(
        &Fixture::new(context, DEPTH * BLOCK)?,
        Ring::new(DEPTH as u32)?,
        place,
        |operation| operation,
    )
}

pub(super) fn uring_workers(context: &Context) -> Verdict {
    let place = |b: &Fixture, i| Buffers::One(b.block(i));
    uring_rounds(
        &Fixture::new(context, DEPTH * BLOCK)?,
        Ring::new(DEPTH as u32)?,
        place,
        UringOperation::on_worker,
    )
}

/// Writes and reads at full depth, with the caller's buffers and flags.
fn uring_rounds(
    b: &Fixture,
    mut ring: Ring,
    buffers: impl Fn(&Fixture, usize) -> Buffers<'static>,
    adapt: impl Fn(UringOperation<'static>) -> UringOperation<'static>,
) -> Verdict {
    ring.register_buffers(&[&b.memory])?;
    b.fill_blocks(7000);
    let writes: Vec<_> = (0..DEPTH)
        .map(|i| {
            let operation = UringOperation::write(&b.file, buffers(b, i), Fixture::place(i));
            adapt(operation.tag(i as u64))
        })
        .collect();
    check_eq!(ring.submit(&writes)?, DEPTH, "operations taken");
    expect_results(ring.results(DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_device(7000)?;

    b.fill_device(8000);
    let reads: Vec<_> = (0..DEPTH)
        .map(|i| {
            let operation = UringOperation::read(&b.file, buffers(b, i), Fixture::place(i));
            adapt(operation.tag(i as u64))
        })
        .collect();
    check_eq!(ring.submit(&reads)?, DEPTH, "operations taken");
    expect_results(ring.results(DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
    b.expect_in_memory(8000)
}

pub(super) fn uring_registered_file(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(4)?;
    ring.register_files(&[&b.file])?;
    b.fill_blocks(9000);
    let write = UringOperation::write_registered_file(0, Buffers::One(b.block(0)), 77);
    check_eq!(ring.run(&write)?, BLOCK, "bytes written");
    expect_bytes(
        &b.bar.load(77, BLOCK),
        pattern::bytes(9000, BLOCK),
        "the device",
    )?;
    let read = UringOperation::read_registered_file(0, Buffers::One(b.block(1)), 77);
    check_eq!(ring.run(&read)?, BLOCK, "bytes read");
    let seen = b.memory.load(BLOCK, BLOCK);
    expect_bytes(&seen, pattern::bytes(9000, BLOCK), "the buffer")
}

/// Number of io_uring worker threads of this process.
pub(crate) fn workers() -> Verdict<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let comm = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        if comm.starts_with("iou-wrk") {
            count += 1;
        }
    }
    Ok(count)
}

pub(super) fn uring_inline(context: &Context) -> Verdict {
    // A process of its own has no workers of earlier tests.
    let child = sys::fork(|| match count_workers(context) {
        Ok(()) => 0,
        Err(stop) => {
            eprintln!("{stop:?}");
            1
        }
    })?;
    check_eq!(child.wait(TIMEOUT)?, Ok(0), "end of the process");
    Ok(())
}

fn count_workers(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    for round in 0..20 {
        b.fill_blocks(round);
        let writes: Vec<_> = (0..DEPTH)
            .map(|i| {
                let buffer = Buffers::One(b.block(i));
                UringOperation::write(&b.file, buffer, Fixture::place(i)).tag(i as u64)
            })
            .collect();
        check_eq!(ring.submit(&writes)?, DEPTH, "operations taken");
        expect_results(ring.results(DEPTH, TIMEOUT)?, DEPTH, BLOCK)?;
        // An idle worker exits only after a while, so none is missed.
        check_eq!(workers()?, 0, "worker threads after round {round}");
    }
    Ok(())
}

pub(super) fn uring_linked(context: &Context) -> Verdict {
    let b = Fixture::new(context, DEPTH * BLOCK)?;
    let mut ring = Ring::new(8)?;
    for seed in 0..50 {
        let data = pattern::bytes(seed, BLOCK);
        b.memory.store(0, data);
        b.memory.fill(BLOCK, BLOCK, 0);
        let write = UringOperation::write(&b.file, Buffers::One(b.block(0)), 999).tag(0);
        let read = UringOperation::read(&b.file, Buffers::One(b.block(1)), 999).tag(1);
        check_eq!(ring.submit(&[write.linked(), read])?, 2, "operations taken");
        expect_results(ring.results(2, TIMEOUT)?, 2, BLOCK)?;
        expect_bytes(&b.memory.load(BLOCK, BLOCK), data, "what was read")?;
    }
    Ok(())
}
