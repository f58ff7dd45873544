// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real daemon, and a virtual machine for it: `process` starts the program,
//! `vmm` is the monitor's end of vhost-user, `driver` the guest's.

pub mod driver;
pub mod process;
pub mod vmm;

pub use driver::{Desc, NEXT, WRITE, desc};
pub use process::Daemon;
pub use vmm::{MapPolicy, Vmm};

use std::time::{Duration, Instant};

/// Longest time that a test waits for an event.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `check` succeeds: for what nobody announces.
#[track_caller]
pub fn wait_until(mut check: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(error) = check() {
        assert!(start.elapsed() < TEST_TIMEOUT, "{error}");
        std::thread::yield_now();
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(5) ^ (i >> 8) as u8 ^ seed)
        .collect()
}
