// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The report of `run`, as a table and as JSON.

use ringbar_bench::table;
use ringbar_fio::block_name;
use serde::Serialize;

use crate::verified::{Job, Measurement};

/// Result of `run`, as written to `build/run/result.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// QEMU's accelerator.
    pub accel: String,
    /// Protocol between the device and QEMU.
    pub transport: String,
    /// The jobs.
    pub jobs: Vec<JobLine>,
    /// `ok`, or the difference between DMA and the BAR map.
    pub bar_check: String,
    /// Whether everything passed.
    pub ok: bool,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobLine {
    /// Name.
    pub name: String,
    /// I/O engine.
    pub engine: &'static str,
    /// Direction and order, as fio names them.
    pub rw: &'static str,
    /// Block size in bytes.
    pub bs: u64,
    /// Transfers in flight.
    pub iodepth: u32,
    /// Transfers per second.
    pub iops: f64,
    /// Bytes verified.
    pub verified_bytes: u64,
    /// Blocks that failed verification.
    pub verify_errors: u64,
    /// Interrupts per transfer.
    pub interrupts_per_io: f64,
    /// Doorbells per transfer.
    pub doorbells_per_io: f64,
    /// Reason of the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl JobLine {
    /// Combines a job and its result.
    pub fn new(job: &Job, measured: Measurement) -> Self {
        Self {
            name: job.to_string(),
            engine: job.engine.name(),
            rw: job.access.name(),
            bs: job.block,
            iodepth: job.depth,
            iops: round(measured.iops, 1),
            verified_bytes: measured.verified_bytes,
            verify_errors: measured.verify_errors,
            interrupts_per_io: round(measured.interrupts_per_io, 4),
            doorbells_per_io: round(measured.doorbells_per_io, 4),
            failure: measured.failure,
        }
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

impl RunReport {
    /// The table.
    pub fn table(&self) -> String {
        const HEADINGS: [&str; 8] = [
            "job",
            "engine",
            "block",
            "depth",
            "verified",
            "IOPS",
            "interrupts/IO",
            "doorbells/IO",
        ];
        let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
        for job in &self.jobs {
            let or_dash = |text: String| {
                if job.failure.is_some() {
                    "-".to_owned()
                } else {
                    text
                }
            };
            rows.push(vec![
                job.name.clone(),
                job.engine.to_owned(),
                block_name(job.bs),
                job.iodepth.to_string(),
                match job.failure {
                    Some(_) => "FAILED".to_owned(),
                    None => ringbar_size::round(job.verified_bytes),
                },
                or_dash(format!("{:.0}", job.iops)),
                or_dash(format!("{:.2}", job.interrupts_per_io)),
                or_dash(format!("{:.2}", job.doorbells_per_io)),
            ]);
        }
        table::align(&rows, 2)
    }

    /// Bytes verified by all jobs together.
    pub fn verified_bytes(&self) -> u64 {
        self.jobs.iter().map(|job| job.verified_bytes).sum()
    }

    /// Names of the jobs that failed.
    pub fn failed_jobs(&self) -> Vec<&str> {
        self.jobs
            .iter()
            .filter(|job| job.failure.is_some())
            .map(|job| job.name.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verified::JOBS;

    fn report() -> RunReport {
        let good = Measurement {
            iops: 2345.678,
            verified_bytes: 8 << 20,
            verify_errors: 0,
            interrupts_per_io: 0.123_456,
            doorbells_per_io: 1.0,
            failure: None,
        };
        let bad = Measurement {
            verify_errors: 3,
            failure: Some("3 blocks failed verification".into()),
            ..good.clone()
        };
        RunReport {
            kernel: "7.3.4".into(),
            qemu: "11.1.3".into(),
            accel: "tcg".into(),
            transport: "vhost-user".into(),
            jobs: vec![JobLine::new(&JOBS[0], good), JobLine::new(&JOBS[8], bad)],
            bar_check: "ok".into(),
            ok: false,
        }
    }

    #[test]
    fn the_table_is_aligned_and_names_what_failed() {
        assert_eq!(
            report().table(),
            "\
job                       engine  block  depth  verified  IOPS  interrupts/IO  doorbells/IO
write-512-qd1-psync       psync     512      1   8.0 MiB  2346           0.12          1.00
randwrite-4k-qd32-libaio  libaio     4k     32    FAILED     -              -             -
"
        );
        assert_eq!(report().failed_jobs(), ["randwrite-4k-qd32-libaio"]);
        assert_eq!(report().verified_bytes(), 16 << 20);
    }

    #[test]
    fn the_json_has_the_promised_names() {
        let json = serde_json::to_value(report()).unwrap();
        for name in [
            "kernel",
            "qemu",
            "accel",
            "transport",
            "jobs",
            "bar_check",
            "ok",
        ] {
            assert!(!json[name].is_null(), "{name}");
        }
        let job = &json["jobs"][0];
        assert_eq!(job["name"], "write-512-qd1-psync");
        assert_eq!(job["rw"], "write");
        assert_eq!(job["bs"], 512);
        assert_eq!(job["iodepth"], 1);
        assert_eq!(job["iops"], 2345.7);
        assert_eq!(job["verify_errors"], 0);
        assert_eq!(job["interrupts_per_io"], 0.1235);
        assert!(job.get("failure").is_none());
        assert!(json["jobs"][1]["failure"].is_string());
    }
}
