// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each storage has to do whose operations end later. Call [`conformance!`] with a function
//! that runs a test on each of its storages, which have [`CAPACITY`] bytes.

use std::sync::mpsc::{Receiver, channel};

use proptest::prelude::*;
use ringbar_storage::{
    AsyncStorage, Buffer, Completed, ErrorKind, Extent, Operation, Owner, Storage,
};

use crate::support::{read, status, write};

/// A multiple of all blocks.
pub const CAPACITY: u64 = 1 << 20;

/// Declares the tests.
macro_rules! conformance {
    ($on_each:path) => {
        $crate::asynchronous::conformance!(
            $on_each:
            bytes_come_back_and_the_neighbours_stay,
            ranges_outside_are_refused,
            a_range_becomes_0_and_its_neighbours_stay,
            overlapping_operations_in_flight
        );
    };
    ($on_each:path: $($test:ident),*) => {
        $(
            #[test]
            fn $test() {
                $on_each(|storage, _| $crate::asynchronous::$test(storage));
            }
        )*
    };
}
pub(crate) use conformance;

pub fn contents(storage: &dyn Storage) -> Vec<u8> {
    read(storage, 0, CAPACITY as usize).unwrap()
}

pub fn noise() -> Vec<u8> {
    (0..CAPACITY).map(|i| (i % 251) as u8 | 1).collect()
}

pub fn bytes_come_back_and_the_neighbours_stay(storage: &dyn Storage) {
    assert_eq!(storage.capacity(), CAPACITY);
    assert!(storage.mappable().is_none());
    let mut expected = noise();
    write(storage, 0, &expected).unwrap();
    for (offset, length) in [
        (0, 0),
        (0, 1),
        (1, 3),
        (511, 2),
        (4095, 2),
        (4096, 4096),
        (4097, 300_000),
        (CAPACITY - 1, 1),
        (CAPACITY, 0),
    ] {
        let data: Vec<u8> = (0..length).map(|i| i as u8 ^ 0xa0).collect();
        write(storage, offset, &data).unwrap();
        expected[offset as usize..][..length].copy_from_slice(&data);
        assert!(read(storage, offset, length).unwrap() == data);
        assert!(contents(storage) == expected, "{length} bytes at {offset}");
    }
    storage.flush().unwrap();
    storage.flush_range(1, 1).unwrap();
}

pub fn ranges_outside_are_refused(storage: &dyn Storage) {
    for (offset, length) in [
        (CAPACITY, 1),
        (CAPACITY - 1, 2),
        (u64::MAX, 1),
        (1 << 63, 1),
    ] {
        let outside = Some(ErrorKind::OutOfRange);
        assert_eq!(status(read(storage, offset, length)), outside);
        assert_eq!(status(write(storage, offset, &vec![1; length])), outside);
        let length = length as u64;
        assert_eq!(status(storage.discard(offset, length)), outside);
        assert_eq!(status(storage.write_zeroes(offset, length)), outside);
        assert_eq!(status(storage.flush_range(offset, length)), outside);
    }
    assert_eq!(
        status(storage.discard(1, u64::MAX)),
        Some(ErrorKind::OutOfRange)
    );
}

pub fn a_range_becomes_0_and_its_neighbours_stay(storage: &dyn Storage) {
    for discards in [true, false] {
        let mut expected = noise();
        write(storage, 0, &expected).unwrap();
        for (offset, length) in [
            (0, 0),
            (10, 1),
            (1000, 2),
            (4095, 2),
            (8192, 4096),
            (12_289, 8191),
            (20_000, 300_000),
            (CAPACITY - 1, 1),
            (CAPACITY, 0),
        ] {
            expected[offset as usize..][..length as usize].fill(0);
            match discards {
                true => storage.discard(offset, length),
                false => storage.write_zeroes(offset, length),
            }
            .unwrap();
            assert!(contents(storage) == expected, "{length} bytes at {offset}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    Discard,
    Zero,
    Read,
}

fn step() -> impl Strategy<Value = (Step, u64, u64)> {
    let kind = prop_oneof![
        any::<u8>().prop_map(Step::Write),
        Just(Step::Discard),
        Just(Step::Zero),
        Just(Step::Read),
    ];
    (kind, 0..60_000u64, 0..20_000u64)
}

/// Submits an operation and returns what is sent once it has ended.
pub fn submit(face: &dyn AsyncStorage, operation: Operation) -> Receiver<Completed> {
    let (sender, ended) = channel();
    let done = move |completed| {
        // Nobody may wait for it.
        let _ = sender.send(completed);
    };
    face.submit(Owner(0), operation, Box::new(done));
    ended
}

pub fn buffer(face: &dyn AsyncStorage, offset: u64, length: u64) -> Buffer {
    let buffers = face.buffers().try_take(&[Extent { offset, length }]);
    buffers.unwrap().remove(0)
}

/// All operations in flight at once are as if executed in the order of their submission.
pub fn overlapping_operations_in_flight(storage: &dyn Storage) {
    let face = storage.asynchronous().unwrap();
    let config = ProptestConfig::with_cases(16);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = prop::collection::vec(step(), 1..100);
    let test = |steps: Vec<(Step, u64, u64)>| {
        let mut model = contents(storage);
        let mut waiting = Vec::new();
        for (step, offset, length) in steps {
            let range = offset as usize..(offset + length) as usize;
            let extent = Extent { offset, length };
            let (operation, expected) = match step {
                Step::Write(seed) => {
                    let mut buffer = buffer(face.as_ref(), offset, length);
                    buffer.data_mut().fill(seed);
                    model[range].fill(seed);
                    (Operation::Write(buffer), None)
                }
                Step::Discard | Step::Zero => {
                    model[range].fill(0);
                    match step {
                        Step::Zero => (Operation::WriteZeroes(extent), None),
                        _ => (Operation::Discard(extent), None),
                    }
                }
                Step::Read => {
                    let buffer = buffer(face.as_ref(), offset, length);
                    (Operation::Read(buffer), Some(model[range].to_vec()))
                }
            };
            waiting.push((submit(face.as_ref(), operation), expected));
        }
        for (ended, expected) in waiting {
            let Completed { result, buffer } = ended.recv().unwrap();
            result.unwrap();
            if let Some(expected) = expected {
                prop_assert!(buffer.unwrap().data() == expected);
            }
        }
        prop_assert!(contents(storage) == model);
        Ok(())
    };
    runner.run(&steps, test).unwrap();
}
