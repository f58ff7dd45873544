// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar`: looks at Ringbar devices from user space, and resets them.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments and help |
//! | `commands` | one file for each command |
//! | `device` | an opened file or device: its size, and what sysfs says of it |
//! | `region` | the regions of a device that can be mapped |
//! | `range` | which bytes are meant, and which pages hold them |
//! | `mapping` | a map and access to it |
//! | `control` | what is asked of the driver by `ioctl` |
//! | `sigbus` | what happens when mapped memory goes away |
//! | `counters`, `event_log` | the content of two regions |
//! | `hexdump` | how bytes are shown |

mod cli;
mod commands;
mod control;
mod counters;
mod device;
mod error;
mod event_log;
mod hexdump;
mod mapping;
mod range;
mod region;
mod sigbus;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Ends here for --help, --version (exit status 0) and wrong usage (2).
    let cli = cli::Cli::parse();
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbar: {error}");
            ExitCode::FAILURE
        }
    }
}
