// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Several threads and processes at once, and processes that are interrupted or
//! killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes};
use crate::method::{Direction, Engines, Method};
use crate::needs::Needs;
use crate::pattern::{self, Random};
use crate::sys::{self, Child, Region};
use crate::{check, check_eq};

/// Timeout for the end of a child.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "concurrency",
        about: "several threads and processes at once, interrupted and killed ones among them",
        needs: Needs::default(),
        cases: vec![
            Case::new("b1_8_threads_on_disjoint_ranges", |context| {
                threads(context, false)
            })
            .left_to_test_all(),
            Case::new("b1_8_threads_share_a_descriptor", |context| {
                threads(context, true)
            }),
            Case::new("b1_fork_with_an_open_descriptor", fork_with_descriptor),
            Case::new("b1_4_processes", processes),
            Case::new("c5_cpu_hotplug_with_io", cpu_hotplug),
            Case::new("b4_sigkill_in_the_middle_of_a_transfer", sigkill),
            Case::new("b4_signals_never_leak_a_kernel_errno", signals),
        ],
    }
}

/// Largest transfer of a [`Worker`].
const LARGEST: u64 = 200_000;

/// A thread or process with a range of the device to itself, and the expected content of
/// the range.
pub(super) struct Worker {
    start: u64,
    expected: Vec<u8>,
    memory: Region,
    engines: Engines,
    random: Random,
}

impl Worker {
    pub(super) fn new(start: u64, length: usize, seed: u64) -> Verdict<Self> {
        let memory = Region::anonymous(length)?;
        Ok(Self {
            start,
            expected: vec![0; length],
            engines: Engines::new(&memory)?,
            memory,
            random: Random::new(seed),
        })
    }

    /// Writes the whole range once, so that its content is known.
    pub(super) fn begin(&mut self, file: &File) -> Verdict {
        let length = self.expected.len();
        self.memory.store(0, &self.expected);
        let written = sys::pwrite(file, self.memory.buffer(0, length), self.start)?;
        check_eq!(written, length, "bytes written at the start");
        Ok(())
    }

    /// Makes one random transfer by a random method.
    pub(super) fn step(&mut self, file: &File, methods: &[Method]) -> Verdict {
        let range = self.expected.len() as u64;
        let length = 1 + self.random.below(LARGEST.min(range)) as usize;
        let at = self.random.below(range - length as u64 + 1) as usize;
        let method = methods[self.random.below(methods.len() as u64) as usize];
        let buffer = self.memory.buffer(at, length);
        let offset = self.start + at as u64;
        let what = |direction: Direction| {
            format!("{} of {length} bytes at {offset}", method.name(direction))
        };
        if self.random.below(2) == 0 {
            let data = pattern::bytes(self.random.below(u64::MAX), length);
            self.memory.store(at, data);
            let moved = self
                .engines
                .transfer(method, Direction::Write, file, &[buffer], offset)
                .during(|| what(Direction::Write))?;
            check_eq!(moved, length, "{}", what(Direction::Write));
            self.expected[at..at + length].copy_from_slice(data);
        } else {
            self.memory.fill(at, length, 0xee);
            let moved = self
                .engines
                .transfer(method, Direction::Read, file, &[buffer], offset)
                .during(|| what(Direction::Read))?;
            check_eq!(moved, length, "{}", what(Direction::Read));
            expect_bytes(
                &self.memory.load(at, length),
                &self.expected[at..at + length],
                &what(Direction::Read),
            )?;
        }
        Ok(())
    }

    /// Reads the whole range and compares it with what must be in it.
    pub(super) fn expect_read(&self, file: &File) -> Verdict {
        let length = self.expected.len();
        self.memory.fill(0, length, 0);
        let read = sys::pread(file, self.memory.buffer(0, length), self.start)?;
        check_eq!(read, length, "bytes read in the end");
        let seen = self.memory.load(0, length);
        expect_bytes(&seen, &self.expected, "the range in the end, read")
    }

    /// Compares the whole range with what must be in it.
    pub(super) fn finish(&self, bar: &Region) -> Verdict {
        let seen = bar.load(self.start as usize, self.expected.len());
        expect_bytes(
            &seen,
            &self.expected,
            "the range in the end, through the BAR",
        )
    }
}

/// Methods that do not use the file position, which all holders of a descriptor share.
pub(super) fn positional_free() -> Vec<Method> {
    Method::ALL
        .into_iter()
        .filter(|method| !method.uses_position())
        .collect()
}

/// Takes the second CPU offline and online again during I/O, which then continues in
/// another CPU's queue.
fn cpu_hotplug(context: &Context) -> Verdict {
    const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
    const WORKERS: u64 = 2;
    const ROUNDS: u64 = 5;
    const RANGE: usize = 1 << 20;

    let file = context.open()?;
    let bar = context.map()?;
    let methods = positional_free();
    let done = AtomicBool::new(false);
    let switch =
        |value: &str| fs::write(SWITCH, value).during(|| format!("writing {value} to {SWITCH}"));
    let results: Vec<Verdict> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|i| {
                let (file, bar, methods, done) = (&file, &bar, &methods, &done);
                scope.spawn(move || {
                    let mut worker = Worker::new(i * RANGE as u64, RANGE, i)?;
                    worker.begin(file)?;
                    while !done.load(Ordering::Relaxed) {
                        worker.step(file, methods)?;
                    }
                    worker.finish(bar)
                })
            })
            .collect();
        let switched = (0..ROUNDS).try_for_each(|round| {
            // On the remaining CPU, and on the one that is online again.
            for value in ["0", "1"] {
                switch(value)?;
                let mut worker = Worker::new((WORKERS + round) * RANGE as u64, RANGE, round)?;
                worker.begin(&file)?;
                for _ in 0..5 {
                    worker.step(&file, &methods)?;
                }
                worker.finish(&bar)?;
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let mut results: Vec<_> = workers
            .into_iter()
            .map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(Stop::Failed("a thread panicked".into())))
            })
            .collect();
        results.push(switched);
        results
    });
    switch("1")?;
    results.into_iter().collect()
}

fn threads(context: &Context, share: bool) -> Verdict {
    const THREADS: u64 = 8;
    const STEPS: usize = 150;
    /// No multiple of a page, so that neighbours share pages.
    const RANGE: usize = (1 << 20) + 77;

    let shared = Arc::new(context.open()?);
    let bar = context.map()?;
    let methods = positional_free();
    let results: Vec<Verdict> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|i| {
                let (shared, bar, methods) = (&shared, &bar, &methods);
                scope.spawn(move || -> Verdict {
                    let own = if share { None } else { Some(context.open()?) };
                    let file = own.as_ref().unwrap_or(shared);
                    let mut worker = Worker::new(5 + i * RANGE as u64, RANGE, i)?;
                    worker.begin(file)?;
                    for _ in 0..STEPS {
                        worker
                            .step(file, methods)
                            .during(|| format!("thread {i}"))?;
                    }
                    worker.finish(bar).during(|| format!("thread {i}"))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Stop::Failed("a thread panicked".into())))
            })
            .collect()
    });
    results.into_iter().collect()
}

/// Starts a child that works on a range. Its exit status says whether it succeeded;
/// errors go to standard error.
fn child_worker(
    context: &Context,
    inherited: Option<&File>,
    start: u64,
    seed: u64,
    steps: usize,
) -> Verdict<Child> {
    const RANGE: usize = 1 << 20;
    let child = sys::fork(|| {
        let work = || -> Verdict {
            let own = match inherited {
                Some(_) => None,
                None => Some(context.open()?),
            };
            let Some(file) = inherited.or(own.as_ref()) else {
                return Ok(());
            };
            let mut worker = Worker::new(start, RANGE, seed)?;
            worker.begin(file)?;
            for _ in 0..steps {
                worker.step(file, &positional_free())?;
            }
            worker.finish(&context.map()?)
        };
        match work() {
            Ok(()) => 0,
            Err(stop) => {
                eprintln!("process with seed {seed}: {stop:?}");
                1
            }
        }
    })?;
    Ok(child)
}

fn fork_with_descriptor(context: &Context) -> Verdict {
    const RANGE: usize = 1 << 20;
    let file = context.open()?;
    let child = child_worker(context, Some(&file), 0, 1, 150)?;
    let mut worker = Worker::new(8 << 20, RANGE, 2)?;
    worker.begin(&file)?;
    for _ in 0..150 {
        worker.step(&file, &positional_free())?;
    }
    check_eq!(child.wait(TIMEOUT)?, Ok(0), "end of the child");
    // The descriptor still works after the other holder has exited.
    for _ in 0..20 {
        worker.step(&file, &positional_free())?;
    }
    worker.finish(&context.map()?)
}

fn processes(context: &Context) -> Verdict {
    let mut children = Vec::new();
    for i in 0..4 {
        children.push(child_worker(context, None, i * (2 << 20) + 1, 10 + i, 150)?);
    }
    for (i, child) in children.into_iter().enumerate() {
        check_eq!(child.wait(TIMEOUT)?, Ok(0), "end of process {i}");
    }
    Ok(())
}

fn sigkill(context: &Context) -> Verdict {
    const ROUNDS: u64 = 20;
    let bar = context.map()?;
    for round in 0..ROUNDS {
        let (mut started, mut start) = std::io::pipe()?;
        let child = sys::fork(|| {
            let mut transfer = || -> Verdict {
                let file = context.open()?;
                let memory = Region::anonymous(4 << 20)?;
                let buffer = memory.buffer(0, memory.len());
                loop {
                    sys::pwrite(&file, buffer, 0)?;
                    sys::pread(&file, buffer, 0)?;
                    // The parent reads only the first of these bytes.
                    let _ = start.write(b"x");
                }
            };
            i32::from(transfer().is_err())
        })?;
        drop(start);
        let mut byte = [0];
        check_eq!(
            started.read(&mut byte)?,
            1,
            "sign of life of process {round}"
        );
        // The pipe must not fill up, or the child would block.
        let drain = thread::spawn(move || std::io::copy(&mut started, &mut std::io::sink()));
        // Kill the child at a different time in each round.
        thread::sleep(Duration::from_micros(1 + 700 * round));
        child.kill(libc::SIGKILL)?;
        let end = child
            .wait(TIMEOUT)
            .during(|| format!("waiting for process {round} to die"))?;
        check_eq!(end, Err(libc::SIGKILL), "end of process {round}");
        check!(drain.join().is_ok(), "the thread that drains the pipe");

        let mut worker = Worker::new(16 << 20, 1 << 20, round)?;
        let file = context.open()?;
        worker.begin(&file)?;
        for _ in 0..5 {
            worker.step(&file, &positional_free())?;
        }
        worker.finish(&bar)?;
    }
    Ok(())
}

fn signals(context: &Context) -> Verdict {
    const TRANSFERS: usize = 300;
    const LENGTH: usize = 1 << 20;

    sys::set_empty_handler(libc::SIGALRM)?;
    let file = context.open()?;
    let memory = Region::anonymous(LENGTH)?;
    let data = pattern::bytes(1, LENGTH);
    memory.store(0, data);
    let buffer = memory.buffer(0, LENGTH);
    sys::interval_timer(Duration::from_micros(500))?;
    let transfers = || -> Verdict {
        for i in 0..TRANSFERS {
            let result = if i % 2 == 0 {
                sys::pwrite(&file, buffer, 3)
            } else {
                sys::pread(&file, buffer, 3)
            };
            match result {
                Ok(n) => check!(n > 0 && n <= LENGTH, "transfer {i} moved {n} bytes"),
                Err(error) => check_eq!(
                    error.raw_os_error(),
                    Some(libc::EINTR),
                    "error of transfer {i}"
                ),
            }
        }
        Ok(())
    };
    let result = transfers();
    sys::interval_timer(Duration::ZERO)?;
    result?;
    check_eq!(
        sys::pwrite(&file, buffer, 3)?,
        LENGTH,
        "bytes written afterwards"
    );
    expect_bytes(
        &context.map()?.load(3, LENGTH),
        data,
        "the device afterwards",
    )
}
