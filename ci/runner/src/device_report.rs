// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads the device's counters from the last line of its log.

use std::fs;

use ringbar_guest_tests::suites::files::{DURABLE_TEST, DURABLE_WRITES};

use crate::suite::Plan;

/// Compares the device's count of durable writes with the tests' own. The device must
/// have ended.
pub(crate) fn durable(plan: &Plan) -> Result<(), String> {
    let path = plan.log_dir.join("device0.log");
    let log = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let counted = count(&log, "durable_writes")
        .ok_or_else(|| format!("{} has no count of durable writes", path.display()))?;
    let made = match plan.tests.iter().any(|test| test == DURABLE_TEST) {
        true => DURABLE_WRITES,
        false => 0,
    };
    if counted == made {
        return Ok(());
    }
    Err(format!(
        "{made} durable writes were made, the device counted {counted}"
    ))
}

/// A counter in the last line of the device's log.
fn count(log: &str, name: &str) -> Option<u64> {
    let line = log.lines().rfind(|line| line.contains(" done requests="))?;
    line.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(key, value)| (key == name).then(|| value.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_counts() {
        let log = "x INFO y: done requests=1 durable_writes=2\n\
            x INFO y: done requests=3 durable_writes=4 flushes=5\n";
        assert_eq!(count(log, "durable_writes"), Some(4));
        assert_eq!(count(log, "flushes"), Some(5));
        assert_eq!(count(log, "writes"), None);
        assert_eq!(count("durable_writes=1", "durable_writes"), None);
    }
}
