// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The options of a run.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// A way of doing I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// Nothing is transferred: the cost of the loop
    Null,
    /// Copies between memory of the process
    Memcpy,
    /// `pread` and `pwrite`
    Psync,
    /// `io_submit` and `io_getevents`
    Libaio,
    /// io_uring with a registered file
    #[value(name = "io_uring")]
    IoUring,
}

/// Direction and order of the transfers, by fio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum Access {
    /// One block after the other, from the file
    Read,
    /// One block after the other, to the file
    Write,
    /// Blocks in random order, from the file
    RandRead,
    /// Blocks in random order, to the file
    RandWrite,
}

impl Access {
    /// Whether data goes to the file.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite)
    }

    /// Whether the order is random.
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// File or device; not for null and memcpy
    #[arg(long, required_if_eq_any([("engine", "psync"), ("engine", "libaio"), ("engine", "io_uring")]))]
    pub file: Option<PathBuf>,

    /// Way of doing I/O
    #[arg(long, value_enum)]
    pub engine: EngineKind,

    /// Direction and order
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: Access,

    /// Bytes of each transfer
    #[arg(long, default_value = "4k", value_parser = ringbar_size::parse)]
    pub block: u64,

    /// Bytes of the file that are used
    #[arg(long, default_value = "64m", value_parser = ringbar_size::parse)]
    pub size: u64,

    /// Transfers in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,

    /// Transfers that are waited for together, and submitted again together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,

    /// Seconds to run for
    #[arg(
        long,
        conflicts_with = "transfers",
        required_unless_present = "transfers"
    )]
    pub seconds: Option<f64>,

    /// Number of transfers to do
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub transfers: Option<u64>,

    /// Open the file with O_DIRECT
    #[arg(long)]
    pub direct: bool,

    /// Register the buffers; only io_uring
    #[arg(long)]
    pub fixed: bool,

    /// Poll for completions (IORING_SETUP_IOPOLL); only io_uring
    #[arg(long)]
    pub iopoll: bool,

    /// Print "begin" before the first transfer and "end" after the last one
    #[arg(long)]
    pub marks: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Says which options do not go together.
    pub fn check(&self) -> Result<(), String> {
        if self.engine != EngineKind::IoUring && (self.fixed || self.iopoll) {
            return Err("--fixed and --iopoll need --engine io_uring".into());
        }
        if self.engine == EngineKind::Psync && self.depth != 1 {
            return Err("psync has one transfer in flight: --depth 1".into());
        }
        if self.batch > self.depth {
            return Err(format!(
                "--batch {} is more than --depth {}",
                self.batch, self.depth
            ));
        }
        if self
            .seconds
            .is_some_and(|seconds| !(seconds > 0.0 && seconds <= 86_400.0))
        {
            return Err("--seconds takes more than 0, and at most a day".into());
        }
        if self.block == 0 || self.block > 1 << 30 {
            return Err("--block takes 1 byte to 1 GiB".into());
        }
        Ok(())
    }
}
