// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result of a run.

use serde::{Deserialize, Serialize};

/// What a run has done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Number of transfers.
    pub transfers: u64,
    /// Bytes transferred.
    pub bytes: u64,
    /// Seconds from the first submission to the last completion.
    pub seconds: f64,
    /// Transfers per second.
    pub transfers_per_second: f64,
    /// System calls that the loop has made.
    pub system_calls: u64,
    /// System calls for each transfer.
    pub system_calls_per_transfer: f64,
}

impl Report {
    /// The result of `transfers` transfers of `block` bytes.
    pub fn new(transfers: u64, block: u64, seconds: f64, system_calls: u64) -> Self {
        Self {
            transfers,
            bytes: transfers * block,
            seconds,
            transfers_per_second: transfers as f64 / seconds,
            system_calls,
            system_calls_per_transfer: system_calls as f64 / transfers as f64,
        }
    }

    /// The result for people.
    pub fn text(&self) -> String {
        format!(
            "{} transfers, {} bytes in {:.3} s: {:.0} a second, {:.3} system calls for each",
            self.transfers,
            self.bytes,
            self.seconds,
            self.transfers_per_second,
            self.system_calls_per_transfer,
        )
    }
}
