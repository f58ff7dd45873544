// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the command `ringbar`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use ringbar_uapi::{self as uapi, Info};
use serde_json::Value;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes};
use crate::fixtures::driver::{bind, unbind};
use crate::needs::Needs;
use crate::pattern;
use crate::sys;
use crate::{check, check_eq};

/// Offset of the tests in the device; neither it nor the length is page-aligned.
const OFFSET: u64 = (5 << 20) + 4093;
const LENGTH: usize = 200_003;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "tool",
        about: "the command ringbar maps, dumps and writes, and shows what there is to see",
        needs: Needs::default(),
        cases: vec![
            Case::new("a11_dump_is_what_was_written_by_dma", dump),
            Case::new("a11_hex_dump_folds_repeated_lines", hex_dump),
            Case::new("a11_write_through_the_map_is_read_by_dma", write),
            Case::new("a11_raw_round_trip_of_a_file", round_trip),
            Case::new("a11_beyond_the_end_is_an_error", beyond_the_end),
            Case::new("a11_read_only_regions_refuse_writes", read_only),
            Case::new("a11_memory_that_cannot_be_cached_is_refused", cached),
            Case::new("a11_statistics_region_and_stats_agree", statistics),
            Case::new("a11_used_rings_move_with_requests", used_rings),
            Case::new("a11_events_begin_with_the_start", events),
            Case::new("a11_info_names_size_and_pci_address", info),
            Case::new("a11_json_is_what_the_text_says", json_of_the_device),
            Case::new("a11_dma_of_each_engine_is_seen_through_the_map", dma),
            Case::new("a11_verify_names_the_wrong_byte", verify),
            Case::new(
                "a11_dma_of_a_device_out_of_range_says_where",
                dma_beyond_the_end,
            ),
            Case::new("a11_top_counts_requests_of_queues_and_interrupts", top),
            Case::new("a11_bench_is_one_line_with_the_ratio_first", bench),
            Case::new("a11_unbind_while_mapped_ends_with_a_message", unbound),
        ],
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("ringbar");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(arguments: &[&str]) -> Verdict<Child> {
    command(arguments)
        .spawn()
        .during(|| format!("starting ringbar {arguments:?}"))
}

fn ringbar(arguments: &[&str], input: &[u8]) -> Verdict<Output> {
    let mut child = start(arguments)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failing run may not read all input.
        let _ = stdin.write_all(input);
    }
    Ok(child.wait_with_output()?)
}

/// The output of a run, which must succeed.
fn good(arguments: &[&str], input: &[u8]) -> Verdict<Vec<u8>> {
    let output = ringbar(arguments, input)?;
    check!(
        output.status.success() && output.stderr.is_empty(),
        "ringbar {arguments:?}: {}, {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn good_text(arguments: &[&str]) -> Verdict<String> {
    String::from_utf8(good(arguments, b"")?).map_err(|error| Stop::Failed(error.to_string()))
}

/// The number behind a word at the start of a line.
fn value(text: &str, name: &str) -> Verdict<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .find_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| Stop::Failed(format!("no value of {name} in:\n{text}")))
}

/// Checks that a run fails as an ordinary failure, with a message that names the
/// device and holds `words`.
fn expect_failure(context: &Context, output: &Output, words: &[&str]) -> Verdict {
    let message = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(1), "status, with {message:?}");
    let device = path(context)?;
    for word in words.iter().chain([&device]) {
        check!(message.contains(word), "no {word:?} in {message:?}");
    }
    Ok(())
}

fn path(context: &Context) -> Verdict<&str> {
    context
        .path()
        .to_str()
        .ok_or_else(|| Stop::Failed("the device's name is no text".into()))
}

fn dump(context: &Context) -> Verdict {
    let data = pattern::bytes(1, LENGTH);
    let file = context.open()?;
    file.write_all_at(data, OFFSET)
        .during(|| "pwrite".to_string())?;
    let (offset, length) = (OFFSET.to_string(), LENGTH.to_string());
    for region in ["memory", "uncached"] {
        let mut arguments = vec!["map", path(context)?, "--format=raw", "--region", region];
        arguments.extend(["--offset", &offset, "--length", &length]);
        expect_bytes(&good(&arguments, b"")?, data, region)?;
    }
    // Up to the end.
    let offset = context.size() - LENGTH as u64;
    file.write_all_at(data, offset)
        .during(|| "pwrite at the end".to_string())?;
    let offset = offset.to_string();
    let arguments = ["map", path(context)?, "--format=raw", "--offset", &offset];
    expect_bytes(&good(&arguments, b"")?, data, "the end of the device")
}

fn hex_dump(context: &Context) -> Verdict {
    let mut data = [b'a'; 16 * 5 + 2];
    data[64..].copy_from_slice(b"0123456789\n\xff~XYZ!?");
    context
        .open()?
        .write_all_at(&data, 0x1003)
        .during(|| "pwrite".to_string())?;
    let expected = "\
00001003  61 61 61 61 61 61 61 61  61 61 61 61 61 61 61 61  |aaaaaaaaaaaaaaaa|
*
00001043  30 31 32 33 34 35 36 37  38 39 0a ff 7e 58 59 5a  |0123456789..~XYZ|
00001053  21 3f                                             |!?|
00001055
";
    let found = good_text(&[
        "map",
        path(context)?,
        "--offset=0x1003",
        &format!("--length={}", data.len()),
    ])?;
    check_eq!(found, expected, "the dump");
    Ok(())
}

fn write(context: &Context) -> Verdict {
    const AROUND: usize = 5000;
    let file = context.open()?;
    let before = pattern::bytes(2, LENGTH + 2 * AROUND);
    let start = OFFSET - AROUND as u64;
    let offset = OFFSET.to_string();
    for region in ["memory", "uncached"] {
        file.write_all_at(before, start)
            .during(|| "pwrite".to_string())?;
        let data = pattern::bytes(3, LENGTH);
        let mut arguments = vec!["map", path(context)?, "--write=-", "--region", region];
        arguments.extend(["--offset", &offset]);
        good(&arguments, data)?;
        let mut expected = before.to_vec();
        expected[AROUND..AROUND + LENGTH].copy_from_slice(data);
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, start)
            .during(|| "pread".to_string())?;
        expect_bytes(&found, &expected, region)?;
    }
    Ok(())
}

/// A directory on tmpfs, removed with its content when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Verdict<Self> {
        let path = PathBuf::from(format!("/dev/shm/tool-{}", std::process::id()));
        fs::create_dir(&path).during(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // An error is harmless, because the machine ends soon.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn round_trip(_: &Context) -> Verdict {
    let folder = TempDir::new()?;
    let (from, to) = (folder.file("from"), folder.file("to"));
    let data = pattern::bytes(4, LENGTH);
    fs::write(&from, data)?;
    fs::write(&to, vec![0; LENGTH])?;
    let raw = good(&["map", &from, "--format=raw"], b"")?;
    expect_bytes(&raw, data, "the dump")?;
    good(&["map", &to, "--write=-"], &raw)?;
    expect_bytes(&fs::read(&to)?, data, "the copy")
}

fn beyond_the_end(context: &Context) -> Verdict {
    let device = path(context)?;
    let size = context.size();
    let (last, beyond) = ((size - 1).to_string(), (size + 1).to_string());
    let rows: [&[&str]; 4] = [
        &["map", device, "--offset", &beyond],
        &["map", device, "--offset", &last, "--length=2"],
        &["map", device, "--region=statistics", "--length=4097"],
        &["map", device, "--region=events", "--offset=1M"],
    ];
    for arguments in rows {
        let output = ringbar(arguments, b"")?;
        check!(output.stdout.is_empty(), "{arguments:?} has output");
        expect_failure(context, &output, &["beyond the end"])
            .during(|| format!("{arguments:?}"))?;
    }
    let output = ringbar(&["map", device, "--write=-", "--offset", &last], b"ab")?;
    expect_failure_of_source(&output)?;
    let output = ringbar(&["map", device, "--region=used-rings:60000"], b"")?;
    expect_failure(context, &output, &["nothing to map"])
}

fn expect_failure_of_source(output: &Output) -> Verdict {
    let message = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(1), "status, with {message:?}");
    check!(message.contains("more than the 1 bytes"), "{message:?}");
    Ok(())
}

fn read_only(context: &Context) -> Verdict {
    for region in ["statistics", "events", "used-rings:0"] {
        let device = path(context)?;
        let output = ringbar(&["map", device, "--write=-", "--region", region], b"a")?;
        expect_failure(context, &output, &[region, "can only be read"])?;
    }
    Ok(())
}

fn cached(context: &Context) -> Verdict {
    // The aperture is below 4 GiB.
    let output = ringbar(&["map", path(context)?, "--region", "cached"], b"")?;
    expect_failure(context, &output, &["not supported"])
}

fn statistics(context: &Context) -> Verdict {
    let device = path(context)?;
    let file = context.open()?;
    let mut buffer = [0; 4096];
    for _ in 0..5 {
        file.read_exact_at(&mut buffer, 0)
            .during(|| "pread".to_string())?;
    }
    let page = good(&["map", device, "--region=statistics", "--format=raw"], b"")?;
    check_eq!(page.len(), 4096, "bytes of the region");
    let words: Vec<u64> = page
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
        .collect();
    let text = good_text(&["stats", device])?;
    for (name, place) in [
        ("requests", uapi::COUNTER_REQUESTS),
        ("doorbells", uapi::COUNTER_DOORBELLS),
        ("interrupts", uapi::COUNTER_INTERRUPTS),
    ] {
        check_eq!(value(&text, name)?, words[place], "{name}");
        check_eq!(words[place], context.counter(name)?, "{name} in debugfs");
        check!(words[place] > 0, "{name} is 0");
    }

    // With --watch, each line shows the counters and their increments: five requests
    // here.
    let before = context.counter("requests")?;
    let mut child = start(&["stats", device, "--watch=0.05"])?;
    let found = watch(&mut child, || {
        for _ in 0..5 {
            file.read_exact_at(&mut buffer, 0)
                .during(|| "pread".to_string())?;
        }
        Ok(())
    });
    child.kill()?;
    child.wait()?;
    let (total, added) = found?;
    check_eq!(total, before + 5, "requests when watched");
    check_eq!(added, 5, "requests added when watched");
    Ok(())
}

/// Waits for the first output of `ringbar stats --watch`, does `work`, and reads until an
/// increment: returns the number of requests then, and the sum of increments.
fn watch(child: &mut Child, work: impl FnOnce() -> Verdict) -> Verdict<(u64, u64)> {
    let output = child
        .stdout
        .take()
        .ok_or_else(|| Stop::Failed("no output".into()))?;
    let mut requests = BufReader::new(output).lines().filter_map(|line| {
        let line = line.ok()?;
        Some(line.strip_prefix("requests ")?.to_owned())
    });
    let ended = || Stop::Failed("the output ended".into());
    let first: u64 = requests
        .next()
        .and_then(|line| line.parse().ok())
        .ok_or_else(ended)?;
    work()?;
    let mut added = 0;
    loop {
        let line = requests.next().ok_or_else(ended)?;
        let (total, more) = line
            .split_once(" +")
            .and_then(|(total, more)| Some((total.parse().ok()?, more.parse::<u64>().ok()?)))
            .ok_or_else(|| Stop::Failed(format!("unexpected line {line:?}")))?;
        added += more;
        check_eq!(total, first + added, "the sum of what was added");
        if added >= 5 {
            return Ok((total, added));
        }
    }
}

fn used_rings(context: &Context) -> Verdict {
    const READS: u64 = 20;
    let device = path(context)?;
    // The control queue's and the I/O queues'.
    let info = Info::from_bytes(&sys::info(&context.open()?)?);
    let queues = 1 + info.io_queues;
    // The index is the second 16-bit word (VIRTIO 1.3, 2.7.8).
    let indices = || -> Verdict<u64> {
        let mut sum = 0;
        for queue in 0..queues {
            let region = format!("--region=used-rings:{queue}");
            let ring = good(&["map", device, &region, "--format=raw"], b"")?;
            check!(
                !ring.is_empty() && ring.len().is_multiple_of(4096),
                "{} bytes of used ring {queue}",
                ring.len()
            );
            sum += u64::from(u16::from_le_bytes([ring[2], ring[3]]));
        }
        Ok(sum)
    };
    let before = indices()?;
    let file = context.open()?;
    let mut buffer = [0; 4096];
    for _ in 0..READS {
        file.read_exact_at(&mut buffer, 0)
            .during(|| "pread".to_string())?;
    }
    check_eq!(indices()?, before + READS, "used entries after the reads");
    Ok(())
}

fn events(context: &Context) -> Verdict {
    let text = good_text(&["events", path(context)?])?;
    let expected = format!("started with {} bytes of device memory", context.size());
    let first = text.lines().next().unwrap_or_default();
    check!(first.ends_with(&expected), "the first event is {first:?}");
    let seconds: f64 = first
        .trim_start_matches(['[', ' '])
        .split(']')
        .next()
        .and_then(|time| time.parse().ok())
        .ok_or_else(|| Stop::Failed(format!("no time in {first:?}")))?;
    check!(
        seconds > 0.0 && seconds < 3600.0,
        "{seconds} seconds since boot"
    );
    Ok(())
}

fn info(context: &Context) -> Verdict {
    let text = good_text(&["info", path(context)?])?;
    check_eq!(value(&text, "memory:")?, context.size(), "memory");
    check_eq!(
        value(&text, "requests:")?,
        context.counter("requests")?,
        "requests"
    );
    for word in [&context.pci_address()?, "ringbar"] {
        check!(
            text.lines().any(|line| line.ends_with(word)),
            "no line ends with {word} in:\n{text}"
        );
    }
    Ok(())
}

/// The output of a run with `--json`: its lines, each an object.
fn json(arguments: &[&str]) -> Verdict<Vec<Value>> {
    let text = good_text(&[arguments, &["--json"]].concat())?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line).map_err(|error| Stop::Failed(format!("{error} in {line}")))
        })
        .collect()
}

fn json_of_the_device(context: &Context) -> Verdict {
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

fn dma(context: &Context) -> Verdict {
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

fn verify(context: &Context) -> Verdict {
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

fn dma_beyond_the_end(context: &Context) -> Verdict {
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

fn top(context: &Context) -> Verdict {
    const READS: u64 = 300;
    let device = path(context)?;
    // With the probe there is a latency.
    let views = json(&["top", device, "--count=2", "--interval=0.05"])?;
    check_eq!(views.len(), 2, "views");
    check!(
        views[1]["probe"]["latency_ns"].as_u64() > Some(0),
        "no latency in {}",
        views[1]
    );
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
    let interrupts = view["interrupts"].as_array().map_or(&[][..], Vec::as_slice);
    check!(!interrupts.is_empty(), "no interrupts in {view}");
    let total: u64 = interrupts
        .iter()
        .filter_map(|it| it["total"].as_u64())
        .sum();
    check_eq!(total, context.interrupts()?, "interrupts of all vectors");
    // The same as text, without a terminal.
    let text = good_text(&["top", device, "--count=1", "--interval=0.05"])?;
    check!(
        text.starts_with(&format!("{device}: in service; latency")),
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

fn bench(context: &Context) -> Verdict {
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
            ratio > 0.0 && ratio < 1.0,
            "the device is {ratio} of {floor}"
        );
        check_eq!((words[1], words[2]), ("of", floor), "floor");
    }
    Ok(())
}

fn unbound(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    // The dump is larger than the pipe's capacity, so it waits for its reader.
    let mut child = start(&["map", path(context)?, "--format=raw"])?;
    let mut some = [0; 100];
    if let Some(stdout) = &mut child.stdout {
        stdout.read_exact(&mut some)?;
    }
    unbind(&address)?;
    let output = child.wait_with_output();
    bind(context, &address)?;
    let output = output?;
    expect_failure(context, &output, &["went away (SIGBUS)"])?;
    check!(
        (output.stdout.len() as u64) < context.size(),
        "all was dumped"
    );
    good(&["info", path(context)?], b"").map(drop)
}
