// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that share a virtual machine and are run by the host, one after the other.

use std::time::Duration;

use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::Error;

/// The result of a test, or the reason why it failed.
pub type StepResult = Result<(), String>;

/// The name of a test, and the test. It begins in the state that the previous one leaves.
pub type Step<F> = (&'static str, fn(&mut F) -> StepResult);

/// Names of the tests of this machine.
pub fn names<F: 'static>(
    machine: &'static str,
    steps: &'static [Step<F>],
) -> impl Iterator<Item = String> {
    steps
        .iter()
        .map(move |(step, _)| format!("{machine}::{step}"))
}

/// Runs the tests; returns their results in the order of [`names`]. Without the fixture each test
/// fails for the same reason.
pub fn run<F>(fixture: Result<F, String>, steps: &[Step<F>]) -> Vec<StepResult> {
    match fixture {
        Ok(mut fixture) => steps.iter().map(|(_, step)| step(&mut fixture)).collect(),
        Err(error) => steps.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// Runs lines in the guest's shell, after the definitions of `functions`. The first failure ends the
/// script. A command that takes longer than `timeout` is an error.
pub fn shell(agent: &Agent, functions: &str, lines: &str, timeout: Duration) -> StepResult {
    let command = GuestCommand::shell(&format!("set -eu\n{functions}\n{lines}"));
    agent
        .check(&command, timeout)
        .map(drop)
        .map_err(|error| match error {
            // The message without the script.
            Error::Guest { message, .. } => message,
            error => error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[Step<u32>] = &[
        ("first", |count| {
            *count += 1;
            Ok(())
        }),
        ("second", |count| Err(format!("after {count}"))),
    ];

    #[test]
    fn steps_run_in_order_on_one_fixture() {
        assert!(names("x", STEPS).eq(["x::first", "x::second"]));
        assert_eq!(run(Ok(4), STEPS), [Ok(()), Err("after 5".into())]);
    }

    #[test]
    fn without_a_fixture_each_step_fails() {
        let error = || Err("no machine".to_owned());
        assert_eq!(run(error().map(|()| 0), STEPS), [error(), error()]);
    }
}
