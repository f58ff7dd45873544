// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs fio, as a program that knows nothing of the driver and verifies its data.

use std::process::{Child, Command, Stdio};

use crate::case::{Context, During, Verdict, eventually};
use crate::check;

/// fio's I/O engines under test.
pub const ENGINES: [&str; 3] = ["psync", "libaio", "io_uring"];

/// A run of fio that verifies its writes. Dropping it kills fio.
pub struct Fio(Child);

impl Fio {
    /// Starts fio with additional arguments.
    pub fn start(context: &Context, engine: &str, arguments: &[&str]) -> Verdict<Self> {
        Command::new("fio")
            .args([
                "--name=verified",
                "--rw=randwrite",
                "--bs=16k",
                "--direct=1",
            ])
            .args(["--size=16M", "--iodepth=8"])
            .args(["--verify=crc32c", "--verify_backlog=64"])
            .arg(format!("--ioengine={engine}"))
            .arg(format!("--filename={}", context.path().display()))
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .during(|| "starting fio".into())
    }

    /// Whether fio still runs.
    pub fn runs(&mut self) -> Verdict<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Waits until fio ends; an error means that it found wrong data.
    pub fn expect_good_end(&mut self) -> Verdict {
        eventually("the end of fio", || Ok(!self.runs()?))?;
        let status = self.0.wait()?;
        check!(status.success(), "{status}");
        Ok(())
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        // fio may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
