// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs the test program in the guest and reads its results.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::ExitStatus;
use ringbar_agent_protocol::machine::TRANSPORT_VARIABLE;
use ringbar_vm::agent::{Event, GuestCommand};
use ringbar_vm::error::{Error, Result};
use ringbar_vm::process;
use ringbar_vm::vm::Vm;

use crate::ktap::{Outcome, Parser, TestResult};
use crate::suite::plan::{Plan, Report};

/// Maximum time without output from the guest, and so for one test. A test takes up to
/// two minutes on the debug kernel.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(600);

/// Interval without output after which the harness checks that the device still runs.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the tests in the guest; an error says why some did not run.
pub(super) fn run(
    vm: &mut Vm,
    plan: &Plan,
    results: &Sender<Report>,
) -> std::result::Result<(), String> {
    let mut reader = LineReader::new();
    let followed = read_results(vm, plan, &mut reader, results);
    let stalled = vm.resume_devices();
    if let Err(error) = &followed
        && error.is_timeout()
    {
        // The log of a hanging guest shows where its tasks wait.
        let blocked = GuestCommand::shell("echo w > /proc/sysrq-trigger");
        let _ = vm.agent().run(&blocked, Duration::from_secs(10));
    }
    let status = vm.with_logs(followed).map_err(|error| {
        let mut message = error.to_string();
        for line in reader.parser.pending() {
            let _ = write!(message, "\n{line}");
        }
        message
    })?;
    let mut problems = Vec::new();
    let pending = reader.parser.pending().join("\n");
    for problem in reader.parser.finish() {
        problems.push(problem.to_string());
    }
    // Status 1 means that a test failed, which its own result reports.
    if !matches!(status, ExitStatus::Exited(0 | 1)) {
        problems.push(format!("the test program ended with {status}"));
    }
    if !stalled.is_empty() {
        problems.push(format!("the tests left devices stalled: {stalled:?}"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.push(pending);
    Err(problems.join("\n"))
}

/// Sends results until the guest's test program ends.
fn read_results(
    vm: &mut Vm,
    plan: &Plan,
    reader: &mut LineReader,
    results: &Sender<Report>,
) -> Result<ExitStatus> {
    let mut command = GuestCommand::new("ringbar-guest-tests")
        .args(["run", plan.suite])
        .args(plan.tests.iter().cloned())
        .env(TRANSPORT_VARIABLE, plan.transport.name());
    for (name, value) in plan.needs.environment {
        command = command.env(name, value);
    }
    let limit = plan.needs.time_limit;
    let agent = Arc::clone(vm.agent());
    let mut running = agent.start(&command, 2 * limit)?;
    let begun = Instant::now();
    let mut heard = begun;
    let timeout = |what: &str, after| {
        Err(Error::Timeout {
            what: format!("{what} of suite {}", plan.suite),
            after,
        })
    };
    loop {
        if begun.elapsed() >= limit {
            return timeout("the end", limit);
        }
        let event = match running.next_timeout(LIVENESS_INTERVAL) {
            Err(error) if error.is_timeout() => {
                vm.check_devices("the guest ran tests on it")?;
                if heard.elapsed() >= OUTPUT_TIMEOUT {
                    return timeout("the next result", OUTPUT_TIMEOUT);
                }
                continue;
            }
            event => event?,
        };
        heard = Instant::now();
        match event {
            Event::Stdout(bytes) => {
                for result in reader.push(&bytes) {
                    // The receiver may be gone.
                    let _ = results.send(report(result, vm.console_log()));
                }
            }
            Event::Stderr(bytes) => reader.messages(&bytes),
            Event::Exited(status) => return Ok(status),
        }
    }
}

/// Adds the last lines of the kernel log to a failure.
fn report(result: TestResult, console_log: &Path) -> Report {
    const LINES: usize = 12;
    let mut message = result.diagnostics.join("\n");
    if result.outcome == Outcome::Failed {
        let _ = write!(
            message,
            "\n--- last lines of the kernel log ---\n{}",
            process::tail(console_log, LINES)
        );
    }
    Report {
        name: result.name,
        outcome: result.outcome,
        message,
    }
}

/// Cuts the guest's output into lines for the parser.
struct LineReader {
    parser: Parser,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl LineReader {
    fn new() -> Self {
        Self {
            parser: Parser::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    /// Takes standard output; returns the results that it completes.
    fn push(&mut self, bytes: &[u8]) -> Vec<TestResult> {
        self.stdout.extend_from_slice(bytes);
        take_lines(&mut self.stdout)
            .iter()
            .filter_map(|line| self.parser.line(line))
            .collect()
    }

    /// Takes standard error, which becomes part of the next result.
    fn messages(&mut self, bytes: &[u8]) {
        self.stderr.extend_from_slice(bytes);
        for line in take_lines(&mut self.stderr) {
            self.parser.line(&format!("# {line}"));
        }
    }
}

/// Takes the complete lines out of a buffer.
fn take_lines(buffer: &mut Vec<u8>) -> Vec<String> {
    let Some(end) = buffer.iter().rposition(|&byte| byte == b'\n') else {
        return Vec::new();
    };
    let rest = buffer.split_off(end + 1);
    let complete = std::mem::replace(buffer, rest);
    String::from_utf8_lossy(&complete)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn output_in_pieces_makes_whole_lines() {
        let mut reader = LineReader::new();
        assert_eq!(
            reader.push(b"KTAP version 1\n1..2\nok 1 a\nnot o"),
            [TestResult {
                name: "a".into(),
                outcome: Outcome::Passed,
                diagnostics: Vec::new(),
            }]
        );
        reader.messages(b"thread panicked\nat");
        let results = reader.push(b"k 2 b\n");
        assert_eq!(results[0].outcome, Outcome::Failed);
        assert_eq!(results[0].diagnostics, ["thread panicked"]);
        assert_eq!(reader.parser.finish(), []);
    }

    #[test]
    fn failures_carry_the_kernel_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "[1.0] ringbar: broken\n").unwrap();
        let result = TestResult {
            name: "x".into(),
            outcome: Outcome::Failed,
            diagnostics: vec!["byte 3".into()],
        };
        let text = report(result, &log).message;
        assert!(text.starts_with("byte 3\n---"), "{text}");
        assert!(text.ends_with("ringbar: broken"), "{text}");
    }
}
