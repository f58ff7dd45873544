// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar top`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::TopArgs;
use crate::counters::{Counters, Values};
use crate::device::{Device, State};
use crate::error::{Error, Result};
use crate::interrupts::{self, Vector};
use crate::output::{self, HEADING};
use crate::queues::{self, Completed, UsedRings};
use crate::sys::mapping::Access;
use crate::transfer::measurement::{per_second, time};

/// Length of the read whose latency is measured, in bytes.
const PROBE_LENGTH: usize = 4096;

/// Moves the cursor to the first line, and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// All that is shown.
#[derive(Debug, Serialize)]
struct View<'a> {
    device: &'a Path,
    state: &'static str,
    /// Time since the last view.
    seconds: f64,
    /// Counters of the driver.
    counters: Values,
    /// Their increase, per second.
    per_second: Values,
    queues: Vec<Row<Completed>>,
    interrupts: Vec<Row<Vector>>,
    /// `null` with `--no-probe`.
    probe: Option<Probe>,
}

/// A count with its rate.
#[derive(Debug, Serialize)]
struct Row<T> {
    #[serde(flatten)]
    count: T,
    per_second: u64,
}

/// The latest result of the latency measurement.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Probe {
    /// Latency of a read of 4 KiB in nanoseconds.
    LatencyNs(u64),
    /// The read failed.
    Error(String),
    /// The read has not completed for so many nanoseconds.
    PendingNs(u64),
}

/// Shows the device until the count is reached, the device is gone, or the program is interrupted.
pub fn run(args: &TopArgs, json: bool) -> Result<()> {
    let device = Device::open(&args.device, Access::Read)?;
    let vectors = interrupts::numbers(&device.place()?.folder)?;
    let counters = Counters::map(&device)?;
    let mut rings = UsedRings::map(&device)?;
    let mut prober = match args.no_probe {
        true => None,
        false => Some(Prober::start(&device)?),
    };
    let in_place = !json && io::stdout().is_terminal();
    let mut before = Sample::take(&counters, &rings, &vectors)?;
    let mut number = 0;
    while args.count.is_none_or(|count| number < count) {
        let end = before.time + args.interval;
        if let Some(prober) = &mut prober {
            prober.request();
        }
        while let Some(left) = end.checked_duration_since(Instant::now())
            && !left.is_zero()
        {
            thread::sleep(left.min(queues::SAMPLE_INTERVAL));
            rings.sample();
        }
        let now = Sample::take(&counters, &rings, &vectors)?;
        let state = device.state()?;
        let view = View::new(
            args,
            state,
            &before,
            &now,
            prober.as_mut().map(Prober::latest),
        );
        if json {
            output::json(&view)?;
        } else {
            if in_place {
                io::stdout().write_all(CLEAR.as_bytes())?;
            } else if number > 0 {
                writeln!(io::stdout())?;
            }
            let mut text = output::text();
            view.write(state, &mut text)?;
            text.flush()?;
        }
        before = now;
        number += 1;
    }
    Ok(())
}

/// All counts at one time.
struct Sample {
    time: Instant,
    counters: Values,
    completed: Vec<Completed>,
    vectors: Vec<Vector>,
}

impl Sample {
    fn take(counters: &Counters, rings: &UsedRings, vectors: &BTreeSet<u32>) -> Result<Self> {
        Ok(Self {
            time: Instant::now(),
            counters: counters.read(),
            completed: rings.completed(),
            vectors: interrupts::read(vectors)?,
        })
    }
}

impl<'a> View<'a> {
    fn new(
        args: &'a TopArgs,
        state: State,
        before: &Sample,
        now: &Sample,
        probe: Option<Probe>,
    ) -> Self {
        let elapsed = now.time - before.time;
        Self {
            device: &args.device,
            state: state.name(),
            seconds: elapsed.as_secs_f64(),
            counters: now.counters,
            per_second: now.counters.since(before.counters).per_second(elapsed),
            queues: now
                .completed
                .iter()
                .map(|count| {
                    let earlier = before.completed.iter().find(|it| it.queue == count.queue);
                    let total = earlier.map_or(0, |it| it.total);
                    Row {
                        count: *count,
                        per_second: per_second(count.total.saturating_sub(total), elapsed),
                    }
                })
                .collect(),
            interrupts: now
                .vectors
                .iter()
                .map(|count| {
                    // An interrupt that was not there before begins at 0.
                    let earlier = before.vectors.iter().find(|it| it.irq == count.irq);
                    let total = earlier.map_or(0, |it| it.total);
                    Row {
                        count: count.clone(),
                        per_second: per_second(count.total.saturating_sub(total), elapsed),
                    }
                })
                .collect(),
            probe,
        }
    }

    fn write(&self, state: State, text: &mut impl Write) -> io::Result<()> {
        let style = state.style();
        let device = self.device.display();
        write!(text, "{device}: {style}{}{style:#}", state.text())?;
        match &self.probe {
            None => writeln!(text)?,
            Some(Probe::LatencyNs(latency)) => {
                writeln!(text, "; latency of a read of 4 KiB: {}", time(*latency))?;
            }
            Some(Probe::Error(error)) => {
                let bad = output::BAD;
                writeln!(text, "; {bad}a read of 4 KiB fails: {error}{bad:#}")?;
            }
            Some(Probe::PendingNs(pending)) => {
                let (bad, pending) = (output::BAD, time(*pending));
                writeln!(text, "; {bad}a read of 4 KiB takes {pending} so far{bad:#}")?;
            }
        }
        writeln!(
            text,
            "{HEADING}{:<24}{:>14}{:>12}{HEADING:#}",
            "counter", "total", "per second"
        )?;
        let rates = self.per_second.named();
        for ((name, total), (_, rate)) in self.counters.named().into_iter().zip(rates) {
            writeln!(text, "{name:<24}{total:>14}{rate:>12}")?;
        }
        writeln!(
            text,
            "{HEADING}{:<24}{:>14}{:>12}{HEADING:#}",
            "queue", "completed", "per second"
        )?;
        for Row { count, per_second } in &self.queues {
            let name = format!("{} {}", count.queue, count.role);
            writeln!(text, "{name:<24}{:>14}{per_second:>12}", count.total)?;
        }
        writeln!(
            text,
            "{HEADING}{:<24}{:>14}{:>12}{HEADING:#}",
            "interrupt", "total", "per second"
        )?;
        for Row { count, per_second } in &self.interrupts {
            let name = format!("{} {}", count.irq, count.name);
            writeln!(text, "{name:<24}{:>14}{per_second:>12}", count.total)?;
        }
        Ok(())
    }
}

/// Reads from the device in a thread of its own, because a read of a device that is stuck does not
/// return.
struct Prober {
    requests: Sender<()>,
    results: Receiver<Probe>,
    /// When the read in progress was requested.
    pending: Option<Instant>,
    /// The read in progress was requested before the current view.
    late: bool,
    latest: Option<Probe>,
}

impl Prober {
    fn start(device: &Device) -> Result<Self> {
        let file = device.try_clone()?;
        let (prober, receiver, sender) = Self::new();
        thread::Builder::new()
            .spawn(
                move || {
                    while receiver.recv() == Ok(()) && sender.send(read(&file)).is_ok() {}
                },
            )
            .map_err(Error::Thread)?;
        Ok(prober)
    }

    /// The prober, and the ends of its channels for the thread that reads.
    fn new() -> (Self, Receiver<()>, Sender<Probe>) {
        let (requests, receiver) = mpsc::channel();
        let (sender, results) = mpsc::channel();
        let prober = Self {
            requests,
            results,
            pending: None,
            late: false,
            latest: None,
        };
        (prober, receiver, sender)
    }

    /// Requests a read for the next view, unless there is one in progress.
    fn request(&mut self) {
        self.update();
        self.late = self.pending.is_some();
        if !self.late && self.requests.send(()).is_ok() {
            self.pending = Some(Instant::now());
        }
    }

    fn update(&mut self) {
        match self.results.try_recv() {
            Ok(probe) => {
                self.pending = None;
                self.latest = Some(probe);
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
    }

    /// The latest result. Without one, or if the read in progress is late: how long it has been in
    /// progress.
    fn latest(&mut self) -> Probe {
        self.update();
        match (self.pending, &self.latest) {
            (Some(since), latest) if self.late || latest.is_none() => {
                Probe::PendingNs(nanoseconds(since.elapsed()))
            }
            (_, Some(latest)) => latest.clone(),
            (_, None) => Probe::PendingNs(0),
        }
    }
}

fn read(file: &File) -> Probe {
    let mut bytes = [0; PROBE_LENGTH];
    let started = Instant::now();
    match file.read_at(&mut bytes, 0) {
        Ok(_) => Probe::LatencyNs(nanoseconds(started.elapsed())),
        Err(error) => Probe::Error(error.to_string()),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_shown_until_the_next_one_or_until_a_read_is_late() {
        let (mut prober, reads, results) = Prober::new();
        prober.request();
        assert!(matches!(prober.latest(), Probe::PendingNs(_)));
        // A read that takes longer than a view is not requested again.
        prober.request();
        assert_eq!(reads.try_iter().count(), 1);
        assert!(matches!(prober.latest(), Probe::PendingNs(_)));
        results.send(Probe::LatencyNs(7)).unwrap();
        assert!(matches!(prober.latest(), Probe::LatencyNs(7)));
        // The read of the next view has not ended yet: the earlier result remains.
        prober.request();
        assert_eq!(reads.try_iter().count(), 1);
        assert!(matches!(prober.latest(), Probe::LatencyNs(7)));
        // It does not end: the device is stuck.
        prober.request();
        assert_eq!(reads.try_iter().count(), 0);
        assert!(matches!(prober.latest(), Probe::PendingNs(_)));
        results.send(Probe::Error("wrong".into())).unwrap();
        assert!(matches!(prober.latest(), Probe::Error(_)));
    }
}
