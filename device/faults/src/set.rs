// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rules of a device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringbar_spec::Opcode;

use crate::rule::{Errno, RequestEffect, Rule};

/// Greatest number of rules. Each request is compared with all of them.
pub const MAX_RULES: usize = 64;

/// Number of a rule, from 1 on. No two rules of a device have the same, also not one after the
/// other.
pub type RuleId = u64;

/// There are [`MAX_RULES`] rules already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_RULES} rules already: clear some first")]
pub struct TooManyRules;

/// There is no rule with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule {0}: query-faults lists those that there are")]
pub struct NoSuchRule(pub RuleId);

/// A rule with its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// Its number.
    pub id: RuleId,
    /// The rule.
    pub rule: Rule,
    /// Number of requests that it was about.
    pub matches: u64,
    /// Number of these that had the effect.
    pub firings: u64,
}

/// A request, as far as rules know it.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Its operation.
    pub operation: Opcode,
    /// Number of its queue.
    pub queue: u16,
    /// First bytes and lengths of the ranges of device memory that it concerns.
    pub ranges: [Option<(u64, u64)>; 2],
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestFaults {
    /// For how long it is delayed first.
    pub latency: Option<Duration>,
    /// It fails with this error, and the rest does not matter.
    pub error: Option<Errno>,
    /// A read or write is cut short.
    pub is_short: bool,
    /// The byte at this offset of the device memory is inverted on its way. It is one of those
    /// of the read or write.
    pub corrupt: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<ListedRule>,
    last_id: RuleId,
}

/// The rules of a device, with their counters.
#[derive(Debug, Default)]
pub struct FaultSet {
    /// Whether there are rules. Changes with `state` locked.
    is_active: AtomicBool,
    state: Mutex<State>,
}

impl FaultSet {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done with the lock held can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule, and returns its number. Requests that the driver submits after this returned
    /// are compared with it.
    ///
    /// # Errors
    ///
    /// [`TooManyRules`] if there are [`MAX_RULES`].
    pub fn add(&self, rule: Rule) -> Result<RuleId, TooManyRules> {
        let mut state = self.state();
        if state.rules.len() >= MAX_RULES {
            return Err(TooManyRules);
        }
        state.last_id += 1;
        let id = state.last_id;
        state.rules.push(ListedRule {
            id,
            rule,
            matches: 0,
            firings: 0,
        });
        self.is_active.store(true, Ordering::Relaxed);
        Ok(id)
    }

    /// Removes a rule.
    ///
    /// # Errors
    ///
    /// [`NoSuchRule`] if there is none with this number.
    pub fn clear(&self, id: RuleId) -> Result<(), NoSuchRule> {
        let mut state = self.state();
        let at = state.rules.iter().position(|rule| rule.id == id);
        state.rules.remove(at.ok_or(NoSuchRule(id))?);
        self.is_active
            .store(!state.rules.is_empty(), Ordering::Relaxed);
        Ok(())
    }

    /// Removes all rules, and returns how many there were.
    pub fn clear_all(&self) -> usize {
        let mut state = self.state();
        self.is_active.store(false, Ordering::Relaxed);
        std::mem::take(&mut state.rules).len()
    }

    /// The rules, in the order in which they were added.
    pub fn list(&self) -> Vec<ListedRule> {
        self.state().rules.clone()
    }

    /// Whether there are rules: one relaxed load, all that a request costs without rules.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// What happens to a request. Counts it, so each request is asked for once. The effects of
    /// several rules come together: delays add up, and of two errors, or of two bytes to corrupt, the
    /// first rule's counts.
    #[cold]
    #[inline(never)]
    pub fn faults_of(&self, access: &Access) -> RequestFaults {
        let mut faults = RequestFaults::default();
        for listed in &mut self.state().rules {
            let Some(byte) = matching_byte(&listed.rule, access) else {
                continue;
            };
            listed.matches += 1;
            if !listed.rule.occurrences.include(listed.matches) {
                continue;
            }
            let has_effect = match listed.rule.effect {
                RequestEffect::Error(errno) => set_once(&mut faults.error, Some(errno)),
                RequestEffect::Latency(time) => {
                    *faults.latency.get_or_insert_default() += time.into();
                    true
                }
                RequestEffect::Short => {
                    faults.is_short = true;
                    true
                }
                RequestEffect::Corrupt => set_once(&mut faults.corrupt, byte),
            };
            listed.firings += u64::from(has_effect);
        }
        faults
    }
}

/// Sets what an earlier rule has not set. Returns whether it did.
fn set_once<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    let is_new = place.is_none() && value.is_some();
    if is_new {
        *place = value;
    }
    is_new
}

/// Whether a rule is about a request, and the first byte of the request that it is about.
/// `Some(None)` where the request concerns no bytes.
fn matching_byte(rule: &Rule, access: &Access) -> Option<Option<u64>> {
    let filter = &rule.filter;
    let is_about = filter.operation.is_none_or(|it| it == access.operation)
        && filter.queue.is_none_or(|it| it == access.queue)
        && rule.effect.applies_to(access.operation);
    if !is_about {
        return None;
    }
    let mut ranges = access.ranges.iter().flatten();
    match filter.range {
        Some(range) => ranges
            .find_map(|(offset, length)| range.first_of(*offset, *length))
            .map(Some),
        None => Some(ranges.find_map(|(offset, length)| (*length > 0).then_some(*offset))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rules: &[&str]) -> FaultSet {
        let set = FaultSet::default();
        for rule in rules {
            set.add(rule.parse().unwrap()).unwrap();
        }
        set
    }

    fn access(operation: Opcode, offset: u64, length: u64) -> Access {
        Access {
            operation,
            queue: 2,
            ranges: [Some((offset, length)), None],
        }
    }

    fn counts(set: &FaultSet) -> Vec<(u64, u64)> {
        let listed = set.list().into_iter();
        listed.map(|rule| (rule.matches, rule.firings)).collect()
    }

    #[test]
    fn the_third_match_fires_and_the_others_are_counted() {
        let set = set(&["read:offset=1M..2M:nth=3:error=EIO"]);
        let fired: Vec<_> = (0..5)
            .map(|_| set.faults_of(&access(Opcode::Read, 1 << 20, 1)).error)
            .collect();
        assert_eq!(fired, [None, None, Some(Errno::Eio), None, None]);
        for other in [
            access(Opcode::Write, 1 << 20, 1),
            access(Opcode::Read, 0, 1 << 20),
            access(Opcode::Read, 2 << 20, 1),
            access(Opcode::Read, 1 << 20, 0),
        ] {
            assert_eq!(set.faults_of(&other), RequestFaults::default());
        }
        assert_eq!(counts(&set), [(5, 1)]);
    }

    #[test]
    fn nth_and_times_choose_the_matches() {
        for (condition, expected) in [
            ("", [true; 5]),
            ("nth=2:", [false, true, false, false, false]),
            ("times=2:", [true, true, false, false, false]),
            ("nth=2:times=2:", [false, true, true, false, false]),
            ("nth=4:times=all:", [false, false, false, true, true]),
        ] {
            let set = set(&[&format!("{condition}short")]);
            let fired = [(); 5].map(|()| set.faults_of(&access(Opcode::Write, 0, 1)).is_short);
            assert_eq!(fired, expected, "{condition}");
        }
    }

    #[test]
    fn of_two_errors_or_wrong_bytes_the_older_rule_fires() {
        for rules in [
            ["offset=1..2:corrupt", "offset=2..3:corrupt"],
            ["error=ENOSPC", "error=EIO"],
        ] {
            let set = set(&rules);
            let faults = set.faults_of(&access(Opcode::Read, 0, 4096));
            assert!(matches!(faults.corrupt, None | Some(1)), "{faults:?}");
            assert_eq!(counts(&set), [(1, 1), (1, 0)], "{rules:?}");
        }
    }

    #[test]
    fn effects_of_several_rules_come_together() {
        let set = set(&[
            "latency=2ms",
            "queue=2:latency=3ms",
            "queue=3:latency=9ms",
            "error=ENOSPC",
            "error=EIO",
            "short",
            "offset=150..:corrupt",
        ]);
        let expected = RequestFaults {
            latency: Some(Duration::from_millis(5)),
            error: Some(Errno::Enospc),
            is_short: true,
            corrupt: Some(150),
        };
        assert_eq!(set.faults_of(&access(Opcode::Read, 100, 100)), expected);
        // A command carries no data.
        let faults = set.faults_of(&access(Opcode::Fill, 100, 100));
        assert!(!faults.is_short && faults.corrupt.is_none());
        let flush = Access {
            ranges: [None, None],
            ..access(Opcode::Flush, 0, 0)
        };
        assert_eq!(set.faults_of(&flush).error, Some(Errno::Enospc));
    }

    #[test]
    fn both_ranges_of_a_command_count() {
        let set = set(&["copy:offset=4K..8K:error=EIO"]);
        let copy = |source, target| Access {
            ranges: [Some((target, 100)), Some((source, 100))],
            ..access(Opcode::Copy, 0, 0)
        };
        assert_eq!(set.faults_of(&copy(0, 200)).error, None);
        assert_eq!(set.faults_of(&copy(5000, 0)).error, Some(Errno::Eio));
        assert_eq!(set.faults_of(&copy(0, 5000)).error, Some(Errno::Eio));
    }

    #[test]
    fn rules_are_added_listed_and_cleared() {
        let set = FaultSet::default();
        assert!(!set.is_active());
        let rule: Rule = "short".parse().unwrap();
        assert_eq!(
            [(); 3].map(|()| set.add(rule.clone())),
            [Ok(1), Ok(2), Ok(3)]
        );
        assert!(set.is_active());
        assert_eq!(set.clear(2), Ok(()));
        assert_eq!(set.clear(2), Err(NoSuchRule(2)));
        let ids: Vec<_> = set.list().iter().map(|rule| rule.id).collect();
        assert_eq!(ids, [1, 3]);
        assert!(set.is_active());
        assert_eq!(set.clear_all(), 2);
        assert!(!set.is_active());
        assert_eq!(set.add(rule.clone()), Ok(4));
        assert_eq!(set.clear(4), Ok(()));
        assert!(!set.is_active());
        for _ in 0..MAX_RULES {
            set.add(rule.clone()).unwrap();
        }
        assert_eq!(set.add(rule), Err(TooManyRules));
    }
}
