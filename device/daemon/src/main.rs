// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-device`: a Ringbar device as a vhost-user back-end program.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments, help, and what they mean together |
//! | `capabilities` | `--print-capabilities` |
//! | `logging`, `rate_limit` | messages on standard error |
//! | `socket` | the listening socket and its file |
//! | `control` | requests to the running device, over another socket |
//! | `signals` | SIGTERM and SIGINT as a descriptor |
//! | `run` | from the first message to the exit |

mod capabilities;
mod cli;
mod control;
mod logging;
mod rate_limit;
mod run;
mod signals;
mod socket;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Args, Command};

fn main() -> ExitCode {
    // Ends here for --help, --version (exit status 0) and wrong usage (2).
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
    // The log is dropped here, and its last lines are written.
}
