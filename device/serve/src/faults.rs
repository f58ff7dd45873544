// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on demand (`ringbar_faults`), as the engine asks for them.

use std::sync::Arc;
use std::time::Duration;

use ringbar_engine::Injection;
use ringbar_engine::injection::{FaultId, FaultInjector, UsedFault, Waker};
use ringbar_faults::{Fault, FaultSet, Occasion, QueueEffect, Rule};

/// Has an engine execute the rules of queues in `faults`.
pub fn injection(faults: Arc<FaultSet>) -> Injection {
    let is_active = Arc::clone(faults.has_queues());
    Injection::new(is_active, Arc::new(Rules(faults)))
}

/// The rules for a device that knows none of requests. The error is a message for the user.
pub(crate) fn of_queues(rules: &[Rule]) -> Result<Arc<FaultSet>, String> {
    let faults = FaultSet::default();
    for rule in rules {
        if let Fault::Request { .. } = rule.fault {
            return Err(format!(
                "--fault {rule}: this device has only the faults of queues: drop-interrupt, \
                 duplicate-used, bad-used-id, stall, hold-reset="
            ));
        }
        let added = faults.add(rule.clone());
        added.map_err(|error| format!("--fault {rule}: {error}"))?;
    }
    Ok(Arc::new(faults))
}

#[derive(Debug)]
struct Rules(Arc<FaultSet>);

impl FaultInjector for Rules {
    fn stall(&self, queue: u16) -> Option<FaultId> {
        let (rule, _) = self.0.queue_fault(queue, Occasion::Available)?;
        Some(rule)
    }

    fn used(&self, queue: u16) -> Option<UsedFault> {
        match self.0.queue_fault(queue, Occasion::Used)? {
            (_, QueueEffect::DuplicateUsed) => Some(UsedFault::Duplicate),
            (_, QueueEffect::BadUsedId) => Some(UsedFault::BadId),
            _ => None,
        }
    }

    fn drops_interrupt(&self, queue: u16) -> bool {
        self.0.queue_fault(queue, Occasion::Interrupt).is_some()
    }

    fn hold_stop(&self, queue: u16) -> Option<(FaultId, Duration)> {
        match self.0.queue_fault(queue, Occasion::Stop)? {
            (rule, QueueEffect::HoldReset(time)) => Some((rule, time.into())),
            _ => None,
        }
    }

    fn persists(&self, fault: FaultId) -> bool {
        self.0.contains(fault)
    }

    fn set_waker(&self, waker: Waker) {
        self.0.set_listener(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_effect_is_asked_for_on_its_occasion() {
        let faults = of_queues(&rules(&[
            "queue=0:drop-interrupt",
            "queue=1:duplicate-used",
            "queue=2:bad-used-id",
            "queue=3:stall",
            "queue=4:hold-reset=2s",
        ]))
        .unwrap();
        let rules = Rules(faults);
        let found = [0, 1, 2, 3, 4].map(|queue| {
            (
                rules.drops_interrupt(queue),
                rules.used(queue),
                rules.stall(queue),
                rules.hold_stop(queue),
            )
        });
        let expected = [
            (true, None, None, None),
            (false, Some(UsedFault::Duplicate), None, None),
            (false, Some(UsedFault::BadId), None, None),
            (false, None, Some(4), None),
            (false, None, None, Some((5, Duration::from_secs(2)))),
        ];
        assert_eq!(found, expected);
        assert!(rules.persists(5) && !rules.persists(6));
    }

    #[test]
    fn a_device_without_operations_has_no_faults_of_requests() {
        let error = of_queues(&rules(&["stall", "error=EIO"])).unwrap_err();
        assert!(error.contains("--fault error=EIO"), "{error}");
        assert!(error.contains("only the faults of queues"), "{error}");
    }
}
