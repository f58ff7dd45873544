// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process that executes the requests is killed or replaced, and the guest notices nothing
//! but a delay.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::concurrency::{Worker, positional_free};
use crate::case::{Case, Context, During, Stop, Suite, Verdict, eventually};
use crate::check;
use crate::fio::{Fio, verified};
use crate::fixtures::driver::{bind, expect_working, unbind};
use crate::host::Host;
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};

/// The suites: a short one, and one with many kills.
pub fn suites() -> Vec<Suite> {
    let needs = |kernels| Needs {
        device: DeviceKind::Daemon(Daemon {
            transports: Transports::Only(
                Default::default(),
                "the supervisor forwards messages of vhost-user",
            ),
            arguments: &["--supervise", "on"],
            ..Daemon::default()
        }),
        kernels,
        ..Needs::default()
    };
    let short = Suite {
        name: "survival",
        about: "the process that executes the requests is killed or replaced",
        needs: needs(Kernels::OwnInTestAll),
        cases: vec![
            Case::new("d3_20_kills_under_verified_load", |context| {
                disturb(context, 20, Host::kill_worker)
            }),
            Case::new("d3_kills_while_fio_verifies", kills_during_fio),
            Case::new("d3_kills_while_the_driver_starts_anew", kills_during_bind),
            Case::new("d3_5_upgrades_under_verified_load", |context| {
                disturb(context, 5, Host::upgrade)
            }),
        ],
    };
    let long = Suite {
        name: "survival_long",
        about: "the process that executes the requests is killed many times",
        needs: needs(Kernels::TestAllOnly),
        cases: vec![Case::new("d3_200_kills_under_verified_load", |context| {
            disturb(context, 200, Host::kill_worker)
        })],
    };
    vec![short, long]
}

/// Has threads transfer and compare data by any method while the host does something to the
/// device `times` times. Each thread makes progress in between.
fn disturb(context: &Context, times: u32, act: fn(&Host) -> Verdict) -> Verdict {
    const THREADS: usize = 3;
    const RANGE: usize = (1 << 20) + 77;

    let host = Host::connect()?;
    let bar = context.map()?;
    let methods = positional_free();
    let done = AtomicBool::new(false);
    let steps: [AtomicU64; THREADS] = Default::default();
    let work = |number: usize| {
        let file = context.open()?;
        let start = (number * RANGE) as u64 + 5;
        let mut worker = Worker::new(start, RANGE, 900 + number as u64)?;
        worker.begin(&file)?;
        while !done.load(Ordering::Relaxed) {
            worker.step(&file, &methods)?;
            steps[number].fetch_add(1, Ordering::Relaxed);
        }
        worker.finish(&bar)
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        let progress = |time: u32| {
            for (number, steps) in steps.iter().enumerate() {
                let more = steps.load(Ordering::Relaxed) + 2;
                let what = format!("progress of thread {number} after time {time}");
                eventually(&what, || {
                    let ended = threads[number].is_finished();
                    check!(!ended, "thread {number} ended after time {time}");
                    Ok(steps.load(Ordering::Relaxed) >= more)
                })?;
            }
            Ok(())
        };
        let disturbed = progress(0).and_then(|()| {
            (1..=times).try_for_each(|time| {
                act(&host).during(|| format!("time {time}"))?;
                progress(time)
            })
        });
        done.store(true, Ordering::Relaxed);
        // All are joined before the first error is returned; theirs says more.
        let mut results: Vec<Verdict> = threads
            .into_iter()
            .map(|thread| {
                let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
                thread.join().unwrap_or_else(panicked)
            })
            .collect();
        results.push(disturbed);
        results.into_iter().collect()
    })
}

/// A program that knows nothing of the driver, and verifies its data.
fn kills_during_fio(context: &Context) -> Verdict {
    let host = Host::connect()?;
    let mut kills = 0;
    for engine in crate::fio::ENGINES {
        let mut fio = Fio::start(&verified(context, engine))?;
        while fio.runs()? {
            let before = context.counter("requests")?;
            eventually("progress of fio", || {
                Ok(!fio.runs()? || context.counter("requests")? > before + 200)
            })?;
            if fio.runs()? {
                host.kill_worker()?;
                kills += 1;
            }
        }
        fio.expect_good_end()
            .during(|| format!("fio with {engine:?}"))?;
    }
    check!(kills >= 6, "only {kills} kills while fio ran");
    Ok(())
}

/// The driver resets the device and starts it while no process of the device runs, or while it
/// starts.
fn kills_during_bind(context: &Context) -> Verdict {
    const ROUNDS: u64 = 5;

    let host = Host::connect()?;
    let address = context.pci_address()?;
    for round in 0..ROUNDS {
        let during = || format!("round {round}");
        host.kill_worker().during(during)?;
        unbind(&address).during(during)?;
        host.kill_worker().during(during)?;
        thread::scope(|scope| {
            let bound = scope.spawn(|| bind(context, &address));
            let mut kills = 0;
            while !bound.is_finished() {
                host.kill_worker()?;
                kills += 1;
            }
            check!(kills > 0, "the driver was bound before the first kill");
            let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
            bound.join().unwrap_or_else(panicked)
        })
        .during(during)?;
        expect_working(context, round).during(during)?;
    }
    Ok(())
}
