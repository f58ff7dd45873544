// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A storage that fails for good.

use super::*;

/// The file is shorter than the storage, at a block or within one. What was lost is not to be
/// found as zeros by a write behind the end.
#[test]
fn a_file_that_was_cut_off_is_written_to_no_more() {
    for rest in [0, 100] {
        let mut machine = Machine::new(4);
        machine.ring.disk.truncate(2 * BLOCK as usize + rest);
        machine.read(0, 4 * BLOCK);
        machine.end(0);
        machine.end(0);
        assert_eq!(machine.ended(), [(0, Err(ErrorKind::Io), vec![])]);
        machine.write(3 * BLOCK, &[1; 512]);
        machine.submit(Operation::Flush);
        assert!(machine.ring.in_flight.is_empty());
        let io = Err(ErrorKind::Io);
        assert_eq!(machine.ended(), [(1, io, vec![]), (2, io, vec![])]);
        machine.read(0, 1);
        machine.end(0);
        assert_eq!(machine.done(), [3]);
    }
}

/// A read that was in flight when the storage became smaller has lost nothing.
#[test]
fn the_end_of_a_smaller_storage_is_an_error_of_the_request() {
    let mut machine = Machine::new(4);
    machine.read(3 * BLOCK, BLOCK);
    machine.capacity.store(2 * BLOCK, Ordering::Relaxed);
    machine.ring.disk.truncate(3 * BLOCK as usize);
    machine.end(0);
    assert_eq!(machine.ended(), [(0, Err(ErrorKind::Io), vec![])]);
    // And one that takes nothing.
    machine.write(0, &[1; 600]);
    machine.end(0);
    machine.end_with(0, 0);
    assert_eq!(machine.ended(), [(1, Err(ErrorKind::Io), vec![])]);
    assert!(machine.ring.in_flight.is_empty() && machine.failure.get().is_none());
}

/// A write that waits for the read that finds the cut, or reads its blocks meanwhile, would make
/// the file long enough again.
#[test]
fn what_waits_when_a_cut_is_found_is_not_written() {
    let mut machine = Machine::new(4);
    machine.ring.disk.truncate(2 * BLOCK as usize);
    machine.read(BLOCK, 3 * BLOCK);
    machine.write(3 * BLOCK, &[1; 512]);
    machine.write(2 * BLOCK, &[1]);
    machine.write(0, &[1]);
    machine.submit(Operation::Flush);
    // The read, the block of the last write, and the flush.
    assert_eq!(machine.ring.in_flight.len(), 3);
    machine.end(0);
    machine.end_after(2, usize::MAX);
    let io = Err(ErrorKind::Io);
    let mut ended = machine.ended();
    assert_eq!(ended[0], (0, io, vec![]));
    while !machine.ring.in_flight.is_empty() {
        let action = &machine.ring.in_flight[0].action;
        assert!(matches!(action, Action::Read { .. } | Action::Sync));
        machine.end(0);
    }
    ended.extend(machine.ended());
    ended.sort_unstable_by_key(|(number, ..)| *number);
    let expected: Vec<End> = (0..5).map(|number| (number, io, vec![])).collect();
    assert_eq!(ended, expected);
    assert_eq!(machine.ring.disk, [0; 2 * BLOCK as usize]);
    assert!(!machine.scheduler.is_busy());
}

/// However far a write has got when a flush fails: the ring gets nothing more of it.
#[test]
fn no_write_goes_on_after_a_failed_flush() {
    type Act = fn(&mut Machine);
    let write: Act = |machine| {
        machine.write(0, &[1; 4 * BLOCK as usize]);
    };
    let discard: Act = |machine| {
        machine.submit(Operation::Discard(Extent {
            offset: 0,
            length: BLOCK,
        }));
    };
    // What is submitted, and what happens after the flush has failed.
    let cases: [(&str, Act, Act); 8] = [
        (
            "has read its block",
            |machine| {
                machine.write(1, &[1]);
            },
            |machine| machine.end(0),
        ),
        ("is interrupted", write, |machine| {
            machine.end_with(0, -libc::EINTR);
        }),
        ("is short", write, |machine| machine.end_after(0, 512)),
        ("is interrupted", discard, |machine| {
            machine.end_with(0, -libc::EINTR);
        }),
        ("has to write zeros", discard, |machine| {
            machine.end_with(0, -libc::EOPNOTSUPP);
        }),
        (
            "had no room",
            |machine| {
                machine.ring.room = 1;
                machine.write(0, &[1; 512]);
            },
            |_| (),
        ),
        (
            "had no room",
            |machine| {
                machine.ring.room = 1;
                machine.submit(Operation::WriteZeroes(Extent {
                    offset: 0,
                    length: BLOCK,
                }));
            },
            |_| (),
        ),
        (
            "has waited for another",
            |machine| {
                machine.read(0, 1);
                machine.write(0, &[1; 512]);
            },
            |machine| machine.end(0),
        ),
    ];
    for (number, (what, submit, go_on)) in cases.into_iter().enumerate() {
        let mut machine = Machine::new(4);
        machine.submit(Operation::Flush);
        submit(&mut machine);
        machine.end_with(0, -libc::EIO);
        go_on(&mut machine);
        let in_flight = &machine.ring.in_flight;
        assert!(in_flight.is_empty(), "{number}: {what}: {in_flight:?}");
        let expected = (machine.submitted - 1, Err(ErrorKind::Io), vec![]);
        assert_eq!(machine.ended().pop(), Some(expected), "{number}: {what}");
        assert!(!machine.scheduler.is_busy());
    }
}

/// What a cut has taken away is not durable.
#[test]
fn a_flush_during_which_the_storage_fails_has_failed() {
    let mut machine = Machine::new(2);
    machine.submit(Operation::Flush);
    machine.submit(Operation::Flush);
    machine.ring.disk.truncate(BLOCK as usize);
    machine.read(BLOCK, 1);
    machine.end(1);
    machine.end(0);
    let expected: Vec<End> = [2, 0, 1]
        .map(|number| (number, Err(ErrorKind::Io), vec![]))
        .into();
    assert_eq!(machine.ended(), expected);
    assert!(machine.ring.in_flight.is_empty() && !machine.scheduler.is_busy());
}

/// A flush that has failed is not repeated: the kernel tells one of them.
#[test]
fn an_interrupted_flush_is_repeated_but_not_for_ever() {
    let mut machine = Machine::new(1);
    machine.submit(Operation::Flush);
    machine.end_with(0, -libc::EINTR);
    machine.end_with(0, -libc::EAGAIN);
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    machine.submit(Operation::Flush);
    for _ in 0..1000 {
        if !machine.ring.in_flight.is_empty() {
            machine.end_with(0, -libc::EAGAIN);
        }
    }
    assert_eq!(machine.ended(), [(1, Err(ErrorKind::Io), vec![])]);
    assert!(machine.failure.get().is_some());

    let mut machine = Machine::new(1);
    machine.submit(Operation::Flush);
    machine.end_with(0, -libc::ENOMEM);
    assert_eq!(machine.ended(), [(0, Err(ErrorKind::Io), vec![])]);
}

#[test]
fn ho7_a_flush_that_fails_is_for_good() {
    let mut machine = Machine::new(2);
    machine.submit(Operation::Flush);
    machine.submit(Operation::Flush);
    machine.end_with(0, -libc::EIO);
    let io = Err(ErrorKind::Io);
    assert_eq!(machine.ended(), [(0, io, vec![]), (1, io, vec![])]);
    let extent = Extent {
        offset: 0,
        length: BLOCK,
    };
    machine.submit(Operation::Flush);
    machine.write(0, &[1]);
    machine.submit(Operation::Discard(extent));
    machine.submit(Operation::WriteZeroes(extent));
    let expected: Vec<End> = (2..6).map(|number| (number, io, vec![])).collect();
    assert_eq!(machine.ended(), expected);
    machine.read(0, 1);
    machine.end(0);
    assert_eq!(machine.done(), [6]);
    let failure = machine.failure.get().unwrap().chain();
    assert!(
        failure.contains("a disk") && failure.contains("os error 5"),
        "{failure}"
    );
}
