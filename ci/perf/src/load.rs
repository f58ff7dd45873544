// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The loop of all engines.

use std::time::{Duration, Instant};

use crate::engine::io_uring::IoUringEngine;
use crate::engine::libaio::Libaio;
use crate::engine::memcpy::Memcpy;
use crate::engine::null::Null;
use crate::engine::psync::Psync;
use crate::engine::{Engine, Target};
use crate::offsets::Offsets;
use crate::options::{EngineKind, Options};
use crate::report::Report;

/// Transfers between two looks at the clock.
const TRANSFERS_PER_CLOCK: u64 = 64;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
enum Extent {
    Transfers(u64),
    Time(Duration),
}

/// Runs and prints the result.
pub fn run(options: &Options) -> Result<(), String> {
    options.check()?;
    let target = Target::open(options)?;
    let report = match options.engine {
        EngineKind::Null => transfer(Null::default(), options),
        EngineKind::Memcpy => transfer(Memcpy::new(target, options)?, options),
        EngineKind::Psync => transfer(Psync::new(target), options),
        EngineKind::Libaio => transfer(Libaio::new(target, options)?, options),
        EngineKind::IoUring => transfer(IoUringEngine::new(target, options)?, options),
    }?;
    if options.json {
        let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
        println!("{json}");
    } else {
        println!("{}", report.text());
    }
    Ok(())
}

/// Runs an engine until the extent is reached and nothing is in flight.
fn transfer<E: Engine>(mut engine: E, options: &Options) -> Result<Report, String> {
    let mut offsets = Offsets::new(options.block, options.size, options.rw.is_random())
        .ok_or("--size is less than --block")?;
    let extent = match (options.transfers, options.seconds) {
        (Some(transfers), _) => Extent::Transfers(transfers),
        (None, Some(seconds)) => Extent::Time(Duration::from_secs_f64(seconds)),
        (None, None) => return Err("--seconds or --transfers is missing".into()),
    };
    let mut free: Vec<u32> = (0..options.depth).collect();
    let mut remaining = match extent {
        Extent::Transfers(transfers) => transfers,
        Extent::Time(_) => u64::MAX,
    };
    let (mut completed, mut next_clock) = (0, TRANSFERS_PER_CLOCK);

    mark(options, "begin");
    let begin = Instant::now();
    loop {
        while remaining != 0
            && let Some(buffer) = free.pop()
        {
            engine.prepare(buffer, offsets.next_offset())?;
            remaining -= 1;
        }
        let in_flight = options.depth - free.len() as u32;
        if in_flight == 0 {
            break;
        }
        let before = free.len();
        engine.submit_and_wait(options.batch.min(in_flight), &mut free)?;
        completed += (free.len() - before) as u64;
        if completed >= next_clock
            && let Extent::Time(time) = extent
        {
            next_clock = completed + TRANSFERS_PER_CLOCK;
            if begin.elapsed() >= time {
                remaining = 0;
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    mark(options, "end");
    Ok(Report::new(
        completed,
        options.block,
        seconds,
        engine.system_calls(),
    ))
}

/// Prints a line for a program that brackets the loop.
fn mark(options: &Options, text: &str) {
    if options.marks {
        println!("{text}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeSet;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    pub(crate) fn options(arguments: &str) -> Options {
        let words = std::iter::once("run").chain(arguments.split_whitespace());
        Cli::try_parse_from(words).unwrap().options
    }

    /// Completes in another order than it was submitted to, and as few as it may.
    #[derive(Default)]
    struct Reversed {
        in_flight: Vec<u32>,
        offsets: Vec<u64>,
        most: usize,
        waits: Vec<u32>,
    }

    impl Engine for &mut Reversed {
        fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String> {
            assert!(!self.in_flight.contains(&buffer), "the buffer is in use");
            self.in_flight.push(buffer);
            self.offsets.push(offset);
            self.most = self.most.max(self.in_flight.len());
            Ok(())
        }

        fn submit_and_wait(&mut self, min: u32, free: &mut Vec<u32>) -> Result<(), String> {
            self.waits.push(min);
            for _ in 0..min {
                free.extend(self.in_flight.pop());
            }
            Ok(())
        }

        fn system_calls(&self) -> u64 {
            self.waits.len() as u64
        }
    }

    #[test]
    fn a_run_does_all_transfers_and_no_more() {
        let mut engine = Reversed::default();
        let options =
            options("--engine null --rw read --transfers 103 --depth 8 --batch 4 --size 1m");
        let report = transfer(&mut engine, &options).unwrap();
        assert_eq!((report.transfers, report.bytes), (103, 103 * 4096));
        assert_eq!((engine.most, engine.in_flight.len()), (8, 0));
        assert_eq!(engine.offsets.iter().collect::<BTreeSet<_>>().len(), 103);
        // In batches, and the rest at the end.
        assert_eq!(engine.waits.iter().sum::<u32>(), 103);
        assert_eq!(engine.waits.iter().filter(|min| **min != 4).count(), 1);
        assert_eq!(report.system_calls, engine.waits.len() as u64);
    }

    #[test]
    fn a_run_ends_in_time() {
        let mut engine = Reversed::default();
        let report = transfer(
            &mut engine,
            &options("--engine null --seconds 0.01 --depth 2"),
        );
        let report = report.unwrap();
        assert!(report.seconds >= 0.01 && report.transfers >= TRANSFERS_PER_CLOCK);
        assert!(engine.in_flight.is_empty());
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (arguments, problem) in [
            ("--engine libaio --file x --fixed --seconds 1", "io_uring"),
            (
                "--engine psync --file x --depth 2 --seconds 1",
                "one transfer",
            ),
            (
                "--engine null --depth 2 --batch 3 --seconds 1",
                "more than --depth 2",
            ),
            ("--engine null --seconds 0", "--seconds"),
            ("--engine null --seconds NaN", "--seconds"),
            ("--engine null --block 0 --seconds 1", "--block"),
        ] {
            let error = options(arguments).check().unwrap_err();
            assert!(error.contains(problem), "{arguments}: {error}");
        }
        for arguments in [
            "--engine psync --seconds 1",
            "--engine null",
            "--engine null --seconds 1 --transfers 1",
        ] {
            let words = std::iter::once("run").chain(arguments.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{arguments}");
        }
    }
}
