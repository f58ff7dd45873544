// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Removes each point of synchronisation once: one of the models must fail.

use core::cell::Cell;
use std::panic::catch_unwind;

use super::*;
use crate::sync::SyncPoint;

std::thread_local! {
    /// Loom runs all threads of a model on the thread that called it.
    static REMOVED: Cell<Option<SyncPoint>> = const { Cell::new(None) };
}

pub(crate) fn is_removed(point: SyncPoint) -> bool {
    REMOVED.get() == Some(point)
}

/// Each point with the model that shows what it is for.
const POINTS: [(SyncPoint, fn()); 10] = [
    (
        SyncPoint::PublishSubmission,
        entries_are_taken_as_written_model,
    ),
    (
        SyncPoint::TakeSubmission,
        entries_are_taken_as_written_model,
    ),
    (
        SyncPoint::PublishCompletion,
        the_flow_rule_protects_each_slot_model,
    ),
    (
        SyncPoint::ReapCompletion,
        the_flow_rule_protects_each_slot_model,
    ),
    (SyncPoint::SubmitFence, a_sleeping_device_is_kicked_model),
    (SyncPoint::SleepFence, a_sleeping_device_is_kicked_model),
    (
        SyncPoint::PublishCompleted,
        a_waiter_is_interrupted_once_model,
    ),
    (SyncPoint::LoadCompleted, a_waiter_is_interrupted_once_model),
    (SyncPoint::TurnFence, a_waiter_is_interrupted_once_model),
    (SyncPoint::WaitFence, a_waiter_is_interrupted_once_model),
];

#[test]
fn each_point_is_needed() {
    for (point, model) in POINTS {
        REMOVED.set(Some(point));
        let outcome = catch_unwind(|| {
            let mut builder = loom::model::Builder::new();
            // Enough for each of them.
            builder.preemption_bound = Some(2);
            builder.check(model);
        });
        REMOVED.set(None);
        assert!(outcome.is_err(), "no model fails without {point:?}");
    }
}

/// A point that is added must be added to the list as well: the match is exhaustive.
#[test]
fn each_point_is_in_the_list() {
    for (index, (point, _)) in POINTS.into_iter().enumerate() {
        let place = match point {
            SyncPoint::PublishSubmission => 0,
            SyncPoint::TakeSubmission => 1,
            SyncPoint::PublishCompletion => 2,
            SyncPoint::ReapCompletion => 3,
            SyncPoint::SubmitFence => 4,
            SyncPoint::SleepFence => 5,
            SyncPoint::PublishCompleted => 6,
            SyncPoint::LoadCompleted => 7,
            SyncPoint::TurnFence => 8,
            SyncPoint::WaitFence => 9,
        };
        assert_eq!(place, index);
    }
}
