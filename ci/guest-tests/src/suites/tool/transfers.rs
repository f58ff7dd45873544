// SPDX-License-Identifier: Apache-2.0 OR MIT

//! JSON of the command `ringbar`, and its commands that transfer and measure.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Child;

use ringbar_uapi::Info;
use serde_json::Value;

use super::{LENGTH, OFFSET, expect_failure, good, good_text, path, ringbar, start, value};
use crate::case::{Context, During, Stop, Verdict, expect_bytes};
use crate::sys;
use crate::{check, check_eq};

/// The output of a run with `--json`: its lines, each an object.
fn json(arguments: &[&str]) -> Verdict<Vec<Value>> {
    let text = good_text(&[arguments, &["--json"]].concat())?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line).map_err(|error| Stop::Failed(format!("{error} in {line}")))
        })
        .collect()
}

pub(super) fn json_of_the_device(context: &Context) -> Verdict {
    let device = path(context)?;
    let info = &json(&["info", device])?[0];
    check_eq!(info["device"], *device, "device");
    check_eq!(info["memory"], context.size(), "memory");
    check_eq!(info["state"], "in_service", "state");
    check_eq!(info["pci_address"], *context.pci_address()?, "PCI address");
    let stats = &json(&["stats", device])?[0];
    for name in ["requests", "doorbells", "interrupts", "segments"] {
        check_eq!(stats[name], context.counter(name)?, "{name}");
        check_eq!(info["counters"][name], stats[name], "{name} of info");
    }
    let events = &json(&["events", device])?[0]["events"];
    check_eq!(events[0]["event"], "started", "the first event in {events}");
    check_eq!(events[0]["memory"], context.size(), "its memory");
    check!(events[0]["time_ns"].as_u64() > Some(0), "its time");
    Ok(())
}

pub(super) fn dma(context: &Context) -> Verdict {
    let device = path(context)?;
    let (offset, length) = (OFFSET.to_string(), LENGTH.to_string());
    let range = ["--offset", &offset, "--length", &length];
    for (seed, engine) in ["sync", "libaio", "io_uring"].into_iter().enumerate() {
        let seed = (seed + 100).to_string();
        let engine = ["--engine", engine, "--block-size", "5000"];
        let write = ["dma", "write", device, "--seed", &seed];
        let before = context.counter("requests")?;
        let report = &json(&[&write[..], &range, &engine].concat())?[0];
        check_eq!(report["bytes"], LENGTH, "bytes written by {engine:?}");
        let blocks = LENGTH.div_ceil(5000) as u64;
        check_eq!(
            context.counter("requests")? - before,
            blocks,
            "requests of {engine:?}"
        );
        let verify = ["dma", "verify", device, "--seed", &seed];
        good(&[&verify[..], &range, &engine].concat(), b"")?;
        let read = ["dma", "read", device, "--to", "-"];
        let output = ringbar(&[&read[..], &range, &engine].concat(), b"")?;
        let map = ["map", device, "--format=raw"];
        let mapped = good(&[&map[..], &range].concat(), b"")?;
        check_eq!(mapped.len(), LENGTH, "mapped bytes");
        expect_bytes(&output.stdout, &mapped, "what was read")?;
    }
    Ok(())
}

pub(super) fn verify(context: &Context) -> Verdict {
    let device = path(context)?;
    let range = ["--offset=1M", "--length=64K", "--block-size=4K"];
    good(&[&["dma", "write", device][..], &range].concat(), b"")?;
    let at = (1 << 20) + 40_001;
    let file = context.open()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    let output = ringbar(&[&["dma", "verify", device][..], &range].concat(), b"")?;
    let wrong = format!(
        "the first at {at:#x}: {:#04x} instead of {:#04x}",
        !byte[0], byte[0]
    );
    expect_failure(context, &output, &["1 bytes in 1 blocks", &wrong])
}

pub(super) fn dma_beyond_the_end(context: &Context) -> Verdict {
    let device = path(context)?;
    let last = (context.size() - 1).to_string();
    for operation in ["read", "write", "verify"] {
        let arguments = ["dma", operation, device, "--length=2", "--offset", &last];
        let output = ringbar(&arguments, b"")?;
        check!(output.stdout.is_empty(), "{operation} has output");
        expect_failure(context, &output, &["beyond the end"])?;
    }
    Ok(())
}

pub(super) fn top(context: &Context) -> Verdict {
    const READS: u64 = 300;
    let device = path(context)?;
    // With the probe there is a latency, as soon as the first read has ended.
    let top = ["top", device, "--interval=0.05"];
    first_line(&[&top[..], &["--json"]].concat(), |line| {
        let view: Option<Value> = serde_json::from_str(line).ok();
        view.is_some_and(|view| view["probe"]["latency_ns"].as_u64() > Some(0))
    })?;
    let latency = format!("{device}: in service; latency of a read of 4 KiB: ");
    first_line(&top, |line| line.starts_with(&latency))?;
    let views = json(&[&top[..], &["--count=2"]].concat())?;
    check_eq!(views.len(), 2, "views");
    // Without it the requests of this test are the only ones.
    let mut child = start(&["top", device, "--no-probe", "--interval=0.05", "--json"])?;
    let found = count_on_top(&mut child, context, READS);
    child.kill()?;
    child.wait()?;
    let view = found?;
    check_eq!(
        view["counters"]["requests"],
        context.counter("requests")?,
        "requests"
    );
    check!(view["probe"].is_null(), "a probe in {view}");
    let queues = view["queues"].as_array().map_or(0, Vec::len);
    let info = Info::from_bytes(&sys::info(&context.open()?)?);
    check_eq!(queues, 1 + info.io_queues as usize, "queues");
    check_eq!(view["queues"][0]["role"], "control", "role of queue 0");
    check_eq!(view["queues"][1]["role"], "io", "role of queue 1");
    check_eq!(
        view["queues"][0]["total"],
        0,
        "requests of the control queue"
    );
    let interrupts = view["interrupts"].as_array().map_or(&[][..], Vec::as_slice);
    check!(!interrupts.is_empty(), "no interrupts in {view}");
    let total: u64 = interrupts
        .iter()
        .filter_map(|it| it["total"].as_u64())
        .sum();
    check_eq!(total, context.interrupts()?, "interrupts of all vectors");
    // The same as text, without a terminal.
    let text = good_text(&[&top[..], &["--count=1", "--no-probe"]].concat())?;
    check!(
        text.starts_with(&format!("{device}: in service\n")),
        "{text}"
    );
    check_eq!(
        value(&text, "requests ")?,
        context.counter("requests")?,
        "requests as text"
    );
    check!(!text.contains('\x1b'), "escape sequences in {text:?}");
    Ok(())
}

/// Waits for a line of a run that would not end, and ends it.
fn first_line(arguments: &[&str], wanted: impl Fn(&str) -> bool) -> Verdict {
    let mut child = start(arguments)?;
    let output = child
        .stdout
        .take()
        .ok_or_else(|| Stop::Failed("no output".into()))?;
    let found = BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        .any(|line| wanted(&line));
    child.kill()?;
    child.wait()?;
    check!(found, "ringbar {arguments:?} ended");
    Ok(())
}

/// Waits for the first view, reads, and returns the first view in which the queues have completed
/// as many requests.
fn count_on_top(child: &mut Child, context: &Context, reads: u64) -> Verdict<Value> {
    let output = child
        .stdout
        .take()
        .ok_or_else(|| Stop::Failed("no output".into()))?;
    let mut views = BufReader::new(output).lines().map(|line| {
        serde_json::from_str::<Value>(&line?).map_err(|error| Stop::Failed(error.to_string()))
    });
    let completed = |view: &Value| -> u64 {
        let queues = view["queues"].as_array().map_or(&[][..], Vec::as_slice);
        queues.iter().filter_map(|it| it["total"].as_u64()).sum()
    };
    let ended = || Stop::Failed("the output ended".into());
    let first = views.next().ok_or_else(ended)??;
    let file = context.open()?;
    let mut buffer = [0; 4096];
    for _ in 0..reads {
        file.read_exact_at(&mut buffer, 0)
            .during(|| "pread".to_string())?;
    }
    loop {
        let view = views.next().ok_or_else(ended)??;
        let found = completed(&view) - completed(&first);
        check!(found <= reads, "{found} completed of {reads} requests");
        if found == reads {
            return Ok(view);
        }
    }
}

pub(super) fn bench(context: &Context) -> Verdict {
    let device = path(context)?;
    let job = [
        "--seconds=0.05",
        "--rounds=3",
        "--block-size=4K",
        "--length=1M",
    ];
    for (direction, floor) in [(&[][..], "/dev/zero"), (&["--write"][..], "/dev/null")] {
        let line = good_text(&[&["bench", device][..], &job, direction].concat())?;
        let words: Vec<_> = line.split(' ').collect();
        check!(
            line.lines().count() == 1 && words.len() > 3,
            "not one line: {line}"
        );
        let ratio: f64 = words[0]
            .parse()
            .map_err(|_| Stop::Failed(format!("no ratio in {line}")))?;
        check!(
            ratio.is_finite() && ratio > 0.0,
            "the device is {ratio} of {floor}"
        );
        check_eq!((words[1], words[2]), ("of", floor), "floor");
    }
    Ok(())
}
