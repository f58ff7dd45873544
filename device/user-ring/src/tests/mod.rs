// SPDX-License-Identifier: Apache-2.0 OR MIT

mod hostile;
mod sequences;

use core::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use crate::device::{Interrupt, NewQueueError, OtherQueue, Queue as DeviceQueue, fall_asleep};
use crate::driver::{Wait, Waiter};
use crate::entry::{Completion, ReservedBits, Submission};
use crate::layout::{ARMED, COMPLETED, Entries, KERNEL_WORDS, Position, REAPED, STATE};
use crate::process::{Kick, Queue as ProcessQueue, QueueState};

const FEWEST: Entries = Entries::from_log2(Entries::MIN_LOG2).unwrap();

/// The areas of a queue, as they are when it is created.
struct Areas {
    entries: Entries,
    user: Vec<AtomicU64>,
    device: Vec<AtomicU64>,
    kernel: Vec<AtomicU64>,
}

fn zeros(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

type Memory<'a> = &'a [AtomicU64];

impl Areas {
    fn new(entries: Entries) -> Self {
        Self {
            entries,
            user: zeros(entries.user_words()),
            device: zeros(entries.device_words()),
            kernel: zeros(KERNEL_WORDS),
        }
    }

    fn process(&self) -> ProcessQueue<Memory<'_>, Memory<'_>> {
        ProcessQueue::new(&self.user[..], &self.device[..], self.entries).unwrap()
    }

    fn device(&self) -> DeviceQueue<Memory<'_>, Memory<'_>, Memory<'_>> {
        DeviceQueue::new(
            &self.user[..],
            &self.device[..],
            &self.kernel[..],
            self.entries,
        )
        .unwrap()
    }

    fn waiter(&self) -> Waiter<Memory<'_>, Memory<'_>> {
        Waiter::new(&self.device[..], &self.kernel[..], self.entries).unwrap()
    }
}

#[test]
fn only_powers_of_two_in_the_limits_are_sizes() {
    let sizes: Vec<_> = (0..=u8::MAX)
        .filter_map(Entries::from_log2)
        .map(Entries::get)
        .collect();
    assert_eq!(sizes, [16, 32, 64, 128, 256, 512, 1024]);
    let entries = Entries::from_log2(8).unwrap();
    assert_eq!(
        (entries.user_words() * 8, entries.device_words() * 8),
        (5 * 4096, 2 * 4096)
    );
}

#[test]
fn an_area_that_is_too_small_is_refused() {
    let areas = Areas::new(FEWEST);
    let short = &areas.user[1..];
    let error = ProcessQueue::new(short, &areas.device[..], FEWEST).unwrap_err();
    assert_eq!((error.area, error.needed - error.words), ("user", 1));
    let short = &areas.device[1..];
    assert!(ProcessQueue::new(&areas.user[..], short, FEWEST).is_err());
    assert!(Waiter::new(short, &areas.kernel[..], FEWEST).is_err());
    let no_kernel = DeviceQueue::new(
        &areas.user[..],
        &areas.device[..],
        &areas.kernel[1..],
        FEWEST,
    );
    let text = std::format!("{}", no_kernel.unwrap_err());
    assert_eq!(text, "the kernel area has 7 words; the queue needs 8");
}

/// A device that was started again does not know what was taken, whatever it has announced.
#[test]
fn a_device_that_is_started_again_is_refused_the_areas() {
    let areas = Areas::new(FEWEST);
    let again = || {
        let (user, device, kernel) = (&areas.user[..], &areas.device[..], &areas.kernel[..]);
        DeviceQueue::new(user, device, kernel, FEWEST).map(drop)
    };
    areas.process().push(&Submission::default()).unwrap();
    let mut device = areas.device();
    device.wake_up();
    assert_eq!(again(), Err(NewQueueError::Used), "nothing was taken");
    let _ = device.take().unwrap();
    assert_eq!(again(), Err(NewQueueError::Used), "nothing was announced");
    areas
        .device
        .iter()
        .for_each(|word| word.store(0, Ordering::Relaxed));
    assert_eq!(again(), Ok(()));
}

#[test]
fn entries_have_the_documented_bits() {
    let submission = Submission {
        opcode: 0x2211,
        flags: 0x4433,
        region: 0x8877_6655,
        offset: 2,
        length: 3,
        region_offset: 4,
        argument: 5,
        user_data: 6,
    };
    let words = submission.words(0xccbb_aa99);
    assert_eq!(
        words,
        [0x4433_2211_ccbb_aa99, 0x8877_6655, 2, 3, 4, 5, 6, 0]
    );
    assert_eq!(Submission::parse(words), Ok(submission));
    for (word, bit) in [(1, 32), (1, 63), (7, 0), (7, 63)] {
        let mut words = words;
        words[word] |= 1 << bit;
        assert_eq!(Submission::parse(words), Err(ReservedBits));
    }
    let completion = Completion {
        user_data: 1,
        result: 0x5544_3322,
        status: 0x7766,
    };
    assert_eq!(completion.words(0x9988), [1, 0x9988_7766_5544_3322]);
    assert_eq!(Completion::parse(completion.words(0)), completion);
}

#[test]
fn states_have_the_documented_numbers() {
    let areas = Areas::new(FEWEST);
    let process = areas.process();
    for (number, state) in [
        (0, QueueState::Live),
        (1, QueueState::Removed),
        (2, QueueState::Failed),
        (3, QueueState::Closed),
        (4, QueueState::Unknown),
        (u64::MAX, QueueState::Unknown),
    ] {
        areas.device[STATE.index()].store(number, Ordering::Relaxed);
        assert_eq!(process.state(), state);
    }
}

#[test]
fn a_device_that_sleeps_says_so_for_all_its_queues() {
    let (first, second) = (Areas::new(FEWEST), Areas::new(FEWEST));
    let (mut idle, mut busy) = (first.process(), second.process());
    let mut queues = [first.device(), second.device()];
    assert_eq!(idle.submit(), Kick::Needed, "a new queue sleeps");
    queues.iter_mut().for_each(DeviceQueue::wake_up);
    assert_eq!(idle.submit(), Kick::NotNeeded);
    assert!(fall_asleep(&mut queues));
    assert_eq!((idle.submit(), busy.submit()), (Kick::Needed, Kick::Needed));
    busy.push(&Submission::default()).unwrap();
    assert!(!fall_asleep(&mut queues), "the second has a request");
    assert_eq!(
        (idle.submit(), busy.submit()),
        (Kick::NotNeeded, Kick::NotNeeded)
    );
}

/// A driver that waits would otherwise never be interrupted, because nobody kicks the device.
#[test]
fn a_device_does_not_sleep_before_it_has_announced_its_completions() {
    let (first, second) = (Areas::new(FEWEST), Areas::new(FEWEST));
    let (mut process, mut waiter) = (second.process(), second.waiter());
    process.push(&Submission::default()).unwrap();
    let mut queues = [first.device(), second.device()];
    let taken = queues[1].take().unwrap();
    assert!(
        fall_asleep(&mut queues),
        "a request in flight may end later"
    );
    queues[1].complete(taken, 0, 0).unwrap();
    assert_eq!(waiter.wait(process.reaped(), 1), Wait::Sleep);
    assert!(!fall_asleep(&mut queues));
    assert_eq!(process.submit(), Kick::NotNeeded, "the device polls");
    assert_eq!(queues[1].end_turn(), Interrupt::Needed);
    assert!(fall_asleep(&mut queues));
}

#[test]
fn a_request_is_completed_on_its_queue_only() {
    let (first, second) = (Areas::new(FEWEST), Areas::new(FEWEST));
    let (mut process, mut other) = (first.process(), second.process());
    let (mut device, mut other_device) = (first.device(), second.device());
    for process in [&mut process, &mut other] {
        process.push(&Submission::default()).unwrap();
    }
    let taken = device.take().unwrap();
    let _in_flight = other_device.take().unwrap();
    let OtherQueue(taken) = other_device.complete(taken, 0, 0).unwrap_err();
    assert_eq!((other.reap(), other_device.in_flight()), (None, 1));
    device.complete(taken, 7, 0).unwrap();
    assert_eq!(process.reap().unwrap().result, 7);
}

#[test]
fn an_interrupt_is_sent_once_for_each_wait() {
    let areas = Areas::new(FEWEST);
    let (mut process, mut device, mut waiter) = (areas.process(), areas.device(), areas.waiter());
    let mut serve = |device: &mut DeviceQueue<_, _, _>| {
        process.push(&Submission::default()).unwrap();
        let taken = device.take().unwrap();
        device.complete(taken, 0, 0).unwrap();
        process.reaped()
    };
    serve(&mut device);
    assert_eq!(device.end_turn(), Interrupt::NotNeeded, "nobody waits");
    let reaped = Position::default();
    assert_eq!(waiter.wait(reaped, 1), Wait::Ready);
    assert_eq!(waiter.wait(reaped, 2), Wait::Sleep);
    serve(&mut device);
    assert_eq!(device.end_turn(), Interrupt::Needed);
    serve(&mut device);
    assert_eq!(device.end_turn(), Interrupt::NotNeeded);
    assert_eq!(waiter.wait(reaped, 3), Wait::Ready);
    assert_eq!(areas.kernel[ARMED.index()].load(Ordering::Relaxed), 3);
}

/// Within a turn the process can reap more than `completed` says.
#[test]
fn a_driver_that_lags_behind_the_process_waits() {
    let areas = Areas::new(FEWEST);
    let mut waiter = areas.waiter();
    let completed = |number| areas.device[COMPLETED.index()].store(number, Ordering::Relaxed);
    completed(5);
    assert_eq!(waiter.wait(Position::new(6), 1), Wait::Sleep);
    assert_eq!(waiter.wait(Position::new(5), 1), Wait::Sleep);
    assert_eq!(waiter.wait(Position::new(4), 1), Wait::Ready);
    // After 2^64 entries.
    assert_eq!(waiter.wait(Position::new(u64::MAX), 6), Wait::Ready);
    assert_eq!(waiter.wait(Position::new(u64::MAX), 7), Wait::Sleep);
    // More than can ever be there.
    completed(16);
    assert_eq!(waiter.wait(Position::new(0), u32::MAX), Wait::Ready);
}

#[test]
fn what_was_reaped_is_said_on_request() {
    let areas = Areas::new(FEWEST);
    let (mut process, mut device) = (areas.process(), areas.device());
    process.push(&Submission::default()).unwrap();
    let taken = device.take().unwrap();
    device.complete(taken, 0, 0).unwrap();
    process.reap().unwrap();
    let hint = || areas.user[REAPED.index()].load(Ordering::Relaxed);
    assert_eq!(hint(), 0);
    process.publish_reaped();
    assert_eq!(hint(), 1);
}
