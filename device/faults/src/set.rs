// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rules of a device.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringbar_spec::Opcode;

use crate::rule::{Errno, Fault, Occasion, QueueEffect, RequestEffect, RequestFilter, Rule};

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
    /// Number of requests, or occasions of a queue, that it was about.
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
    /// Whether there are rules of requests. Changes with `state` locked.
    has_requests: AtomicBool,
    /// Whether there are rules of queues. Changes with `state` locked.
    has_queues: Arc<AtomicBool>,
    /// The first queue that a rule without a queue is about.
    first_queue: u16,
    state: Mutex<State>,
    listener: Mutex<Option<Listener>>,
}

/// What is called after rules were cleared.
struct Listener(Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl FaultSet {
    /// Without rules. Those of queues that name none are about `first` and later ones.
    pub fn with_first_queue(first: u16) -> Self {
        Self {
            first_queue: first,
            ..Self::default()
        }
    }

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
        self.update_flags(&state);
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
        self.update_flags(&state);
        drop(state);
        self.call_listener();
        Ok(())
    }

    /// Removes all rules, and returns how many there were.
    pub fn clear_all(&self) -> usize {
        let mut state = self.state();
        let cleared = std::mem::take(&mut state.rules).len();
        self.update_flags(&state);
        drop(state);
        self.call_listener();
        cleared
    }

    fn update_flags(&self, state: &State) {
        let is_queue = |listed: &ListedRule| matches!(listed.rule.fault, Fault::Queue { .. });
        let queues = state.rules.iter().filter(|listed| is_queue(listed)).count();
        let requests = state.rules.len() - queues;
        self.has_requests.store(requests > 0, Ordering::Relaxed);
        self.has_queues.store(queues > 0, Ordering::Relaxed);
    }

    /// Has `listener` called after rules were cleared, in place of the former one.
    pub fn set_listener(&self, listener: Box<dyn Fn() + Send + Sync>) {
        *self.listener() = Some(Listener(listener));
    }

    fn listener(&self) -> MutexGuard<'_, Option<Listener>> {
        // It is replaced by a single assignment.
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call_listener(&self) {
        if let Some(Listener(listener)) = &*self.listener() {
            listener();
        }
    }

    /// The rules, in the order in which they were added.
    pub fn list(&self) -> Vec<ListedRule> {
        self.state().rules.clone()
    }

    /// Whether there are rules of requests: one relaxed load, all that a request costs without
    /// rules.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.has_requests.load(Ordering::Relaxed)
    }

    /// Whether there are rules of queues, as a flag for their engine.
    pub const fn has_queues(&self) -> &Arc<AtomicBool> {
        &self.has_queues
    }

    /// What happens to a queue on this occasion, by which rule. Counts the occasion, so each is asked
    /// for once. The effect is one of the occasion; of several rules, that of the first counts.
    #[cold]
    #[inline(never)]
    pub fn queue_fault(&self, queue: u16, occasion: Occasion) -> Option<(RuleId, QueueEffect)> {
        let mut found = None;
        for listed in &mut self.state().rules {
            let Fault::Queue {
                queue: only,
                effect,
            } = listed.rule.fault
            else {
                continue;
            };
            let is_about = only.map_or(queue >= self.first_queue, |only| only == queue);
            if !is_about || effect.occasion() != occasion {
                continue;
            }
            listed.matches += 1;
            if listed.rule.occurrences.include(listed.matches) {
                listed.firings += u64::from(set_once(&mut found, Some((listed.id, effect))));
            }
        }
        found
    }

    /// Whether there is a rule with this number.
    pub fn contains(&self, id: RuleId) -> bool {
        self.state().rules.iter().any(|rule| rule.id == id)
    }

    /// What happens to a request. Counts it, so each request is asked for once. The effects of
    /// several rules come together: delays add up, and of two errors, or of two bytes to corrupt, the
    /// first rule's counts.
    #[cold]
    #[inline(never)]
    pub fn faults_of(&self, access: &Access) -> RequestFaults {
        let mut faults = RequestFaults::default();
        for listed in &mut self.state().rules {
            let Fault::Request { filter, effect } = &listed.rule.fault else {
                continue;
            };
            let Some(byte) = matching_byte(filter, *effect, access) else {
                continue;
            };
            listed.matches += 1;
            if !listed.rule.occurrences.include(listed.matches) {
                continue;
            }
            let has_effect = match *effect {
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
fn matching_byte(
    filter: &RequestFilter,
    effect: RequestEffect,
    access: &Access,
) -> Option<Option<u64>> {
    let is_about = filter.operation.is_none_or(|it| it == access.operation)
        && filter.queue.is_none_or(|it| it == access.queue)
        && effect.applies_to(access.operation);
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
    fn each_occasion_of_a_queue_counts_by_itself() {
        let set = FaultSet::with_first_queue(2);
        for rule in [
            "nth=2:duplicate-used",
            "times=2:bad-used-id",
            "queue=0:stall",
            "hold-reset=2s",
        ] {
            set.add(rule.parse().unwrap()).unwrap();
        }
        assert!(!set.is_active() && set.has_queues().load(Ordering::Relaxed));
        let effects = [(); 4].map(|()| set.queue_fault(2, Occasion::Used));
        let bad = Some((2, QueueEffect::BadUsedId));
        let twice = Some((1, QueueEffect::DuplicateUsed));
        assert_eq!(effects, [bad, twice, None, None]);
        // A rule without a queue is not about the first two.
        assert_eq!(set.queue_fault(1, Occasion::Used), None);
        assert_eq!(set.queue_fault(1, Occasion::Stop), None);
        assert_eq!(set.queue_fault(2, Occasion::Available), None);
        let stall = Some((3, QueueEffect::Stall));
        assert_eq!(set.queue_fault(0, Occasion::Available), stall);
        let held = set.queue_fault(3, Occasion::Stop).unwrap();
        assert!(matches!(held, (4, QueueEffect::HoldReset(_))), "{held:?}");
        assert_eq!(set.queue_fault(2, Occasion::Interrupt), None);
        // The second match of the second rule was the first rule's.
        assert_eq!(counts(&set), [(4, 1), (4, 1), (1, 1), (1, 1)]);
        assert_eq!(
            set.faults_of(&access(Opcode::Read, 0, 1)),
            RequestFaults::default()
        );
    }

    #[test]
    fn whoever_waits_for_a_rule_hears_that_it_is_cleared() {
        let set = Arc::new(set(&["stall", "short"]));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (other, log) = (Arc::downgrade(&set), Arc::clone(&heard));
        set.set_listener(Box::new(move || {
            let set = other.upgrade().unwrap();
            log.lock().unwrap().push([set.contains(1), set.contains(2)]);
        }));
        set.clear(1).unwrap();
        assert!(set.is_active() && !set.has_queues().load(Ordering::Relaxed));
        set.clear_all();
        assert!(!set.is_active());
        assert_eq!(*heard.lock().unwrap(), [[false, true], [false, false]]);
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
