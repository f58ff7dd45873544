// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs tests and writes their results in KTAP version 1.

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};

use ringbar_agent_protocol::TEST_MARK;

use crate::case::{Case, Context, Stop};

/// Runs tests one after the other; returns whether none failed.
///
/// The plan comes first, and each result is written before the next test starts, so that
/// a reader knows which tests a crash prevented. `log` is the kernel log, which gets a
/// line at the start of each test.
pub fn run(
    cases: &[Case],
    context: &Context,
    out: &mut impl Write,
    log: &mut impl Write,
) -> io::Result<bool> {
    writeln!(out, "KTAP version 1\n1..{}", cases.len())?;
    out.flush()?;
    let mut all_passed = true;
    for (i, case) in cases.iter().enumerate() {
        let number = i + 1;
        // One call writes one record; `<6>` is the level `KERN_INFO`.
        log.write_all(format!("<6>{TEST_MARK}{}\n", case.name).as_bytes())?;
        let result = panic::catch_unwind(AssertUnwindSafe(|| (case.run)(context)))
            // The message of the panic went to standard error.
            .unwrap_or_else(|_| Err(Stop::Failed("the test panicked".into())));
        match result {
            Ok(()) => writeln!(out, "ok {number} {}", case.name)?,
            Err(Stop::Skipped(reason)) => {
                writeln!(out, "ok {number} {} # SKIP {reason}", case.name)?;
            }
            Err(Stop::Failed(message)) => {
                all_passed = false;
                for line in message.lines() {
                    writeln!(out, "# {line}")?;
                }
                writeln!(out, "not ok {number} {}", case.name)?;
            }
        }
        out.flush()?;
    }
    Ok(all_passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_end_has_its_line() {
        let cases = [
            Case::new("a", |_| Ok(())),
            Case::new("b", |_| Err(Stop::Failed("one\ntwo".into()))),
            Case::new("c", |_| Err(Stop::Skipped("no memory".into()))),
            Case::new("d", |_| panic!("expected in this test")),
        ];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("device");
        std::fs::write(&file, "x").unwrap();
        let context = Context::new(&file).unwrap();
        let mut out = Vec::new();
        let mut log = Vec::new();
        assert!(!run(&cases, &context, &mut out, &mut log).unwrap());
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "KTAP version 1\n1..4\nok 1 a\n# one\n# two\nnot ok 2 b\n\
             ok 3 c # SKIP no memory\n# the test panicked\nnot ok 4 d\n"
        );
        let begins = |name| format!("<6>{TEST_MARK}{name}\n");
        assert_eq!(
            String::from_utf8(log).unwrap(),
            ["a", "b", "c", "d"].map(begins).concat()
        );
        assert!(run(&cases[..1], &context, &mut Vec::new(), &mut Vec::new()).unwrap());
    }
}
