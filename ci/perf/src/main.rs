// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command `ringbar-perf`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringbar_perf::{load, options, ring};

/// Measures transfers with a loop that costs little itself.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Transfers blocks from or to a file or device
    Run(options::Options),
    /// Measures the rings of a queue in user space: two processes, and a copy for each request
    Ring(ring::Options),
    /// The process that stands for the device; started by `ring`
    #[command(hide = true)]
    RingDevice(ring::DeviceOptions),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => load::run(&options),
        Command::Ring(options) => ring::run(&options),
        Command::RingDevice(options) => ring::serve(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ringbar-perf: {message}");
            ExitCode::FAILURE
        }
    }
}
