// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The scheduler on a ring whose operations end when and how the test says.

mod failure;

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender};

use proptest::prelude::*;

use super::ring::{Action, Io};
use super::scheduler::Submitted;
use super::*;
use crate::error::ErrorKind;

const BLOCK: u64 = 512;

/// A disk whose operations are in flight until the test ends them.
#[derive(Debug)]
struct Script {
    in_flight: Vec<Io>,
    /// Most operations in flight.
    room: usize,
    disk: Vec<u8>,
}

impl Ring for Script {
    const NAME: &'static str = "a script";

    fn push(&mut self, io: Io) -> Result<(), Io> {
        if self.in_flight.len() == self.room {
            return Err(io);
        }
        // As direct I/O wants it.
        if let Action::Read { at, part, .. }
        | Action::Write { at, part, .. }
        | Action::WriteZeros { at, part, .. } = &io.action
        {
            let block = BLOCK as usize;
            assert!(at.is_multiple_of(BLOCK) && !part.is_empty(), "{io:?}");
            assert!(part.start.is_multiple_of(block) && part.len().is_multiple_of(block));
        }
        self.in_flight.push(io);
        Ok(())
    }

    fn turn(&mut self, _wait: bool, _ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        Ok(())
    }
}

/// How an operation ended: its number, the kind of its error, and what it has read.
type End = (u32, Result<(), ErrorKind>, Vec<u8>);

struct Machine {
    scheduler: Scheduler,
    ring: Script,
    buffers: Buffers,
    sender: Sender<End>,
    ends: Receiver<End>,
    submitted: u32,
    failure: Arc<OnceLock<Failure>>,
    capacity: Arc<AtomicU64>,
}

impl Machine {
    fn new(blocks: u64) -> Self {
        let (sender, ends) = channel();
        let failure = Arc::<OnceLock<Failure>>::default();
        let capacity = Arc::new(AtomicU64::new(blocks * BLOCK));
        Self {
            scheduler: Scheduler::new(
                "a disk".into(),
                BLOCK,
                4096,
                Arc::clone(&capacity),
                Arc::clone(&failure),
            ),
            capacity,
            ring: Script {
                in_flight: Vec::new(),
                room: usize::MAX,
                disk: vec![0; (blocks * BLOCK) as usize],
            },
            buffers: Buffers::new(BLOCK, 4096, usize::MAX),
            sender,
            ends,
            submitted: 0,
            failure,
        }
    }

    /// Submits an operation; returns its number.
    fn submit_for(&mut self, owner: Owner, operation: Operation) -> u32 {
        let number = self.submitted;
        self.submitted += 1;
        let sender = self.sender.clone();
        let reads = matches!(operation, Operation::Read(_));
        self.scheduler.accept(Submitted {
            owner,
            operation,
            done: Box::new(move |completed| {
                let result = completed.result.map_err(|error| error.kind());
                let data = completed.buffer.filter(|_| reads && result.is_ok());
                let data = data.map_or(Vec::new(), |buffer| buffer.data().to_vec());
                sender.send((number, result, data)).unwrap();
            }),
        });
        self.scheduler.push(&mut self.ring);
        number
    }

    fn submit(&mut self, operation: Operation) -> u32 {
        self.submit_for(Owner(0), operation)
    }

    fn buffer(&self, offset: u64, length: u64) -> Buffer {
        let extent = Extent { offset, length };
        self.buffers.try_take(&[extent]).unwrap().remove(0)
    }

    fn read(&mut self, offset: u64, length: u64) -> u32 {
        let buffer = self.buffer(offset, length);
        self.submit(Operation::Read(buffer))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        let mut buffer = self.buffer(offset, data.len() as u64);
        buffer.data_mut().copy_from_slice(data);
        self.submit(Operation::Write(buffer))
    }

    /// Executes up to `limit` bytes of operation `index` of those in flight, and ends it.
    fn end_after(&mut self, index: usize, limit: usize) {
        let mut io = self.ring.in_flight.remove(index);
        let disk = &mut self.ring.disk;
        let result = match &mut io.action {
            Action::Read { at, memory, part } => {
                let count = limit.min(part.len()).min(disk.len() - *at as usize);
                memory.bytes_mut()[part.start..][..count]
                    .copy_from_slice(&disk[*at as usize..][..count]);
                count
            }
            Action::Write { at, memory, part } => {
                let count = limit.min(part.len());
                disk[*at as usize..][..count]
                    .copy_from_slice(&memory.bytes()[part.start..][..count]);
                count
            }
            Action::WriteZeros { at, memory, part } => {
                let count = limit.min(part.len());
                disk[*at as usize..][..count]
                    .copy_from_slice(&memory.bytes()[part.start..][..count]);
                count
            }
            Action::Allocate { at, length, .. } => {
                disk[*at as usize..][..*length as usize].fill(0);
                0
            }
            Action::Sync => 0,
        };
        self.scheduler.ended(io, result as i32);
        self.scheduler.push(&mut self.ring);
    }

    fn end(&mut self, index: usize) {
        self.end_after(index, usize::MAX);
    }

    /// Ends an operation with this result and does nothing of it.
    fn end_with(&mut self, index: usize, result: i32) {
        let io = self.ring.in_flight.remove(index);
        self.scheduler.ended(io, result);
        self.scheduler.push(&mut self.ring);
    }

    fn ended(&self) -> Vec<End> {
        self.ends.try_iter().collect()
    }

    /// Numbers of the operations that have ended well since.
    #[track_caller]
    fn done(&self) -> Vec<u32> {
        let ended = self.ended();
        assert!(
            ended.iter().all(|(_, result, _)| result.is_ok()),
            "{ended:?}"
        );
        ended.into_iter().map(|(number, ..)| number).collect()
    }
}

#[test]
fn operations_end_in_any_order() {
    const DEPTH: u64 = 256;
    let mut machine = Machine::new(DEPTH);
    for block in 0..DEPTH {
        machine.ring.disk[(block * BLOCK) as usize] = block as u8;
        machine.read(block * BLOCK, 1);
    }
    assert_eq!(machine.ring.in_flight.len(), DEPTH as usize);
    machine.end(100);
    assert_eq!(machine.ended(), [(100, Ok(()), vec![100])]);
    for number in (0..DEPTH as u32).rev().filter(|number| *number != 100) {
        machine.end(machine.ring.in_flight.len() - 1);
        assert_eq!(machine.ended(), [(number, Ok(()), vec![number as u8])]);
    }
}

#[test]
fn a_full_ring_loses_and_blocks_nothing() {
    let mut machine = Machine::new(100);
    machine.ring.room = 2;
    for block in 0..100 {
        machine.write(block * BLOCK, &[block as u8 + 1; BLOCK as usize]);
        assert_eq!(machine.ring.in_flight.len(), 2.min(block as usize + 1));
    }
    let mut done = Vec::new();
    while !machine.ring.in_flight.is_empty() {
        machine.end(machine.ring.in_flight.len() - 1);
        done.extend(machine.done());
    }
    assert_eq!(done.len(), 100);
    let expected: Vec<u8> = (0..100u8).flat_map(|block| [block + 1; 512]).collect();
    assert!(machine.ring.disk == expected);
    assert!(!machine.scheduler.is_busy());
}

#[test]
fn short_transfers_are_continued() {
    let mut machine = Machine::new(8);
    let data: Vec<u8> = (0..4 * BLOCK).map(|byte| (byte % 251) as u8).collect();
    machine.write(0, &data);
    // Whole blocks, and one that ends within a block, which is done again.
    machine.end_after(0, 512);
    machine.end_after(0, 700);
    assert!(machine.done().is_empty());
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    machine.read(1, 4 * BLOCK - 1);
    machine.end_after(0, 1024);
    machine.end_after(0, 513);
    machine.end(0);
    assert_eq!(machine.ended(), [(1, Ok(()), data[1..].to_vec())]);
}

#[test]
fn errors_are_of_their_operation() {
    let mut machine = Machine::new(8);
    machine.read(0, 512);
    machine.write(512, &[1; 512]);
    machine.write(1024, &[2; 512]);
    // Both of its blocks are read first.
    machine.write(2047, &[3; 2]);
    assert_eq!(machine.ring.in_flight.len(), 5);
    machine.end_with(0, -libc::EIO);
    machine.end_with(0, -libc::ENOSPC);
    machine.end_with(1, -libc::EIO);
    machine.end(0);
    machine.end(0);
    let io = Err(ErrorKind::Io);
    let expected = [
        (0, io, vec![]),
        (1, Err(ErrorKind::NoSpace), vec![]),
        (2, Ok(()), vec![]),
        (3, io, vec![]),
    ];
    assert_eq!(machine.ended(), expected);
    assert!(machine.failure.get().is_none());
    assert!(!machine.scheduler.is_busy());
}

#[test]
fn interrupted_operations_are_repeated_but_not_for_ever() {
    let mut machine = Machine::new(1);
    machine.write(0, &[5; 512]);
    machine.end_with(0, -libc::EINTR);
    machine.end_with(0, -libc::EAGAIN);
    machine.end_with(0, -libc::ENOMEM);
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    assert_eq!(machine.ring.disk, [5; 512]);
    machine.read(0, 512);
    for _ in 0..1000 {
        if !machine.ring.in_flight.is_empty() {
            machine.end_with(0, -libc::EAGAIN);
        }
    }
    assert_eq!(machine.ended(), [(1, Err(ErrorKind::Io), vec![])]);
}

/// Writes of parts of a block lose nothing of each other.
#[test]
fn writes_of_a_block_come_one_after_the_other() {
    let mut machine = Machine::new(2);
    for byte in 0..20 {
        machine.write(byte, &[byte as u8 + 1]);
    }
    machine.read(0, 21);
    machine.write(BLOCK, &[9; 512]);
    // The first, and the other block.
    assert_eq!(machine.ring.in_flight.len(), 2);
    machine.end(1);
    assert_eq!(machine.done(), [21]);
    for byte in 0..20 {
        assert_eq!(machine.ring.in_flight.len(), 1);
        // The block is read and written.
        machine.end(0);
        machine.end(0);
        assert_eq!(machine.done(), [byte]);
    }
    machine.end(0);
    let expected: Vec<u8> = (1..=20).chain([0]).collect();
    assert_eq!(machine.ended(), [(20, Ok(()), expected)]);
}

/// What has begun when its owner cancels comes before what is submitted later; what has not
/// is never executed.
#[test]
fn a_stale_write_comes_before_later_ones() {
    let mut machine = Machine::new(2);
    machine.write(0, &[1; 512]);
    machine.write(0, &[2; 512]);
    machine.write(0, &[3; 512]);
    machine.scheduler.cancel(Owner(0));
    machine.write(0, &[4; 512]);
    machine.read(0, 1);
    // Another's are left alone.
    machine.submit_for(Owner(1), Operation::Flush);
    machine.scheduler.cancel(Owner(0));
    machine.write(0, &[5; 512]);
    assert_eq!(machine.ring.in_flight.len(), 2);
    machine.end(0);
    machine.end(0);
    assert_eq!(machine.done(), [0, 5]);
    assert_eq!(machine.ring.in_flight.len(), 1);
    machine.end(0);
    assert_eq!(machine.done(), [6]);
    assert_eq!(machine.ring.disk[..1], [5]);
    assert!(!machine.scheduler.is_busy());
}

/// None begins because another one that it waits for is cancelled with it.
#[test]
fn a_chain_of_operations_is_cancelled_as_one() {
    let mut machine = Machine::new(2);
    machine.write(0, &[1; 512]);
    machine.write(0, &[2; 1024]);
    machine.write(512, &[3; 512]);
    machine.scheduler.cancel(Owner(0));
    machine.scheduler.push(&mut machine.ring);
    assert_eq!(machine.ring.in_flight.len(), 1);
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    assert!(machine.ring.in_flight.is_empty() && !machine.scheduler.is_busy());
    assert_eq!(machine.ring.disk[512..], [0; 512]);
}

#[test]
fn cancelled_flushes_do_not_begin() {
    let mut machine = Machine::new(1);
    machine.submit(Operation::Flush);
    machine.submit(Operation::Flush);
    machine.submit_for(Owner(1), Operation::Flush);
    machine.scheduler.cancel(Owner(0));
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    machine.end(0);
    assert_eq!(machine.done(), [2]);
    assert!(machine.ring.in_flight.is_empty());
}

/// Flushes run beside reads and writes, one at a time, and those that wait become one.
#[test]
fn flushes_that_wait_become_one() {
    let mut machine = Machine::new(2);
    for _ in 0..5 {
        machine.submit(Operation::Flush);
    }
    machine.write(0, &[1; 512]);
    assert_eq!(machine.ring.in_flight.len(), 2);
    machine.end(1);
    assert_eq!(machine.done(), [5]);
    machine.end(0);
    assert_eq!(machine.done(), [0]);
    machine.end(0);
    assert_eq!(machine.done(), [1, 2, 3, 4]);
    assert!(machine.ring.in_flight.is_empty());
}

#[test]
fn zeros_are_written_where_the_file_cannot_be_told() {
    let blocks = 3 * (256 << 10) / BLOCK + 1;
    let mut machine = Machine::new(blocks + 1);
    machine.ring.disk.fill(7);
    let extent = Extent {
        offset: BLOCK,
        length: (blocks - 1) * BLOCK,
    };
    machine.submit(Operation::Discard(extent));
    machine.end_with(0, -libc::EOPNOTSUPP);
    machine.end_after(0, 1024);
    while !machine.ring.in_flight.is_empty() {
        machine.end(0);
    }
    assert_eq!(machine.done(), [0]);
    let (start, end) = (extent.offset as usize, extent.end() as usize);
    assert!(machine.ring.disk[..start].iter().all(|byte| *byte == 7));
    assert!(machine.ring.disk[start..end].iter().all(|byte| *byte == 0));
    assert!(machine.ring.disk[end..].iter().all(|byte| *byte == 7));
    // It is not asked again; the other way is.
    machine.submit(Operation::Discard(extent));
    // All have the same zeros.
    machine.submit(Operation::Discard(Extent {
        offset: 0,
        length: BLOCK,
    }));
    let zeros: Vec<_> = machine
        .ring
        .in_flight
        .iter()
        .map(|io| match &io.action {
            Action::WriteZeros { memory, .. } => Arc::as_ptr(memory),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(zeros.len() == 2 && zeros[0] == zeros[1]);
    machine.end(1);
    assert_eq!(machine.done(), [2]);
    machine.end_with(0, -libc::EIO);
    assert_eq!(machine.ended(), [(1, Err(ErrorKind::Io), vec![])]);
    machine.submit(Operation::WriteZeroes(extent));
    assert!(matches!(
        machine.ring.in_flight[0].action,
        Action::Allocate { .. }
    ));
}

/// More operations than the scheduler compares with each other.
#[test]
fn operations_wait_for_room() {
    const COUNT: u32 = 3000;
    let mut machine = Machine::new(1);
    for number in 0..COUNT {
        machine.write(0, &number.to_le_bytes());
    }
    let mut done = BTreeSet::new();
    while !machine.ring.in_flight.is_empty() {
        machine.end(0);
        done.extend(machine.done());
    }
    assert!(done.into_iter().eq(0..COUNT));
    assert_eq!(machine.ring.disk[..4], (COUNT - 1).to_le_bytes());
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, Vec<u8>),
    /// In blocks.
    Clear(u64, u64, bool),
    /// Within a block.
    ClearPart(u64, u64, bool),
    Flush,
    /// Ends one of those in flight after so many bytes.
    End(prop::sample::Index, usize),
}

const BLOCKS: u64 = 6;

fn step() -> impl Strategy<Value = Step> {
    let extent = || (0..BLOCKS * BLOCK, 1..3 * BLOCK);
    let length = |offset, length: u64| length.min(BLOCKS * BLOCK - offset);
    prop_oneof![
        2 => extent().prop_map(move |(at, n)| Step::Read(at, length(at, n))),
        3 => (extent(), any::<u8>()).prop_map(move |((at, n), seed)| {
            let bytes = 0..length(at, n);
            Step::Write(at, bytes.map(|i| seed.wrapping_add((i % 251) as u8)).collect())
        }),
        1 => (0..BLOCKS, 1..3u64, any::<bool>())
            .prop_map(|(at, n, punch)| Step::Clear(at, n.min(BLOCKS - at), punch)),
        1 => (0..BLOCKS * BLOCK, 1..BLOCK, any::<bool>())
            .prop_map(|(at, n, punch)| Step::ClearPart(at, n.min(BLOCK - at % BLOCK), punch)),
        1 => Just(Step::Flush),
        6 => (any::<prop::sample::Index>(), prop_oneof![Just(usize::MAX), 512..2000usize])
            .prop_map(|(index, limit)| Step::End(index, limit)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the order in which the kernel executes its operations, and however short:
    /// each operation sees those that were submitted before it, and only these.
    #[test]
    fn operations_are_as_if_one_after_the_other(
        steps in prop::collection::vec(step(), 1..80),
        room in 1..8usize,
    ) {
        let mut machine = Machine::new(BLOCKS);
        machine.ring.room = room;
        let mut model = machine.ring.disk.clone();
        let mut expected = Vec::new();
        for step in steps {
            let mut data = Vec::new();
            match step {
                Step::Read(offset, length) => {
                    data = model[offset as usize..][..length as usize].to_vec();
                    machine.read(offset, length);
                }
                Step::Write(offset, bytes) => {
                    model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                    machine.write(offset, &bytes);
                }
                Step::Clear(..) | Step::ClearPart(..) => {
                    let (offset, length, punch) = match step {
                        Step::Clear(at, blocks, punch) => (at * BLOCK, blocks * BLOCK, punch),
                        Step::ClearPart(at, length, punch) => (at, length, punch),
                        _ => unreachable!(),
                    };
                    model[offset as usize..][..length as usize].fill(0);
                    let extent = Extent { offset, length };
                    machine.submit(match punch {
                        true => Operation::Discard(extent),
                        false => Operation::WriteZeroes(extent),
                    });
                }
                Step::Flush => {
                    machine.submit(Operation::Flush);
                }
                Step::End(index, limit) => {
                    if !machine.ring.in_flight.is_empty() {
                        machine.end_after(index.index(machine.ring.in_flight.len()), limit);
                    }
                    continue;
                }
            }
            expected.push((expected.len() as u32, Ok(()), data));
        }
        while !machine.ring.in_flight.is_empty() {
            machine.end(0);
        }
        let mut ended = machine.ended();
        ended.sort_by_key(|(number, ..)| *number);
        prop_assert_eq!(ended, expected);
        prop_assert!(machine.ring.disk == model);
        prop_assert!(!machine.scheduler.is_busy());
    }
}
