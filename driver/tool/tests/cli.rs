// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program, on ordinary files.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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
