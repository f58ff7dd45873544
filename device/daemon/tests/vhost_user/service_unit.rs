// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The restrictions of the service unit, under which the device has to start and to restrict itself
//! further.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use ringbar_control::Client;
use ringbar_control::command::QueryDevice;
use ringbar_sandbox::Sysno;
use ringbar_spec::Opcode;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use tempfile::TempDir;

use crate::sandbox::has_landlock;
use crate::support::{Daemon, TEST_TIMEOUT, Vmm, pattern, process};

const UNIT: &str = include_str!("../../../packaging/systemd/ringbar-device@.service");

/// The sets of calls that the unit names.
const SETS: &str = include_str!("syscall_sets.txt");

/// Whether the unit has this line.
fn has(line: &str) -> bool {
    UNIT.lines().any(|other| other == line)
}

/// The calls of a set, or the one with this name.
fn calls(name: &str) -> BTreeSet<&str> {
    if !name.starts_with('@') {
        return [name].into();
    }
    let lines = SETS.lines().skip_while(|line| *line != name).skip(1);
    let set = lines.take_while(|line| line.starts_with(' '));
    let set: BTreeSet<_> = set.flat_map(str::split_whitespace).collect();
    assert!(!set.is_empty(), "{name} is not in syscall_sets.txt");
    set
}

/// The calls that the unit allows: each line adds some or, with `~`, removes some
/// (systemd.exec(5)).
fn allowed() -> BTreeSet<&'static str> {
    let mut allowed = BTreeSet::new();
    let lines = UNIT
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="));
    for line in lines {
        let (removes, names) = match line.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, line),
        };
        assert!(
            !(removes && allowed.is_empty()),
            "the first line says what is allowed"
        );
        for call in names.split_whitespace().flat_map(calls) {
            match removes {
                true => allowed.remove(call),
                false => allowed.insert(call),
            };
        }
    }
    allowed
}

fn number(call: &str) -> Option<i64> {
    // The sets also have calls of other architectures.
    Some(Sysno::from_str(call).ok()?.id().into())
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matches: SeccompAction,
) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(rules, otherwise, matches, arch).unwrap();
    filter.try_into().unwrap()
}

/// The rule of a call one of whose arguments compares so.
fn when(argument: u8, comparison: SeccompCmpOp, value: i32) -> Vec<SeccompRule> {
    let value = u64::try_from(value).unwrap();
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value);
    vec![SeccompRule::new(vec![condition.unwrap()]).unwrap()]
}

/// The filters that systemd makes of the unit, in the order in which they are added.
fn filters() -> [BpfProgram; 2] {
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    assert!(has("SystemCallErrorNumber=EPERM"));
    let rules = allowed().into_iter().filter_map(number);
    let rules = rules.map(|call| (call, Vec::new())).collect();
    let calls = filter(rules, errno(libc::EPERM), SeccompAction::Allow);
    assert!(has("MemoryDenyWriteExecute=yes") && has("RestrictAddressFamilies=AF_UNIX"));
    let write_execute = libc::PROT_WRITE | libc::PROT_EXEC;
    let masked = |mask: i32| SeccompCmpOp::MaskedEq(u64::try_from(mask).unwrap());
    let rules = [
        (
            libc::SYS_mmap,
            when(2, masked(write_execute), write_execute),
        ),
        (
            libc::SYS_mprotect,
            when(2, masked(libc::PROT_EXEC), libc::PROT_EXEC),
        ),
        (libc::SYS_socket, when(0, SeccompCmpOp::Ne, libc::AF_UNIX)),
    ];
    let arguments = filter(rules.into(), SeccompAction::Allow, errno(libc::EPERM));
    // The other one forbids to add a filter, where it should.
    [arguments, calls]
}

/// Lets systemd's restrictions begin before the program starts.
fn restrict(command: &mut Command) {
    assert!(has("CapabilityBoundingSet=") && has("NoNewPrivileges=yes"));
    let filters = filters();
    let restrict = move || {
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            // Fails for a user that has no capabilities.
            let _ = remove_capability_from_bounding_set(capability);
        }
        for filter in &filters {
            // It sets NoNewPrivileges, too.
            apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    };
    // SAFETY: After the fork it makes system calls only; the filters were made before.
    unsafe { command.pre_exec(restrict) };
}

/// Runs a device under the restrictions of the unit, of which none may be missing.
#[track_caller]
fn runs(storage: &str, args: &[&str]) {
    let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let socket = directory.path().join("socket");
    let control = directory.path().join("control");
    let storage = match storage {
        "memory" => storage.to_owned(),
        kind => format!("{kind}:{}", directory.path().join("disk").display()),
    };
    let mut command = process::command(&socket, &["--size", "1M", "--queues", "1"]);
    command
        .args(["--storage", &storage, "--control-socket"])
        .arg(&control)
        .args(args);
    if has_landlock() {
        command.args(["--sandbox", "require"]);
    }
    restrict(&mut command);
    let daemon = Daemon::spawn(directory, socket, command);
    let mut client = Client::connect(&control, TEST_TIMEOUT).unwrap();
    assert_eq!(client.execute(QueryDevice {}).unwrap().bytes, 1 << 20);
    drop(client);
    let mut vmm = Vmm::start(daemon.socket(), 1);
    let data = pattern(5000, 1);
    assert_eq!(vmm.io(0).write(4096, &data).result, 5000);
    vmm.io(0).command(Opcode::Flush);
    assert!(vmm.io(0).read(4096, 5000).1 == data);
    drop(vmm);
    daemon.assert_clean_exit();
}

#[test]
fn e8_the_service_may_do_what_the_device_does() {
    for storage in ["memory", "file", "block"] {
        runs(storage, &[]);
    }
}

#[test]
fn e8_the_service_may_do_what_a_supervisor_does() {
    runs("memory", &["--supervise", "on"]);
}
