// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar`: inspects, tests and resets Ringbar devices from user space. `docs/tool.md` describes it
//! for users.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | arguments and help |
//! | `commands` | one file for each command |
//! | `device` | an open file or device: its size, and its attributes in sysfs |
//! | `region` | the regions of a device that can be mapped |
//! | `range` | a range of bytes, and the pages that contain it |
//! | `source` | a file or standard input with bytes to write |
//! | `transfer` | transfers of a range in blocks: order, pattern, rates |
//! | `queues`, `interrupts` | used entries of each queue, interrupts of each vector |
//! | `output` | text with colours, and JSON |
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
mod interrupts;
mod output;
mod queues;
mod range;
mod region;
mod source;
#[expect(unsafe_code, reason = "system calls and maps")]
mod sys;
mod transfer;

use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::run(cli::Cli::from_arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed the pipe.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringbar: {error}");
            ExitCode::FAILURE
        }
    }
}
