// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio in the guest, as data: [`Job`] has the arguments, and [`Outcome`] says whether the
//! job succeeded and what it measured.
//!
//! Who starts fio with [`Job::arguments`] waits for its end, reads the file [`REPORT`] and
//! calls [`Outcome::new`]. Nothing here runs a program: the host does that through the
//! guest's PID 1, test programs in the guest by themselves.

#![forbid(unsafe_code)]

mod job;
mod kinds;
mod report;

pub use job::{Extent, Job, Verification, block_name, name};
pub use kinds::{Access, Engine};
pub use report::{DirectionReport, JobReport, Outcome};

/// Directory in which fio is to run, because it leaves files in its working directory.
pub const DIRECTORY: &str = "/run";

/// Path of fio's report in the guest.
pub const REPORT: &str = "/run/fio.json";
