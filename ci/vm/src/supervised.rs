// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device with a supervisor: its child, which executes the requests.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Maximum time until another child runs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two attempts to find the child.
const INTERVAL: Duration = Duration::from_millis(1);

/// The process of a supervisor, given by its id.
#[derive(Clone, Copy, Debug)]
pub struct Supervised(u32);

impl Supervised {
    pub(crate) const fn new(supervisor: u32) -> Self {
        Self(supervisor)
    }

    /// Kills the child. Returns when there is another one.
    pub fn kill_worker(self) -> io::Result<()> {
        let worker = self.worker(None)?;
        kill_process(worker, Signal::KILL)?;
        self.worker(Some(worker)).map(drop)
    }

    /// Has the child replaced by the installed program. Returns when there is another child.
    pub fn upgrade(self) -> io::Result<()> {
        let worker = self.worker(None)?;
        let supervisor = Pid::from_raw(self.0.cast_signed());
        let supervisor = supervisor.ok_or_else(|| io::Error::other("no process"))?;
        kill_process(supervisor, Signal::HUP)?;
        self.worker(Some(worker)).map(drop)
    }

    /// The child, once there is one that is not `other`.
    fn worker(self, other: Option<Pid>) -> io::Result<Pid> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let path = format!("/proc/{0}/task/{0}/children", self.0);
            let children = fs::read_to_string(path)?;
            let mut pids = children.split_whitespace();
            let pid = pids.find_map(|pid| Pid::from_raw(pid.parse().ok()?));
            match pid {
                Some(pid) if Some(pid) != other => return Ok(pid),
                _ if Instant::now() < deadline => thread::sleep(INTERVAL),
                _ => return Err(io::Error::other("the device has no other child")),
            }
        }
    }
}
