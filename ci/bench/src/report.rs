// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result, as written to `build/bench/result.json`.

use serde::Serialize;

use crate::column::Column;
use crate::idle::Idle;
use crate::instructions::NotCounted;
use crate::results::{InstructionRatio, JobLine, RatioLine, Results};
use crate::targets::{TargetResult, evaluate};

/// The environment of the measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Environment {
    /// Release of the guest's kernel.
    pub kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// QEMU's accelerator.
    pub accel: String,
    /// Protocol between `ringbar-device` and QEMU.
    pub transport: String,
    /// CPUs of the host.
    pub host_cpus: usize,
    /// CPUs of the guest.
    pub guest_cpus: u32,
    /// Bytes of each device.
    pub device_size: u64,
    /// How QEMU and qemu-storage-daemon access the files of the peers.
    pub peer_access: String,
    /// Number of rounds.
    pub rounds: u32,
    /// Run time of each job on each device in each round, in seconds.
    pub seconds: f64,
    /// Number of counts of the instructions of each job on each device.
    pub instruction_rounds: u32,
    /// Reason for which instructions were not counted.
    pub instructions_not_counted: Option<NotCounted>,
}

/// The complete report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The environment of the measurement.
    pub environment: Environment,
    /// Names of the columns.
    pub devices: Vec<Column>,
    /// Description of each column.
    pub settings: std::collections::BTreeMap<Column, &'static str>,
    /// Each job on each device.
    pub jobs: Vec<JobLine>,
    /// Ringbar's ratios to the other columns.
    pub ratios: Vec<RatioLine>,
    /// Ringbar's instructions relative to those of the best peer.
    pub instruction_ratios: Vec<InstructionRatio>,
    /// The targets of the jobs that were run.
    pub targets: Vec<TargetResult>,
    /// The measurement of the idle devices.
    pub idle: Option<Idle>,
}

impl Report {
    /// Evaluates the results against the targets.
    pub fn new(environment: Environment, results: &Results, idle: Option<Idle>) -> Self {
        let devices = results.columns();
        Self {
            environment,
            settings: devices
                .iter()
                .map(|column| (*column, column.description()))
                .collect(),
            devices,
            jobs: results.lines().to_vec(),
            ratios: results.ratios().to_vec(),
            instruction_ratios: results
                .job_names()
                .iter()
                .filter_map(|job| results.instruction_ratio(job))
                .collect(),
            targets: evaluate(results, idle.as_ref()),
            idle,
        }
    }

    /// Whether no measured target was missed.
    pub fn all_met(&self) -> bool {
        self.targets.iter().all(|target| target.met != Some(false))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::BEST_PEER;
    use crate::results::tests::{counted, results};

    const JOB: &str = "randread-4k-qd32-io_uring";

    pub(crate) fn report() -> Report {
        let mut results = results(&[
            (JOB, Column::Ringbar, &[500.0, 1200.0, 800.0]),
            (JOB, Column::VirtioBlk, &[100.0, 400.0, 200.0]),
            (JOB, Column::Nvme, &[90.0, 300.0, 210.0]),
            (JOB, Column::NvmePoll, &[1000.0, 2400.0, 1600.0]),
            (JOB, Column::Floor, &[5000.0, 5000.0, 5000.0]),
        ]);
        let job = JOB.parse().unwrap();
        for (column, instructions, module) in [
            (Column::Ringbar, 7200.4, Some(1400.0)),
            (Column::VirtioBlk, 11200.0, None),
            (Column::NvmePoll, 9600.0, None),
            (Column::Floor, 3800.0, None),
        ] {
            let rounds = [0.0, 90.0, -60.0]
                .map(|noise| counted(instructions + noise, module.map(|module| module + noise)));
            results.add_instructions(job, column, &rounds);
        }
        let environment = Environment {
            kernel: "7.3.4".into(),
            qemu: "11.1.3".into(),
            accel: "tcg".into(),
            transport: "vhost-user".into(),
            host_cpus: 2,
            guest_cpus: 2,
            device_size: 256 << 20,
            peer_access: "aio=native".into(),
            rounds: 3,
            seconds: 2.0,
            instruction_rounds: 3,
            instructions_not_counted: None,
        };
        Report::new(environment, &results, Some(Idle::example(0.0, 0.0)))
    }

    #[test]
    fn the_best_peer_has_the_highest_median_and_is_not_polled() {
        let report = report();
        let best = &report.ratios[0];
        assert_eq!((best.vs.as_str(), best.peer), (BEST_PEER, Column::Nvme));
        // 500 / 90, 1200 / 300, 800 / 210
        assert_eq!((best.min, best.ratio, best.max), (3.81, 4.0, 5.556));
        let poll = report.ratios.iter().find(|line| line.vs == "nvme-poll");
        assert_eq!(poll.unwrap().ratio, 0.5);
        assert!(!report.all_met());
    }

    #[test]
    fn instructions_are_compared_with_the_fewest_of_all_peers() {
        let report = report();
        let [ratio] = &report.instruction_ratios[..] else {
            panic!("{:?}", report.instruction_ratios);
        };
        assert_eq!((ratio.peer, ratio.ratio), (Column::NvmePoll, 0.75));
        let mut none = results(&[(JOB, Column::Ringbar, &[1.0])]);
        assert_eq!(none.instruction_ratio(JOB), None);
        let rounds = [counted(7000.0, None)];
        none.add_instructions(JOB.parse().unwrap(), Column::Ringbar, &rounds);
        assert_eq!(none.instruction_ratio(JOB), None);
    }

    #[test]
    fn the_json_has_the_promised_names() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(
            json["devices"],
            serde_json::json!(["ringbar", "virtio-blk", "nvme", "nvme-poll", "floor"])
        );
        let line = &json["jobs"][0];
        assert_eq!(line["job"], JOB);
        assert_eq!(line["device"], "ringbar");
        assert_eq!(line["iops_median"], 800.0);
        assert_eq!(line["iops_min"], 500.0);
        assert_eq!(line["iops_max"], 1200.0);
        assert_eq!(line["interrupts_per_io"], 0.25);
        assert_eq!(line["doorbells_per_io"], 0.125);
        // The field is there, and null for an unknown value.
        assert!(
            line.as_object()
                .unwrap()
                .contains_key("daemon_cpu_us_per_io")
        );
        assert!(line.as_object().unwrap().contains_key("qemu_cpu_us_per_io"));
        assert!(json["jobs"][1]["doorbells_per_io"].is_null());
        assert_eq!(line["instructions_per_io"], 7200.0);
        assert_eq!(
            line["instructions"],
            serde_json::json!({"min": 7140.0, "max": 7290.0, "values": [7200.0, 7290.0, 7140.0]})
        );
        assert_eq!(line["module_instructions_per_io"], 1400.0);
        assert_eq!(
            line["module_instructions"],
            serde_json::json!({"min": 1340.0, "max": 1490.0, "values": [1400.0, 1490.0, 1340.0]})
        );
        assert!(json["jobs"][1]["module_instructions_per_io"].is_null());
        assert!(json["jobs"][1]["module_instructions"].is_null());
        assert_eq!(json["environment"]["instruction_rounds"], 3);
        assert!(json["jobs"][2]["instructions_per_io"].is_null());
        assert_eq!(json["instruction_ratios"][0]["peer"], "nvme-poll");
        assert_eq!(json["instruction_ratios"][0]["ratio"], 0.75);
        assert!(json["environment"]["instructions_not_counted"].is_null());
        let ratio = &json["ratios"][0];
        assert_eq!(ratio["job"], JOB);
        assert_eq!(ratio["vs"], "best_peer");
        assert_eq!(ratio["peer"], "nvme");
        assert_eq!(ratio["ratio"], 4.0);
        assert_eq!(ratio["min"], 3.81);
        assert_eq!(ratio["max"], 5.556);
        let target = &json["targets"][0];
        assert_eq!(target["bound"]["at_least"], 2.5);
        assert_eq!(target["met"], true);
        assert_eq!(
            json["idle"]["daemons"]["ringbar"]["wakeups_per_second"],
            0.0
        );
        assert_eq!(json["environment"]["accel"], "tcg");
        assert!(json["settings"]["nvme"].is_string());
    }
}
