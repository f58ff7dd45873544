// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs `ringbar-perf` in the guest.

use std::time::Duration;

use ringbar_fio::Extent;
use ringbar_perf::report::Report;
use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};

use crate::guest::Node;
use crate::job::Job;

/// Maximum time for one run, as for fio.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// The arguments for `job` on `size` bytes of a device. The program prints the same lines as
/// fio does when the transfers begin and end.
fn arguments(job: &Job, node: &Node, size: u64, extent: Extent) -> Vec<String> {
    let mut arguments = vec![
        "run".into(),
        "--json".into(),
        "--marks".into(),
        format!("--engine={}", job.engine.name()),
        format!("--rw={}", job.access.name()),
        format!("--file={}", node.path),
        format!("--block={}", job.block),
        format!("--size={size}"),
        format!("--depth={}", job.depth),
        format!("--batch={}", job.batch.unwrap_or(1)),
        match extent {
            Extent::Time(time) => format!("--seconds={}", time.as_secs_f64()),
            Extent::Transfers(transfers) => format!("--transfers={transfers}"),
            Extent::Once => format!("--transfers={}", size / job.block),
        },
    ];
    for (option, given) in [
        ("--direct", node.direct),
        ("--fixed", job.fixed()),
        ("--iopoll", job.polled),
    ] {
        if given {
            arguments.push(option.into());
        }
    }
    arguments
}

/// Runs `job`. `on_output` gets the standard output as it arrives.
pub fn run(
    agent: &Agent,
    job: &Job,
    node: &Node,
    size: u64,
    extent: Extent,
    on_output: impl FnMut(&[u8]),
) -> Result<Report> {
    let command = GuestCommand::new("ringbar-perf").args(arguments(job, node, size, extent));
    let output = agent.start(&command, RUN_TIMEOUT)?.output_with(on_output)?;
    if output.status.shell_code() != 0 {
        return Err(Error::Guest {
            what: format!("ringbar-perf {job} on {}", node.path),
            message: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    parse(&output.stdout)
}

/// The report is the last line.
fn parse(stdout: &[u8]) -> Result<Report> {
    let text = String::from_utf8_lossy(stdout);
    let report = text.lines().last().unwrap_or_default();
    serde_json::from_str(report)
        .map_err(|error| Error::Protocol(format!("{report:?} of ringbar-perf: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_job_reaches_the_program() {
        let node = Node {
            path: "/dev/x".into(),
            direct: true,
            interrupts: None,
        };
        let job = "randread-4k-qd32-io_uring-fixed-iopoll-batch8-lean".parse();
        let extent = Extent::Time(Duration::from_millis(500));
        assert_eq!(
            arguments(&job.unwrap(), &node, 1 << 20, extent).join(" "),
            "run --json --marks --engine=io_uring --rw=randread --file=/dev/x --block=4096 \
             --size=1048576 --depth=32 --batch=8 --seconds=0.5 --direct --fixed --iopoll"
        );
        let job = "write-1m-qd1-psync-lean".parse().unwrap();
        let node = Node::default();
        let text = arguments(&job, &node, 1 << 20, Extent::Transfers(7)).join(" ");
        assert!(text.ends_with("--batch=1 --transfers=7"), "{text}");
    }

    #[test]
    fn the_last_line_is_the_report() {
        let report = Report::new(8, 4096, 2.0, 4);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(
            parse(format!("begin\nend\n{json}\n").as_bytes()).unwrap(),
            report
        );
        assert!(parse(b"begin\nend\n").is_err());
        assert!(parse(b"").is_err());
    }
}
