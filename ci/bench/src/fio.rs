// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio in the guest.

mod kinds;
mod program;

pub use kinds::{Access, Engine};
pub use program::{DirectionReport, FioRun, JobReport, parse_report, run};

/// A block size as written in names: 512, 4k, 1m.
pub fn block_name(bytes: u64) -> String {
    ringbar_size::format(bytes).to_lowercase()
}
