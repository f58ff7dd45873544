// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the command `ringbar`.

mod transfers;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use ringbar_uapi::{self as uapi, Info};

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
            Case::new(
                "a11_json_is_what_the_text_says",
                transfers::json_of_the_device,
            ),
            Case::new(
                "a11_dma_of_each_engine_is_seen_through_the_map",
                transfers::dma,
            ),
            Case::new("a11_verify_names_the_wrong_byte", transfers::verify),
            Case::new(
                "a11_dma_of_a_device_out_of_range_says_where",
                transfers::dma_beyond_the_end,
            ),
            Case::new(
                "a11_top_counts_requests_of_queues_and_interrupts",
                transfers::top,
            ),
            Case::new(
                "a11_bench_is_one_line_with_the_ratio_first",
                transfers::bench,
            ),
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
