// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar`: inspects Ringbar devices from user space, and resets them.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments and help |
//! | `commands` | one file for each command |
//! | `device` | an open file or device: its size, and its attributes in sysfs |
//! | `region` | the regions of a device that can be mapped |
//! | `range` | a range of bytes, and the pages that contain it |
//! | `sys` | system calls and maps: all `unsafe` code |
//! | `counters`, `event_log` | the contents of two regions |
//! | `hexdump` | dumps in hexadecimal |

#![deny(unsafe_code)]

mod cli;
mod commands;
mod counters;
mod device;
mod error;
mod event_log;
mod hexdump;
mod range;
mod region;
#[expect(unsafe_code, reason = "system calls and maps")]
mod sys;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `parse` exits by itself for --help, --version (status 0) and wrong usage (status 2).
    let cli = cli::Cli::parse();
    match commands::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed the pipe.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbar: {error}");
            ExitCode::FAILURE
        }
    }
}
