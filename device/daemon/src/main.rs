// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-device`: a Ringbar device as a program, over vhost-user or vfio-user.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments, their help and their validation |
//! | `capabilities` | `--print-capabilities` |
//! | `logging`, `rate_limit` | messages on standard error |
//! | `socket` | the listening socket and its file |
//! | `transport` | the transports: options, connections |
//! | `control` | the control socket: requests to the running device |
//! | `signals` | SIGTERM and SIGINT as a descriptor |
//! | `run` | the life of the process, from the options to the last counters |

mod capabilities;
mod cli;
mod control;
mod logging;
mod rate_limit;
mod run;
mod signals;
mod socket;
mod transport;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Args, Command};

fn main() -> ExitCode {
    // `parse` exits by itself for --help, --version (status 0) and wrong usage (status 2).
    let command = match Command::try_from(Args::parse()) {
        Ok(command) => command,
        Err(error) => error.exit(),
    };
    let options = match command {
        Command::PrintCapabilities => {
            println!("{}", capabilities::json());
            return ExitCode::SUCCESS;
        }
        Command::Run(options) => options,
    };
    let log = match logging::init(&options.log, options.log_format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("ringbar-device: {error:#}");
            return ExitCode::from(2);
        }
    };
    let result = run::run(&options);
    log.report();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
    // Dropping the log writes its last lines.
}
