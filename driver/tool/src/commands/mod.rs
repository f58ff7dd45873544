// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The commands.

mod events;
mod info;
mod map;
mod reset;
mod stats;

use crate::cli::Command;
use crate::error::Result;

/// Runs a command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Map(args) => map::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Events(args) => events::run(&args.device),
        Command::Info(args) => info::run(&args.device),
        Command::Reset(args) => reset::run(&args.device),
    }
}
