// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPU time and voluntary context switches of processes on the host.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use ringbar_vm::error::{Error, Result};

/// The resources that a process and its descendants have used since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user space and in the kernel, in steps of 10 ms.
    pub cpu: Duration,
    /// Number of voluntary context switches.
    pub waits: u64,
}

impl Usage {
    /// The usage of the process with this id.
    pub fn of(pid: u32) -> Result<Self> {
        let problem = || Error::io(format!("reading what process {pid} has used"));
        let parents = parents().map_err(problem())?;
        let mut usage = Self::default();
        for process in descendants(pid, &parents) {
            match of_process(process) {
                Ok(one) => {
                    usage.cpu += one.cpu;
                    usage.waits += one.waits;
                }
                // A descendant may have ended since the list was read.
                Err(error) if process != pid && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(problem()(error)),
            }
        }
        Ok(usage)
    }

    /// The difference to an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            waits: self.waits.saturating_sub(earlier.waits),
        }
    }
}

/// All processes with their parents.
fn parents() -> io::Result<HashMap<u32, u32>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .as_deref()
            .and_then(Stat::parse)
        {
            parents.insert(pid, stat.parent);
        }
    }
    Ok(parents)
}

/// A process and its descendants.
fn descendants(pid: u32, parents: &HashMap<u32, u32>) -> Vec<u32> {
    let mut descendants = vec![pid];
    let mut next = 0;
    while let Some(&parent) = descendants.get(next) {
        next += 1;
        let children: Vec<_> = parents
            .iter()
            .filter(|(child, of)| **of == parent && !descendants.contains(child))
            .map(|(child, _)| *child)
            .collect();
        descendants.extend(children);
    }
    descendants
}

fn of_process(pid: u32) -> io::Result<Usage> {
    let malformed = || io::Error::other("the kernel's table has another format");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let stat = Stat::parse(&stat).ok_or_else(malformed)?;
    let mut waits = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have ended since the directory was read.
        if let Ok(status) = fs::read_to_string(task?.path().join("status")) {
            waits += parse_waits(&status).ok_or_else(malformed)?;
        }
    }
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    let cpu = Duration::from_micros(stat.ticks.saturating_mul(1_000_000) / ticks_per_second);
    Ok(Usage { cpu, waits })
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may contain any character, also parentheses.
        let (_, fields) = text.rsplit_once(") ")?;
        // The fields from the third on: state, parent; the 14th and 15th are utime and
        // stime.
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        let time = |number| field(number)?.parse::<u64>().ok();
        Some(Self {
            parent: field(4)?.parse().ok()?,
            ticks: time(14)? + time(15)?,
        })
    }
}

fn parse_waits(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn stat_is_read_whatever_the_name() {
        let text = "42 (a) b) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 3 0 100 1 2\n";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                parent: 7,
                ticks: 200
            })
        );
        assert_eq!(Stat::parse("42 (a) S 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn voluntary_switches_are_told_from_others() {
        let text = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(parse_waits(text), Some(12));
        assert_eq!(parse_waits("nonvoluntary_ctxt_switches:\t5\n"), None);
    }

    #[test]
    fn grandchildren_belong_to_the_family() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]);
        let mut descendants = descendants(2, &parents);
        descendants.sort_unstable();
        assert_eq!(descendants, [2, 3, 4]);
    }

    #[test]
    fn a_child_that_waits_is_counted() {
        let mut child = Command::new("sh")
            .args(["-c", "cat; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let before = Usage::of(child.id()).unwrap();
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        for _ in 0..50 {
            io::Write::write_all(&mut to, b"x").unwrap();
            io::Read::read_exact(&mut from, &mut [0]).unwrap();
        }
        // A grandchild has waited for the bytes.
        let used = Usage::of(child.id()).unwrap().since(before);
        assert!(used.waits > 0, "{used:?}");
        drop(to);
        assert!(child.wait().unwrap().success());
        assert!(Usage::of(child.id()).is_err(), "it has ended");
    }
}
