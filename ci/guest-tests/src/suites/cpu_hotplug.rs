// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPUs go offline and come back under verified I/O.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};

use super::concurrency::{Worker, positional_free};
use crate::case::{Case, Context, During, Stop, Suite, Verdict};
use crate::fixtures::driver::{expect_working, rounds};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};
use crate::sys;

/// CPUs of the machine. CPU 0 stays online.
const CPUS: usize = 4;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "cpu_hotplug",
        about: "CPUs, each with a queue of its own, go offline and come back with I/O running",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                // One for each CPU, and one for polled requests.
                queues: Some(CPUS as u16 + 1),
                transports: Transports::Each,
                ..Daemon::default()
            }),
            cpus: CPUS as u32,
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: vec![
            Case::new("c5_each_cpu_offline_in_turn_with_io", |context| {
                with_io(context, one_by_one)
            }),
            Case::new("c5_all_cpus_but_one_offline_with_io", |context| {
                with_io(context, all_but_one)
            }),
            Case::new("c5_every_cpu_works_after_it_was_offline", every_cpu),
        ],
    }
}

/// Takes a CPU offline or online.
fn switch(cpu: usize, online: bool) -> Verdict {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let value = if online { "1" } else { "0" };
    fs::write(&path, value).during(|| format!("writing {value} to {path}"))
}

/// Brings all CPUs back when dropped.
struct Online;

impl Drop for Online {
    fn drop(&mut self) {
        for cpu in 1..CPUS {
            if let Err(stop) = switch(cpu, true) {
                eprintln!("{stop:?}");
            }
        }
    }
}

fn one_by_one(context: &Context) -> Verdict {
    for round in 0..rounds().min(5) {
        for cpu in 1..CPUS {
            for online in [false, true] {
                switch(cpu, online)?;
                expect_working_elsewhere(context, round)?;
            }
        }
    }
    Ok(())
}

fn all_but_one(context: &Context) -> Verdict {
    for round in 0..rounds().min(5) {
        for online in [false, true] {
            for cpu in 1..CPUS {
                switch(cpu, online)?;
            }
            expect_working_elsewhere(context, round)?;
        }
    }
    Ok(())
}

/// Moves data in the part of the device that no worker uses.
fn expect_working_elsewhere(context: &Context, seed: u64) -> Verdict {
    const RANGE: usize = 1 << 20;

    let file = context.open()?;
    let mut worker = Worker::new((CPUS * RANGE) as u64, RANGE, seed)?;
    worker.begin(&file)?;
    for _ in 0..5 {
        worker.step(&file, &positional_free())?;
    }
    worker.finish(&context.map()?)
}

/// Runs `change` while as many threads as there are CPUs move data and verify it.
fn with_io(context: &Context, change: fn(&Context) -> Verdict) -> Verdict {
    const RANGE: usize = 1 << 20;

    let bar = context.map()?;
    let methods = positional_free();
    let done = AtomicBool::new(false);
    let _online = Online;
    let results: Vec<Verdict> = thread::scope(|scope| {
        let workers: Vec<_> = (0..CPUS)
            .map(|i| {
                let (bar, methods, done) = (&bar, &methods, &done);
                scope.spawn(move || -> Verdict {
                    let file = context.open()?;
                    let mut worker = Worker::new((i * RANGE) as u64, RANGE, i as u64)?;
                    worker.begin(&file)?;
                    while !done.load(Ordering::Relaxed) {
                        worker.step(&file, methods)?;
                    }
                    worker.finish(bar)
                })
            })
            .collect();
        let changed = change(context);
        done.store(true, Ordering::Relaxed);
        let join = |worker: ScopedJoinHandle<'_, Verdict>| {
            let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
            worker.join().unwrap_or_else(panicked)
        };
        let results = workers.into_iter().map(join);
        results.chain([changed]).collect()
    });
    results.into_iter().collect()
}

fn every_cpu(context: &Context) -> Verdict {
    for cpu in 0..CPUS {
        let _pinned = sys::pin_to_cpu(cpu)?;
        expect_working(context, cpu as u64).during(|| format!("on CPU {cpu}"))?;
    }
    Ok(())
}
