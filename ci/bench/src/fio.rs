// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs fio in the guest.

use std::time::Duration;

use ringbar_fio::{DIRECTORY, Job, Outcome, REPORT};
use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};

/// Maximum time for one run. The jobs of `ringbar-ci` take some seconds.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// Runs a job with these environment variables. `on_output` gets fio's standard output, and
/// the bytes written to descriptor 9, as they arrive.
pub fn run(
    agent: &Agent,
    job: &Job,
    variables: &[(&str, &str)],
    on_output: impl FnMut(&[u8]),
) -> Result<Outcome> {
    // fio redirects the standard output of commands that it runs before and after a job
    // to a file; they inherit descriptor 9.
    let mut command = GuestCommand::new("sh")
        .args(["-c", "exec fio \"$@\" 9>&1", "fio"])
        .args(job.arguments())
        .directory(DIRECTORY);
    for (name, value) in variables {
        command = command.env(name, value);
    }
    let output = agent.start(&command, RUN_TIMEOUT)?.output_with(on_output)?;
    let messages = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let report = match agent.read_text(REPORT) {
        Ok(text) => Ok(text),
        Err(Error::Guest { message, .. }) => Err(message),
        Err(error) => return Err(error),
    };
    Ok(Outcome::new(output.status.shell_code(), messages, report))
}
