// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The record of `make setup`: the kernel, QEMU and guest image to use.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Path of the record in the checkout.
pub const RELATIVE_PATH: &str = "build/setup.json";

/// Path of the debug kernel's record, written by `make debug`.
const DEBUG_RELATIVE_PATH: &str = "build/setup-debug.json";

/// The guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Debian's kernel.
    Stock,
    /// The debug kernel, with all checkers.
    Debug,
}

/// Environment variable that overrides the record's accelerator.
pub const ACCEL_VARIABLE: &str = "RINGBAR_ACCEL";

/// QEMU's accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Translation in user space.
    Tcg,
    /// The host's virtualisation.
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        })
    }
}

/// The paths and versions that `make setup` recorded.
#[derive(Clone, Debug, Deserialize)]
pub struct Setup {
    /// Release of the guest's kernel.
    pub kernel_release: String,
    /// The guest's kernel.
    pub kernel_image: PathBuf,
    /// Program and arguments to which QEMU's arguments are appended. The
    /// process that this starts becomes QEMU.
    pub qemu: Vec<String>,
    /// Version of QEMU.
    pub qemu_version: String,
    /// The guest's root file system.
    pub initramfs: PathBuf,
    /// QEMU's accelerator.
    pub accel: Accelerator,
    /// The device daemon.
    pub device: PathBuf,
    /// The checkout, which contains `build/`.
    #[serde(skip)]
    pub checkout: PathBuf,
}

impl Setup {
    /// The record of the same checkout for the debug kernel.
    pub fn with_debug_kernel(&self) -> Result<Self> {
        Self::load(Some(&self.checkout.join(DEBUG_RELATIVE_PATH)))
    }

    /// Reads the record at `path`, or, without a path, the record of the checkout that
    /// contains the current directory.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => find()?,
        };
        let problem = |problem: String| Error::Setup {
            path: path.clone(),
            problem,
        };
        let text = fs::read_to_string(&path).map_err(|error| problem(error.to_string()))?;
        let mut setup: Self =
            serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        if setup.qemu.is_empty() {
            return Err(problem("the command for QEMU is empty".into()));
        }
        for file in [&setup.kernel_image, &setup.initramfs, &setup.device] {
            if !file.exists() {
                return Err(problem(format!("{} does not exist", file.display())));
            }
        }
        if let Ok(accel) = env::var(ACCEL_VARIABLE)
            && !accel.is_empty()
        {
            setup.accel = parse_accelerator(&accel)
                .ok_or_else(|| problem(format!("{ACCEL_VARIABLE} is {accel:?}, not tcg or kvm")))?;
        }
        let checkout = path
            .canonicalize()
            .map_err(|error| problem(error.to_string()))?;
        setup.checkout = checkout
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("."))
            .to_owned();
        Ok(setup)
    }
}

/// A directory for results, locked by this process until dropped.
#[derive(Debug)]
pub struct OutputDir {
    path: PathBuf,
    _lock: File,
}

impl OutputDir {
    /// Creates and locks the directory. If another process holds the lock, calls
    /// `waiting` and waits for the lock.
    pub fn new(path: PathBuf, waiting: impl FnOnce(&Path)) -> Result<Self> {
        let problem = |what| Error::io(format!("{what} {}", path.display()));
        fs::create_dir_all(&path).map_err(problem("creating"))?;
        let lock = File::create(path.join("lock")).map_err(problem("creating a lock in"))?;
        let mut locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            waiting(&path);
            locked = retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive));
        }
        locked.map_err(|errno| problem("locking")(errno.into()))?;
        Ok(Self { path, _lock: lock })
    }

    /// Locks a directory under the checkout's `build`; prints a line to standard error
    /// before it waits.
    pub fn of(setup: &Setup, name: &str) -> Result<Self> {
        Self::new(setup.checkout.join("build").join(name), |path| {
            eprintln!("Waiting for another process to release {}", path.display());
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn parse_accelerator(text: &str) -> Option<Accelerator> {
    match text {
        "tcg" => Some(Accelerator::Tcg),
        "kvm" => Some(Accelerator::Kvm),
        _ => None,
    }
}

/// The record of the checkout that the current directory lies in.
fn find() -> Result<PathBuf> {
    let start = env::current_dir().map_err(Error::io("finding the current directory"))?;
    start
        .ancestors()
        .map(|directory| directory.join(RELATIVE_PATH))
        .find(|path| path.exists())
        .ok_or_else(|| Error::Setup {
            path: start.join(RELATIVE_PATH),
            problem: "neither here nor in a directory above".into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(dir: &Path, accel: &str) -> PathBuf {
        let path = dir.join("setup.json");
        let here = path.display();
        fs::write(
            &path,
            format!(
                r#"{{"kernel_release":"7.3.4","kernel_image":"{here}","qemu":["/e","qemu"],
                "qemu_version":"11.1.3","initramfs":"{here}","accel":"{accel}",
                "toolbox":"/t","device":"{here}"}}"#
            ),
        )
        .unwrap();
        path
    }

    #[test]
    fn a_record_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::load(Some(&record(dir.path(), "tcg"))).unwrap();
        assert_eq!(setup.qemu, ["/e", "qemu"]);
        assert_eq!(setup.kernel_release, "7.3.4");
    }

    #[test]
    fn a_bad_record_names_the_file_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = Setup::load(Some(&record(dir.path(), "hvf"))).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("setup.json") && text.contains("make setup"),
            "{text}"
        );
        assert!(Setup::load(Some(&dir.path().join("none"))).is_err());
    }

    #[test]
    fn results_are_written_by_one_at_a_time() {
        use std::sync::mpsc;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let first = OutputDir::new(path.clone(), |_| panic!("nobody has it")).unwrap();
        let (sender, events) = mpsc::channel();
        let second = std::thread::spawn(move || {
            let told = sender.clone();
            let _second = OutputDir::new(path, move |_| told.send("waits").unwrap()).unwrap();
            sender.send("has it").unwrap();
        });
        assert_eq!(events.recv(), Ok("waits"));
        assert!(events.try_recv().is_err(), "both have it");
        drop(first);
        assert_eq!(events.recv(), Ok("has it"));
        second.join().unwrap();
    }

    #[test]
    fn accelerators_have_names() {
        for accel in [Accelerator::Tcg, Accelerator::Kvm] {
            assert_eq!(parse_accelerator(&accel.to_string()), Some(accel));
        }
        assert_eq!(parse_accelerator("auto"), None);
    }
}
