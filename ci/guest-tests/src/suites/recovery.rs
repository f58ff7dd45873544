// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Resets by an administrator, and work that the driver does after a reset or removal.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringbar_uapi::{self as uapi};

use crate::case::{
    Case, Context, During, Stop, TIMEOUT, Verdict, eventually, expect_bytes, expect_errno,
};
use crate::fixtures::device::{all_released, info, last_events, statistics};
use crate::fixtures::driver::{bind, expect_working, rounds, unbind};
use crate::fixtures::processes::{SharedProgress, expect_good_end, process};
use crate::fixtures::requests::Transfers;
use crate::sys::{self, AioContext, AioOperation, PAGE, Region};
use crate::{check, check_eq};

/// The tests.
pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("dr5_reset_is_for_administrators", administrators),
        Case::new(
            "dr5_reset_removes_only_maps_of_device_memory",
            reset_with_map,
        ),
        Case::new("dr5_reset_with_io", reset_with_io),
        Case::new("dr5_reset_while_processes_map", reset_while_mapping),
        Case::new("dr5_reset_by_the_command_is_logged", by_command),
        Case::new(
            "dr6_pages_cleaned_during_a_read_are_released",
            cleaned_pages,
        ),
    ]
}

fn administrators(context: &Context) -> Verdict {
    const NOBODY: u32 = 65534;

    let file = context.open()?;
    let child = process(0, || {
        sys::become_user(NOBODY)?;
        expect_errno(sys::reset(&file), &[libc::EPERM], "a reset by nobody")
    })?;
    expect_good_end(0, child)?;
    sys::reset(&file).during(|| "a reset by root".into())?;
    expect_working(context, 90)
}

fn reset_with_map(context: &Context) -> Verdict {
    let progress = SharedProgress::new()?;
    let victim = process(0, || {
        let map = context.map()?;
        map.store(12345, b"mapped");
        progress.count(0);
        while !progress.signalled() {
            thread::yield_now();
        }
        let seen = map.load(12345, 6);
        Err(Stop::Failed(format!("the old map shows {seen:?}")))
    })?;
    progress.expect_done(0, 1)?;
    let file = context.open()?;
    let statistics = statistics(&file)?;
    statistics.load(0, 8);

    sys::reset(&file).during(|| "the reset".into())?;
    progress.signal();
    let end = victim.wait(TIMEOUT)?;
    check!(
        matches!(end, Err(libc::SIGBUS)),
        "the process with the map ended with {end:?}, not SIGBUS"
    );
    let requests = statistics.load(0, 8);
    check!(requests != [0; 8], "the map of the counters shows none");

    let info = info(&file)?;
    check_eq!(info.state, uapi::STATE_IN_SERVICE, "state");
    check!(info.capabilities & uapi::CAP_MMAP != 0, "no maps any more");
    // The device memory is unchanged, and the file works like a new one.
    let map = Region::shared(&file, 0, 4 * PAGE).during(|| "a new map".into())?;
    expect_bytes(&map.load(12345, 6), b"mapped", "the new map")?;
    let memory = Region::anonymous(PAGE)?;
    let read = sys::pread(&file, memory.buffer(0, 6), 12345)?;
    check_eq!(read, 6, "bytes read by the old file");
    expect_bytes(&memory.load(0, 6), b"mapped", "what the old file reads")?;
    expect_working(context, 91)
}

/// Moves data by a method that depends on the process's number, until told to stop. The
/// only allowed error is `EIO` of requests in flight at a reset.
fn move_through_resets(context: &Context, progress: &SharedProgress, number: usize) -> Verdict {
    let mut transfers = Transfers::new(context, number)?;
    while !progress.signalled() {
        let results = transfers.make()?;
        check_eq!(results.len(), transfers.depth(), "results");
        for result in results {
            match result {
                Ok(n) => check_eq!(n, Transfers::LENGTH, "bytes moved"),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                Err(error) => return Err(error.into()),
            }
        }
        progress.count(number);
    }
    Ok(())
}

fn reset_with_io(context: &Context) -> Verdict {
    const PROCESSES: usize = 4;

    let file = context.open()?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        children.push(process(number, || {
            move_through_resets(context, &progress, number)
        })?);
    }
    for round in 0..rounds() {
        let during = || format!("round {round}");
        for number in 0..PROCESSES {
            progress
                .expect_done(number, progress.done(number) + 2)
                .during(during)?;
        }
        sys::reset(&file).during(during)?;
        expect_working(context, (20 << 20) + round).during(during)?;
    }
    progress.signal();
    for (number, child) in children.into_iter().enumerate() {
        expect_good_end(number, child)?;
    }
    all_released()
}

/// Creates and drops maps, also by forking. During a reset, `mmap` fails.
fn map_through_resets(context: &Context, progress: &SharedProgress, number: usize) -> Verdict {
    let file = context.open()?;
    while !progress.signalled() {
        match Region::shared(&file, 0, 4 << 20) {
            Ok(map) => {
                let child = sys::fork(|| 0)?;
                drop(map);
                drop(child);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error.into()),
        }
        progress.count(number);
    }
    Ok(())
}

/// Maps that are created during a reset are removed later or stay, but maps created
/// afterwards are not removed.
fn reset_while_mapping(context: &Context) -> Verdict {
    const PROCESSES: usize = 3;

    let before = context.counter("maps")?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        children.push(process(number, || {
            map_through_resets(context, &progress, number)
        })?);
    }
    let file = context.open()?;
    for round in 0..rounds() {
        for number in 0..PROCESSES {
            let more = progress.done(number) + 1;
            progress.expect_done(number, more)?;
        }
        sys::reset(&file).during(|| format!("reset {round}"))?;
        // The work items that remove maps may still run, and a new map must survive them.
        expect_working(context, 100 + round).during(|| format!("round {round}"))?;
    }
    progress.signal();
    for (number, child) in children.into_iter().enumerate() {
        expect_good_end(number, child)?;
    }
    eventually("the end of all maps", || {
        Ok(context.counter("maps")? == before)
    })
}

fn by_command(context: &Context) -> Verdict {
    let output = Command::new("ringbar")
        .arg("reset")
        .arg(context.path())
        .output()
        .during(|| "ringbar reset".into())?;
    check!(
        output.status.success() && output.stderr.is_empty(),
        "ringbar reset: {}, {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let file = context.open()?;
    let (_, last) = last_events(&file, 2)?;
    let expected = [
        (uapi::EVENT_RESET, uapi::RESET_BY_ADMINISTRATOR),
        (uapi::EVENT_STARTED, context.size()),
    ];
    check_eq!(last, expected, "the last events");
    expect_working(context, 92)
}

/// Pages that are removed from a file during a DMA write are clean when the read ends.
/// They must be made dirty again, which the interrupt handler leaves to a work item, even
/// if the device is gone by then.
fn cleaned_pages(context: &Context) -> Verdict {
    const LENGTH: usize = 1 << 20;
    const ROUNDS: u64 = 2;

    let address = context.pci_address()?;
    let memfd = sys::memfd(LENGTH as u64)?;
    let memory = Region::shared(&memfd, 0, LENGTH)?;
    for round in 0..ROUNDS {
        let stop = AtomicBool::new(false);
        let result: Verdict = thread::scope(|scope| {
            let puncher = scope.spawn(|| -> io::Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    sys::punch_hole(&memfd, 0, LENGTH as u64)?;
                }
                Ok(())
            });
            let reader = scope.spawn(|| -> Verdict<u64> {
                let file = context.open()?;
                let aio = AioContext::new(4)?;
                let mut reads = 0;
                loop {
                    let operations: Vec<_> = (0..4)
                        .map(|i| {
                            let part = LENGTH / 4;
                            AioOperation::pread(&file, memory.buffer(i * part, part), 0)
                        })
                        .collect();
                    let results = match aio.submit(&operations) {
                        Ok(taken) => aio.results(taken, taken, TIMEOUT)?,
                        Err(error) => vec![(0, Err(error))],
                    };
                    for (_, result) in results {
                        match result {
                            Ok(_) => reads += 1,
                            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                                return Ok(reads);
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
            });
            let before = context.counter("requests")?;
            let moved = eventually("reads", || Ok(context.counter("requests")? > before + 20));
            let gone = unbind(&address);
            let reads = reader.join();
            stop.store(true, Ordering::Relaxed);
            let punched = puncher.join();
            let back = bind(context, &address);
            moved.and(gone)?;
            reads.map_err(|_| Stop::Failed("the reader panicked".into()))??;
            punched.map_err(|_| Stop::Failed("the puncher panicked".into()))??;
            back
        });
        result.during(|| format!("round {round}"))?;
    }
    all_released()?;
    expect_working(context, 93)
}
