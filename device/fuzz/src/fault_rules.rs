// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rules for faults, as a user or a control socket gives them.
//!
//! The first byte of an input says how the text is made of the others: as they are, or of parts of
//! rules that they choose.
//!
//! A text is refused with a message, or is a rule. That rule is written in a form which is parsed
//! as the same rule, is no longer than a rule may be, and is written in the same way again. A set
//! with the rule counts no more firings than matches, and fires on the occasion of its effect only.

use ringbar_faults::{Access, Fault, FaultSet, Occasion, Rule};
use ringbar_spec::Opcode;

use crate::input::Input;

/// Parts of rules, and what is nearly one.
pub(crate) const PARTS: &[&str] = &[
    "read",
    "write",
    "flush",
    "discard",
    "write-zeroes",
    "copy",
    "fill",
    "compare",
    "crc32c",
    "queue=",
    "offset=",
    "nth=",
    "times=",
    "times=all",
    "error=EIO",
    "error=ENOSPC",
    "error=",
    "latency=",
    "hold-reset=",
    "short",
    "corrupt",
    "drop-interrupt",
    "duplicate-used",
    "bad-used-id",
    "stall",
    ":",
    ":",
    ":",
    ":",
    "..",
    "=",
    "0",
    "1",
    "2",
    "10",
    "0x10",
    "4294967295",
    "18446744073709551615",
    "K",
    "M",
    "us",
    "ms",
    "s",
    "-",
    "+",
    " ",
];

/// The longest text of a rule.
const MAX_LENGTH: usize = 256;

/// Runs an input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let text = match input.u8() % 2 {
        0 => String::from_utf8_lossy(input.bytes(data.len())).into_owned(),
        _ => {
            let mut text = String::new();
            while !input.is_empty() {
                text.push_str(input.choose(PARTS));
            }
            text
        }
    };
    let rule = match text.parse::<Rule>() {
        Ok(rule) => rule,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let written = rule.to_string();
    assert!(text.len() <= MAX_LENGTH && written.len() <= MAX_LENGTH);
    assert_eq!(written.parse().as_ref(), Ok(&rule), "{text:?}: {written}");
    execute(&rule);
}

/// Asks a set with the rule for faults, some of which it is about.
fn execute(rule: &Rule) {
    let set = FaultSet::default();
    set.add(rule.clone()).expect("there is room");
    let queue = match &rule.fault {
        Fault::Request { filter, .. } => filter.queue,
        Fault::Queue { queue, .. } => *queue,
    };
    for queue in [queue.unwrap_or_default(), 7] {
        for operation in [Opcode::Read, Opcode::Flush, Opcode::Copy] {
            for (offset, length) in [(0, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX), (1, 0)] {
                let faults = set.faults_of(&Access {
                    operation,
                    queue,
                    ranges: [Some((offset, length)), None],
                });
                let is_within = |byte: u64| byte.checked_sub(offset).is_some_and(|at| at < length);
                assert!(faults.corrupt.is_none_or(is_within), "{rule}: {faults:?}");
            }
        }
        for occasion in [
            Occasion::Available,
            Occasion::Used,
            Occasion::Interrupt,
            Occasion::Stop,
        ] {
            if let Some((id, effect)) = set.queue_fault(queue, occasion) {
                assert_eq!((id, effect.occasion()), (1, occasion), "{rule}");
            }
        }
    }
    let listed = set.list();
    assert!(listed[0].firings <= listed[0].matches, "{listed:?}");
}
