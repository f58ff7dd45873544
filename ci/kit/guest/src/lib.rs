// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests of a card's driver need in the guest: they bind and unbind the driver, put the
//! machine to sleep, count pinned pages, and make memory that a program cannot use.
//!
//! These are tests: what they need and do not get ends them, with a panic that says what it was.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
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
        thread::yield_now();
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

/// Calls `call` on several threads, again and again, and meanwhile `act`; `call` gets the number of
/// its thread. Returns, for each thread, the result of a call that began after `act` had ended.
pub fn under_load<R: Send>(
    threads: usize,
    call: impl Fn(usize) -> R + Sync,
    act: impl FnOnce(),
) -> Vec<R> {
    let busy = AtomicUsize::new(0);
    let acted = AtomicBool::new(false);
    let load = |number| {
        drop(call(number));
        busy.fetch_add(1, Ordering::Relaxed);
        loop {
            let is_last = acted.load(Ordering::Acquire);
            let result = call(number);
            if is_last {
                return result;
            }
        }
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || load(number)))
            .collect();
        // A thread that panics is never busy.
        wait_until("all threads are busy or at an end", || {
            busy.load(Ordering::Relaxed) == threads || all.iter().any(|thread| thread.is_finished())
        });
        act();
        acted.store(true, Ordering::Release);
        all.into_iter()
            .map(|thread| thread.join().expect("a thread of the load"))
            .collect()
    })
}

/// A process of the test program itself, to be killed.
#[derive(Debug)]
pub struct Victim(Child);

impl Victim {
    /// Starts this program with one argument, and waits until it has called [`Self::is_ready`].
    #[must_use]
    #[track_caller]
    pub fn start(argument: &str) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(program)
            .arg(argument)
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Self(child)
    }

    /// Called by the process once it may be killed.
    pub fn is_ready() {
        println!("ready");
    }

    /// Kills it, and waits for its end.
    #[track_caller]
    pub fn kill(mut self) {
        self.0.kill().expect("a signal");
        self.0.wait().expect("the end of the process");
    }
}

/// Number of requests that Ringbar's `driver/simple` has in flight.
const IN_FLIGHT: usize = 16;

/// Checks that calls end with `EIO`, none later than a time-out of the driver, and that the card
/// works again, where the card's first used entries are these: [`IN_FLIGHT`] times `never`, then
/// `id`, `not-in-flight`, `index-ahead`, `length` and `twice` of `ringbar-ci card --lies`.
#[track_caller]
pub fn check_lies(call: impl Fn() -> Result<(), Errno> + Sync) {
    let start = Instant::now();
    // More than are in flight: the others wait for these.
    let ended: Vec<_> = thread::scope(|scope| {
        let all: Vec<_> = (0..3 * IN_FLIGHT).map(|_| scope.spawn(&call)).collect();
        all.into_iter().map(|thread| thread.join()).collect()
    });
    let time = start.elapsed();
    assert!(
        time < TIMEOUT,
        "the calls of a dead card end after {time:?}"
    );
    for result in ended {
        assert_eq!(result.expect("a thread"), Err(Errno::IO));
    }
    for lie in ["id", "not-in-flight", "index-ahead", "length"] {
        assert_eq!(call(), Err(Errno::IO), "{lie}");
    }
    // The first of the two is the right one.
    assert_eq!(call(), Ok(()));
    assert_eq!(call(), Err(Errno::IO), "twice");
    assert_eq!(call(), Ok(()), "the card is honest now");
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
    fn load_goes_on_before_during_and_after() {
        let calls = AtomicUsize::new(0);
        let acted = AtomicBool::new(false);
        let results = under_load(
            3,
            |number| {
                calls.fetch_add(1, Ordering::Relaxed);
                (number, acted.load(Ordering::Relaxed))
            },
            || {
                assert!(calls.load(Ordering::Relaxed) >= 3);
                acted.store(true, Ordering::Relaxed);
            },
        );
        assert_eq!(results, [(0, true), (1, true), (2, true)]);
    }

    #[test]
    fn a_condition_that_holds_ends_the_wait() {
        let count = std::cell::Cell::new(0);
        wait_until("three", || count.replace(count.get() + 1) == 3);
        assert_eq!(count.get(), 4);
    }
}
