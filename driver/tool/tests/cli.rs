// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program, on ordinary files.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::pty::OpenptFlags;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringbar");

/// What a run printed, and its status.
fn finish(output: Output) -> (Option<i32>, Vec<u8>, String) {
    let message = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), output.stdout, message)
}

fn ringbar(arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that fails may not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    finish(child.wait_with_output().unwrap())
}

/// A run that must succeed: what it printed.
fn good(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let (status, output, message) = ringbar(arguments, input);
    assert_eq!((status, message.as_str()), (Some(0), ""), "{arguments:?}");
    output
}

/// A run that must fail: its message.
fn bad(arguments: &[&str], input: &[u8]) -> String {
    let (status, output, message) = ringbar(arguments, input);
    assert_eq!(status, Some(1), "{arguments:?}: {message}");
    assert!(output.is_empty(), "{arguments:?}");
    assert!(message.starts_with("ringbar: "), "{message}");
    message
}

fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn numbered(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn raw_dumps_are_the_bytes() {
    let data = numbered(200_003);
    let (_folder, path) = file(&data);
    let raw = |rest: &[&str]| {
        let mut arguments = vec!["map", text(&path), "--format=raw"];
        arguments.extend(rest);
        good(&arguments, b"")
    };
    assert_eq!(raw(&[]), data);
    assert_eq!(raw(&["--offset=4095"]), &data[4095..]);
    assert_eq!(
        raw(&["--offset=0x1001", "--length=8K"]),
        &data[4097..][..8192]
    );
    assert_eq!(raw(&["--offset=200003"]), b"");
    assert_eq!(raw(&["--offset=5", "--length=0"]), b"");
}

#[test]
fn hex_is_the_default() {
    let (_folder, path) = file(b"some text\n");
    let expected = "\
00000005  74 65 78 74 0a                                    |text.|
0000000a
";
    let output = good(&["map", text(&path), "--offset=5"], b"");
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn an_empty_file_has_an_empty_dump() {
    let (_folder, path) = file(b"");
    assert_eq!(good(&["map", text(&path)], b""), b"");
}

#[test]
fn standard_input_is_written_to_a_range() {
    let mut data = numbered(100_000);
    let (_folder, path) = file(&data);
    let input = vec![0xa5; 70_001];
    let output = good(&["map", text(&path), "--offset=4093", "--write=-"], &input);
    assert_eq!(output, b"70001 bytes written at 0xffd\n");
    data[4093..][..input.len()].copy_from_slice(&input);
    assert_eq!(fs::read(&path).unwrap(), data);

    // No more than asked for.
    good(
        &["map", text(&path), "--offset=1", "--length=3", "--write=-"],
        b"abcdef",
    );
    data[1..4].copy_from_slice(b"abc");
    assert_eq!(fs::read(&path).unwrap(), data);
    good(&["map", text(&path), "--write=-"], b"");
    assert_eq!(fs::read(&path).unwrap(), data);
}

#[test]
fn a_file_is_written_to_a_range() {
    let (_folder, path) = file(&[b'.'; 20]);
    let (_other_folder, source) = file(b"0123456789");
    let write = ["map", text(&path), "--write", text(&source), "--offset"];
    good(&[&write[..], &["10"]].concat(), b"");
    assert_eq!(fs::read(&path).unwrap(), b"..........0123456789");
    good(&[&write[..], &["7", "--length", "2"]].concat(), b"");
    assert_eq!(fs::read(&path).unwrap(), b".......01.0123456789");

    let message = bad(&[&write[..], &["11"]].concat(), b"");
    assert!(message.contains("0xa bytes at 0xb"), "{message}");
    assert!(message.contains("there are 9 bytes"), "{message}");
    let message = bad(&[&write[..], &["0", "--length", "11"]].concat(), b"");
    assert!(message.contains("has 10 bytes and not the 11"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b".......01.0123456789");
}

#[test]
fn input_of_the_wrong_length_is_an_error() {
    let (_folder, path) = file(&[b'.'; 6]);
    let message = bad(&["map", text(&path), "--offset=2", "--write=-"], b"01234");
    assert!(message.contains("more than the 4 bytes"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"..0123");
    let message = bad(&["map", text(&path), "--length=3", "--write=-"], b"ab");
    assert!(message.contains("has 2 bytes and not the 3"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"ab0123");
}

#[test]
fn beyond_the_end_is_an_error() {
    let (_folder, path) = file(&[0; 100]);
    let message = bad(&["map", text(&path), "--offset=101"], b"");
    assert!(
        message.contains("offset 0x65 is beyond the end"),
        "{message}"
    );
    let message = bad(&["map", text(&path), "--offset=90", "--length=11"], b"");
    assert!(message.contains("there are 10 bytes"), "{message}");
    let huge = "--length=0xffffffffffffffff";
    assert!(bad(&["map", text(&path), huge], b"").contains("beyond the end"));
    assert!(bad(&["map", "/dev/zero", huge], b"").contains("choose less"));
}

#[test]
fn what_is_no_device_has_no_other_regions() {
    let (_folder, path) = file(&[0; 100]);
    for region in ["uncached", "statistics", "events", "used-rings:0"] {
        let region = format!("--region={region}");
        for path in [text(&path), "/dev/zero"] {
            let message = bad(&["map", path, &region], b"");
            assert!(message.contains("is not a ringbar device"), "{message}");
        }
    }
    for command in ["stats", "events", "info"] {
        let message = bad(&[command, "/dev/zero"], b"");
        assert!(message.contains("is not a ringbar device"), "{message}");
    }
}

#[test]
fn what_cannot_be_opened_or_mapped_is_named() {
    let message = bad(&["map", "/nonexistent/file"], b"");
    assert!(message.contains("/nonexistent/file"), "{message}");
    assert!(message.contains("modprobe ringbar"), "{message}");
    let message = bad(&["map", "/dev/null", "--length=1"], b"");
    assert!(message.contains("cannot be mapped"), "{message}");
    let message = bad(&["map", "/proc"], b"");
    assert!(message.contains("is a directory"), "{message}");
    let message = bad(&["map", "/dev/zero"], b"");
    assert!(message.contains("--length"), "{message}");
}

#[test]
fn wrong_arguments_have_a_status_of_their_own() {
    for arguments in [&[][..], &["map"], &["map", "x", "--offset=y"], &["mop"]] {
        assert_eq!(ringbar(arguments, b"").0, Some(2), "{arguments:?}");
    }
    assert_eq!(ringbar(&["map", "--help"], b"").0, Some(0));
}

/// The output of a run as one JSON object.
fn json(arguments: &[&str]) -> Value {
    serde_json::from_slice(&good(arguments, b"")).unwrap()
}

#[test]
fn each_engine_writes_a_pattern_that_all_others_verify() {
    let engines = ["sync", "libaio", "io_uring"];
    for (number, engine) in engines.into_iter().enumerate() {
        let (_folder, path) = file(&[b'.'; 300_000]);
        let range = ["--offset=4099", "--length=250001", "--seed=7"];
        let write = [
            "dma",
            "write",
            text(&path),
            "--block-size=10K",
            "--engine",
            engine,
        ];
        good(&[&write[..], &range].concat(), b"");
        let data = fs::read(&path).unwrap();
        assert!(
            data[..4099]
                .iter()
                .chain(&data[254_100..])
                .all(|byte| *byte == b'.')
        );
        for other in engines {
            let verify = [
                "dma",
                "verify",
                text(&path),
                "--block-size=77777",
                "--engine",
                other,
            ];
            let output = good(&[&verify[..], &range].concat(), b"");
            let output = String::from_utf8(output).unwrap();
            assert!(
                output.starts_with("compared 250001 bytes at 0x1003"),
                "{output}"
            );
        }
        // One wrong byte.
        let mut wrong = data.clone();
        wrong[100_000 + number] ^= 0x10;
        fs::write(&path, &wrong).unwrap();
        let verify = ["dma", "verify", text(&path), "--json", "--engine", engine];
        let (status, output, message) = ringbar(&[&verify[..], &range].concat(), b"");
        assert_eq!(status, Some(1));
        let report: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!(report["wrong_bytes"], 1);
        let expected = format!(
            "1 bytes in 1 blocks differ from the pattern of seed 7, the first at {:#x}: {:#04x} \
             instead of {:#04x}",
            100_000 + number,
            wrong[100_000 + number],
            data[100_000 + number]
        );
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn files_are_copied_both_ways() {
    let data = numbered(200_003);
    let (_folder, path) = file(&vec![0; 300_000]);
    let (other_folder, source) = file(&data);
    let copy = other_folder.path().join("copy");
    let at = ["--offset=5000", "--block-size=16K"];
    let run = |words: &[&str], input: &[u8]| good(&[words, &at].concat(), input);
    run(&["dma", "write", text(&path), "--from", text(&source)], b"");
    assert_eq!(fs::read(&path).unwrap()[5000..205_003], data);
    run(
        &["dma", "verify", text(&path), "--from", text(&source)],
        b"",
    );
    let read = ["dma", "read", text(&path), "--length=200003", "--to"];
    run(&[&read[..], &[text(&copy)]].concat(), b"");
    assert_eq!(fs::read(&copy).unwrap(), data);
    // Through pipes; the rates are on standard error.
    let (status, output, message) = ringbar(&[&read[..], &["-"], &at].concat(), b"");
    assert_eq!((status, output == data), (Some(0), true));
    assert!(
        message.starts_with("read 200003 bytes at 0x1388"),
        "{message}"
    );
    run(&["dma", "write", text(&path), "--from=-"], &data[1..]);
    assert_eq!(fs::read(&path).unwrap()[5000..205_002], data[1..]);
    let verify = ["dma", "verify", text(&path), "--from=-", "--length=200002"];
    run(&verify, &data[1..]);
    let (status, _, message) = ringbar(&[&verify[..], &at].concat(), &data);
    assert_eq!(status, Some(1));
    assert!(
        message.contains("differ from standard input, the first at 0x1388"),
        "{message}"
    );
}

#[test]
fn transfers_that_cannot_be_made_say_what_where_and_why() {
    let (_folder, path) = file(&[b'.'; 6]);
    let message = bad(&["dma", "write", text(&path), "--length=7"], b"");
    assert!(message.contains("reach beyond the end"), "{message}");
    let message = bad(
        &["dma", "write", text(&path), "--offset=2", "--from=-"],
        b"01234",
    );
    assert!(message.contains("more than the 4 bytes"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"..0123");
    let message = bad(
        &["dma", "write", text(&path), "--length=3", "--from=-"],
        b"ab",
    );
    assert!(message.contains("has 2 bytes and not the 3"), "{message}");
    let message = bad(&["dma", "read", "/dev/zero"], b"");
    assert!(message.contains("--length"), "{message}");
    let message = bad(&["dma", "read", text(&path), "--to=/nonexistent/x"], b"");
    assert!(message.contains("/nonexistent/x"), "{message}");
    for engine in ["sync", "libaio", "io_uring"] {
        let full = [
            "dma",
            "write",
            "/dev/full",
            "--length=1000",
            "--block-size=100",
        ];
        let message = bad(&[&full[..], &["--engine", engine]].concat(), b"");
        let place = "writing 100 bytes at 0x0 of /dev/full: ";
        assert!(message.contains(place), "{engine}: {message}");
        let cause = match engine {
            "libaio" => "the file may not support this --engine",
            _ => "No space left on device",
        };
        assert!(message.contains(cause), "{engine}: {message}");
        assert!(message.contains("the 0 bytes before are done"), "{message}");
    }
    assert_eq!(
        ringbar(&["dma", "read", "x", "--engine=sync", "--depth=2"], b"").0,
        Some(2)
    );
}

#[test]
fn json_has_the_documented_members() {
    let (_folder, path) = file(b"some text\n");
    let dump = json(&["--json", "map", text(&path), "--offset=5", "--length=3"]);
    assert_eq!(
        dump,
        serde_json::json!({
            "file": text(&path), "region": "memory", "offset": 5, "length": 3, "hex": "746578"
        })
    );
    let report = json(&[
        "dma",
        "read",
        text(&path),
        "--json",
        "--depth=3",
        "--block-size=4",
    ]);
    assert_eq!(report["operation"], "read");
    assert_eq!(report["device"], text(&path));
    assert_eq!(
        (&report["offset"], &report["bytes"]),
        (&0.into(), &10.into())
    );
    assert_eq!(
        (&report["depth"], &report["block_size"]),
        (&3.into(), &4.into())
    );
    assert_eq!(report["engine"], "io_uring");
    assert!(report["latency_ns"]["p99"].as_u64() > Some(0), "{report}");
    assert!(report["seconds"].as_f64() > Some(0.0), "{report}");
    assert!(report.get("wrong_bytes").is_none());
    let bench = ["--seconds=0.02", "--rounds=3", "--block-size=4"];
    let report = json(&[&["bench", text(&path), "--json"], &bench[..]].concat());
    assert_eq!(
        (&report["floor"], &report["rounds"]),
        (&"/dev/zero".into(), &3.into())
    );
    let ratio = |name: &str| report[name].as_f64().unwrap();
    assert!(0.0 < ratio("ratio_min") && ratio("ratio_min") <= ratio("ratio"));
    assert!(ratio("ratio") <= ratio("ratio_max"));
    // A time that is over before the first block.
    let bench_once = ["--seconds=1e-9", "--rounds=1", "--block-size=4"];
    for direction in [&[][..], &["--write"][..]] {
        let report = json(
            &[
                &["bench", text(&path), "--json"],
                &bench_once[..],
                direction,
            ]
            .concat(),
        );
        assert!(report["ratio"].as_f64() > Some(0.0), "{report}");
        for rates in ["device_rates", "floor_rates"] {
            assert_eq!(report[rates]["bytes"], 4, "{report}");
        }
    }
    let line = good(&[&["bench", text(&path)], &bench[..]].concat(), b"");
    let line = String::from_utf8(line).unwrap();
    assert_eq!(line.lines().count(), 1);
    // No colours without a terminal.
    assert!(
        line.split(' ').next().unwrap().parse::<f64>().is_ok(),
        "{line:?}"
    );
}

/// Runs the program with a terminal for standard output and standard error; returns what it
/// shows.
fn on_a_terminal(arguments: &[&str], no_color: bool) -> String {
    let pty = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&pty).unwrap();
    rustix::pty::unlockpt(&pty).unwrap();
    let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
    let terminal = fs::File::options()
        .read(true)
        .write(true)
        .open(Path::new(name.to_str().unwrap()))
        .unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("TERM", "xterm");
    command
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR")
        .env_remove("CI");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    command
        .stdout(terminal.try_clone().unwrap())
        .stderr(terminal);
    let mut child = command.spawn().unwrap();
    // Only the child has the terminal open now; its end is an error of the read.
    drop(command);
    let mut shown = Vec::new();
    let mut pty = fs::File::from(pty);
    let _ = pty.read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

#[test]
fn colours_and_progress_are_for_terminals_only() {
    let (_folder, path) = file(&vec![0; 8 << 20]);
    let bench = ["bench", text(&path), "--seconds=0.01", "--rounds=1"];
    let shown = on_a_terminal(&bench, false);
    assert!(shown.contains("\x1b[1m"), "{shown:?}");
    let shown = on_a_terminal(&bench, true);
    assert!(!shown.contains('\x1b'), "{shown:?}");
    let read = [
        "dma",
        "read",
        text(&path),
        "--block-size=4K",
        "--engine=sync",
    ];
    let shown = on_a_terminal(&read, true);
    assert!(shown.contains("of 8.00 MiB ["), "{shown:?}");
}

/// Starts a dump of a file that is longer than what a pipe holds, so that it waits
/// for its reader, and lets it write some.
fn dump_under_way(path: &Path) -> std::process::Child {
    let mut child = Command::new(PROGRAM)
        .args(["map", text(path), "--format=raw"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 100];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut some)
        .unwrap();
    child
}

#[test]
fn memory_that_goes_away_ends_the_program_with_a_message() {
    let (_folder, path) = file(&vec![0; 8 << 20]);
    let child = dump_under_way(&path);
    fs::File::create(&path).unwrap();
    let (status, output, message) = finish(child.wait_with_output().unwrap());
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("went away (SIGBUS)"), "{message}");
    assert!(message.contains(text(&path)), "{message}");
    assert!(output.len() < 8 << 20);
}

#[test]
fn a_reader_may_go_early() {
    let (_folder, path) = file(&vec![0; 8 << 20]);
    let mut child = dump_under_way(&path);
    drop(child.stdout.take());
    let (status, _, message) = finish(child.wait_with_output().unwrap());
    assert_eq!((status, message.as_str()), (Some(0), ""));
}
