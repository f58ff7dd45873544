// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A peer that writes anything at any time.

use core::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::layout::Word;
use crate::words::{Words, WriteWords};

/// An area whose loads return what the test says, and that keeps what was accessed.
///
/// A load returns the next of `values`. Where that is `None`, it returns a word with the lap
/// that the reader expects, because random words are hardly ever valid entries.
struct Hostile<'a> {
    words: usize,
    values: RefCell<std::slice::Iter<'a, Option<u64>>>,
    expected: RefCell<u64>,
    loads: RefCell<BTreeMap<usize, u32>>,
    out_of_range: RefCell<Vec<usize>>,
}

impl<'a> Hostile<'a> {
    fn new(words: usize, values: &'a [Option<u64>]) -> Self {
        Self {
            words,
            values: RefCell::new(values.iter()),
            expected: RefCell::new(0),
            loads: RefCell::default(),
            out_of_range: RefCell::default(),
        }
    }

    fn check(&self, word: Word) {
        if word.index() >= self.words {
            self.out_of_range.borrow_mut().push(word.index());
        }
    }
}

impl Words for &Hostile<'_> {
    fn word_count(&self) -> usize {
        self.words
    }

    fn load(&self, word: Word, _: Ordering) -> u64 {
        self.check(word);
        *self.loads.borrow_mut().entry(word.index()).or_default() += 1;
        let value = self.values.borrow_mut().next().copied().flatten();
        value.unwrap_or(*self.expected.borrow())
    }
}

impl WriteWords for &Hostile<'_> {
    fn store(&self, word: Word, _: u64, _: Ordering) {
        self.check(word);
    }
}

fn values() -> impl Strategy<Value = Vec<Option<u64>>> {
    prop::collection::vec(prop::option::weighted(0.3, any::<u64>()), 0..400)
}

proptest! {
    /// Whatever the process writes, the device stays within the areas, loads each word of an
    /// entry once, and holds no more requests than the ring has entries.
    #[test]
    fn a_process_cannot_make_the_device_take_without_end(
        log2 in Entries::MIN_LOG2..=Entries::MIN_LOG2 + 2,
        start: u64,
        user in values(),
        kernel in values(),
        completes in prop::collection::vec(any::<bool>(), 1..64),
    ) {
        let entries = Entries::from_log2(log2).unwrap();
        let start = Position::new(start);
        let (user, kernel) = (Hostile::new(entries.user_words(), &user), Hostile::new(KERNEL_WORDS, &kernel));
        let own = Hostile::new(entries.device_words(), &[]);
        let mut device = DeviceQueue::starting_at(&user, &own, &kernel, entries, start).unwrap();
        let mut position = start;
        let mut held = Vec::new();
        for complete in completes.iter().cycle().take(4 * entries.get()) {
            *user.expected.borrow_mut() = u64::from(position.submission_lap(entries));
            user.loads.borrow_mut().clear();
            let full = held.len() == entries.get();
            let taken = device.take();
            prop_assert!(user.loads.borrow().values().all(|loads| *loads == 1));
            prop_assert!(!(full && taken.is_some()));
            if taken.is_some() {
                position = position.next();
            }
            held.extend(taken);
            prop_assert_eq!(device.in_flight(), held.len());
            if *complete && let Some(taken) = held.pop() {
                let _ = taken.submission();
                device.complete(taken, u32::MAX, u16::MAX).unwrap();
            }
            let _ = device.end_turn();
            let _ = fall_asleep(core::slice::from_mut(&mut device));
        }
        for area in [&user, &own, &kernel] {
            prop_assert_eq!(&*area.out_of_range.borrow(), &[] as &[usize]);
        }
    }

    /// Whatever the device writes, the process stays within the areas and reaps no more
    /// completions than it has requests in flight.
    #[test]
    fn a_device_that_lies_cannot_end_more_than_was_pushed(
        log2 in Entries::MIN_LOG2..=Entries::MIN_LOG2 + 2,
        start: u64,
        device in values(),
        pushes in prop::collection::vec(any::<bool>(), 1..64),
    ) {
        let entries = Entries::from_log2(log2).unwrap();
        let start = Position::new(start);
        let own = Hostile::new(entries.user_words(), &[]);
        let device = Hostile::new(entries.device_words(), &device);
        let kernel = Hostile::new(KERNEL_WORDS, &[]);
        let mut process = ProcessQueue::starting_at(&own, &device, entries, start).unwrap();
        let mut waiter = Waiter::new(&device, &kernel, entries).unwrap();
        let mut in_flight = 0;
        for push in pushes.iter().cycle().take(4 * entries.get()) {
            let lap = process.reaped().completion_lap(entries);
            *device.expected.borrow_mut() = u64::from(lap) << 48;
            if *push {
                let pushed = process.push(&Submission::default());
                prop_assert_eq!(pushed.is_ok(), in_flight < entries.get());
                in_flight += usize::from(pushed.is_ok());
            }
            let _ = process.submit();
            if process.reap().is_some() {
                prop_assert!(in_flight > 0, "reaped what was not pushed");
                in_flight -= 1;
            }
            prop_assert_eq!(process.in_flight(), in_flight);
            let _ = (process.state(), waiter.needs_doorbell());
            let _ = waiter.wait(process.reaped(), 1);
            process.publish_reaped();
        }
        for area in [&own, &device, &kernel] {
            prop_assert_eq!(&*area.out_of_range.borrow(), &[] as &[usize]);
        }
    }

    /// Any words are a request or an error, and what is a request has these words.
    #[test]
    fn any_words_are_parsed(words: [u64; 8], clear: bool) {
        let mut words = words;
        if clear {
            words[1] &= u64::from(u32::MAX);
            words[7] = 0;
        }
        match Submission::parse(words) {
            Ok(submission) => prop_assert_eq!(submission.words(Submission::lap(words[0])), words),
            Err(ReservedBits) => prop_assert!(words[1] >> 32 != 0 || words[7] != 0),
        }
    }
}
