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
    (
        "device/fuzz",
        &[
            "device/control",
            "device/daemon",
            "device/engine",
            "device/faults",
            "device/models/ringbar",
            "device/serve",
            "device/spec",
            "device/storage",
            "device/transports/vfio-user",
            "device/virtio-pci",
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
    (
        "ci/perf",
        &["device/size", "device/user-ring", "driver/uapi"],
    ),
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
            "device/control",
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

/// The crates with `unsafe` code. All others forbid it.
const UNSAFE: &[&str] = &[
    "ci/guest-tests",
    "ci/kit/guest",
    "ci/nbd-server",
    "ci/page-cache",
    "ci/perf",
    "ci/runner",
    "ci/vm",
    "device/daemon",
    "device/sandbox",
    "device/serve",
    "device/storage",
    "device/transports/vfio-user",
    "driver/tool",
    "guest-image/agent",
];

/// The text of a file of the checkout, if it exists.
fn text(path: &str) -> Option<String> {
    std::fs::read_to_string(checkout().join(path)).ok()
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    for (folder, _) in ALLOWED {
        let roots: Vec<_> = ["src/lib.rs", "src/main.rs"]
            .iter()
            .filter_map(|root| text(&format!("{folder}/{root}")))
            .collect();
        assert!(
            !roots.is_empty(),
            "{folder} has no src/lib.rs or src/main.rs"
        );
        for root in roots {
            let forbids = root.lines().any(|line| line == "#![forbid(unsafe_code)]");
            assert_eq!(
                forbids,
                !UNSAFE.contains(folder),
                "{folder}: a crate either has #![forbid(unsafe_code)] or is listed here"
            );
        }
    }
}

/// The tool has its `unsafe` code in one module.
#[test]
fn the_tool_denies_unsafe_code_outside_of_one_module() {
    let root = text("driver/tool/src/main.rs").expect("the tool has a main.rs");
    let mut lines = root
        .lines()
        .skip_while(|line| *line != "#![deny(unsafe_code)]");
    assert!(lines.next().is_some(), "main.rs does not deny unsafe_code");
    let excepted: Vec<_> = lines
        .skip_while(|line| !line.contains("(unsafe_code"))
        .skip(1)
        .collect();
    assert_eq!(excepted.first(), Some(&"mod sys;"));
    assert!(!excepted.iter().any(|line| line.contains("(unsafe_code")));
    let mut folders = vec![checkout().join("driver/tool/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the tool") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("src/main.rs") {
                let text = std::fs::read_to_string(&path).expect("a source of the tool");
                assert!(!text.contains("(unsafe_code"), "{}", path.display());
            }
        }
    }
}

/// The first heading of the changelog that has a version names that of the workspace.
#[test]
fn the_changelog_begins_with_the_version_of_the_workspace() {
    let workspace = manifest("");
    let version = section(&workspace, "[workspace.package]")
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .expect("the workspace has a version");
    let changelog = text("CHANGELOG.md").expect("there is a CHANGELOG.md");
    let heading = changelog.lines().find_map(|line| line.strip_prefix("## "));
    assert_eq!(
        heading.and_then(|heading| heading.split(' ').next()),
        Some(version)
    );
}
