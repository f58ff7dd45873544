// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs fio, as a program that knows nothing of the driver and verifies its data.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use ringbar_fio::{Access, DIRECTORY, Engine, Job, Outcome, REPORT, Verification};

use crate::case::{Context, During, Stop, Verdict};

/// fio's I/O engines under test.
pub const ENGINES: [Engine; 3] = [Engine::Psync, Engine::Libaio, Engine::IoUring];

/// A job that writes 16 MiB in random order and verifies them.
pub fn verified(context: &Context, engine: Engine) -> Job {
    Job {
        access: Access::RandWrite,
        block: 16 << 10,
        depth: 8,
        verification: Verification::Backlog(64),
        ..Job::new(
            "verified",
            context.path().to_string_lossy(),
            engine,
            16 << 20,
        )
    }
}

/// A running fio. Dropping it kills fio.
pub struct Fio(Child);

impl Fio {
    /// Starts a job.
    pub fn start(job: &Job) -> Verdict<Self> {
        // An earlier report must not be taken for that of this job.
        match fs::remove_file(REPORT) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error.into());
            }
            _ => {}
        }
        Command::new("fio")
            .args(job.arguments())
            .current_dir(DIRECTORY)
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .during(|| "starting fio".into())
    }

    /// Whether fio still runs.
    pub fn runs(&mut self) -> Verdict<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Waits until fio ends; an error means that it failed or found wrong data. The harness
    /// limits the time of a test.
    pub fn expect_good_end(&mut self) -> Verdict {
        let status = self.0.wait()?;
        let exit = status
            .code()
            .or(status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1);
        let report = fs::read_to_string(REPORT).map_err(|error| format!("{REPORT}: {error}"));
        // The messages are in the log of the tests.
        let outcome = Outcome::new(exit, String::new(), report);
        outcome.result().map(drop).map_err(Stop::Failed)
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        // fio may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
