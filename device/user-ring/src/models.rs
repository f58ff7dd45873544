// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Models of what process, device and driver do to each other, for loom.

pub(crate) mod mutations;

use core::sync::atomic::Ordering;
use std::collections::BTreeMap;
use std::vec::Vec;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

use crate::device::{self, Interrupt, fall_asleep};
use crate::driver::{Wait, Waiter};
use crate::entry::{
    COMPLETION_LAP_WORD, Completion, SUBMISSION_LAP_WORD, SUBMISSION_USER_DATA_WORD, Submission,
};
use crate::layout::{ARMED, COMPLETED, Entries, NEED_WAKEUP, Position, Word};
use crate::process::{self, Kick};
use crate::words::{Words, WriteWords};

/// An area with only the words on which a model depends. Loom would multiply its states by
/// every other word. These are 0, and of a submission entry they have no other ordering than
/// `user_data` has.
#[derive(Clone, Debug)]
struct Area(Arc<BTreeMap<usize, AtomicU64>>);

impl Area {
    fn new(words: impl IntoIterator<Item = Word>) -> Self {
        let words = words.into_iter();
        Self(Arc::new(
            words
                .map(|word| (word.index(), AtomicU64::new(0)))
                .collect(),
        ))
    }
}

impl Words for Area {
    fn word_count(&self) -> usize {
        usize::MAX
    }

    fn load(&self, word: Word, ordering: Ordering) -> u64 {
        self.0
            .get(&word.index())
            .map_or(0, |word| word.load(ordering))
    }
}

impl WriteWords for Area {
    fn store(&self, word: Word, value: u64, ordering: Ordering) {
        if let Some(word) = self.0.get(&word.index()) {
            word.store(value, ordering);
        }
    }
}

const TWO: Entries = Entries::few(1);

type ProcessQueue = process::Queue<Area, Area>;
type DeviceQueue = device::Queue<Area, Area, Area>;

/// The two halves of a queue with two entries, and the driver. `headers` says which words of
/// the device's header the model depends on.
fn queue(headers: &[Word]) -> (ProcessQueue, DeviceQueue, Waiter<Area, Area>) {
    let slots = || [0, 1].map(|number| Position::new(number).slot(TWO));
    let user = Area::new(slots().into_iter().flat_map(|slot| {
        [SUBMISSION_LAP_WORD, SUBMISSION_USER_DATA_WORD].map(|word| slot.submission(word))
    }));
    let device = Area::new(
        slots()
            .into_iter()
            .flat_map(|slot| [0, COMPLETION_LAP_WORD].map(|word| slot.completion(word)))
            .chain(headers.iter().copied()),
    );
    let kernel = Area::new(headers.contains(&COMPLETED).then_some(ARMED));
    let waiter = Waiter::new(device.clone(), kernel.clone(), TWO).unwrap();
    let process = ProcessQueue::new(user.clone(), device.clone(), TWO).unwrap();
    let device = DeviceQueue::new(user, device, kernel, TWO).unwrap();
    (process, device, waiter)
}

/// A request with a number that no word of an empty ring has.
fn request(number: u64) -> Submission {
    Submission {
        user_data: 100 + number,
        ..Submission::default()
    }
}

/// The result with which the device completes a request.
fn result(user_data: u64) -> u32 {
    user_data as u32 + 1000
}

/// Takes and completes the next request, which must be the one with `number`.
fn serve(device: &mut DeviceQueue, number: &mut u64) -> bool {
    let Some(taken) = device.take() else {
        return false;
    };
    let submission = taken.submission().unwrap();
    assert_eq!(submission, request(*number), "taken once, with all words");
    *number += 1;
    device
        .complete(taken, result(submission.user_data), 0)
        .unwrap();
    true
}

/// Reaps the next completion, which must be the one of the request with `number`.
fn reap(process: &mut ProcessQueue, number: &mut u64) -> bool {
    let Some(completion) = process.reap() else {
        return false;
    };
    let user_data = request(*number).user_data;
    let expected = Completion {
        user_data,
        result: result(user_data),
        status: 0,
    };
    assert_eq!(completion, expected, "reaped once, with all words");
    *number += 1;
    true
}

/// M1: each entry is taken once, in order, with the words that were written.
fn entries_are_taken_as_written_model() {
    let (mut process, mut device, _) = queue(&[]);
    let pushing = thread::spawn(move || {
        for number in 0..2 {
            process.push(&request(number)).unwrap();
        }
        process
    });
    let mut served = 0;
    for _ in 0..3 {
        serve(&mut device, &mut served);
    }
    let mut process = pushing.join().unwrap();
    while serve(&mut device, &mut served) {}
    assert_eq!(served, 2);
    let mut reaped = 0;
    while reap(&mut process, &mut reaped) {}
    assert_eq!(reaped, 2);
}

/// M2: a slot is used again only after its entry was taken, completed and reaped.
fn the_flow_rule_protects_each_slot_model() {
    const REQUESTS: u64 = 4;
    let (mut process, mut device, _) = queue(&[]);
    // The first lap, so that the threads meet where slots are used again.
    let (mut pushed, mut served) = (0, 0);
    while process.push(&request(pushed)).is_ok() {
        pushed += 1;
    }
    let processing = thread::spawn(move || {
        let mut reaped = 0;
        for _ in 0..3 {
            reap(&mut process, &mut reaped);
            if pushed < REQUESTS && process.push(&request(pushed)).is_ok() {
                pushed += 1;
            }
        }
        (process, pushed, reaped)
    });
    for _ in 0..3 {
        serve(&mut device, &mut served);
    }
    let (mut process, mut pushed, mut reaped) = processing.join().unwrap();
    loop {
        let progress = serve(&mut device, &mut served) | reap(&mut process, &mut reaped);
        let pushes = pushed < REQUESTS && process.push(&request(pushed)).is_ok();
        pushed += u64::from(pushes);
        if !progress && !pushes {
            break;
        }
    }
    assert_eq!((pushed, served, reaped), (REQUESTS, REQUESTS, REQUESTS));
}

/// M3: a device that sleeps while a request waits is kicked: `requests` to one queue after
/// another.
fn a_sleeping_device_is_kicked<const QUEUES: usize>(requests: usize) {
    let (mut ends, mut queues) = (Vec::new(), Vec::new());
    for _ in 0..QUEUES {
        let (process, mut device, waiter) = queue(&[NEED_WAKEUP]);
        device.wake_up();
        ends.push((process, waiter));
        queues.push(device);
    }
    let kicks = Arc::new(AtomicU32::new(0));
    let worker = {
        let kicks = kicks.clone();
        thread::spawn(move || {
            let (mut served, mut seen) = ([0; QUEUES], 0);
            while served.iter().sum::<u64>() < requests as u64 {
                let mut progress = false;
                for (device, served) in queues.iter_mut().zip(&mut served) {
                    if serve(device, served) {
                        let _ = device.end_turn();
                        progress = true;
                    }
                }
                if !progress && fall_asleep(&mut queues) {
                    let now = kicks.load(Ordering::Acquire);
                    if now == seen {
                        break;
                    }
                    seen = now;
                    queues.iter_mut().for_each(DeviceQueue::wake_up);
                }
            }
            (served.iter().sum::<u64>(), seen)
        })
    };
    for index in 0..requests {
        let (process, waiter) = &mut ends[index % QUEUES];
        process.push(&request((index / QUEUES) as u64)).unwrap();
        if process.submit() == Kick::Needed && waiter.needs_doorbell() {
            kicks.fetch_add(1, Ordering::Release);
        }
    }
    let (served, seen) = worker.join().unwrap();
    // The device went to sleep for ever, if nobody has kicked it since.
    let kicks = kicks.load(Ordering::Acquire);
    assert!(
        served == requests as u64 || kicks > seen,
        "nobody kicks the device"
    );
}

fn a_sleeping_device_is_kicked_model() {
    a_sleeping_device_is_kicked::<1>(2);
}

fn a_device_that_sleeps_on_two_queues_is_kicked_model() {
    a_sleeping_device_is_kicked::<2>(2);
}

/// M3: a queue that the device has just got is asleep.
fn the_first_request_is_kicked_model() {
    let (mut process, _device, waiter) = queue(&[NEED_WAKEUP]);
    process.push(&request(0)).unwrap();
    assert_eq!(process.submit(), Kick::Needed);
    assert!(waiter.needs_doorbell());
}

/// M4: a process that sleeps is woken once there is a completion, by one interrupt for each
/// wait at most. A wait that does not sleep means that a completion can be reaped.
fn a_waiter_is_interrupted_once_model() {
    const REQUESTS: u64 = 2;
    let (mut process, mut device, mut waiter) = queue(&[COMPLETED]);
    for number in 0..REQUESTS {
        process.push(&request(number)).unwrap();
    }
    let interrupts = Arc::new(AtomicU32::new(0));
    let worker = {
        let interrupts = interrupts.clone();
        thread::spawn(move || {
            let mut served = 0;
            while served < REQUESTS {
                assert!(serve(&mut device, &mut served));
                if device.end_turn() == Interrupt::Needed {
                    interrupts.fetch_add(1, Ordering::Release);
                }
            }
        })
    };
    let (mut reaped, mut waits, mut seen) = (0, 0, 0);
    while reaped < REQUESTS {
        waits += 1;
        match waiter.wait(process.reaped(), 1) {
            Wait::Ready => assert!(
                reap(&mut process, &mut reaped),
                "ready, but nothing is there"
            ),
            Wait::Sleep => {
                let now = interrupts.load(Ordering::Acquire);
                if now == seen {
                    break;
                }
                seen = now;
            }
        }
    }
    worker.join().unwrap();
    let interrupts = interrupts.load(Ordering::Acquire);
    assert!(interrupts <= waits, "more interrupts than waits");
    // The process went to sleep for ever, if nobody has interrupted since.
    assert!(
        reaped == REQUESTS || interrupts > seen,
        "nobody wakes the process"
    );
}

#[test]
fn entries_are_taken_as_written() {
    loom::model(entries_are_taken_as_written_model);
}

#[test]
fn the_flow_rule_protects_each_slot() {
    loom::model(the_flow_rule_protects_each_slot_model);
}

/// All executions of these take too long. Each mutation is found with two preemptions.
fn check_with_preemptions(bound: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(model);
}

#[test]
fn a_device_is_kicked() {
    check_with_preemptions(4, a_sleeping_device_is_kicked_model);
}

#[test]
fn a_device_with_two_queues_is_kicked() {
    check_with_preemptions(3, a_device_that_sleeps_on_two_queues_is_kicked_model);
}

#[test]
fn the_first_request_is_kicked() {
    loom::model(the_first_request_is_kicked_model);
}

#[test]
fn a_waiter_is_interrupted_once() {
    loom::model(a_waiter_is_interrupted_once_model);
}
