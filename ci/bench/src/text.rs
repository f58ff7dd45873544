// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result as tables.

use crate::column::Column;
use crate::report::Report;
use crate::results::BEST_PEER;
use crate::table;
use crate::targets::{Bound, TargetResult};

/// Placeholder for an unknown value.
const NO_VALUE: &str = "-";

fn format_value(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| NO_VALUE.to_owned(), |value| format!("{value:.digits$}"))
}

impl Report {
    /// All tables.
    pub fn text(&self) -> String {
        let mut text = format!(
            "Each job on each device (medians of {} rounds of {} s, instructions of {} counts)\n\
             {}\n",
            self.environment.rounds,
            self.environment.seconds,
            self.environment.instruction_rounds,
            self.measurements_table()
        );
        text += &format!(
            "Ringbar's ratio to the others (medians of the ratios in the same round)\n{}",
            self.ratios_table()
        );
        if let Some(idle) = &self.idle {
            text += &format!("\n{}\n", idle.line());
        }
        if !self.targets.is_empty() {
            text += &format!("\nTargets\n{}", self.targets_table());
        }
        text
    }

    fn measurements_table(&self) -> String {
        let mut rows = vec![headings(&[
            "job",
            "device",
            "IOPS",
            "min",
            "max",
            "MiB/s",
            "interrupts/IO",
            "doorbells/IO",
            "daemon us/IO",
            "QEMU us/IO",
            "instructions/IO",
            "of these in the module",
        ])];
        for line in &self.jobs {
            let block = line.job.parse().map_or(0, |job: super::job::Job| job.block);
            rows.push(vec![
                line.job.clone(),
                line.device.to_string(),
                format!("{:.0}", line.iops_median),
                format!("{:.0}", line.iops_min),
                format!("{:.0}", line.iops_max),
                format!(
                    "{:.1}",
                    line.iops_median * block as f64 / f64::from(1 << 20)
                ),
                format_value(line.interrupts_per_io, 3),
                format_value(line.doorbells_per_io, 3),
                format_value(line.daemon_cpu_us_per_io, 1),
                format_value(line.qemu_cpu_us_per_io, 1),
                self.instructions_cell(line.instructions_per_io, 0),
                self.instructions_cell(line.module_instructions_per_io, 0),
            ]);
        }
        table::align(&rows, 2)
    }

    /// A value that needs instructions to be counted, or the reason why they were not.
    fn instructions_cell(&self, value: Option<f64>, digits: usize) -> String {
        match self.environment.instructions_not_counted {
            Some(reason) => reason.cell().to_owned(),
            None => format_value(value, digits),
        }
    }

    fn ratios_table(&self) -> String {
        let others: Vec<_> = self
            .devices
            .iter()
            .filter(|column| **column != Column::Ringbar)
            .map(|column| column.name())
            .collect();
        let mut heading = headings(&[
            "job",
            "best peer",
            "ratio",
            "min",
            "max",
            "instructions",
            "of best peer",
        ]);
        heading.extend(headings(&others));
        let mut rows = vec![heading];
        let mut jobs: Vec<&str> = self.ratios.iter().map(|line| line.job.as_str()).collect();
        jobs.dedup();
        for job in jobs {
            let find = |vs: &str| {
                self.ratios
                    .iter()
                    .find(|line| line.job == job && line.vs == vs)
            };
            let best = find(BEST_PEER);
            let fewest = self.instruction_ratios.iter().find(|line| line.job == job);
            let mut row = vec![
                job.to_owned(),
                best.map_or(NO_VALUE, |line| line.peer.name()).to_owned(),
                format_value(best.map(|line| line.ratio), 2),
                format_value(best.map(|line| line.min), 2),
                format_value(best.map(|line| line.max), 2),
                self.instructions_cell(fewest.map(|line| line.ratio), 2),
                fewest.map_or(NO_VALUE, |line| line.peer.name()).to_owned(),
            ];
            row.extend(
                others
                    .iter()
                    .map(|vs| format_value(find(vs).map(|line| line.ratio), 2)),
            );
            rows.push(row);
        }
        table::align(&rows, 2)
    }

    fn targets_table(&self) -> String {
        let mut rows = vec![headings(&["job", "metric", "target", "value", ""])];
        for TargetResult {
            job,
            metric,
            bound,
            value,
            met,
        } in &self.targets
        {
            rows.push(vec![
                job.clone(),
                metric.clone(),
                match bound {
                    Bound::AtLeast(bound) => format!(">= {bound}"),
                    Bound::AtMost(bound) => format!("<= {bound}"),
                },
                format_value(*value, 3),
                match met {
                    Some(true) => "met",
                    Some(false) => "MISSED",
                    None => "not measured",
                }
                .to_owned(),
            ]);
        }
        table::align(&rows, 2)
    }
}

fn headings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::instructions::NotCounted;
    use crate::report::tests::report;

    #[test]
    fn a_column_says_why_it_is_empty() {
        let mut report = report();
        report.environment.instructions_not_counted = Some(NotCounted::Kvm);
        let text = report.text();
        assert!(text.contains("not with KVM"), "{text}");
    }

    #[test]
    fn tables_show_devices_ratios_and_targets() {
        let text = report().text();
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_ascii_whitespace().collect())
            .collect();
        let job = "randread-4k-qd32-io_uring";
        for line in [
            &[
                job, "ringbar", "800", "500", "1200", "3.1", "0.250", "0.125", "-", "-", "7200",
                "1400",
            ][..],
            &[
                job, "floor", "5000", "5000", "5000", "19.5", "0.250", "-", "-", "-", "3800", "-",
            ],
            &[
                job,
                "nvme",
                "4.00",
                "3.81",
                "5.56",
                "0.75",
                "nvme-poll",
                "4.00",
                "4.00",
                "0.50",
                "0.16",
            ],
            &[job, "ratio", "to", "best_peer", ">=", "2.5", "4.000", "met"],
            &[job, "doorbells_per_io", "<=", "0.5", "0.125", "met"],
            &[
                job,
                "module_instructions_per_io",
                "<=",
                "1500",
                "1400.000",
                "met",
            ],
        ] {
            assert!(
                words.iter().any(|words| words == line),
                "{line:?} is not in\n{text}"
            );
        }
    }
}
