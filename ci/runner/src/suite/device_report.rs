// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads the device's counters from the last line of its log.

/// A counter in the last line of the device's log.
pub(super) fn count(log: &str, name: &str) -> Option<u64> {
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
