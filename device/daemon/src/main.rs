// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-device`: a Ringbar device as a program, over vhost-user or vfio-user.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments, their help and their validation |
//! | `capabilities` | `--print-capabilities` |
//! | `sandbox` | what its threads may do, beyond those of other devices |
//! | `run` | the life of the process, from the options to the last counters |
//! | `supervised` | the same in two processes: supervisor and worker |
//! | `saved` | what a worker leaves to the next one |
//!
//! The library of this crate has the control socket. [`ringbar_serve`] has the parts that other
//! devices have as well: log, socket, connections.

mod capabilities;
mod cli;
mod run;
mod sandbox;
mod saved;
mod supervised;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use ringbar_device::control;

use crate::cli::{Args, Command, Role};

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
        Command::PrintManPage => {
            let page = clap_mangen::Man::new(Args::command());
            return match page.render(&mut std::io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Command::Run(options) => options,
    };
    let (name, kinds) = (env!("CARGO_BIN_NAME"), sandbox::kinds());
    ringbar_serve::run(name, &options.serve, kinds, |confinement| {
        match options.role {
            Role::Alone => run::run(&options, confinement),
            // It starts processes, and so it cannot restrict itself.
            Role::Supervisor => supervised::supervise(&options),
            Role::Worker => supervised::work(&options, confinement),
        }
    })
}
