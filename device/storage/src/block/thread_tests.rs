// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The thread on rings that fail or are small.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::BlockStorage;
use super::uring::Uring;
use crate::aligned::Memory;
use crate::asynchronous::{Completed, Operation};
use crate::disk::ring::{Action, Io, Ring, Stage, Waker};
use crate::error::ErrorKind;
use crate::extent::{Extent, Owner};
use crate::storage::Storage;

/// Longest that a ring is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A ring whose first operation fails it, or the thread.
#[derive(Debug)]
struct Broken {
    in_flight: Vec<Io>,
    panics: bool,
}

impl Ring for Broken {
    const NAME: &'static str = "io_uring";

    fn push(&mut self, io: Io) -> Result<(), Io> {
        assert_eq!(io.stage, Stage::Main);
        self.in_flight.push(io);
        Ok(())
    }

    fn turn(&mut self, wait: bool, _ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        match self.in_flight.is_empty() {
            true if wait => std::thread::park(),
            true => {}
            false if self.panics => panic!("on purpose"),
            false => return Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
        Ok(())
    }
}

/// Whoever waits for an operation hears of the end of the ring, and so does whoever comes later.
#[test]
fn a_ring_that_breaks_leaves_nobody_waiting() {
    for panics in [false, true] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let storage = BlockStorage::open_with(file.path(), Some(1 << 20), move |_| {
            let ring = Broken {
                in_flight: Vec::new(),
                panics,
            };
            let thread = std::thread::current();
            Ok((ring, Arc::new(move || thread.unpark()) as Waker))
        });
        let storage = storage.unwrap();
        let mut data = [1; 4096];
        for _ in 0..3 {
            let error = storage.write(0, VolatileSlice::from(&mut data[..]));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Io);
            storage.flush().unwrap_err();
            storage.resize(2 << 20).unwrap_err();
        }
        let why = if panics { "panicked" } else { "io_uring" };
        let failure = storage.failure().unwrap().reason;
        assert!(failure.contains(why), "{failure}");
    }
}

/// A submission queue of a single entry, and so few completions, hold nothing up.
#[test]
fn a_ring_of_one_entry_executes_everything() {
    const COUNT: u64 = 300;
    let file = tempfile::NamedTempFile::new().unwrap();
    let storage = BlockStorage::open_with(file.path(), Some(COUNT << 12), |file| {
        let ring = Uring::new(file, 1)?;
        let waker = ring.waker();
        Ok((ring, waker))
    })
    .unwrap();
    let face = storage.asynchronous().unwrap();
    let (sender, ended) = channel();
    for number in 0..COUNT {
        let extent = Extent {
            offset: (number << 12) + 1,
            length: 4094,
        };
        let mut buffer = face.buffers().try_take(&[extent]).unwrap().remove(0);
        buffer.data_mut().fill(number as u8 | 1);
        let sender = sender.clone();
        let done = move |completed: Completed| sender.send((number, completed.result)).unwrap();
        face.submit(Owner(0), Operation::Write(buffer), Box::new(done));
    }
    drop(sender);
    let mut numbers: Vec<_> = ended
        .into_iter()
        .map(|(number, result)| result.map(|()| number).unwrap())
        .collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..COUNT));
    let mut data = vec![0; (COUNT << 12) as usize];
    storage.read(0, VolatileSlice::from(&mut data[..])).unwrap();
    for (number, block) in data.chunks(4096).enumerate() {
        assert!(block[1..4095].iter().all(|byte| *byte == number as u8 | 1));
        assert_eq!([block[0], block[4095]], [0, 0]);
    }
}

/// A ring whose kernel holds the thread up in a submission, until the test lets it go.
#[derive(Debug)]
struct Stuck {
    begun: Sender<()>,
    go_on: Receiver<()>,
    /// An operation came.
    was_stuck: bool,
}

impl Ring for Stuck {
    const NAME: &'static str = "io_uring";

    fn push(&mut self, io: Io) -> Result<(), Io> {
        self.was_stuck = true;
        self.begun.send(()).unwrap();
        // A test that has failed does not say so.
        let _ = self.go_on.recv_timeout(TIMEOUT);
        Err(io)
    }

    fn turn(&mut self, wait: bool, _ended: &mut Vec<(Io, i32)>) -> io::Result<()> {
        match (self.was_stuck, wait) {
            (true, _) => return Err(io::Error::from_raw_os_error(libc::EBADF)),
            (false, true) => std::thread::park(),
            (false, false) => {}
        }
        Ok(())
    }
}

/// Whoever submits and cancels again and again leaves nothing behind with a thread that is held
/// up, and waits for nothing.
#[test]
fn cancelled_operations_do_not_pile_up() {
    let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
    let file = tempfile::NamedTempFile::new().unwrap();
    let storage = BlockStorage::open_with(file.path(), Some(1 << 20), move |_| {
        let ring = Stuck {
            begun,
            go_on: goes_on,
            was_stuck: false,
        };
        let thread = std::thread::current();
        Ok((ring, Arc::new(move || thread.unpark()) as Waker))
    });
    let storage = storage.unwrap();
    let face = storage.asynchronous().unwrap();
    let (sender, ended) = channel();
    let submit = |owner, operation| {
        let sender = sender.clone();
        let done = move |_: Completed| sender.send(owner).unwrap();
        face.submit(Owner(owner), operation, Box::new(done));
    };
    let flush = |owner| submit(owner, Operation::Flush);
    // One of several parts.
    let extent = Extent {
        offset: 100,
        length: 10_000,
    };
    flush(7);
    begins.recv().unwrap();
    for _ in 0..100 {
        for owner in 0..3 {
            (0..10).for_each(|_| flush(owner));
            submit(owner, Operation::Discard(extent));
            face.cancel(Owner(owner));
        }
    }
    flush(8);
    submit(8, Operation::Discard(extent));
    // No memory is taken for what waits, however much that is.
    let parts = storage.disk.last_discards();
    assert_eq!(
        parts.iter().map(|part| part.length).sum::<u64>(),
        extent.length
    );
    face.cancel(Owner(8));
    flush(8);
    // One for each who cancelled, and what was not cancelled.
    let messages = storage.disk.messages();
    assert_eq!(messages, 5);
    go_on.send(()).unwrap();
    drop(storage);
    drop((face, sender));
    let mut ended: Vec<_> = ended.into_iter().collect();
    ended.sort_unstable();
    assert_eq!(ended, [7, 8]);
}

/// Zeros that several operations write at once, also where the file is shorter than they are.
#[test]
fn a_ring_writes_shared_zeros() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 5000], 0).unwrap();
    let mut ring = Uring::new(Arc::new(file.try_clone().unwrap()), 4).unwrap();
    let zeros = Arc::new(Memory::zeroed(4096, 4096));
    let parts = [(1000, 0..1000), (3000, 2000..4096)];
    for (at, part) in parts.clone() {
        let (memory, stage) = (Arc::clone(&zeros), Stage::Main);
        let action = Action::WriteZeros { at, memory, part };
        let operation = at;
        ring.push(Io {
            operation,
            stage,
            action,
        })
        .unwrap();
    }
    let mut ended = Vec::new();
    while ended.len() < parts.len() {
        ring.turn(true, &mut ended).unwrap();
    }
    for (io, result) in ended {
        let part = parts
            .iter()
            .find(|(at, _)| *at == io.operation)
            .unwrap()
            .1
            .clone();
        assert_eq!(result, part.len() as i32);
    }
    let mut bytes = [1; 5096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let expected = |at| match at {
        1000..2000 | 3000.. => 0,
        _ => 7,
    };
    assert!((0..5096).all(|at| bytes[at] == expected(at)));
}
