// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests of a card's driver need in the guest: they bind and unbind the driver, put the
//! machine to sleep, count pinned pages, and make memory that a program cannot use.
//!
//! These are tests: what they need and do not get ends them, with a panic that says what it was.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};

/// Size of a page in bytes.
pub const PAGE: usize = 4096;

/// Longest that anything may take: longer than the driver waits for its device.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
///
/// # Panics
///
/// If that takes longer than [`TIMEOUT`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::yield_now();
    }
}

/// A PCI driver that is loaded.
#[derive(Debug)]
pub struct Driver(PathBuf);

impl Driver {
    /// The driver of a module.
    #[must_use]
    pub fn new(module: &str) -> Self {
        Self(PathBuf::from("/sys/bus/pci/drivers").join(module))
    }

    /// The addresses of the functions that it is bound to, such as `0000:00:04.0`, in order.
    #[must_use]
    #[track_caller]
    pub fn functions(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0)
            .unwrap_or_else(|error| panic!("reading {}: {error}", self.0.display()));
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry of sysfs").file_name())
            .filter_map(|name| name.into_string().ok())
            .filter(|name| name.contains(':'))
            .collect();
        names.sort();
        names
    }

    /// Unbinds it from a function; returns once that is done.
    #[track_caller]
    pub fn unbind(&self, function: &str) {
        self.write("unbind", function);
    }

    /// Binds it to a function.
    #[track_caller]
    pub fn bind(&self, function: &str) {
        self.write("bind", function);
    }

    #[track_caller]
    fn write(&self, file: &str, function: &str) {
        write(&self.0.join(file).to_string_lossy(), function);
    }
}

#[track_caller]
fn write(path: &str, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("writing {text} to {path}: {error}"));
}

/// Suspends all devices and resumes them, as system sleep does, without the rest of it.
#[track_caller]
pub fn suspend_devices() {
    // No delay.
    write("/sys/module/suspend/parameters/pm_test_delay", "0");
    write("/sys/power/pm_test", "devices");
    write("/sys/power/state", "freeze");
    write("/sys/power/pm_test", "none");
}

/// Number of pages that are pinned now.
#[must_use]
#[track_caller]
pub fn pinned_pages() -> u64 {
    // The counters are per CPU; reading this file sums them.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let table = fs::read_to_string("/proc/vmstat").expect("/proc/vmstat");
    let count = |name: &str| -> u64 {
        let line = table.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|number| number.trim().parse().ok());
        number.unwrap_or_else(|| panic!("/proc/vmstat has no {name}"))
    };
    count("nr_foll_pin_acquired ") - count("nr_foll_pin_released ")
}

/// Bytes without a pattern (xorshift), always the same for a seed.
#[must_use]
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // CAST: One of its bytes.
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Address of a page that the program cannot write.
#[must_use]
#[track_caller]
pub fn read_only_page() -> u64 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: A new mapping, which nothing refers to.
    let page = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, access, MapFlags::PRIVATE) };
    let page = page.expect("mmap");
    // SAFETY: As above.
    unsafe { mprotect(page, PAGE, MprotectFlags::READ) }.expect("mprotect");
    page as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_bytes() {
        assert_ne!(read_only_page(), 0);
        assert_eq!(bytes(3, 1), bytes(5, 1)[..3]);
        assert_ne!(bytes(16, 1), bytes(16, 2));
    }

    #[test]
    fn a_condition_that_holds_ends_the_wait() {
        let count = std::cell::Cell::new(0);
        wait_until("three", || count.replace(count.get() + 1) == 3);
        assert_eq!(count.get(), 4);
    }
}
