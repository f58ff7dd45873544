// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two processes with the rings of a queue in user space, and a copy for each request.
//!
//! One process stands for the program in the guest, the other for the worker of the device.
//! Each has a CPU. Both poll, as they do while they are busy. The result is the least and the median time for a
//! request of many short runs, because on a shared machine one of the processes is often
//! interrupted. After each run the first process does the same copies and reads alone, of other
//! blocks. The ratio of the two times is taken for each such pair.

use std::fs::File;
use std::hint::spin_loop;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use ringbar_user_ring::device::Queue as DeviceQueue;
use ringbar_user_ring::entry::{Completion, Submission};
use ringbar_user_ring::layout::KERNEL_WORDS;
use ringbar_user_ring::process::{Kick, Queue as ProcessQueue};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

pub use self::memory::Read;
use self::memory::{Layout, Reader};
use crate::memory::Mapping;
use crate::offsets::{Offsets, SEED};

mod memory;

/// A run has at least so many requests for each one in flight. With fewer, a part of it would be
/// the first requests, which are pushed before any completion.
const LEAST_LAPS: u32 = 8;

/// Seed of the blocks of the copies alone: those of the requests would be in the cache.
const ALONE_SEED: NonZeroU64 = NonZeroU64::new(0xd1b5_4a32_d192_ed03).unwrap();

/// Opcodes of this measurement.
const READ: u16 = 0;
const END: u16 = 1;

/// Polls without a result after which a process checks whether the other one lives. It does
/// not yield its CPU: on a busy machine the two would then hardly ever run at the same time.
const POLLS_BEFORE_CHECK: u32 = 1 << 16;

/// Requests that the device takes before it ends its turn.
const MAX_TURN: usize = 32;

/// Options of `ring`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Bytes of each copy
    #[arg(long, default_value = "4k", value_parser = ringbar_size::parse)]
    pub block: u64,

    /// Requests in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub depth: u16,

    /// Bytes of the memory that stands for the device
    #[arg(long, default_value = "64m", value_parser = ringbar_size::parse)]
    pub size: u64,

    /// Requests of each run, at least 8 for each in flight [default: 8 for each, at least 200]
    #[arg(long)]
    pub requests: Option<u32>,

    /// Words of each block that the process reads
    #[arg(long, value_enum, default_value = "all")]
    pub read: Read,

    /// Seconds for all runs together
    #[arg(long, default_value_t = 5.0, value_parser = parse_seconds)]
    pub seconds: f64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    match seconds > 0.0 && seconds <= 3600.0 {
        true => Ok(seconds),
        false => Err("more than 0 and at most 3600".into()),
    }
}

impl Options {
    /// Requests of each run.
    fn requests(&self) -> Result<u32, String> {
        let least = LEAST_LAPS * u32::from(self.depth);
        match self.requests {
            None => Ok(least.max(200)),
            Some(requests) if requests >= least => Ok(requests),
            Some(requests) => Err(format!(
                "--requests {requests} is too few; --depth {} needs at least {least}",
                self.depth
            )),
        }
    }
}

/// Options of the process that stands for the device.
#[derive(Clone, Debug, Args)]
pub struct DeviceOptions {
    memory: PathBuf,
    block: usize,
    size: usize,
    depth: u16,
    parent: i32,
    cpu: usize,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes of each copy.
    pub block: u64,
    /// Requests in flight.
    pub depth: u16,
    /// Requests of each run.
    pub requests: u32,
    /// What the process reads of each block.
    pub read: Read,
    /// Number of runs.
    pub runs: usize,
    /// Nanoseconds for a request: the least of all runs.
    pub request_ns: f64,
    /// The median of all runs.
    pub request_median_ns: f64,
    /// Nanoseconds for the same copy and read by one process: the least of all runs.
    pub alone_ns: f64,
    /// The median of all runs.
    pub alone_median_ns: f64,
    /// Time of a run divided by the time of the copies and reads alone after it: the median.
    pub ratio_median: f64,
}

/// The other process; killed when dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Words<'a> = &'a [std::sync::atomic::AtomicU64];

/// The side of the program.
struct Program<'a> {
    queue: ProcessQueue<Words<'a>, Words<'a>>,
    memory: &'a Mapping,
    layout: Layout,
    reader: Reader,
    offsets: Offsets,
    /// Offset of the block that each buffer was last requested for.
    requested: Vec<u64>,
    peer: Peer,
}

impl Program<'_> {
    fn push(&mut self, opcode: u16, buffer: u64) -> Result<(), String> {
        let offset = self.offsets.next_offset();
        self.requested[buffer as usize] = offset;
        let submission = Submission {
            opcode,
            offset,
            length: self.layout.block as u64,
            region_offset: buffer * self.layout.block as u64,
            user_data: buffer,
            ..Submission::default()
        };
        let pushed = self.queue.push(&submission);
        pushed.map_err(|error| error.to_string())
    }

    fn submit(&mut self) -> Result<(), String> {
        match self.queue.submit() {
            Kick::NotNeeded => Ok(()),
            Kick::Needed => Err("the device sleeps, though it is told to poll".into()),
        }
    }

    fn reap(&mut self) -> Result<Completion, String> {
        loop {
            for _ in 0..POLLS_BEFORE_CHECK {
                if let Some(completion) = self.queue.reap() {
                    return Ok(completion);
                }
                spin_loop();
            }
            if let Some(status) = self.peer.0.try_wait().map_err(|e| e.to_string())? {
                // The last completion may have come since the last poll.
                return self
                    .queue
                    .reap()
                    .ok_or_else(|| format!("the process of the device ended with {status}"));
            }
        }
    }

    /// Does `requests` requests, `depth` at a time, and returns the nanoseconds for each.
    fn run(&mut self, requests: u32, depth: u16) -> Result<f64, String> {
        let first = u32::from(depth).min(requests);
        let begin = Instant::now();
        for buffer in 0..first {
            self.push(READ, buffer.into())?;
        }
        self.submit()?;
        let (mut pushed, mut reaped) = (first, 0);
        while reaped < requests {
            // All completions that are there, so that a batch costs one fence.
            let mut completion = self.reap()?;
            let mut again = 0;
            loop {
                reaped += 1;
                if u64::from(completion.result) != self.layout.block as u64 {
                    return Err(format!("a request ended with {completion:?}"));
                }
                let buffer = completion.user_data as usize;
                let at = self.layout.region() + buffer * self.layout.block;
                self.reader.check(self.memory, at, self.requested[buffer])?;
                if pushed < requests {
                    self.push(READ, completion.user_data)?;
                    pushed += 1;
                    again += 1;
                }
                match self.queue.reap() {
                    Some(next) => completion = next,
                    None => break,
                }
            }
            if again != 0 {
                self.submit()?;
            }
        }
        Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(requests))
    }
}

/// Nanoseconds for each of `count` copies and reads by this process alone.
fn alone(
    memory: &Mapping,
    layout: Layout,
    reader: Reader,
    offsets: &mut Offsets,
    (count, depth): (u32, u16),
) -> Result<f64, String> {
    let begin = Instant::now();
    for number in 0..count {
        let offset = offsets.next_offset();
        let from = layout.storage() + offset as usize;
        let to = layout.region() + (number % u32::from(depth)) as usize * layout.block;
        memory.copy_from(to, memory, from, layout.block);
        reader.check(memory, to, offset)?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

/// Least and median.
fn summary(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    (values[0], values[values.len() / 2])
}

/// The median of the ratios of the pairs.
fn median_ratio(pairs: &[(f64, f64)]) -> f64 {
    let ratios = pairs.iter().map(|(request, alone)| request / alone);
    summary(ratios.collect()).1
}

/// The first two CPUs on which this process may run, one for each process. On one CPU the two
/// would run in turns, and each request would take as long as a time slice.
fn cpus() -> Result<[usize; 2], String> {
    let allowed = sched_getaffinity(None).map_err(|error| error.to_string())?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    match (cpus.next(), cpus.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err("the two processes need two CPUs".into()),
    }
}

/// Keeps the process on this CPU.
fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| error.to_string())
}

fn measure(options: &Options) -> Result<Report, String> {
    let text = |error: std::io::Error| error.to_string();
    let requests = options.requests()?;
    let [own_cpu, peer_cpu] = cpus()?;
    pin(own_cpu)?;
    let block = usize::try_from(options.block).map_err(|error| error.to_string())?;
    let size = usize::try_from(options.size).map_err(|error| error.to_string())?;
    let layout = Layout::new(block, size, options.depth)?;
    let memfd = memfd_create("ringbar-perf", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let memfd = File::from(memfd);
    memfd.set_len(layout.length() as u64).map_err(text)?;
    let memory = Mapping::shared(&memfd, layout.length()).map_err(text)?;
    Reader::fill(&memory, layout);

    let pid = std::process::id();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&memfd);
    let peer = Command::new(std::env::current_exe().map_err(text)?)
        .arg("ring-device")
        .arg(format!("/proc/{pid}/fd/{descriptor}"))
        .args([
            block.to_string(),
            size.to_string(),
            options.depth.to_string(),
            pid.to_string(),
            peer_cpu.to_string(),
        ])
        .spawn()
        .map_err(text)?;
    let offsets = |seed| Offsets::random(options.block, options.size, seed).ok_or("no block fits");
    let reader = Reader::new(options.read, block);
    let user = memory.words(0, layout.entries.user_words());
    let device = memory.words(layout.device(), layout.entries.device_words());
    let queue = ProcessQueue::new(user, device, layout.entries).map_err(|e| e.to_string())?;
    let mut program = Program {
        queue,
        memory: &memory,
        layout,
        reader,
        offsets: offsets(SEED)?,
        requested: vec![0; layout.entries.get()],
        peer: Peer(peer),
    };

    // The first request waits for the start of the other process.
    program.push(READ, 0)?;
    program.reap()?;
    let mut copies = offsets(ALONE_SEED)?;
    let mut pairs = Vec::new();
    let extent = (requests, options.depth);
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    while pairs.is_empty() || Instant::now() < end {
        let request = program.run(requests, options.depth)?;
        pairs.push((
            request,
            alone(&memory, layout, reader, &mut copies, extent)?,
        ));
    }
    program.push(END, 0)?;
    program.submit()?;
    program.reap()?;

    let (request_ns, request_median_ns) = summary(pairs.iter().map(|pair| pair.0).collect());
    let (alone_ns, alone_median_ns) = summary(pairs.iter().map(|pair| pair.1).collect());
    Ok(Report {
        block: options.block,
        depth: options.depth,
        requests,
        read: options.read,
        runs: pairs.len(),
        request_ns,
        request_median_ns,
        alone_ns,
        alone_median_ns,
        ratio_median: median_ratio(&pairs),
    })
}

/// Measures and prints the result.
pub fn run(options: &Options) -> Result<(), String> {
    let report = measure(options)?;
    if options.json {
        let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
        println!("{json}");
        return Ok(());
    }
    println!(
        "block {} depth {}: {} runs of {}, {:.0} ns a request (median {:.0}), {:.0} ns alone (median {:.0}), median ratio {:.2}",
        ringbar_size::format(report.block),
        report.depth,
        report.runs,
        report.requests,
        report.request_ns,
        report.request_median_ns,
        report.alone_ns,
        report.alone_median_ns,
        report.ratio_median,
    );
    Ok(())
}

/// The process that stands for the worker of the device.
pub fn serve(options: &DeviceOptions) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    pin(options.cpu)?;
    let layout = Layout::new(options.block, options.size, options.depth)?;
    let file = File::options().read(true).write(true).open(&options.memory);
    let memory = Mapping::shared(&file.map_err(text)?, layout.length()).map_err(text)?;
    let user = memory.words(0, layout.entries.user_words());
    let device = memory.words(layout.device(), layout.entries.device_words());
    let kernel = memory.words(layout.kernel(), KERNEL_WORDS);
    let mut queue = DeviceQueue::new(user, device, kernel, layout.entries)
        .map_err(|error| error.to_string())?;
    queue.wake_up();

    let region = layout.entries.get() * layout.block;
    let fits = |offset: u64, limit: usize| {
        let offset = usize::try_from(offset).ok()?;
        (offset <= limit - layout.block).then_some(offset)
    };
    let mut polls = 0;
    loop {
        let mut turn = 0;
        while turn < MAX_TURN
            && let Some(taken) = queue.take()
        {
            turn += 1;
            let submission = taken.submission().map_err(|error| error.to_string())?;
            if submission.opcode == END {
                queue.complete(taken, 0, 0).map_err(|e| e.to_string())?;
                return Ok(());
            }
            let from = fits(submission.offset, layout.size);
            let to = fits(submission.region_offset, region);
            let (Some(from), Some(to)) = (from, to) else {
                return Err(format!("a request is out of range: {submission:?}"));
            };
            let (from, to) = (layout.storage() + from, layout.region() + to);
            memory.copy_from(to, &memory, from, layout.block);
            let completed = queue.complete(taken, layout.block as u32, 0);
            completed.map_err(|error| error.to_string())?;
        }
        if turn != 0 {
            let _ = queue.end_turn();
            polls = 0;
            continue;
        }
        spin_loop();
        polls += 1;
        if polls == POLLS_BEFORE_CHECK {
            polls = 0;
            let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero);
            if parent.is_none_or(|parent| parent.get() != options.parent) {
                return Err("the process that started this one is gone".into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_and_the_middle_are_found() {
        assert_eq!(summary(vec![3.0, 1.0, 2.0]), (1.0, 2.0));
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        assert_eq!(median_ratio(&[(10.0, 1.0), (6.0, 3.0), (3.0, 3.0)]), 2.0);
    }
}
