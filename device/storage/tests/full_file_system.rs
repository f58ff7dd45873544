// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Storages on a file system that is full.
//!
//! These tests start processes. Between fork and exec, a process holds copies of all files
//! of this one and with them their locks, so that a test which opens a file again must not
//! run beside them.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use ringbar_model::Storage;
use ringbar_spec::StatusCode;
use rustix::fs::{FallocateFlags, fallocate};
use support::{CAPACITY, assert_lost, open, read, status, write};

/// Runs the test of this name again as the owner of a file system of 4 MiB in memory,
/// mounted at `/mnt` for it alone; returns whether this is that run.
fn on_a_small_file_system(test: &str) -> bool {
    const INSIDE: &str = "RINGBAR_TEST_SMALL_FILE_SYSTEM";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Root may make mounts without a user namespace, and perhaps only so.
    let mount = "mount -t tmpfs -o size=4m none /mnt && exec \"$0\" --exact \"$1\" --nocapture";
    let run = |namespace: &[&str]| {
        Command::new("unshare")
            .args(namespace)
            .args(["--", "sh", "-c", mount])
            .arg(std::env::current_exe().unwrap())
            .arg(test)
            .env(INSIDE, "1")
            .output()
            .unwrap()
    };
    let ran = |text: &[u8]| String::from_utf8_lossy(text).contains("test result:");
    let mut output = run(&["--mount"]);
    if !ran(&output.stdout) {
        output = run(&["--map-root-user", "--mount"]);
    }
    assert!(
        output.status.success(),
        "{test} on a small file system (this needs the right to mount one, as root or in a \
         user namespace): {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    false
}

/// Takes all space that is left in a directory.
fn fill(directory: &Path) {
    let mut rest = 1 << 20;
    for number in 0.. {
        let file = fs::File::create(directory.join(format!("filler-{number}"))).unwrap();
        while rest >= 4096 && fallocate(&file, FallocateFlags::empty(), 0, rest).is_err() {
            rest /= 2;
        }
        if rest < 4096 {
            return;
        }
    }
}

/// A page is missing behind our back, and there is no space for it: that is what happens
/// on a copy-on-write file system that is full.
#[test]
fn ho8_a_page_that_the_file_system_has_no_space_for_is_an_error() {
    if !on_a_small_file_system("ho8_a_page_that_the_file_system_has_no_space_for_is_an_error") {
        return;
    }
    let directory = Path::new("/mnt");
    let storage = open(directory);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(storage.mappable().unwrap().file, punch, 0, 65536).unwrap();
    fill(directory);
    // What has its pages works.
    write(&storage, 65536, &[7; 5000]).unwrap();
    assert_eq!(read(&storage, 65536, 1).unwrap(), [7]);
    assert_eq!(status(write(&storage, 100, &[7])), StatusCode::IoError);
    assert_lost(&storage, "no space");
}

/// As far as we know of missing pages, a full file system is no more than an error of
/// the request, and reading needs no space.
#[test]
fn ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone() {
    if !on_a_small_file_system(
        "ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone",
    ) {
        return;
    }
    let directory = Path::new("/mnt");
    let storage = open(directory);
    write(&storage, 0, &vec![7; CAPACITY as usize]).unwrap();
    storage.discard(0, 300_000).unwrap();
    fill(directory);
    assert_eq!(status(write(&storage, 0, &[1])), StatusCode::NoSpace);
    assert_eq!(status(storage.write_zeroes(0, 5000)), StatusCode::NoSpace);
    assert_eq!(read(&storage, 0, 200_000).unwrap(), [0; 200_000]);
    assert_eq!(storage.failure(), None);
    write(&storage, 400_000, &[1; 100_000]).unwrap();
    storage.flush().unwrap();
    // A page becomes free, and a write takes it, but not what lies around.
    fs::write(directory.join("filler-0"), "").unwrap();
    write(&storage, 0, &[1]).unwrap();
    assert_eq!(read(&storage, 0, 2).unwrap(), [1, 0]);
}
