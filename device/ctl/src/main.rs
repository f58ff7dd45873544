// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbarctl`: controls a running Ringbar device over its control socket.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments and help |
//! | `commands` | what each command asks and shows |
//! | `report` | statistics as tables |
//! | `table`, `time` | aligned columns, times with units |
//! | `prometheus` | statistics in the text format of Prometheus |
//! | `generate` | completion scripts and manual pages |
//!
//! [`ringbar_control`] has the protocol and the client.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod error;
mod generate;
mod prometheus;
mod report;
mod table;
mod time;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `parse` exits by itself for --help, --version (status 0) and wrong usage (status 2).
    match commands::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed the pipe.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbarctl: {error}");
            error.exit_code()
        }
    }
}
