// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The crates of the device depend on each other in one direction only, as
//! docs/architecture.md says.

use std::collections::BTreeSet;
use std::path::Path;

/// Each crate with those of ours that it may use.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("size", &[]),
    ("spec", &[]),
    ("engine", &[]),
    ("storage", &[]),
    (
        "models/ringbar",
        &["ringbar-engine", "ringbar-spec", "ringbar-storage"],
    ),
    ("transports/vhost-user", &["ringbar-engine"]),
    (
        "daemon",
        &[
            "ringbar-engine",
            "ringbar-model",
            "ringbar-size",
            "ringbar-spec",
            "ringbar-storage",
            "ringbar-vhost-user",
        ],
    ),
];

#[test]
fn crates_use_only_what_they_may_know() {
    let device = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../device");
    for (name, allowed) in ALLOWED {
        let path = device.join(name).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).unwrap();
        let ours: BTreeSet<_> = manifest
            .lines()
            .skip_while(|line| *line != "[dependencies]")
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split(['.', ' ']).next())
            .filter(|dependency| dependency.starts_with("ringbar-"))
            .collect();
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        assert_eq!(ours, allowed, "{name}");
    }
}
