// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Both halves against a model of two queues of values, in any order of steps.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::device::Taken;
use crate::process::Full;

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(Submission),
    Reap,
    Take,
    /// Completes one of the requests in flight in the device.
    Complete {
        which: usize,
        result: u32,
        status: u16,
    },
    EndTurn,
}

fn submissions() -> impl Strategy<Value = Submission> {
    any::<(u16, u16, u32, u64, u64, u64, u64, u64)>().prop_map(
        |(opcode, flags, region, offset, length, region_offset, argument, user_data)| Submission {
            opcode,
            flags,
            region,
            offset,
            length,
            region_offset,
            argument,
            user_data,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => submissions().prop_map(Step::Push),
        3 => Just(Step::Reap),
        3 => Just(Step::Take),
        3 => (0usize..64, any::<u32>(), any::<u16>())
            .prop_map(|(which, result, status)| Step::Complete { which, result, status }),
        1 => Just(Step::EndTurn),
    ]
}

/// Positions where the laps of one of the rings wrap soon, and 0.
fn starts() -> impl Strategy<Value = Position> {
    let wrap = |bits: u32, entries: u64| ((1u64 << bits) - 3).wrapping_mul(entries);
    prop_oneof![
        Just(0),
        Just(wrap(16, 2)),
        Just(wrap(32, 2)),
        Just(u64::MAX - 3)
    ]
    .prop_map(Position::new)
}

proptest! {
    #[test]
    fn rings_are_queues_of_values(
        start in starts(),
        steps in prop::collection::vec(steps(), 0..200),
    ) {
        // Few entries, so that the slots are used often.
        let entries = Entries::few(1);
        let areas = Areas::new(entries);
        let (user, device, kernel) = (&areas.user[..], &areas.device[..], &areas.kernel[..]);
        let mut process = ProcessQueue::starting_at(user, device, entries, start).unwrap();
        let mut device = DeviceQueue::starting_at(user, device, kernel, entries, start).unwrap();

        let mut submitted = VecDeque::new();
        let mut executing: Vec<(Taken, Submission)> = Vec::new();
        let mut completed = VecDeque::new();
        for step in steps {
            let in_flight = submitted.len() + executing.len() + completed.len();
            prop_assert_eq!(process.in_flight(), in_flight);
            prop_assert_eq!(device.in_flight(), executing.len());
            match step {
                Step::Push(submission) => {
                    let full = in_flight == entries.get();
                    let expected = if full { Err(Full) } else { Ok(()) };
                    prop_assert_eq!(process.push(&submission), expected);
                    if !full {
                        submitted.push_back(submission);
                    }
                }
                Step::Take => {
                    let expected = submitted.pop_front();
                    let taken = device.take();
                    let submission = taken.as_ref().map(|taken| taken.submission().unwrap());
                    prop_assert_eq!(submission, expected);
                    executing.extend(taken.zip(expected));
                }
                Step::Complete { which, result, status } => {
                    if executing.is_empty() {
                        continue;
                    }
                    let (taken, submission) = executing.swap_remove(which % executing.len());
                    device.complete(taken, result, status).unwrap();
                    let user_data = submission.user_data;
                    completed.push_back(Completion { user_data, result, status });
                }
                Step::Reap => prop_assert_eq!(process.reap(), completed.pop_front()),
                Step::EndTurn => prop_assert_eq!(device.end_turn(), Interrupt::NotNeeded),
            }
        }
    }

    /// Two positions share a slot only if their laps differ, for as many laps as a field has.
    #[test]
    fn a_slot_and_a_lap_name_one_position(position: u64, laps in 1u64..0xffff, log2 in 4u8..=10) {
        let entries = Entries::from_log2(log2).unwrap();
        let position = Position::new(position);
        prop_assert!(position.slot(entries).index() < entries.get());
        let later = Position::new(position.get().wrapping_add(laps << log2));
        prop_assert_eq!(position.slot(entries), later.slot(entries));
        // At the wrap of the position itself the laps of 16 bits go on as well only if the
        // number of passes is a multiple of 2^16, which 2^64 entries are.
        prop_assert_ne!(position.completion_lap(entries), later.completion_lap(entries));
        prop_assert_ne!(position.submission_lap(entries), later.submission_lap(entries));
    }
}
