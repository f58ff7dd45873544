// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Defines the atomic counters, a plain copy of them, and the sum of both.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of a device, over all queues and connections. Each is exact,
        /// but two of them read together may be of different moments.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($name: AtomicU64,)*
        }

        /// A copy of [`Counters`], or what one batch adds to them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds what a batch counted: one atomic addition for each counter
            /// that moved.
            pub fn add(&self, counts: &Counts) {
                $(if counts.$name != 0 {
                    self.$name.fetch_add(counts.$name, Ordering::Relaxed);
                })*
            }

            /// The present values.
            pub fn get(&self) -> Counts {
                Counts {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Chains answered, whatever with.
    requests,
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
    /// Notifications from the driver.
    kicks,
    /// Notifications to the driver.
    interrupts,
    /// Queues broken by the driver.
    broken_queues,
    /// Events delivered.
    events,
}
