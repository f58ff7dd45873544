// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters of a device.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

pub use ringbar_engine::{Counts as EngineCounts, Latencies};
use ringbar_spec::{Opcode, RequestHeader, RequestStatus, StatusCode};
use serde::Serialize;

/// Defines the atomic counters, a plain copy of them, and the sum of both.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one queue, over all connections. Each is exact; two counters that are read
        /// together may belong to different moments.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($name: AtomicU64,)*
        }

        /// A copy of the counters of one queue or of several, or the counts of one batch.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct RequestCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for RequestCounts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Counters {
            /// Adds the counts of a batch, with one atomic addition for each count that is
            /// not 0.
            pub(crate) fn add(&self, counts: &RequestCounts) {
                $(if counts.$name != 0 {
                    self.$name.fetch_add(counts.$name, Ordering::Relaxed);
                })*
            }

            /// The current values.
            pub(crate) fn get(&self) -> RequestCounts {
                RequestCounts {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Successful reads.
    reads,
    /// Successful writes.
    writes,
    /// Successful writes, and commands that write, with force unit access (FUA).
    durable_writes,
    /// Successful flushes.
    flushes,
    /// Successful discards.
    discards,
    /// Successful commands that write zeroes.
    write_zeroes,
    /// Successful copies within the device.
    copies,
    /// Successful fills.
    fills,
    /// Successful comparisons, with any result.
    compares,
    /// Successful checksums.
    checksums,
    /// Bytes that successful reads copied to guest memory.
    bytes_read,
    /// Bytes that successful writes copied from guest memory.
    bytes_written,
    /// Requests that were completed with an error.
    errors,
    /// Events that were delivered to the driver.
    events,
}

impl RequestCounts {
    /// Counts a completed request.
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

/// Counters of a device and of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Counters of the queues.
    #[serde(flatten)]
    pub queues: EngineCounts,
    /// Counters of the requests.
    #[serde(flatten)]
    pub requests: RequestCounts,
}

/// What is known of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// Counters of the queue.
    pub queue: EngineCounts,
    /// Number of requests that the device has taken and not completed.
    pub in_flight: u64,
    /// Counters of the requests.
    pub requests: RequestCounts,
    /// How long the requests of each operation took, with its name. Empty before the first
    /// connection.
    pub latencies: Vec<(&'static str, Latencies)>,
}
