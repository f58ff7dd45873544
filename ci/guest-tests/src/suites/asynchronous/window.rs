// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests for both engines.

use std::fs::File;

use super::fixture::{BLOCK, Fixture, TIMEOUT};
use crate::case::{Context, During, Stop, Verdict, expect_bytes, expect_errno};
use crate::method::Direction;
use crate::pattern::{self, Random};
use crate::sys::{AioContext, AioOperation, Buffers, IoVec, Ring, UringOperation};
use crate::{check, check_eq};

/// An engine, as far as [`window`] needs it.
pub(super) trait Engine {
    /// Starts one transfer; returns how many were taken.
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize>;

    /// Waits for one result.
    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>>;
}

impl Engine for AioContext {
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize> {
        let operation = match direction {
            Direction::Read => AioOperation::pread(file, buffer, offset),
            Direction::Write => AioOperation::pwrite(file, buffer, offset),
        };
        AioContext::submit(self, &[operation.tag(tag)])
    }

    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>> {
        self.results(1, 1, TIMEOUT)
    }
}

impl Engine for Ring {
    fn submit(
        &mut self,
        tag: u64,
        direction: Direction,
        file: &File,
        buffer: IoVec,
        offset: u64,
    ) -> std::io::Result<usize> {
        let buffers = Buffers::One(buffer);
        let operation = match direction {
            Direction::Read => UringOperation::read(file, buffers, offset),
            Direction::Write => UringOperation::write(file, buffers, offset),
        };
        Ring::submit(self, &[operation.tag(tag)])
    }

    fn wait(&mut self) -> std::io::Result<Vec<(u64, std::io::Result<usize>)>> {
        self.results(1, TIMEOUT)
    }
}

/// Number of requests that [`window`] keeps in flight.
pub(super) const WIDTH: usize = 8;

/// Bytes of the device, and of memory, for each of these requests.
pub(super) const SLOT: usize = 256 << 10;

/// Keeps requests of random size and offset in flight. Each slot writes, and reads back
/// what it wrote.
pub(super) fn window(b: &Fixture, engine: &mut dyn Engine) -> Verdict {
    const ROUNDS: u64 = 200;

    /// The request in flight of a slot.
    #[derive(Clone, Copy)]
    struct Request {
        direction: Direction,
        place: usize,
        length: usize,
        seed: u64,
    }

    let submit = |engine: &mut dyn Engine, slot: usize, request: Request| -> Verdict {
        let buffer = b.memory.buffer(request.place, request.length);
        let offset = request.place as u64;
        let taken = engine.submit(slot as u64, request.direction, &b.file, buffer, offset)?;
        check_eq!(taken, 1, "operations taken");
        Ok(())
    };
    let mut random = Random::new(42);
    let mut next = |slot: usize, seed: u64| {
        let length = 1 + random.below(SLOT as u64 / 2) as usize;
        let place = slot * SLOT + random.below((SLOT - length) as u64) as usize;
        b.memory.store(place, pattern::bytes(seed, length));
        Request {
            direction: Direction::Write,
            place,
            length,
            seed,
        }
    };

    let mut slots = Vec::new();
    for slot in 0..WIDTH {
        let request = next(slot, slot as u64);
        submit(engine, slot, request)?;
        slots.push(request);
    }
    let mut finished = 0;
    while finished < ROUNDS {
        let results = engine.wait()?;
        check!(!results.is_empty(), "no result in time");
        for (tag, result) in results {
            let slot = tag as usize;
            let Some(request) = slots.get_mut(slot) else {
                return Err(Stop::Failed(format!("a result for slot {slot}")));
            };
            let moved = result.during(|| format!("slot {slot}"))?;
            check_eq!(moved, request.length, "bytes of slot {slot}");
            let data = pattern::bytes(request.seed, request.length);
            if request.direction == Direction::Write {
                let seen = b.bar.load(request.place, request.length);
                expect_bytes(&seen, data, "in the device")?;
                b.memory.fill(request.place, request.length, 0);
                request.direction = Direction::Read;
            } else {
                let seen = b.memory.load(request.place, request.length);
                expect_bytes(&seen, data, "read back")?;
                finished += 1;
                *request = next(slot, 1000 + finished);
            }
            submit(engine, slot, *request)?;
        }
    }
    for _ in 0..WIDTH {
        let results = engine.wait()?;
        check_eq!(results.len(), 1, "results at the end");
    }
    Ok(())
}

/// Requests that must fail, with the expected results.
fn bad_requests(context: &Context) -> [(Direction, IoVec, u64, Result<usize, i32>); 4] {
    let end = context.size();
    [
        (Direction::Read, IoVec::null(BLOCK), 0, Err(libc::EFAULT)),
        (Direction::Write, IoVec::null(BLOCK), 0, Err(libc::EFAULT)),
        (Direction::Write, IoVec::null(1), end, Err(libc::ENOSPC)),
        (Direction::Read, IoVec::null(1), end, Ok(0)),
    ]
}

/// Makes requests that must fail, each followed by one that must succeed.
pub(super) fn expect_failures(context: &Context, engine: &mut dyn Engine) -> Verdict {
    let b = Fixture::new(context, BLOCK)?;
    let good = b.memory.buffer(0, BLOCK);
    for (direction, mut buffer, offset, expected) in bad_requests(context) {
        if expected != Err(libc::EFAULT) {
            buffer = b.memory.buffer(0, buffer.len());
        }
        let what = format!("{direction:?} of {} bytes at {offset}", buffer.len());
        // The error may come from the submission or with the result.
        let result = match engine.submit(7, direction, &b.file, buffer, offset) {
            Ok(_) => {
                let results = engine.wait()?;
                check_eq!(results.len(), 1, "{what}: results");
                results
                    .into_iter()
                    .next()
                    .map_or(Ok(0), |(_, result)| result)
            }
            Err(error) => Err(error),
        };
        match expected {
            Ok(bytes) => check_eq!(result.during(|| what.clone())?, bytes, "{what}"),
            Err(errno) => expect_errno(result, &[errno], &what)?,
        }
        engine.submit(8, direction, &b.file, good, 0)?;
        expect_results_of_one(engine.wait()?, 8, BLOCK)?;
    }
    Ok(())
}

fn expect_results_of_one(
    results: Vec<(u64, std::io::Result<usize>)>,
    tag: u64,
    bytes: usize,
) -> Verdict {
    check_eq!(results.len(), 1, "number of results");
    for (found, result) in results {
        check_eq!(found, tag, "tag of the result");
        check_eq!(result?, bytes, "bytes moved");
    }
    Ok(())
}
