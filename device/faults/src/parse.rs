// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From text to a rule.
//!
//! ```text
//! rule      = part *( ":" part )            in any order, each part once, and one effect
//! part      = operation | condition | effect
//! condition = "queue=" N | "offset=" START ".." [END] | "nth=" N | "times=" ( N | "all" )
//! ```

use std::num::NonZeroU64;
use std::str::FromStr;

use ringbar_spec::Opcode;

use crate::rule::{
    Errno, Fault, OPERATIONS, Occurrences, QueueEffect, Range, RequestEffect, RequestFilter, Rule,
    TIME_UNITS, Time,
};

/// Greatest length of a rule in bytes, several times that of the longest one.
const MAX_LENGTH: usize = 256;

/// Why a text is no rule. The message names the part and what is possible in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It is longer than any rule.
    #[error("a rule has at most {MAX_LENGTH} bytes")]
    TooLong,
    /// A part is no operation, condition or effect.
    #[error(
        "\"{0}\" is no part of a rule. Operations: read, write, flush, discard, write-zeroes, copy, \
         fill, compare, crc32c. Conditions: queue=, offset=, nth=, times=. Effects: error=, \
         latency=, short, corrupt, drop-interrupt, duplicate-used, bad-used-id, stall, hold-reset="
    )]
    Unknown(String),
    /// A part has a value that it cannot have, or lacks one.
    #[error("\"{part}\": expected {expected}")]
    Value {
        /// The part.
        part: String,
        /// What it looks like.
        expected: &'static str,
    },
    /// Two parts say different things of the same.
    #[error(
        "\"{0}\" is the second part of its kind: a rule has one operation, one effect, and each condition once"
    )]
    Twice(String),
    /// There is no effect.
    #[error(
        "the rule has no effect. Effects: error=, latency=, short, corrupt, drop-interrupt, \
         duplicate-used, bad-used-id, stall, hold-reset="
    )]
    NoEffect,
    /// The effect does not go with a condition or an operation.
    #[error("{effect} does not go with {part}: {reason}")]
    Conflict {
        /// The effect.
        effect: String,
        /// The part.
        part: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// An effect without what it happens to.
#[derive(Clone, Copy)]
enum Effect {
    Request(RequestEffect),
    Queue(QueueEffect),
}

/// The parts that were found.
#[derive(Default)]
struct Parts {
    operation: Option<Opcode>,
    queue: Option<u16>,
    range: Option<Range>,
    nth: Option<NonZeroU64>,
    times: Option<Option<NonZeroU64>>,
    effect: Option<Effect>,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.len() > MAX_LENGTH {
            return Err(RuleError::TooLong);
        }
        let mut parts = Parts::default();
        for part in text.split(':') {
            if !parts.take(part)? {
                return Err(RuleError::Twice(part.to_owned()));
            }
        }
        parts.into_rule()
    }
}

impl Parts {
    /// Takes one more part. Returns whether it is the first of its kind.
    fn take(&mut self, part: &str) -> Result<bool, RuleError> {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (part, None),
        };
        if let Some((opcode, _)) = OPERATIONS.iter().find(|(_, operation)| *operation == part) {
            return Ok(self.operation.replace(*opcode).is_none());
        }
        // `parse` gets the value, which is missing where there is none.
        let wrong = |expected| RuleError::Value {
            part: part.to_owned(),
            expected,
        };
        Ok(match name {
            "queue" => {
                let expected = "queue=N with the number of a queue";
                let queue = value.and_then(number).ok_or_else(|| wrong(expected))?;
                let queue = u16::try_from(queue).map_err(|_| wrong(expected))?;
                self.queue.replace(queue).is_none()
            }
            "offset" => {
                let range = value.and_then(range).ok_or_else(|| {
                    wrong("offset=START..END or offset=START.. with sizes, for example 1M..2M, and END beyond START")
                })?;
                self.range.replace(range).is_none()
            }
            "nth" => {
                let nth = value.and_then(number).and_then(NonZeroU64::new);
                let nth = nth.ok_or_else(|| wrong("nth=N with a number from 1 on"))?;
                self.nth.replace(nth).is_none()
            }
            "times" => {
                let times = match value {
                    Some("all") => Some(None),
                    other => other.and_then(number).and_then(NonZeroU64::new).map(Some),
                };
                let times =
                    times.ok_or_else(|| wrong("times=N with a number from 1 on, or times=all"))?;
                self.times.replace(times).is_none()
            }
            _ => {
                let effect = effect(part, name, value)?;
                self.effect.replace(effect).is_none()
            }
        })
    }

    fn into_rule(self) -> Result<Rule, RuleError> {
        let effect = self.effect.ok_or(RuleError::NoEffect)?;
        let occurrences = Occurrences {
            first: self.nth.unwrap_or(NonZeroU64::MIN),
            times: match (self.times, self.nth) {
                (Some(times), _) => times,
                (None, Some(_)) => Some(NonZeroU64::MIN),
                (None, None) => None,
            },
        };
        Ok(Rule {
            fault: match effect {
                Effect::Request(effect) => Fault::Request {
                    filter: self.filter(effect)?,
                    effect,
                },
                Effect::Queue(effect) => Fault::Queue {
                    queue: self.only_queue(effect)?,
                    effect,
                },
            },
            occurrences,
        })
    }

    fn filter(&self, effect: RequestEffect) -> Result<RequestFilter, RuleError> {
        match self.operation {
            Some(operation) if !effect.applies_to(operation) => Err(conflict(
                effect,
                "this operation",
                "only read and write carry data",
            )),
            Some(Opcode::Flush) if self.range.is_some() => Err(conflict(
                effect,
                "flush with offset=",
                "a flush has no range",
            )),
            operation => Ok(RequestFilter {
                operation,
                queue: self.queue,
                range: self.range,
            }),
        }
    }

    fn only_queue(&self, effect: QueueEffect) -> Result<Option<u16>, RuleError> {
        const REASON: &str = "it happens to queues, whatever their requests are. \
                              Its conditions are queue=, nth= and times=";
        match self {
            Self {
                operation: Some(_), ..
            } => Err(conflict(effect, "an operation", REASON)),
            Self { range: Some(_), .. } => Err(conflict(effect, "offset=", REASON)),
            _ => Ok(self.queue),
        }
    }
}

fn conflict(effect: impl ToString, part: &'static str, reason: &'static str) -> RuleError {
    RuleError::Conflict {
        effect: effect.to_string(),
        part,
        reason,
    }
}

fn effect(part: &str, name: &str, value: Option<&str>) -> Result<Effect, RuleError> {
    let wrong = |expected| RuleError::Value {
        part: part.to_owned(),
        expected,
    };
    let time = || {
        let expected = "a time from 1us to 3600s, for example 2ms";
        value.and_then(time).ok_or_else(|| wrong(expected))
    };
    let of_request = match (name, value) {
        ("error", value) => {
            let errno = Errno::ALL.iter().find(|errno| value == Some(errno.name()));
            let errno = errno.ok_or_else(|| {
                wrong("error= with EIO, ENOSPC, ENXIO, EINVAL or EOPNOTSUPP, which the protocol can say")
            })?;
            RequestEffect::Error(*errno)
        }
        ("latency", _) => RequestEffect::Latency(time()?),
        ("short", None) => RequestEffect::Short,
        ("corrupt", None) => RequestEffect::Corrupt,
        _ => {
            return Ok(Effect::Queue(match (name, value) {
                ("drop-interrupt", None) => QueueEffect::DropInterrupt,
                ("duplicate-used", None) => QueueEffect::DuplicateUsed,
                ("bad-used-id", None) => QueueEffect::BadUsedId,
                ("stall", None) => QueueEffect::Stall,
                ("hold-reset", _) => QueueEffect::HoldReset(time()?),
                (
                    "short" | "corrupt" | "drop-interrupt" | "duplicate-used" | "bad-used-id"
                    | "stall",
                    Some(_),
                ) => return Err(wrong("no value")),
                _ => return Err(RuleError::Unknown(part.to_owned())),
            }));
        }
    };
    Ok(Effect::Request(of_request))
}

/// A decimal number without a sign, which `parse` alone would accept.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn range(text: &str) -> Option<Range> {
    let (start, end) = text.split_once("..")?;
    let start = ringbar_size::parse(start).ok()?;
    let end = match end {
        "" => None,
        end => Some(ringbar_size::parse(end).ok()?),
    };
    Range::new(start, end)
}

fn time(text: &str) -> Option<Time> {
    // The unit is all that follows the digits, so "1ms" is not "1m" and "s".
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(end);
    let (micros, _) = TIME_UNITS.iter().find(|(_, name)| *name == unit)?;
    let micros = number(digits)?.checked_mul(u64::from(*micros))?;
    Time::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn parse(text: &str) -> Rule {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn message(text: &str) -> String {
        text.parse::<Rule>().expect_err(text).to_string()
    }

    fn once(number: u64) -> Occurrences {
        Occurrences {
            first: NonZeroU64::new(number).unwrap(),
            times: Some(NonZeroU64::MIN),
        }
    }

    #[test]
    fn the_third_read_of_the_second_mebibyte_fails() {
        let expected = Rule {
            fault: Fault::Request {
                filter: RequestFilter {
                    operation: Some(Opcode::Read),
                    queue: None,
                    range: Range::new(1 << 20, Some(2 << 20)),
                },
                effect: RequestEffect::Error(Errno::Eio),
            },
            occurrences: once(3),
        };
        assert_eq!(parse("read:offset=1M..2M:nth=3:error=EIO"), expected);
    }

    #[test]
    fn the_second_interrupt_of_a_queue_is_lost() {
        let expected = Rule {
            fault: Fault::Queue {
                queue: Some(3),
                effect: QueueEffect::DropInterrupt,
            },
            occurrences: once(2),
        };
        assert_eq!(parse("queue=3:nth=2:drop-interrupt"), expected);
    }

    #[test]
    fn rules_are_written_in_their_shortest_form() {
        for (text, shortest) in [
            ("read:offset=1M..2M:nth=3:error=EIO", ""),
            ("latency=2ms", ""),
            ("latency=2000us", "latency=2ms"),
            ("latency=1500us", ""),
            ("latency=3600000ms", "latency=3600s"),
            ("short", ""),
            ("error=ENOSPC:write", "write:error=ENOSPC"),
            ("write:corrupt:offset=0x1000..", "write:offset=4K..:corrupt"),
            ("nth=1:times=all:short", "short"),
            ("times=1:short", "nth=1:short"),
            ("queue=3:nth=2:times=4:short", ""),
            ("nth=2:times=all:short", ""),
            ("times=2:short", ""),
            ("drop-interrupt:queue=2", "queue=2:drop-interrupt"),
            ("duplicate-used", ""),
            ("times=3:bad-used-id", ""),
            ("stall", ""),
            ("nth=1:hold-reset=2000ms", "nth=1:hold-reset=2s"),
        ] {
            let expected = if shortest.is_empty() { text } else { shortest };
            assert_eq!(parse(text).to_string(), expected);
        }
    }

    #[test]
    fn a_wrong_rule_is_refused_with_what_is_possible() {
        for (text, said) in [
            ("", "Effects: error=, latency="),
            ("read", "the rule has no effect"),
            ("read:", "\"\" is no part of a rule"),
            (
                "reed:error=EIO",
                "\"reed\" is no part of a rule. Operations: read, write",
            ),
            ("Read:error=EIO", "is no part"),
            ("read =1:error=EIO", "is no part"),
            ("read=1:error=EIO", "is no part"),
            ("error", "error= with EIO, ENOSPC"),
            ("error=5", "error= with EIO, ENOSPC"),
            ("error=ETIMEDOUT", "which the protocol can say"),
            ("nth=0:error=EIO", "\"nth=0\": expected nth=N"),
            ("nth=+1:error=EIO", "a number from 1 on"),
            ("nth=18446744073709551616:error=EIO", "a number from 1 on"),
            ("times=0:short", "times=all"),
            ("queue=65536:short", "the number of a queue"),
            ("offset=2M..1M:short", "END beyond START"),
            ("offset=1M..1M:short", "END beyond START"),
            ("offset=1M:short", "START..END"),
            ("latency=0ms", "from 1us to 3600s"),
            ("latency=2", "for example 2ms"),
            ("latency=3601s", "from 1us to 3600s"),
            ("latency=1.5ms", "from 1us to 3600s"),
            ("latency=-1s", "from 1us to 3600s"),
            ("latency=18446744073709551615s", "from 1us to 3600s"),
            ("short=1s", "expected no value"),
            ("short:short", "\"short\" is the second part of its kind"),
            ("short:error=EIO", "one effect"),
            ("read:write:short", "one operation"),
            ("nth=1:nth=2:short", "each condition once"),
            ("flush:short", "only read and write carry data"),
            ("crc32c:corrupt", "only read and write carry data"),
            ("flush:offset=0..1:error=EIO", "a flush has no range"),
            ("read:stall", "stall does not go with an operation"),
            ("offset=0..1:bad-used-id", "does not go with offset="),
            (
                "flush:hold-reset=1s",
                "Its conditions are queue=, nth= and times=",
            ),
            ("hold-reset", "for example 2ms"),
            ("hold-reset=0s", "from 1us to 3600s"),
            ("stall=1s", "expected no value"),
            ("stall:short", "one effect"),
            ("drop-interrupts", "drop-interrupt, duplicate-used"),
        ] {
            let message = message(text);
            assert!(message.contains(said), "{text}: {message}");
        }
        assert!(message(&"x".repeat(MAX_LENGTH + 1)).contains("at most 256 bytes"));
    }

    fn occurrences() -> impl Strategy<Value = Occurrences> {
        let number = prop_oneof![Just(1), 1..10u64, any::<u64>().prop_map(|n| n.max(1))];
        let number = number.prop_map(|n| NonZeroU64::new(n).unwrap());
        (number.clone(), proptest::option::of(number))
            .prop_map(|(first, times)| Occurrences { first, times })
    }

    fn time_of_any_length() -> impl Strategy<Value = Time> {
        let micros = prop_oneof![
            1..=3_600_000_000u64,
            (1..=3_600_000u64).prop_map(|millis| millis * 1000),
            (1..=3600u64).prop_map(|seconds| seconds * 1_000_000),
        ];
        micros.prop_map(|micros| Time::from_micros(micros).unwrap())
    }

    fn request_fault() -> impl Strategy<Value = Fault> {
        let effect = prop_oneof![
            select(Errno::ALL).prop_map(RequestEffect::Error),
            time_of_any_length().prop_map(RequestEffect::Latency),
            Just(RequestEffect::Short),
            Just(RequestEffect::Corrupt),
        ];
        let range = (any::<u64>(), proptest::option::of(any::<u64>()))
            .prop_map(|(start, end)| Range::new(start, end));
        let operation = proptest::option::of(select(&OPERATIONS[..]));
        let queue = proptest::option::of(any::<u16>());
        (operation, queue, range, effect)
            .prop_filter(
                "the effect does not apply",
                |(operation, _, range, effect)| match operation {
                    Some((Opcode::Flush, _)) if range.is_some() => false,
                    Some((opcode, _)) => effect.applies_to(*opcode),
                    None => true,
                },
            )
            .prop_map(|(operation, queue, range, effect)| Fault::Request {
                filter: RequestFilter {
                    operation: operation.map(|(opcode, _)| opcode),
                    queue,
                    range,
                },
                effect,
            })
    }

    fn queue_fault() -> impl Strategy<Value = Fault> {
        let effect = prop_oneof![
            Just(QueueEffect::DropInterrupt),
            Just(QueueEffect::DuplicateUsed),
            Just(QueueEffect::BadUsedId),
            Just(QueueEffect::Stall),
            time_of_any_length().prop_map(QueueEffect::HoldReset),
        ];
        (proptest::option::of(any::<u16>()), effect)
            .prop_map(|(queue, effect)| Fault::Queue { queue, effect })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        (prop_oneof![request_fault(), queue_fault()], occurrences())
            .prop_map(|(fault, occurrences)| Rule { fault, occurrences })
    }

    proptest! {
        #[test]
        fn a_rule_that_is_written_and_parsed_is_the_same(
            rule in rule(),
        ) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn any_text_is_a_rule_that_can_be_written_or_an_error(
            parts in proptest::collection::vec(
                "read|write|flush|queue=[0-9]{1,5}|offset=[0-9]{1,3}[KM]?\\.\\.[0-9KM]{0,4}|nth=[0-9]{1,3}\
                 |times=(all|[0-9])|short|corrupt|error=E(IO|NXIO)|(latency|hold-reset)=[0-9]{1,4}(us|ms|s)\
                 |stall|bad-used-id|duplicate-used|drop-interrupt|[a-z=:.]{0,6}",
                1..5,
            ),
        ) {
            if let Ok(rule) = parts.join(":").parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }
    }
}
