// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A range as a sequence of blocks.
//!
//! Block `n` is in slot `n % depth`. A block that completes before an earlier one waits in its slot,
//! so that blocks are prepared and consumed in the order of their offsets. The first error in that
//! order ends the job.
//!
//! ```text
//! prepare ──► submit ──► in flight ──► complete ──► consume ──► the slot is free
//!                ▲                        │
//!                └──── short transfer ◄───┘
//! ```

use std::io;
use std::time::{Duration, Instant};

use crate::range::Range;
use crate::sys::queue::{Completed, Direction, Queue};

use super::measurement::Measurement;

/// A job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Direction of all blocks.
    pub direction: Direction,
    /// Range in the file.
    pub range: Range,
    /// Number of bytes of a block, not 0; the last one may be shorter.
    pub block: u32,
    /// With a time, the job begins again at the start of the range until the time is over. It
    /// submits at least one block, however short the time is.
    pub time: Option<Duration>,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Offset in the file.
    pub offset: u64,
    /// Number of bytes.
    pub length: usize,
}

/// The user of the data.
pub trait Data {
    /// Error of the data's source or destination.
    type Error;

    /// Fills `bytes` with the data that is written at `offset`. Returns the number of bytes; less
    /// than all ends the job after them.
    fn prepare(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize, Self::Error>;

    /// Gets the data that was read at `offset`, or that was written there.
    fn consume(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Why a job ended early.
#[derive(Debug)]
pub enum JobError<E> {
    /// A transfer failed.
    Transfer {
        /// The part of the block that was not transferred.
        block: Block,
        /// Number of bytes before it that were transferred.
        done: u64,
        /// Cause; `UnexpectedEof` if nothing was transferred.
        source: io::Error,
    },
    /// The interface of the kernel failed.
    Queue(io::Error),
    /// The source or destination of the data failed.
    Data(E),
}

/// A block in its slot.
#[derive(Debug)]
struct Slot {
    block: Block,
    /// Number of bytes that are transferred.
    done: usize,
    submitted: Instant,
    /// The time of the end, or the error.
    end: Option<io::Result<Instant>>,
}

impl Job {
    /// Executes the job. `progress` is called with the number of bytes of each block.
    pub fn run<D: Data>(
        &self,
        queue: &mut Queue,
        data: &mut D,
        mut progress: impl FnMut(u64),
    ) -> Result<Measurement, JobError<D::Error>> {
        let depth = queue.depth() as u64;
        let mut measurement = Measurement::new();
        let mut slots: Vec<Option<Slot>> = (0..queue.depth()).map(|_| None).collect();
        let mut completed: Vec<Completed> = Vec::new();
        let mut blocks = self.blocks();
        // Numbers of the next block to submit and to consume.
        let (mut next, mut head) = (0u64, 0u64);
        let started = Instant::now();
        let mut more = true;
        loop {
            while more && next - head < depth {
                let over = next > 0 && self.time.is_some_and(|time| started.elapsed() >= time);
                let Some(mut block) = blocks.next().filter(|_| !over) else {
                    more = false;
                    break;
                };
                let slot = (next % depth) as usize;
                if self.direction == Direction::Write {
                    let wanted = block.length;
                    let bytes = &mut queue.buffer(slot)[..wanted];
                    block.length = data.prepare(block.offset, bytes).map_err(JobError::Data)?;
                    more = block.length == wanted;
                    if block.length == 0 {
                        break;
                    }
                }
                slots[slot] = Some(Slot {
                    block,
                    done: 0,
                    submitted: Instant::now(),
                    end: None,
                });
                queue.submit(slot, self.direction, 0, block.length, block.offset);
                next += 1;
            }
            if head == next {
                break;
            }
            queue.wait(&mut completed).map_err(JobError::Queue)?;
            for Completed { slot, result } in completed.drain(..) {
                let state = slots[slot].as_mut().expect("a block is in this slot");
                let rest = state.block.length - state.done;
                state.end = Some(match result {
                    Ok(count) if count == rest => Ok(Instant::now()),
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => {
                        state.done += count;
                        let offset = state.block.offset + state.done as u64;
                        queue.submit(slot, self.direction, state.done, rest - count, offset);
                        continue;
                    }
                    Err(error) => Err(error),
                });
            }
            while head < next {
                let slot = (head % depth) as usize;
                let Some(state) = slots[slot].take_if(|state| state.end.is_some()) else {
                    break;
                };
                let Slot { block, done, .. } = state;
                let end = state.end.expect("checked above");
                let end = end.map_err(|source| JobError::Transfer {
                    block: Block {
                        offset: block.offset + done as u64,
                        length: block.length - done,
                    },
                    done: measurement.bytes + done as u64,
                    source,
                })?;
                measurement.add(block.length as u64, end - state.submitted);
                data.consume(block.offset, &queue.buffer(slot)[..block.length])
                    .map_err(JobError::Data)?;
                progress(block.length as u64);
                head += 1;
            }
        }
        measurement.elapsed = started.elapsed();
        Ok(measurement)
    }

    /// The blocks of the range, again and again if the job has a time.
    fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let Range { start, length } = self.range;
        let block = u64::from(self.block);
        let count = length.div_ceil(block);
        let one = (0..count).map(move |number| Block {
            offset: start + number * block,
            // CAST: at most `block`, which has 32 bits.
            length: block.min(length - number * block) as usize,
        });
        let rounds = if self.time.is_some() { usize::MAX } else { 1 };
        std::iter::repeat_n(one, if count == 0 { 0 } else { rounds }).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::queue::Engine;
    use proptest::prelude::*;
    use std::convert::Infallible;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    const ENGINES: [Engine; 3] = [Engine::Sync, Engine::Libaio, Engine::IoUring];

    /// Data that is made of offsets, and keeps what it gets.
    struct Log {
        /// The number of bytes that there are to write.
        left: usize,
        consumed: Vec<(u64, Vec<u8>)>,
    }

    impl Data for Log {
        type Error = Infallible;

        fn prepare(&mut self, offset: u64, bytes: &mut [u8]) -> Result<usize, Infallible> {
            let count = bytes.len().min(self.left);
            self.left -= count;
            for (at, byte) in (offset..).zip(&mut bytes[..count]) {
                *byte = at as u8;
            }
            Ok(count)
        }

        fn consume(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Infallible> {
            self.consumed.push((offset, bytes.to_vec()));
            Ok(())
        }
    }

    fn log() -> Log {
        Log {
            left: usize::MAX,
            consumed: Vec::new(),
        }
    }

    fn file(length: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
        file.write_all(&content).unwrap();
        file
    }

    fn queue(file: &File, engine: Engine, depth: u32, block: u32) -> Queue {
        Queue::new(file.try_clone().unwrap(), engine, depth, block).unwrap()
    }

    fn job(direction: Direction, start: u64, length: u64, block: u32) -> Job {
        Job {
            direction,
            range: Range { start, length },
            block,
            time: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_range_is_read_and_written_once_and_in_order(
            engine in prop::sample::select(&ENGINES[..]),
            start in 0..300u64,
            length in 0..3000u64,
            block in 1..700u32,
            depth in 1..9u32,
        ) {
            let file = file(4000);
            let mut data = log();
            let mut seen = 0;
            let found = job(Direction::Read, start, length, block)
                .run(&mut queue(&file, engine, depth, block), &mut data, |bytes| seen += bytes)
                .unwrap();
            let mut at = start;
            for (offset, bytes) in &data.consumed {
                prop_assert_eq!(*offset, at);
                prop_assert!(bytes.iter().zip(at..).all(|(byte, at)| *byte == at as u8));
                at += bytes.len() as u64;
            }
            prop_assert_eq!(at, start + length);
            prop_assert_eq!((found.bytes, seen), (length, length));
            prop_assert_eq!(found.blocks, length.div_ceil(block.into()));

            file.write_all_at(&vec![0xee; 4000], 0).unwrap();
            job(Direction::Write, start, length, block)
                .run(&mut queue(&file, engine, depth, block), &mut log(), |_| {})
                .unwrap();
            let mut found = vec![0; 4000];
            file.read_exact_at(&mut found, 0).unwrap();
            for (at, byte) in (0..).zip(found) {
                let within = (start..start + length).contains(&at);
                prop_assert_eq!(byte, if within { at as u8 } else { 0xee });
            }
        }
    }

    #[test]
    fn the_end_of_the_source_ends_the_job() {
        for left in [0, 1, 511, 512, 513, 1024] {
            let file = tempfile::tempfile().unwrap();
            let mut data = Log { left, ..log() };
            let found = job(Direction::Write, 0, 5000, 512)
                .run(
                    &mut queue(&file, Engine::IoUring, 3, 512),
                    &mut data,
                    |_| {},
                )
                .unwrap();
            assert_eq!(found.bytes, left as u64);
            assert_eq!(file.metadata().unwrap().len(), left as u64);
        }
    }

    #[test]
    fn an_error_names_the_part_that_was_not_transferred() {
        for engine in ENGINES {
            // The file ends within the third block.
            let mut data = log();
            let error = job(Direction::Read, 10, 4000, 512)
                .run(&mut queue(&file(1234), engine, 4, 512), &mut data, |_| {})
                .unwrap_err();
            let JobError::Transfer {
                block,
                done,
                source,
            } = error
            else {
                panic!("{error:?}");
            };
            assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof, "{engine:?}");
            assert_eq!((block.offset, block.length), (1234, 10 + 3 * 512 - 1234));
            assert_eq!(done, 1224);
            assert_eq!(data.consumed.len(), 2);
        }
    }

    #[test]
    fn a_job_with_a_time_starts_again_at_the_start_of_its_range() {
        let file = tempfile::tempfile().unwrap();
        for engine in ENGINES {
            // The end of the data ends the job.
            let mut data = Log {
                left: 2 * 1000 + 500,
                ..log()
            };
            let job = Job {
                time: Some(Duration::MAX),
                ..job(Direction::Write, 0, 1000, 400)
            };
            let found = job
                .run(&mut queue(&file, engine, 2, 400), &mut data, |_| {})
                .unwrap();
            let blocks = data.consumed.iter();
            let blocks: Vec<_> = blocks.map(|(at, bytes)| (*at, bytes.len())).collect();
            let round = [(0, 400), (400, 400), (800, 200)];
            let expected = [&round[..], &round, &[(0, 400), (400, 100)]].concat();
            assert_eq!(blocks, expected, "{engine:?}");
            assert_eq!(found.blocks, 8);
        }
    }

    #[test]
    fn a_job_whose_time_is_over_at_once_transfers_a_block() {
        for engine in ENGINES {
            let job = Job {
                time: Some(Duration::ZERO),
                ..job(Direction::Read, 0, 1000, 400)
            };
            let found = job
                .run(&mut queue(&file(1000), engine, 2, 400), &mut log(), |_| {})
                .unwrap();
            assert_eq!((found.blocks, found.bytes), (1, 400), "{engine:?}");
            assert!(found.elapsed > Duration::ZERO, "{engine:?}");
        }
    }

    #[test]
    fn a_job_without_bytes_ends_at_once() {
        let job = Job {
            time: Some(Duration::MAX),
            ..job(Direction::Read, 0, 0, 400)
        };
        let mut queue = queue(&file(10), Engine::IoUring, 1, 400);
        assert_eq!(job.run(&mut queue, &mut log(), |_| {}).unwrap().blocks, 0);
    }
}
