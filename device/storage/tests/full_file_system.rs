// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Storages on a file system that is full.
//!
//! For an ordinary user, these tests start processes. Between fork and exec, a process holds
//! copies of all files of this one and with them their locks, so that a test which opens a
//! file again must not run beside them.

mod support;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringbar_storage::Storage;
use ringbar_storage::{BlockStorage, ErrorKind, OpenError};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use rustix::process::{getgid, getuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use support::{CAPACITY, assert_lost, open, read, status, write};

/// A file system of 4 MiB in memory. It is mounted nowhere, so that it needs no place in
/// the tree of files, and goes with this value.
struct SmallFileSystem(OwnedFd);

impl SmallFileSystem {
    /// A new one. Who may not make one runs the test of this name again as the root user of a
    /// user namespace, who may, and gets `None` when that has passed.
    fn new_or_in_namespace(test: &str) -> Option<Self> {
        Self::of_type_or_in_namespace("tmpfs", test)
    }

    fn of_type_or_in_namespace(name: &str, test: &str) -> Option<Self> {
        const INSIDE: &str = "RINGBAR_TEST_IN_USER_NAMESPACE";
        match Self::new(name) {
            Ok(new) => Some(new),
            Err(Errno::PERM) if std::env::var_os(INSIDE).is_none() => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["--exact", test, "--nocapture"]);
                pass_in_namespace(command.env(INSIDE, "1"));
                None
            }
            Err(error) => panic!(
                "cannot make a file system in memory, which needs Linux 5.2 and the right to \
                 mount, as root or in a user namespace: {error}"
            ),
        }
    }

    fn new(name: &str) -> rustix::io::Result<Self> {
        let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if name == "tmpfs" {
            fsconfig_set_string(&context, "size", "4m")?;
        }
        fsconfig_create(&context)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        fsmount(&context, flags, MountAttrFlags::empty()).map(Self)
    }

    /// Its directory, in this process only.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Runs a test program as the root user of a user namespace and asserts that a test passes.
fn pass_in_namespace(command: &mut Command) {
    // Made before the fork, after which nothing may be allocated.
    let user = format!("0 {} 1", getuid().as_raw());
    let group = format!("0 {} 1", getgid().as_raw());
    let enter = move || -> io::Result<()> {
        // SAFETY: The thread goes on to share its descriptors with others, of which there are
        // none.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
        for (file, content) in [
            (c"/proc/self/setgroups", "deny"),
            (c"/proc/self/uid_map", &user),
            (c"/proc/self/gid_map", &group),
        ] {
            let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, content.as_bytes())?;
        }
        Ok(())
    };
    // SAFETY: The closure makes system calls only, and allocates nothing.
    let output = unsafe { command.pre_exec(enter) }.output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "this test mounts a file system in memory. This user may not, and can make no user \
             namespace in which it may: {error}"
        )
    });
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "in a user namespace: {stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
    let Some(file_system) = SmallFileSystem::new_or_in_namespace(
        "ho8_a_page_that_the_file_system_has_no_space_for_is_an_error",
    ) else {
        return;
    };
    let directory = file_system.path();
    let storage = open(&directory);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(storage.mappable().unwrap().file, punch, 0, 65536).unwrap();
    fill(&directory);
    // What has its pages works.
    write(&storage, 65536, &[7; 5000]).unwrap();
    assert_eq!(read(&storage, 65536, 1).unwrap(), [7]);
    assert_eq!(status(write(&storage, 100, &[7])), Some(ErrorKind::Io));
    assert_lost(&storage, "no space");
}

/// As far as we know of missing pages, a full file system is no more than an error of
/// the request, and reading needs no space.
#[test]
fn ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone() {
    let Some(file_system) = SmallFileSystem::new_or_in_namespace(
        "ho8_discarded_space_that_is_not_to_be_had_again_fails_the_request_alone",
    ) else {
        return;
    };
    let directory = file_system.path();
    let storage = open(&directory);
    write(&storage, 0, &vec![7; CAPACITY as usize]).unwrap();
    storage.discard(0, 300_000).unwrap();
    fill(&directory);
    assert_eq!(status(write(&storage, 0, &[1])), Some(ErrorKind::NoSpace));
    assert_eq!(
        status(storage.write_zeroes(0, 5000)),
        Some(ErrorKind::NoSpace)
    );
    assert_eq!(read(&storage, 0, 200_000).unwrap(), [0; 200_000]);
    assert_eq!(storage.failure(), None);
    write(&storage, 400_000, &[1; 100_000]).unwrap();
    storage.flush().unwrap();
    // A page becomes free, and a write takes it, but not what lies around.
    fs::write(directory.join("filler-0"), "").unwrap();
    write(&storage, 0, &[1]).unwrap();
    assert_eq!(read(&storage, 0, 2).unwrap(), [1, 0]);
}

/// A file system without direct I/O, which creates a file before it says so.
#[test]
fn a_file_system_without_direct_io_is_refused() {
    let test = "a_file_system_without_direct_io_is_refused";
    let Some(file_system) = SmallFileSystem::of_type_or_in_namespace("ramfs", test) else {
        return;
    };
    let path = file_system.path().join("disk");
    let opened = BlockStorage::open(&path, Some(1 << 20));
    assert!(
        matches!(opened, Err(OpenError::NoDirectIo { .. })),
        "{opened:?}"
    );
    assert!(!path.exists(), "a file is left over");
}
