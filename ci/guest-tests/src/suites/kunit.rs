// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's KUnit tests, which the kernel ran when it loaded the module.

use std::fs;
use std::path::Path;

use crate::case::{Case, Context, During, Verdict};
use crate::check;

/// Directory of the results (`Documentation/dev-tools/kunit`).
const RESULTS: &str = "/sys/kernel/debug/kunit";

/// Prefix of the names of our suites.
const PREFIX: &str = "ringbar_";

/// The cases, and the suite that each is about.
const SUITES: &[(&str, &str)] = &[
    ("a1_kunit_capability", "ringbar_capability"),
    ("b3_kunit_segments", "ringbar_segments"),
    ("b3_kunit_extract", "ringbar_extract"),
    ("b14_kunit_command", "ringbar_command"),
    ("b14_kunit_block", "ringbar_block"),
    ("c4_kunit_ring", "ringbar_ring"),
    ("c4_kunit_poll_policy", "ringbar_poll_policy"),
    ("c4_kunit_plug", "ringbar_plug"),
    ("c4_kunit_reap", "ringbar_reap"),
    ("dr11_kunit_split", "ringbar_split"),
    ("c5_kunit_queues", "ringbar_queues"),
    ("c6_kunit_consistent", "ringbar_consistent"),
    ("dr9_kunit_array_vec", "ringbar_array_vec"),
    ("c3_kunit_vectors", "ringbar_vectors"),
    ("c3_kunit_isr", "ringbar_isr"),
    ("dr3_kunit_reset", "ringbar_reset"),
    ("c7_kunit_progress", "ringbar_progress"),
    ("d5_kunit_timeout", "ringbar_timeout"),
];

/// The cases, for a kernel with KUnit.
pub fn cases() -> Vec<Case> {
    SUITES
        .iter()
        .map(|&(name, suite)| Case::new(name, move |_: &Context| passed(suite)))
        .chain([Case::new(
            "a1_kunit_suites_are_all_listed",
            |_: &Context| {
                let found = fs::read_dir(RESULTS)
                    .during(|| format!("reading {RESULTS}"))?
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter(|name| name.starts_with(PREFIX));
                let unlisted: Vec<_> = found
                    .filter(|name| SUITES.iter().all(|(_, suite)| suite != name))
                    .collect();
                check!(unlisted.is_empty(), "no case checks {unlisted:?}");
                Ok(())
            },
        )])
        .collect()
}

fn passed(suite: &str) -> Verdict {
    let path = Path::new(RESULTS).join(suite).join("results");
    let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
    check!(all_passed(&text, suite), "{}:\n{text}", path.display());
    Ok(())
}

/// Whether all tests of the suite in KTAP output have run and passed. The kernel prints a
/// summary only for several tests, so the plan is what counts.
fn all_passed(text: &str, suite: &str) -> bool {
    let mut tests = 0;
    let mut planned = None;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("not ok") || line.contains("# SKIP") {
            return false;
        }
        if let Some(plan) = line.strip_prefix("1..") {
            // The last plan is that of the suite itself.
            planned = plan.parse().ok();
        }
        if line.starts_with("ok ") && !line.ends_with(suite) {
            tests += 1;
        }
    }
    tests > 0 && planned == Some(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "KTAP version 1\n    # Subtest: x\n    1..2\n    ok 1 a\n    ok 2 b\n\
        # x: pass:2 fail:0 skip:0 total:2\nok 1 x\n";

    #[test]
    fn results_are_read() {
        assert!(all_passed(GOOD, "x"));
        assert!(!all_passed(&GOOD.replace("ok 2 b", "not ok 2 b"), "x"));
        assert!(!all_passed(&GOOD.replace("ok 2 b", "ok 2 b # SKIP"), "x"));
        assert!(!all_passed(&GOOD.replace("    ok 2 b\n", ""), "x"));
        let one = GOOD.replace("1..2", "1..1").replace("    ok 2 b\n", "");
        let without_sum = one.replace("# x: pass:2 fail:0 skip:0 total:2\n", "");
        assert!(all_passed(&without_sum, "x"));
        assert!(!all_passed("KTAP version 1\n", "x"));
        assert!(!all_passed("", "x"));
    }
}
