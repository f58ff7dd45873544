// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Measures how fast the guest copies memory, an upper limit for the speed of any
//! transfer.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

/// Direction of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the large memory to the buffers
    Read,
    /// From the buffers to the large memory
    Write,
}

/// Options of the measurement.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Bytes of each copy
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub block: u64,

    /// Number of buffers, each of one block, used one after the other
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    pub buffers: u64,

    /// Bytes of the memory that stands for the device
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 34))]
    pub memory: u64,

    /// Number of concurrent threads, each with memory of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: u64,

    /// Run time in milliseconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub milliseconds: u64,

    /// Direction of the copy
    #[arg(long, value_enum, default_value = "read")]
    pub direction: Direction,
}

/// Copies memory and returns the number of copies per second of all threads together.
///
/// # Errors
///
/// The memory is smaller than a block, or too large for this machine.
pub fn run(options: &Options) -> Result<f64, String> {
    let size = |bytes: u64| usize::try_from(bytes).map_err(|error| error.to_string());
    let block = size(options.block)?;
    let buffers = size(options.buffers)?
        .checked_mul(block)
        .ok_or("too many buffers")?;
    // The memory of all threads together is as large as the device.
    let memory = size(options.memory / options.threads)? / block * block;
    if memory == 0 {
        return Err("the memory holds no block for each thread".into());
    }
    let start = Barrier::new(size(options.threads)?);
    let time = Duration::from_millis(options.milliseconds);
    let rates = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|_| {
                scope.spawn(|| {
                    let room = (filled(memory), filled(buffers));
                    // Also after a failed allocation, because the other threads wait at
                    // the barrier.
                    start.wait();
                    let (memory, buffers) = (room.0?, room.1?);
                    Ok(copy(memory, buffers, block, time, options.direction))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
            .collect::<Result<Vec<f64>, String>>()
    })?;
    Ok(rates.iter().sum())
}

/// Memory whose pages are populated.
fn filled(bytes: usize) -> Result<Vec<u8>, String> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(bytes)
        .map_err(|error| error.to_string())?;
    memory.resize(bytes, 0x5a);
    Ok(memory)
}

/// Copies block after block for `time`; returns copies per second.
fn copy(
    mut memory: Vec<u8>,
    mut buffers: Vec<u8>,
    block: usize,
    time: Duration,
    direction: Direction,
) -> f64 {
    /// Bytes copied between two readings of the clock, which takes as long as a small
    /// copy.
    const AT_ONCE: usize = 256 << 10;
    let at_once = (AT_ONCE / block).max(1);
    let (blocks, slots) = (memory.len() / block, buffers.len() / block);
    let start = Instant::now();
    let mut copies = 0;
    loop {
        for _ in 0..at_once {
            let place = copies % blocks * block;
            let slot = copies % slots * block;
            let device = &mut memory[place..place + block];
            let buffer = &mut buffers[slot..slot + block];
            match direction {
                Direction::Read => buffer.copy_from_slice(black_box(device)),
                Direction::Write => device.copy_from_slice(black_box(buffer)),
            }
            copies += 1;
        }
        let elapsed = start.elapsed();
        if elapsed >= time {
            black_box((&memory, &buffers));
            return copies as f64 / elapsed.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(block: u64, memory: u64, threads: u64) -> Options {
        Options {
            block,
            buffers: 4,
            memory,
            threads,
            milliseconds: 5,
            direction: Direction::Write,
        }
    }

    #[test]
    fn copies_are_counted() {
        assert!(run(&options(4096, 1 << 20, 2)).unwrap() > 0.0);
        assert!(run(&options(512, 513, 1)).unwrap() > 0.0);
    }

    #[test]
    fn memory_that_holds_no_block_is_refused() {
        assert!(run(&options(4096, 4095, 1)).is_err());
        assert!(run(&options(4096, 4096, 2)).is_err());
    }
}
