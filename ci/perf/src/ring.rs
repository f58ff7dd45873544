// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two processes with the rings of a queue in user space, and a copy for each request.
//!
//! One process stands for the program in the guest, the other for the worker of the device.
//! Both poll, as they do while they are busy. The result is the least time for a request of
//! many short runs, because on a shared machine one of the processes is often interrupted,
//! and the time of a bare copy, measured in the same way between these runs.

use std::fs::File;
use std::hint::{black_box, spin_loop};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use ringbar_user_ring::device::Queue as DeviceQueue;
use ringbar_user_ring::entry::{Completion, Submission};
use ringbar_user_ring::layout::{Entries, KERNEL_WORDS, WORD_BYTES};
use ringbar_user_ring::process::{Kick, Queue as ProcessQueue};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

use crate::memory::{Mapping, PAGE};
use crate::offsets::Offsets;

/// Bytes of the memory that stands for the device.
const STORAGE: usize = 64 << 20;

/// Each byte of the storage. The buffers are 0 before.
const STORED: u8 = 0xa5;

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

    /// Requests of each run
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,

    /// Seconds for all runs together
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of the process that stands for the device.
#[derive(Clone, Debug, Args)]
pub struct DeviceOptions {
    memory: PathBuf,
    block: usize,
    depth: u16,
    parent: i32,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes of each copy.
    pub block: u64,
    /// Requests in flight.
    pub depth: u16,
    /// Number of runs.
    pub runs: usize,
    /// Nanoseconds for a request: the least of all runs.
    pub request_ns: f64,
    /// The median of all runs.
    pub request_median_ns: f64,
    /// Nanoseconds for a copy alone: the least of all runs.
    pub copy_ns: f64,
    /// The median of all runs.
    pub copy_median_ns: f64,
    /// `request_ns` in copies.
    pub copies: f64,
}

/// Where everything is in the memory that both processes map.
#[derive(Clone, Copy, Debug)]
struct Layout {
    entries: Entries,
    block: usize,
}

impl Layout {
    fn new(block: usize, depth: u16) -> Result<Self, String> {
        let log2 = depth.next_power_of_two().ilog2() as u8;
        let entries = Entries::from_log2(log2.max(Entries::MIN_LOG2))
            .ok_or_else(|| format!("{depth} is too deep"))?;
        if block == 0 || block > STORAGE {
            return Err(format!("a block has 1 to {STORAGE} bytes"));
        }
        Ok(Self { entries, block })
    }

    fn device(self) -> usize {
        self.entries.user_words() * WORD_BYTES
    }

    fn kernel(self) -> usize {
        self.device() + self.entries.device_words() * WORD_BYTES
    }

    fn storage(self) -> usize {
        (self.kernel() + KERNEL_WORDS * WORD_BYTES).next_multiple_of(PAGE)
    }

    fn region(self) -> usize {
        self.storage() + STORAGE
    }

    fn length(self) -> usize {
        self.region() + self.entries.get() * self.block
    }
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
    offsets: Offsets,
    peer: Peer,
}

impl Program<'_> {
    fn push(&mut self, opcode: u16, buffer: u64) -> Result<(), String> {
        let submission = Submission {
            opcode,
            offset: self.offsets.next_offset(),
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
                let at = completion.user_data as usize * self.layout.block;
                if self.memory.byte(self.layout.region() + at) != STORED {
                    return Err("a request has brought no data".into());
                }
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

/// Nanoseconds for each of `count` copies by this process alone, of the same blocks.
fn copy_alone(
    memory: &Mapping,
    layout: Layout,
    offsets: &mut Offsets,
    count: u32,
    depth: u16,
) -> f64 {
    let begin = Instant::now();
    for number in 0..count {
        let from = layout.storage() + offsets.next_offset() as usize;
        let to = layout.region() + (number % u32::from(depth)) as usize * layout.block;
        memory.copy_from(to, memory, from, layout.block);
        black_box(memory.byte(to));
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(count)
}

/// Least and median.
fn summary(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    (values[0], values[values.len() / 2])
}

fn measure(options: &Options) -> Result<Report, String> {
    let text = |error: std::io::Error| error.to_string();
    let block = usize::try_from(options.block).map_err(|error| error.to_string())?;
    let layout = Layout::new(block, options.depth)?;
    let memfd = memfd_create("ringbar-perf", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let memfd = File::from(memfd);
    memfd.set_len(layout.length() as u64).map_err(text)?;
    let memory = Mapping::shared(&memfd, layout.length()).map_err(text)?;
    memory.fill(layout.storage(), STORAGE, STORED);

    let pid = std::process::id();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&memfd);
    let peer = Command::new(std::env::current_exe().map_err(text)?)
        .arg("ring-device")
        .arg(format!("/proc/{pid}/fd/{descriptor}"))
        .args([
            block.to_string(),
            options.depth.to_string(),
            pid.to_string(),
        ])
        .spawn()
        .map_err(text)?;
    let offsets = Offsets::new(options.block, STORAGE as u64, true).ok_or("no block fits")?;
    let user = memory.words(0, layout.entries.user_words());
    let device = memory.words(layout.device(), layout.entries.device_words());
    let queue = ProcessQueue::new(user, device, layout.entries).map_err(|e| e.to_string())?;
    let mut program = Program {
        queue,
        memory: &memory,
        layout,
        offsets: offsets.clone(),
        peer: Peer(peer),
    };

    // The first request waits for the start of the other process.
    program.push(READ, 0)?;
    program.reap()?;
    let mut copies = offsets;
    let (mut requests_ns, mut copies_ns) = (Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs(options.seconds);
    while requests_ns.is_empty() || Instant::now() < end {
        requests_ns.push(program.run(options.requests, options.depth)?);
        copies_ns.push(copy_alone(
            &memory,
            layout,
            &mut copies,
            options.requests,
            options.depth,
        ));
    }
    program.push(END, 0)?;
    program.submit()?;
    program.reap()?;

    let runs = requests_ns.len();
    let (request_ns, request_median_ns) = summary(requests_ns);
    let (copy_ns, copy_median_ns) = summary(copies_ns);
    Ok(Report {
        block: options.block,
        depth: options.depth,
        runs,
        request_ns,
        request_median_ns,
        copy_ns,
        copy_median_ns,
        copies: request_ns / copy_ns,
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
        "block {} depth {}: {} runs, {:.0} ns a request (median {:.0}), {:.0} ns a copy alone (median {:.0}), ratio {:.2}",
        ringbar_size::format(report.block),
        report.depth,
        report.runs,
        report.request_ns,
        report.request_median_ns,
        report.copy_ns,
        report.copy_median_ns,
        report.copies,
    );
    Ok(())
}

/// The process that stands for the worker of the device.
pub fn serve(options: &DeviceOptions) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let layout = Layout::new(options.block, options.depth)?;
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
                queue.complete(taken, 0, 0);
                return Ok(());
            }
            let from = fits(submission.offset, STORAGE);
            let to = fits(submission.region_offset, region);
            let (Some(from), Some(to)) = (from, to) else {
                return Err(format!("a request is out of range: {submission:?}"));
            };
            let (from, to) = (layout.storage() + from, layout.region() + to);
            memory.copy_from(to, &memory, from, layout.block);
            queue.complete(taken, layout.block as u32, 0);
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
    fn areas_do_not_overlap() {
        for (block, depth) in [(1, 1), (4096, 32), (1 << 20, 1024)] {
            let layout = Layout::new(block, depth).unwrap();
            assert!(layout.entries.get() >= usize::from(depth));
            let places = [0, layout.device(), layout.kernel(), layout.storage()];
            assert!(places.is_sorted() && places.iter().all(|place| place % 64 == 0));
            assert_eq!(
                layout.length() - layout.region(),
                layout.entries.get() * block
            );
        }
        assert!(Layout::new(0, 1).is_err());
        assert!(Layout::new(STORAGE + 1, 1).is_err());
        assert!(Layout::new(1, 1025).is_err());
    }

    #[test]
    fn the_least_and_the_middle_are_found() {
        assert_eq!(summary(vec![3.0, 1.0, 2.0]), (1.0, 2.0));
    }
}
