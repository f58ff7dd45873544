// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Removes each point of synchronisation once: one of the models must fail.

use core::cell::Cell;
use std::panic::catch_unwind;
use std::string::{String, ToString};

use super::*;
use crate::sync::SyncPoint;

std::thread_local! {
    /// Loom runs all threads of a model on the thread that called it.
    static REMOVED: Cell<Option<SyncPoint>> = const { Cell::new(None) };
}

pub(crate) fn is_removed(point: SyncPoint) -> bool {
    REMOVED.get() == Some(point)
}

const TAKEN: &str = "taken once, with all words";
const REAPED: &str = "reaped once, with all words";
const NOT_KICKED: &str = "nobody kicks the device";
const NOT_READY: &str = "ready, but nothing is there";
const NOT_WOKEN: &str = "nobody wakes the process";

/// The models that show what the point is for, and how they fail without it.
fn failures(point: SyncPoint) -> &'static [(fn(), &'static str)] {
    match point {
        SyncPoint::PublishSubmission | SyncPoint::TakeSubmission => {
            &[(entries_are_taken_as_written_model, TAKEN)]
        }
        SyncPoint::PublishCompletion | SyncPoint::ReapCompletion => {
            &[(the_flow_rule_protects_each_slot_model, REAPED)]
        }
        SyncPoint::SubmitFence | SyncPoint::SleepFence => &[
            (a_sleeping_device_is_kicked_model, NOT_KICKED),
            (
                a_device_that_sleeps_on_two_queues_is_kicked_model,
                NOT_KICKED,
            ),
        ],
        SyncPoint::PublishCompleted | SyncPoint::LoadCompleted => {
            &[(a_waiter_is_interrupted_once_model, NOT_READY)]
        }
        SyncPoint::TurnFence | SyncPoint::WaitFence => {
            &[(a_waiter_is_interrupted_once_model, NOT_WOKEN)]
        }
    }
}

/// The message of the panic with which a model fails; `None` if it does not.
fn failure(model: fn()) -> Option<String> {
    // Enough for each of them.
    let panic = catch_unwind(|| check_with_preemptions(2, model)).err()?;
    Some(match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().unwrap().to_string(),
    })
}

#[test]
fn each_point_is_needed() {
    for &point in SyncPoint::ALL {
        for &(model, expected) in failures(point) {
            REMOVED.set(Some(point));
            let failure = failure(model);
            REMOVED.set(None);
            let message = failure.unwrap_or_else(|| panic!("no model fails without {point:?}"));
            assert!(
                message.contains(expected),
                "without {point:?} a model fails in another way: {message}"
            );
        }
    }
}
