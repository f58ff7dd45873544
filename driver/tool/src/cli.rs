// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments and help.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::region::Region;
use crate::sys::queue::{Direction, Engine};

const EXIT_STATUS: &str = "\
Exit status:
  0  success, also if the reader of the output closed the pipe
  1  an operation failed; the message says which
  2  wrong arguments";

const MAP_HELP: &str = "\
Offsets and lengths are bytes, decimal or 0x..., or have a unit: K, M, G, T (powers
of 1024). They need not be page-aligned.

Regions of a device (a file has only the region memory):
  memory        the device memory, write-combining
  uncached      the device memory, uncached
  cached        the device memory, cached; correct only if it is RAM, as in a virtual machine
  statistics    the page of counters, read-only; see also: ringbar stats
  events        the event log, read-only; see also: ringbar events
  used-rings:N  used ring of queue N, read-only

Examples:
  The first 256 bytes of the device memory:
    ringbar map /dev/ringbar0 --length 256

  Copy 1 MiB of the device memory to a file:
    ringbar map /dev/ringbar0 --offset 16M --length 1M --format raw > copy

  Write through the map:
    echo hello | ringbar map /dev/ringbar0 --offset 0x1003 --write -

  Dump a file, or the BAR of any PCI device:
    ringbar map /etc/os-release
    ringbar map /sys/bus/pci/devices/0000:00:04.0/resource2 --length 64

Exit status:
  0  success, also if the reader of the output closed the pipe
  1  an operation failed, or the map was removed meanwhile; the message says which
  2  wrong arguments";

const DMA_HELP: &str = "\
The engines:
  sync      pread and pwrite, one call at a time; the depth is 1
  libaio    Linux AIO, as the library of this name uses it
  io_uring  io_uring

Examples:
  Write 64 MiB of a pattern, and check that it is there:
    ringbar dma write --length 64M
    ringbar dma verify --length 64M

  Copy a file to the device memory at 1 MiB, and back:
    ringbar dma write --offset 1M --from file
    ringbar dma read --offset 1M --length 5000 --to copy

Offsets and lengths are bytes, decimal or 0x..., or have a unit: K, M, G, T (powers
of 1024). A progress bar appears if standard error is a terminal.

Exit status:
  0  success
  1  an operation failed, or verify has found other data; the message says where
  2  wrong arguments";

/// Inspects, tests and resets Ringbar devices: maps, transfers, counters, event log.
#[derive(Debug, Parser)]
#[command(name = "ringbar", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub struct Cli {
    /// Print JSON: one object a line, see docs/tool.md. Errors stay text
    #[arg(long, global = true)]
    pub json: bool,

    /// Command to execute
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Map a range of a device or file, and dump it or write to it
    ///
    /// Maps the range with mmap (MAP_SHARED), and dumps it to standard output. With
    /// --write, stores to it instead.
    Map(MapArgs),
    /// Read, write or verify a range of a device by DMA
    #[command(after_help = DMA_HELP)]
    Dma {
        /// Operation
        #[command(subcommand)]
        operation: DmaOperation,
    },
    /// Show queues, rates, latency and interrupts of a device, again and again
    ///
    /// On a terminal the view is updated in place; otherwise each one follows the last after an
    /// empty line. The used entries of each queue are sampled every 20 ms.
    Top(TopArgs),
    /// Compare a device with /dev/zero or /dev/null, which do nothing but the system calls
    ///
    /// Runs the same job on both in turns, and prints one line that begins with the ratio: the
    /// median of the ratios of all rounds, with the smallest and the greatest.
    Bench(BenchArgs),
    /// Print the counters of a device, one a line
    Stats(StatsArgs),
    /// Print the event log of a device: starts, resizes, suspends, resets, faults
    Events(DeviceArgs),
    /// Print size, state, PCI address, driver and counters of a device
    Info(DeviceArgs),
    /// Reset a device and put it back into service (administrators only)
    ///
    /// A device that has broken the protocol is out of service: requests fail with an
    /// input/output error, see "ringbar info" and "ringbar events". This command resets the
    /// device and sets it up again. Requests in flight fail. The driver removes all maps of the
    /// device memory: access to them raises SIGBUS, and processes can map the memory again
    /// afterwards. Open files stay usable.
    Reset(DeviceArgs),
}

/// Format of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Offset, 16 bytes and their characters in each line, `*` for repeated lines
    Hex,
    /// The bytes without any formatting
    Raw,
}

/// Range to map, and the operation on it.
#[derive(Debug, Args)]
#[command(after_help = MAP_HELP)]
pub struct MapArgs {
    /// Device or file to map
    pub file: PathBuf,

    /// First byte, counted from the start of the region
    #[arg(long, value_name = "N", default_value = "0", value_parser = ringbar_size::parse)]
    pub offset: u64,

    /// Number of bytes. The default is all bytes up to the end of the region; with --write,
    /// all bytes of FILE
    #[arg(long, value_name = "N", value_parser = ringbar_size::parse)]
    pub length: Option<u64>,

    /// Format of the dump
    #[arg(long, value_enum, default_value = "hex", conflicts_with = "write")]
    pub format: Format,

    /// Write the bytes of this file, or of standard input for "-", to the range, and dump
    /// nothing
    #[arg(long, value_name = "FILE|-")]
    pub write: Option<PathBuf>,

    /// Region to map: memory, uncached, cached, statistics, events or used-rings:N
    #[arg(long, value_name = "REGION", default_value = "memory")]
    pub region: Region,
}

/// What `ringbar dma` does.
#[derive(Debug, Subcommand)]
pub enum DmaOperation {
    /// Read a range; without --to the data is discarded
    Read {
        /// Range and queue.
        #[command(flatten)]
        args: DmaArgs,

        /// File that gets the data, or "-" for standard output
        #[arg(long, value_name = "FILE|-")]
        to: Option<PathBuf>,
    },
    /// Write a pattern or a file to a range
    Write {
        /// Range and queue.
        #[command(flatten)]
        args: DmaArgs,

        /// Data.
        #[command(flatten)]
        data: ContentArgs,
    },
    /// Read a range, and compare it with a pattern or a file
    Verify {
        /// Range and queue.
        #[command(flatten)]
        args: DmaArgs,

        /// Data.
        #[command(flatten)]
        data: ContentArgs,
    },
}

/// A range of a device, and how to transfer it.
#[derive(Debug, Args)]
pub struct DmaArgs {
    /// Device node, or a file
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// First byte
    #[arg(long, value_name = "N", default_value = "0", value_parser = ringbar_size::parse)]
    pub offset: u64,

    /// Number of bytes. The default is all bytes up to the end; with --from, all bytes of FILE
    #[arg(long, value_name = "N", value_parser = ringbar_size::parse)]
    pub length: Option<u64>,

    /// Interface, depth and block size.
    #[command(flatten)]
    pub queue: QueueArgs,
}

/// The interface for transfers.
#[derive(Clone, Debug, Args)]
pub struct QueueArgs {
    /// Interface of the kernel
    #[arg(long, value_enum, default_value = "io_uring")]
    pub engine: Engine,

    /// Number of blocks that are in flight at a time. The default is 8, and 1 for sync
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: Option<u32>,

    /// Bytes of a block, at most 1G
    #[arg(long, value_name = "N", default_value = "128K", value_parser = block_size)]
    pub block_size: u32,
}

impl QueueArgs {
    /// Number of blocks in flight.
    pub fn depth(&self) -> u32 {
        match (self.engine, self.depth) {
            (Engine::Sync, _) => 1,
            (_, depth) => depth.unwrap_or(8),
        }
    }

    /// Why the arguments do not fit together.
    fn problem(&self) -> Option<&'static str> {
        let deep = self.depth.is_some_and(|depth| depth > 1);
        (self.engine == Engine::Sync && deep).then_some(
            "--engine sync makes one call at a time: leave out --depth, or choose libaio or io_uring",
        )
    }
}

/// The data of a range.
#[derive(Debug, Args)]
pub struct ContentArgs {
    /// File with the data, or "-" for standard input, instead of a pattern
    #[arg(long, value_name = "FILE|-", conflicts_with = "seed")]
    pub from: Option<PathBuf>,

    /// Number that selects the pattern
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Device to show, and how often.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct TopArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// Time from one view to the next
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,

    /// Number of views; the default is no end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Do not measure the latency. The measurement reads the first 4 KiB of the device once for
    /// each view, which the counters include
    #[arg(long)]
    pub no_probe: bool,
}

/// Device and job of a benchmark.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct BenchArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// Write zeroes, compared with /dev/null, instead of reading. This overwrites the first
    /// --length bytes of the device
    #[arg(long)]
    pub write: bool,

    /// Number of bytes from the start of the device, which the job transfers again and again
    #[arg(long, value_name = "N", default_value = "64M", value_parser = ringbar_size::parse)]
    pub length: u64,

    /// Time of the job on each of the two in each round
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = interval)]
    pub seconds: Duration,

    /// Number of rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Interface, depth and block size.
    #[command(flatten)]
    pub queue: QueueArgs,
}

impl BenchArgs {
    /// Direction of the job.
    pub fn direction(&self) -> Direction {
        match self.write {
            true => Direction::Write,
            false => Direction::Read,
        }
    }
}

impl Cli {
    /// The arguments of the process. Exits for `--help`, `--version` (status 0) and wrong
    /// arguments (status 2).
    pub fn from_arguments() -> Self {
        let cli = Self::parse();
        if let Some(problem) = cli.problem() {
            Self::command()
                .error(ErrorKind::ArgumentConflict, problem)
                .exit();
        }
        cli
    }

    /// What the definitions above cannot say.
    fn problem(&self) -> Option<&'static str> {
        match &self.command {
            Command::Map(args) if self.json && args.format == Format::Raw => {
                Some("--format raw prints the bytes only: leave out --json")
            }
            Command::Dma { operation } => {
                let (DmaOperation::Read { args, .. }
                | DmaOperation::Write { args, .. }
                | DmaOperation::Verify { args, .. }) = operation;
                if let Some(problem) = args.queue.problem() {
                    return Some(problem);
                }
                match operation {
                    DmaOperation::Read { to, .. }
                        if self.json && to.as_deref() == Some(Path::new("-")) =>
                    {
                        Some("--to - prints the data: leave out --json, or choose a file")
                    }
                    DmaOperation::Verify { args, data }
                        if args.length.is_none()
                            && data.from.as_deref() == Some(Path::new("-")) =>
                    {
                        Some("--from - has no known end: say with --length how much to verify")
                    }
                    _ => None,
                }
            }
            Command::Bench(args) => args.queue.problem(),
            _ => None,
        }
    }
}

/// Parses a block size.
fn block_size(text: &str) -> Result<u32, String> {
    let size = ringbar_size::parse(text).map_err(|error| error.to_string())?;
    u32::try_from(size)
        .ok()
        .filter(|size| (1..=1 << 30).contains(size))
        .ok_or_else(|| "expected 1 to 1G".into())
}

/// A device.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct DeviceArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,
}

/// Device whose counters to print, and the interval.
#[derive(Debug, Args)]
#[command(after_help = EXIT_STATUS)]
pub struct StatsArgs {
    /// Device node
    #[arg(default_value = "/dev/ringbar0")]
    pub device: PathBuf,

    /// Print the counters repeatedly at this interval, each with the increase since the
    /// previous time
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    pub watch: Option<Duration>,
}

/// Longest interval: a time that is so much later can be represented.
const LONGEST_INTERVAL: Duration = Duration::from_secs(1_000_000);

/// Parses an interval in seconds, which may have a fraction.
fn interval(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|interval| !interval.is_zero() && *interval <= LONGEST_INTERVAL)
        .ok_or_else(|| "expected a number of seconds above 0, at most 1000000: 1, 0.5".into())
}

#[cfg(test)]
mod tests;
