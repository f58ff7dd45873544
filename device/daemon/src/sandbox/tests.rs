// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Which thread starts which other. The main thread starts all that are late.
const STARTS: &[(&str, &[&str])] = &[
    ("queue-worker", &["delayer"]),
    ("control", &["control-client"]),
];

/// Calls by which code in a thread could leave the process or do harm outside.
const HARMFUL: &[Sysno] = &[
    Sysno::execve,
    Sysno::execveat,
    Sysno::ptrace,
    Sysno::process_vm_readv,
    Sysno::process_vm_writev,
    Sysno::pidfd_getfd,
    Sysno::kill,
    Sysno::tkill,
    Sysno::socket,
    Sysno::socketpair,
    Sysno::connect,
    Sysno::bind,
    Sysno::listen,
    Sysno::sendmmsg,
    Sysno::io_uring_setup,
    Sysno::io_uring_register,
    Sysno::openat2,
    Sysno::open_by_handle_at,
    Sysno::mount,
    Sysno::move_mount,
    Sysno::unshare,
    Sysno::setns,
    Sysno::setuid,
    Sysno::setresuid,
    Sysno::capset,
    Sysno::bpf,
    Sysno::perf_event_open,
    Sysno::userfaultfd,
    Sysno::memfd_create,
    Sysno::renameat2,
    Sysno::linkat,
    Sysno::symlinkat,
    Sysno::mkdirat,
    Sysno::fchmodat,
    Sysno::fchownat,
    Sysno::pkey_mprotect,
    Sysno::init_module,
    Sysno::keyctl,
];

/// All kinds of the process by their names.
fn all() -> BTreeMap<&'static str, ThreadKind> {
    let all = kinds().all();
    let count = all.len();
    let named: BTreeMap<_, _> = all.into_iter().map(|kind| (kind.name(), kind)).collect();
    assert_eq!(named.len(), count, "two kinds have the same name");
    named
}

#[test]
fn each_kind_is_started_by_one_with_all_its_calls() {
    let all = all();
    let early: BTreeSet<_> = kinds().early.iter().map(ThreadKind::name).collect();
    let late = all.keys().copied();
    let late = late.filter(|name| !early.contains(name) && !["main", "log"].contains(name));
    let main = ("main", late.collect::<Vec<_>>());
    let others = STARTS
        .iter()
        .map(|(parent, children)| (*parent, children.to_vec()));
    for (parent, children) in others.chain([main]) {
        let calls = all[parent].calls();
        for call in SPAWN {
            assert!(calls.contains(call), "{parent}: {call:?}");
        }
        for child in children {
            for call in all[child].calls() {
                let any = Call::any(call.number());
                let is_allowed = calls.contains(call) || calls.contains(&any);
                assert!(is_allowed, "{parent} starts {child}, but lacks {call:?}");
            }
        }
    }
}

#[test]
fn no_kind_has_harmful_calls() {
    for (name, kind) in all() {
        for call in kind.calls() {
            let number = call.number();
            assert!(!HARMFUL.contains(&number), "{name}: {number}");
        }
    }
}

#[test]
fn only_the_thread_of_the_ring_uses_it() {
    for (name, kind) in all() {
        let mut calls = kind.calls().iter();
        let uses = calls.any(|call| call.number() == Sysno::io_uring_enter);
        assert_eq!(uses, name == BLOCK_IO, "{name}");
    }
}
