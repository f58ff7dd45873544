// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program fio in the guest, and its report.

use std::time::Duration;

use ringbar_vm::agent::{Agent, Event, GuestCommand};
use ringbar_vm::error::{Error, Result};
use serde::Deserialize;

/// Maximum time for one run. The jobs of this crate take some seconds.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// Path of fio's report in the guest.
const REPORT_PATH: &str = "/run/fio.json";

/// Runs fio with these arguments and environment variables, and reads its report.
/// `on_output` gets fio's standard output, and the bytes written to descriptor 9, as they
/// arrive.
pub fn run(
    agent: &Agent,
    arguments: Vec<String>,
    variables: &[(&str, &str)],
    mut on_output: impl FnMut(&[u8]),
) -> Result<FioRun> {
    // fio redirects the standard output of commands that it runs before and after a job
    // to a file; they inherit descriptor 9.
    let mut command = GuestCommand::new("sh")
        .args(["-c", "exec fio \"$@\" 9>&1", "fio"])
        .args(arguments)
        .args([
            "--output-format=json".into(),
            format!("--output={REPORT_PATH}"),
        ])
        // fio leaves files in its working directory.
        .directory("/run");
    for (name, value) in variables {
        command = command.env(name, value);
    }
    let mut running = agent.start(&command, RUN_TIMEOUT)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = loop {
        match running.next()? {
            Event::Stdout(bytes) => {
                on_output(&bytes);
                stdout.extend(bytes);
            }
            Event::Stderr(bytes) => stderr.extend(bytes),
            Event::Exited(status) => break status,
        }
    };
    let messages =
        String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
    let report = match agent.read_text(REPORT_PATH) {
        Ok(text) => parse_report(&text),
        Err(Error::Guest { message, .. }) => Err(message),
        Err(error) => return Err(error),
    };
    Ok(FioRun {
        exit: status.shell_code(),
        messages,
        report,
    })
}

/// Result of one run of fio.
pub struct FioRun {
    /// Exit status.
    pub exit: i32,
    /// What fio printed.
    pub messages: String,
    /// Its report, or why there is none.
    pub report: std::result::Result<JobReport, String>,
}

impl FioRun {
    /// Why this run failed, if it did.
    pub fn failure(&self) -> Option<String> {
        let reason = match &self.report {
            Err(reason) => format!("no report ({reason})"),
            Ok(report) if report.verify_errors() > 0 => {
                format!(
                    "blocks that failed verification: {}",
                    report.verify_errors()
                )
            }
            Ok(report) if report.error != 0 => format!("error {}", report.error),
            Ok(_) if self.exit != 0 => "fio failed".into(),
            Ok(_) => return None,
        };
        let messages: Vec<_> = self
            .messages
            .lines()
            // fio prints this line for every unaligned job.
            .filter(|line| !line.contains("bs_unaligned may not work"))
            .take(8)
            .collect();
        Some(format!(
            "{reason}, exit status {}\n{}",
            self.exit,
            messages.join("\n")
        ))
    }
}

/// One direction in fio's report.
#[derive(Clone, Debug, Deserialize)]
pub struct DirectionReport {
    /// Bytes transferred.
    pub io_bytes: u64,
    /// Transfers.
    pub total_ios: u64,
    /// Transfers per second.
    pub iops: f64,
}

/// The part of fio's report that is about one job.
#[derive(Clone, Debug, Deserialize)]
pub struct JobReport {
    /// First error number, 0 for none.
    pub error: i32,
    /// Number of errors that did not end the job: verification errors.
    #[serde(default)]
    pub total_err: u64,
    /// From the device.
    pub read: DirectionReport,
    /// To the device.
    pub write: DirectionReport,
}

impl JobReport {
    /// Number of blocks that failed verification.
    pub fn verify_errors(&self) -> u64 {
        /// fio's error for a failed verification.
        const EILSEQ: i32 = 84;
        match self.error {
            EILSEQ => self.total_err.max(1),
            _ => self.total_err,
        }
    }
}

/// Parses fio's JSON, which may follow messages.
pub fn parse_report(text: &str) -> std::result::Result<JobReport, String> {
    #[derive(Deserialize)]
    struct Report {
        jobs: Vec<JobReport>,
    }
    let start = text.find('{').ok_or("no JSON")?;
    let report: Report = serde_json::from_str(&text[start..]).map_err(|error| error.to_string())?;
    report
        .jobs
        .into_iter()
        .next()
        .ok_or_else(|| "no job".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_before_the_report_are_passed_over() {
        let direction = r#"{"io_bytes": 2, "total_ios": 3, "iops": 4.5, "bw": 1}"#;
        let text = format!(
            "fio: bs_unaligned may not work with raw io\n\n\
             {{\"jobs\": [{{\"error\": 0, \"read\": {direction}, \"write\": {direction}}}]}}"
        );
        let report = parse_report(&text).unwrap();
        assert_eq!(report.write.io_bytes, 2);
        assert_eq!(report.total_err, 0);
        assert!(parse_report(r#"{"jobs": []}"#).is_err());
    }
}
