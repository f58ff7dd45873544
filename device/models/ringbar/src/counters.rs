// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use serde::Serialize;

/// Defines the atomic counters, a plain copy of them, and the sum of both.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a device, over all queues and connections. Each is exact;
        /// two of them read together may be of different moments.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($name: AtomicU64,)*
        }

        /// A copy of the counters of a device, or what one batch adds to them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct RequestCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds what a batch counted: one atomic addition for each counter
            /// that moved.
            pub(crate) fn add(&self, counts: &RequestCounts) {
                $(if counts.$name != 0 {
                    self.$name.fetch_add(counts.$name, Ordering::Relaxed);
                })*
            }

            /// The present values.
            pub(crate) fn get(&self) -> RequestCounts {
                RequestCounts {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Reads that ended well.
    reads,
    /// Writes that ended well.
    writes,
    /// Writes, and commands that write, that ended well and durable (FUA).
    durable_writes,
    /// Flushes that ended well.
    flushes,
    /// Discards that ended well.
    discards,
    /// Ranges set to 0 that ended well.
    write_zeroes,
    /// Copies within the device that ended well.
    copies,
    /// Fills that ended well.
    fills,
    /// Comparisons that ended well, whatever they found.
    compares,
    /// Checksums that ended well.
    checksums,
    /// Bytes moved to the guest.
    bytes_read,
    /// Bytes moved from the guest.
    bytes_written,
    /// Requests answered with an error.
    errors,
    /// Events delivered.
    events,
}

impl RequestCounts {
    /// Counts a request that has ended.
    pub(crate) fn count(&mut self, header: Option<&RequestHeader>, status: RequestStatus) {
        let done = status.result;
        let (StatusCode::Ok, Some(header)) = (status.code, header) else {
            self.errors += 1;
            return;
        };
        self.durable_writes += u64::from(header.flags & RequestHeader::FUA != 0);
        match header.opcode {
            Opcode::Read => {
                self.reads += 1;
                self.bytes_read += done;
            }
            Opcode::Write => {
                self.writes += 1;
                self.bytes_written += done;
            }
            Opcode::Flush => self.flushes += 1,
            Opcode::Discard => self.discards += 1,
            Opcode::WriteZeroes => self.write_zeroes += 1,
            Opcode::Copy => self.copies += 1,
            Opcode::Fill => self.fills += 1,
            Opcode::Compare => self.compares += 1,
            Opcode::Crc32c => self.checksums += 1,
            Opcode::MapAperture => {}
        }
    }
}

/// What a device and its queues have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// What the queues have done.
    #[serde(flatten)]
    pub queues: ringbar_engine::Counts,
    /// What the requests were.
    #[serde(flatten)]
    pub requests: RequestCounts,
}
