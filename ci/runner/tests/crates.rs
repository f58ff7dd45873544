// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The crates depend on each other in one direction only. docs/architecture.md explains
//! those of the device, ci/README.md those of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each crate of the workspace with those of ours that it uses, tests aside. A crate uses
/// only crates above it.
const ALLOWED: &[(&str, &[&str])] = &[
    ("device/sandbox", &[]),
    ("device/size", &[]),
    ("device/spec", &[]),
    ("device/control", &[]),
    ("device/engine", &[]),
    ("device/storage", &[]),
    ("device/supervisor", &["device/engine"]),
    ("device/faults", &["device/size", "device/spec"]),
    (
        "device/models/ringbar",
        &[
            "device/engine",
            "device/faults",
            "device/spec",
            "device/storage",
        ],
    ),
    ("device/transports/vhost-user", &["device/engine"]),
    ("device/user-ring", &[]),
    ("device/virtio-pci", &[]),
    (
        "device/transports/vfio-user",
        &["device/engine", "device/virtio-pci"],
    ),
    (
        "device/fuzz",
        &[
            "device/engine",
            "device/faults",
            "device/models/ringbar",
            "device/spec",
            "device/storage",
            "device/transports/vfio-user",
            "device/virtio-pci",
        ],
    ),
    (
        "device/serve",
        &[
            "device/engine",
            "device/faults",
            "device/sandbox",
            "device/transports/vfio-user",
            "device/transports/vhost-user",
        ],
    ),
    (
        "device/daemon",
        &[
            "device/control",
            "device/engine",
            "device/faults",
            "device/models/ringbar",
            "device/sandbox",
            "device/serve",
            "device/size",
            "device/spec",
            "device/storage",
            "device/supervisor",
        ],
    ),
    ("device/ctl", &["device/control", "device/size"]),
    ("driver/uapi", &[]),
    ("driver/tool", &["device/size", "driver/uapi"]),
    ("ci/protocol", &[]),
    ("guest-image/agent", &["ci/protocol"]),
    ("ci/nbd-server", &[]),
    ("ci/page-cache", &[]),
    ("ci/kit/guest", &[]),
    ("ci/perf", &["device/size", "device/user-ring"]),
    ("ci/fio", &["device/size"]),
    ("ci/doubles/lying-proxy", &["ci/protocol", "device/spec"]),
    (
        "ci/doubles/pci-function",
        &[
            "ci/protocol",
            "device/engine",
            "device/models/ringbar",
            "device/spec",
            "device/storage",
        ],
    ),
    (
        "ci/guest-tests",
        &["ci/fio", "ci/protocol", "device/spec", "driver/uapi"],
    ),
    (
        "ci/vm",
        &[
            "ci/doubles/lying-proxy",
            "ci/doubles/pci-function",
            "ci/nbd-server",
            "ci/page-cache",
            "ci/protocol",
            "device/size",
            "device/spec",
        ],
    ),
    (
        "ci/bench",
        &[
            "ci/fio",
            "ci/guest-tests",
            "ci/perf",
            "ci/protocol",
            "ci/vm",
            "device/size",
        ],
    ),
    (
        "ci/runner",
        &[
            "ci/bench",
            "ci/doubles/lying-proxy",
            "ci/fio",
            "ci/guest-tests",
            "ci/protocol",
            "ci/vm",
            "device/size",
            "device/spec",
        ],
    ),
];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The manifest in this folder of the checkout.
fn manifest(folder: &str) -> String {
    let path = checkout().join(folder).join("Cargo.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a section of a manifest.
fn section<'a>(manifest: &'a str, heading: &'a str) -> impl Iterator<Item = &'a str> {
    manifest
        .lines()
        .skip_while(move |line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
}

/// The folders of our crates by the names under which others depend on them.
fn folders(workspace: &str) -> BTreeMap<&str, &str> {
    section(workspace, "[workspace.dependencies]")
        .filter_map(|line| {
            let (name, rest) = line.split_once(" = { path = \"")?;
            Some((name, rest.split_once('"')?.0))
        })
        .collect()
}

#[test]
fn crates_use_only_what_they_may_know() {
    let workspace = manifest("");
    let folders = folders(&workspace);
    for (folder, allowed) in ALLOWED {
        let manifest = manifest(folder);
        let used: BTreeSet<_> = section(&manifest, "[dependencies]")
            .filter_map(|line| line.split(['.', ' ']).next())
            .filter(|dependency| dependency.starts_with("ringbar-"))
            .map(|dependency| folders[dependency])
            .collect();
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        assert_eq!(used, allowed, "{folder}");
    }
}

#[test]
fn every_crate_is_listed_after_those_that_it_uses() {
    let mut listed = BTreeSet::new();
    for (folder, allowed) in ALLOWED {
        for used in *allowed {
            assert!(listed.contains(used), "{folder} is listed before {used}");
        }
        assert!(listed.insert(folder), "{folder} is listed twice");
    }
    let workspace = manifest("");
    let members: BTreeSet<_> = section(&workspace, "[workspace]")
        .filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","))
        .collect();
    assert_eq!(
        listed.into_iter().copied().collect::<BTreeSet<_>>(),
        members
    );
}
