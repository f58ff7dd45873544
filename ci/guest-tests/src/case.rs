// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests, suites and their results.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, io};

use ringbar_agent_protocol::machine::{TRANSPORT_VARIABLE, Transport};

use crate::needs::{Needs, Transports};
use crate::sys::{self, Region};

/// Reason why a test did not pass.
#[derive(Debug)]
pub enum Stop {
    /// A condition of the test does not hold.
    Failed(String),
    /// The test does not apply to this machine.
    Skipped(String),
}

/// Result of a test.
pub type Verdict<T = ()> = Result<T, Stop>;

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Adds the failed operation to an error.
pub trait During<T> {
    /// Turns an error into a failure of the test.
    fn during(self, what: impl FnOnce() -> String) -> Verdict<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, what: impl FnOnce() -> String) -> Verdict<T> {
        self.map_err(|error| Stop::Failed(format!("{}: {error}", what())))
    }
}

impl<T> During<T> for Verdict<T> {
    fn during(self, what: impl FnOnce() -> String) -> Verdict<T> {
        self.map_err(|stop| match stop {
            Stop::Failed(message) => Stop::Failed(format!("{}: {message}", what())),
            skipped @ Stop::Skipped(_) => skipped,
        })
    }
}

/// Fails the test unless a condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::case::Stop::Failed(format!($($message)+)));
        }
    };
}

/// Fails the test unless two values are equal.
#[macro_export]
macro_rules! check_eq {
    ($found:expr, $expected:expr, $($message:tt)+) => {
        match (&$found, &$expected) {
            (found, expected) => if *found != *expected {
                return Err($crate::case::Stop::Failed(format!(
                    "{}: {found:?} instead of {expected:?}",
                    format_args!($($message)+)
                )));
            }
        }
    };
}

/// Fails the test unless an operation failed with one of these errors.
pub fn expect_errno<T: std::fmt::Debug>(
    result: io::Result<T>,
    expected: &[i32],
    what: &str,
) -> Verdict {
    match result {
        Ok(value) => Err(Stop::Failed(format!(
            "{what}: succeeded with {value:?}, expected {}",
            names(expected)
        ))),
        Err(error) if error.raw_os_error().is_some_and(|e| expected.contains(&e)) => Ok(()),
        Err(error) => Err(Stop::Failed(format!(
            "{what}: {error}, expected {}",
            names(expected)
        ))),
    }
}

fn names(errors: &[i32]) -> String {
    let names: Vec<_> = errors
        .iter()
        .map(|error| io::Error::from_raw_os_error(*error).to_string())
        .collect();
    names.join(" or ")
}

/// Fails the test unless two runs of bytes are equal.
pub fn expect_bytes(found: &[u8], expected: &[u8], what: &str) -> Verdict {
    match crate::pattern::difference(found, expected) {
        None => Ok(()),
        Some(difference) => Err(Stop::Failed(format!("{what}: {difference}"))),
    }
}

/// Repeats `attempt` until it succeeds, for at most [`TIMEOUT`].
pub fn eventually(what: &str, mut attempt: impl FnMut() -> Verdict<bool>) -> Verdict {
    let deadline = Instant::now() + TIMEOUT;
    while !attempt()? {
        check!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
        // The condition causes no event, so it is polled.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Default timeout.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The device under test.
#[derive(Clone, Debug)]
pub struct Context {
    path: PathBuf,
    size: u64,
}

impl Context {
    /// The device behind this node. A regular file can replace it in tests of the tests.
    pub fn new(path: &Path) -> io::Result<Self> {
        let file = sys::open(path, libc::O_RDONLY)?;
        let size = sys::lseek(&file, 0, libc::SEEK_END)?;
        Ok(Self {
            path: path.to_owned(),
            size,
        })
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Protocol between the device and QEMU, which the harness tells.
    pub fn transport(&self) -> Verdict<Transport> {
        match env::var(TRANSPORT_VARIABLE) {
            Err(_) => Ok(Transport::default()),
            Ok(name) => name
                .parse()
                .map_err(|error| Stop::Failed(format!("{TRANSPORT_VARIABLE} is {name}: {error}"))),
        }
    }

    /// Size of the device memory.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the device for reading and writing.
    pub fn open(&self) -> Verdict<File> {
        self.open_with(libc::O_RDWR)
    }

    /// Opens the device with these flags.
    pub fn open_with(&self, flags: i32) -> Verdict<File> {
        sys::open(&self.path, flags).during(|| format!("opening {}", self.path.display()))
    }

    /// Maps the whole device memory.
    pub fn map(&self) -> Verdict<Region> {
        let length = usize::try_from(self.size).map_err(|e| Stop::Failed(e.to_string()))?;
        Region::shared(&self.open()?, 0, length).during(|| "mapping the device memory".into())
    }

    /// Directory of the PCI device in sysfs, found by the driver's name.
    pub fn pci_device(&self) -> Verdict<PathBuf> {
        let driver = Path::new("/sys/bus/pci/drivers/ringbar");
        let entries = fs::read_dir(driver).during(|| format!("listing {}", driver.display()))?;
        for entry in entries {
            let entry = entry?;
            // Devices are the links whose name is a PCI address.
            if entry.file_name().to_string_lossy().contains(':') {
                return Ok(entry.path().canonicalize()?);
            }
        }
        Err(Stop::Failed("no device is bound to the driver".into()))
    }

    /// Address of the PCI device.
    pub fn pci_address(&self) -> Verdict<String> {
        let device = self.pci_device()?;
        let name = device.file_name().unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    /// The file of one of the driver's counters.
    pub fn counter_path(&self, name: &str) -> Verdict<String> {
        Ok(format!(
            "/sys/kernel/debug/ringbar/{}/{name}",
            self.pci_address()?
        ))
    }

    /// One of the driver's counters.
    pub fn counter(&self, name: &str) -> Verdict<u64> {
        let path = self.counter_path(name)?;
        let text = fs::read_to_string(&path).during(|| format!("reading {path}"))?;
        text.trim()
            .parse()
            .map_err(|_| Stop::Failed(format!("{path} holds {text:?}, not a number")))
    }

    /// Number of interrupts on the driver's vectors, on all CPUs.
    pub fn interrupts(&self) -> Verdict<u64> {
        let table = fs::read_to_string("/proc/interrupts")?;
        crate::interrupts::count(&table, "ringbar")
            .ok_or_else(|| Stop::Failed("no line of /proc/interrupts names ringbar".into()))
    }
}

/// Lines of the kernel log that a test provokes on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provoked {
    /// A part of the line.
    pub text: &'static str,
    /// Whether at least one line must appear.
    pub required: bool,
}

/// One test.
pub struct Case {
    /// Name of the test, beginning with the id of the feature it tests.
    pub name: String,
    /// The test function.
    pub run: Box<dyn Fn(&Context) -> Verdict>,
    /// Lines of the kernel log that the test provokes on purpose.
    pub provoked: Vec<Provoked>,
    /// When the test runs on the debug kernel.
    pub on_debug_kernel: OnDebugKernel,
    /// The transports over which the test runs, if its suite does.
    pub transports: Transports,
}

/// When a test runs on the debug kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDebugKernel {
    /// With its suite.
    Always,
    /// Only in `make test-all`.
    InTestAll,
    /// Never.
    Never,
}

impl Case {
    /// A test with this name.
    pub fn new(name: impl Into<String>, run: impl Fn(&Context) -> Verdict + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
            provoked: Vec::new(),
            on_debug_kernel: OnDebugKernel::Always,
            transports: Transports::Each,
        }
    }

    /// Declares that the test provokes warnings or errors in the kernel log whose lines
    /// contain `text`. At least one must appear while the test runs. Any other error, or
    /// warning about the driver, is a problem.
    #[must_use]
    pub fn provokes(mut self, text: &'static str) -> Self {
        self.provoked.push(Provoked {
            text,
            required: true,
        });
        self
    }

    /// As [`Self::provokes`], but no line is required, for example because the kernel
    /// decides whether to print it.
    #[must_use]
    pub fn may_provoke(mut self, text: &'static str) -> Self {
        self.provoked.push(Provoked {
            text,
            required: false,
        });
        self
    }

    /// Declares that the debug kernel is too slow for the test, for example because one
    /// poll takes longer than the driver's limit, or lacks a feature that it needs.
    #[must_use]
    pub fn not_on_debug_kernel(mut self) -> Self {
        self.on_debug_kernel = OnDebugKernel::Never;
        self
    }

    /// Declares that the test can run over one transport only, and why.
    #[must_use]
    pub fn only_over(mut self, transport: Transport, reason: &'static str) -> Self {
        self.transports = Transports::Only(transport, reason);
        self
    }

    /// Declares that the test depends on the driver more than on the transport, and takes long:
    /// `make test` runs it over the default transport only.
    #[must_use]
    pub fn over_any_transport(mut self) -> Self {
        self.transports = Transports::Any;
        self
    }

    /// Declares that only `make test-all` runs the test on the debug kernel: it takes long
    /// there, and others take the same way through the driver.
    #[must_use]
    pub fn left_to_test_all(mut self) -> Self {
        self.on_debug_kernel = OnDebugKernel::InTestAll;
        self
    }
}

/// Tests that share a virtual machine.
pub struct Suite {
    /// Name of the suite.
    pub name: &'static str,
    /// Description of the tests in one sentence.
    pub about: &'static str,
    /// What the suite needs.
    pub needs: Needs,
    /// The tests, in the order in which they run.
    pub cases: Vec<Case>,
}
