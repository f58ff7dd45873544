// SPDX-License-Identifier: Apache-2.0 OR MIT

//! fio's report, and whether the run succeeded.

use serde::Deserialize;

/// How a run of fio ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    exit: i32,
    messages: String,
    report: Result<JobReport, String>,
}

impl Outcome {
    /// From the exit status as a shell says it, the output, and the text of the report or
    /// the reason why it could not be read.
    pub fn new(exit: i32, messages: String, report: Result<String, String>) -> Self {
        Self {
            exit,
            messages,
            report: report.and_then(|text| parse(&text)),
        }
    }

    /// The report of a job that succeeded.
    ///
    /// # Errors
    ///
    /// Why the job failed: wrong data, another error, no report, or fio's exit status.
    pub fn result(&self) -> Result<&JobReport, String> {
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
            Ok(report) => return Ok(report),
        };
        let messages: Vec<_> = self
            .messages
            .lines()
            // fio prints this line for every unaligned job.
            .filter(|line| !line.contains("bs_unaligned may not work"))
            .take(8)
            .collect();
        Err(format!(
            "{reason}, exit status {}\n{}",
            self.exit,
            messages.join("\n")
        ))
    }

    /// The report, also of a job that failed.
    pub fn report(&self) -> Option<&JobReport> {
        self.report.as_ref().ok()
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
fn parse(text: &str) -> Result<JobReport, String> {
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

    fn text(error: i32, total_err: u64) -> String {
        let direction = r#"{"io_bytes": 2, "total_ios": 3, "iops": 4.5, "bw": 1}"#;
        format!(
            "fio: bs_unaligned may not work with raw io\n\n\
             {{\"jobs\": [{{\"error\": {error}, \"total_err\": {total_err}, \"eta\": 0, \
             \"read\": {direction}, \"write\": {direction}}}]}}"
        )
    }

    fn outcome(exit: i32, report: Result<String, String>) -> Outcome {
        let messages = "fio: bs_unaligned may not work with raw io\n\
            crc32c: verify failed at file /dev/ringbar0 offset 98304\n";
        Outcome::new(exit, messages.into(), report)
    }

    #[test]
    fn messages_before_the_report_are_passed_over() {
        let outcome = outcome(0, Ok(text(0, 0)));
        let report = outcome.result().unwrap();
        assert_eq!(report.write.io_bytes, 2);
        assert_eq!(report.read.total_ios, 3);
        assert_eq!(report.verify_errors(), 0);
    }

    #[test]
    fn wrong_data_fails_a_job_although_fio_exits_with_0() {
        for (error, total_err, errors) in [(84, 0, 1), (84, 3, 3), (0, 2, 2)] {
            let outcome = outcome(0, Ok(text(error, total_err)));
            assert_eq!(outcome.report().unwrap().verify_errors(), errors);
            let failure = outcome.result().unwrap_err();
            let start = format!("blocks that failed verification: {errors}, exit status 0\ncrc32c");
            assert!(failure.starts_with(&start), "{failure}");
            assert!(failure.ends_with("offset 98304"), "{failure}");
        }
    }

    #[test]
    fn every_other_failure_has_its_reason() {
        for (exit, report, reason) in [
            (0, Ok(text(5, 0)), "error 5, exit status 0"),
            (1, Ok(text(0, 0)), "fio failed, exit status 1"),
            (
                127,
                Ok("fio: not found".into()),
                "no report (no JSON), exit status 127",
            ),
            (0, Ok(r#"{"jobs": []}"#.into()), "no report (no job)"),
            (0, Ok("{".into()), "no report ("),
            (0, Err("no such file".into()), "no report (no such file)"),
        ] {
            let outcome = outcome(exit, report);
            let failure = outcome.result().unwrap_err();
            assert!(failure.starts_with(reason), "{failure}");
        }
    }
}
