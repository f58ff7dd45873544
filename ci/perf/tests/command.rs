// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command as the benchmark and people run it.

use std::process::Command;

fn run(arguments: &str) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringbar-perf"))
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// At depth 40 a slot is used again with requests in flight, and a turn of the device takes fewer
/// requests than are in flight.
#[test]
fn two_processes_exchange_requests() {
    for (depth, read) in [(1, "first"), (40, "all")] {
        let (success, stdout, stderr) = run(&format!(
            "ring --size 1m --seconds 0.02 --requests 320 --depth {depth} --read {read} --block 512 --json"
        ));
        assert!(success, "{stderr}");
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert!(report["runs"].as_u64().unwrap() > 0);
        assert_eq!(report["read"], read);
        for time in ["request_ns", "alone_ns", "ratio_median"] {
            assert!(report[time].as_f64().unwrap() > 0.0, "{time}");
        }
    }
}

#[test]
fn a_run_with_too_few_requests_is_refused() {
    let (success, _, stderr) = run("ring --seconds 1 --requests 319 --depth 40");
    assert!(!success);
    let expected = "--requests 319 is too few; --depth 40 needs at least 320";
    assert!(stderr.contains(expected), "{stderr}");
}

#[test]
fn the_report_is_bracketed_and_complete() {
    let (success, stdout, stderr) =
        run("run --engine null --transfers 1000 --depth 8 --batch 2 --marks --json");
    assert!(success, "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..2], ["begin", "end"]);
    let report: ringbar_perf::report::Report = serde_json::from_str(lines[2]).unwrap();
    assert_eq!((report.transfers, report.bytes), (1000, 4_096_000));
    assert_eq!(report.system_calls, 0);
    let (_, stdout, _) = run("run --engine null --transfers 1000 --json");
    assert!(
        stdout.starts_with('{'),
        "no marks that nobody asked for: {stdout}"
    );
}

#[test]
fn errors_name_the_file() {
    let (success, _, stderr) = run("run --engine psync --file /does/not/exist --seconds 1");
    assert!(!success);
    assert!(
        stderr.contains("ringbar-perf: /does/not/exist: No such file"),
        "{stderr}"
    );
}
