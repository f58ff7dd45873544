// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads into provided buffers of io_uring: each completion must name the buffer, which
//! must hold the data of this read only.

use std::fs::File;

use crate::case::{Context, During, Stop, Verdict, expect_errno};
use crate::pattern;
use crate::sys::{self, Kind, Provided, Provision, Region, Ring, Selected, UringOperation};
use crate::{check, check_eq};

/// Maximum number of concurrent reads.
pub(super) const MAX_READS: usize = 64;

/// All methods of providing buffers.
pub(super) const PROVISIONS: [Provision; 3] =
    [Provision::Ring, Provision::Incremental, Provision::Legacy];

/// A ring, and buffers for a number of reads.
pub(super) struct Reads {
    pub(super) ring: Ring,
    provided: Provided,
    /// Reads for each buffer.
    parts: usize,
    /// Bytes of each read.
    length: usize,
    count: usize,
}

/// Offset of read `i` in the device: not aligned.
fn place(i: usize, length: usize) -> u64 {
    (3 + i * (length + 513)) as u64
}

impl Reads {
    /// For `count` reads, a power of two, of `length` bytes each.
    pub(super) fn new(
        kind: Kind,
        provision: Provision,
        count: usize,
        length: usize,
    ) -> Verdict<Self> {
        let parts = match provision {
            Provision::Incremental => count.min(4),
            Provision::Ring | Provision::Legacy => 1,
        };
        let mut ring = Ring::of_kind(kind, MAX_READS as u32)?;
        let provided = Provided::new(&mut ring, provision, (count / parts) as u16, length * parts)?;
        Ok(Self {
            ring,
            provided,
            parts,
            length,
            count,
        })
    }

    fn data(&self, seed: u64, i: usize) -> &'static [u8] {
        pattern::bytes(seed + i as u64, self.length)
    }

    /// Stores data in the device, and other bytes in the buffers.
    pub(super) fn prepare(&self, bar: &Region, seed: u64) {
        for i in 0..self.count {
            bar.store(place(i, self.length) as usize, self.data(seed, i));
        }
        let memory = self.provided.memory();
        memory.fill(0, memory.len(), 0xcc);
    }

    /// Submits the reads.
    pub(super) fn submit(&mut self, file: &File) -> Verdict {
        let (buffers, length) = (&self.provided, self.length);
        let reads: Vec<_> = (0..self.count)
            .map(|i| {
                UringOperation::read_provided(file, buffers, length, place(i, length)).tag(i as u64)
            })
            .collect();
        let taken = self.ring.submit(&reads)?;
        check_eq!(taken, self.count, "reads taken");
        Ok(())
    }

    /// Takes the results of all reads, and compares the data.
    pub(super) fn expect(&mut self, seed: u64) -> Verdict {
        let results = self.ring.selected(self.count, crate::case::TIMEOUT)?;
        check_eq!(results.len(), self.count, "results");
        let mut ended = vec![false; self.count];
        // One flag per part of a buffer.
        let mut filled = vec![false; self.count];
        let mut unfinished = vec![0; self.provided.count()];
        for selected in results {
            let Selected { tag, result, .. } = selected;
            let i = tag as usize;
            let first = ended
                .get_mut(i)
                .is_some_and(|ended| !std::mem::replace(ended, true));
            check!(first, "read {i} ended twice or was never made");
            let bytes = result.during(|| format!("read {i}"))?;
            check_eq!(bytes, self.length, "bytes of read {i}");
            let Some(buffer) = selected.buffer else {
                return Err(Stop::Failed(format!("read {i} names no buffer")));
            };
            let buffer = usize::from(buffer);
            check!(
                buffer < self.provided.count(),
                "read {i} names buffer {buffer}"
            );
            unfinished[buffer] += usize::from(selected.buffer_more);
            check!(!selected.more, "read {i} goes on");
            let data = self.data(seed, i);
            let part = (buffer * self.parts..(buffer + 1) * self.parts).find(|&part| {
                !filled[part]
                    && self.provided.memory().load(part * self.length, self.length) == data
            });
            let Some(part) = part else {
                return Err(Stop::Failed(format!(
                    "the data of read {i} is not in buffer {buffer}, or there twice"
                )));
            };
            filled[part] = true;
        }
        // All but the last read of a buffer leave space in it.
        let left = vec![self.parts - 1; self.provided.count()];
        check_eq!(unfinished, left, "reads that left a part of each buffer");
        Ok(())
    }

    /// Checks that no buffer is left, and provides all of them again.
    pub(super) fn again(&mut self, file: &File) -> Verdict {
        let read = UringOperation::read_provided(file, &self.provided, self.length, 0);
        expect_errno(
            self.ring.run(&read),
            &[libc::ENOBUFS],
            "a read without buffers",
        )?;
        Ok(self.provided.provide_again(&mut self.ring)?)
    }
}

/// Reads on an idle device, until the buffers are used up.
fn rounds(context: &Context, kind: Kind, file: &File) -> Verdict {
    let bar = context.map()?;
    for provision in PROVISIONS {
        for count in [1, 2, 16, MAX_READS] {
            let what = || format!("{provision:?}, {count} reads");
            let mut reads = Reads::new(kind, provision, count, 4096).during(what)?;
            for round in 0..3 {
                let seed = 4000 + 100 * round;
                reads.prepare(&bar, seed);
                reads.submit(file).during(what)?;
                reads
                    .expect(seed)
                    .and_then(|()| reads.again(file))
                    .during(|| format!("{}, round {round}", what()))?;
            }
        }
    }
    // One call of several requests.
    let mut reads = Reads::new(kind, Provision::Ring, 2, 2 << 20)?;
    reads.prepare(&bar, 4500);
    reads.submit(file)?;
    reads.expect(4500).during(|| "2 MiB".into())
}

pub(super) fn plain(context: &Context) -> Verdict {
    rounds(context, Kind::Plain, &context.open()?)
}

pub(super) fn sqpoll(context: &Context) -> Verdict {
    rounds(context, Kind::SqPoll, &context.open()?)
}

pub(super) fn defer_taskrun(context: &Context) -> Verdict {
    rounds(context, Kind::DeferTaskrun, &context.open()?)
}

pub(super) fn iopoll(context: &Context) -> Verdict {
    let direct = libc::O_RDWR | libc::O_DIRECT;
    rounds(context, Kind::IoPoll, &context.open_with(direct)?)?;
    // On a pollable file, io_uring would lose the buffers.
    let file = context.open_with(direct | libc::O_NONBLOCK)?;
    let mut reads = Reads::new(Kind::IoPoll, Provision::Ring, 1, 4096)?;
    reads.submit(&file)?;
    let result = reads.ring.results(1, crate::case::TIMEOUT)?.pop();
    let Some((_, result)) = result else {
        return Err(Stop::Failed("no result".into()));
    };
    expect_errno(result, &[libc::EOPNOTSUPP], "a file that can be polled")
}

/// A pollable file, whatever its flags become later, and one that is not.
pub(super) fn nonblock(context: &Context) -> Verdict {
    let pollable = context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    let other = context.open()?;
    for (file, name) in [(&pollable, "pollable"), (&other, "not pollable")] {
        let flags = sys::file_flags(file)?;
        for flags in [flags, flags ^ libc::O_NONBLOCK] {
            sys::set_file_flags(file, flags)?;
            for kind in [Kind::Plain, Kind::SqPoll, Kind::DeferTaskrun] {
                rounds(context, kind, file)
                    .during(|| format!("{name}, flags {flags:#x}, {kind:?}"))?;
            }
        }
    }
    Ok(())
}

pub(super) fn multishot(context: &Context) -> Verdict {
    const LENGTH: usize = 4096;
    /// Bytes of the last read.
    const REST: usize = 100;

    let mut reads = Reads::new(Kind::Plain, Provision::Ring, 8, LENGTH)?;
    let start = context.size() - (3 * LENGTH + REST) as u64;
    let bar = context.map()?;
    let data = pattern::bytes(4600, 3 * LENGTH + REST);
    bar.store(start as usize, data);

    // Multishot reads need a pollable file.
    let other = context.open()?;
    let read = UringOperation::read_multishot(&other, &reads.provided, start);
    expect_errno(reads.ring.run(&read), &[libc::EBADFD], "not pollable")?;

    let file = context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    let read = UringOperation::read_multishot(&file, &reads.provided, start);
    check_eq!(reads.ring.submit(&[read])?, 1, "reads taken");
    let results = reads.ring.selected(5, crate::case::TIMEOUT)?;
    check_eq!(results.len(), 5, "results");
    let mut at = 0;
    for (i, selected) in results.into_iter().enumerate() {
        let expected = LENGTH.min(data.len() - at);
        let bytes = selected.result.during(|| format!("result {i}"))?;
        check_eq!(bytes, expected, "bytes of result {i}");
        // The end of the device ends the operation.
        check_eq!(selected.more, i < 4, "whether result {i} goes on");
        if let Some(buffer) = selected.buffer {
            // Each buffer is used once, and so in order.
            check_eq!(usize::from(buffer), i, "buffer of result {i}");
            let seen = reads.provided.memory().load(i * LENGTH, bytes);
            check!(seen == data[at..at + bytes], "wrong data in buffer {i}");
        } else {
            check_eq!(bytes, 0, "bytes of result {i}, which names no buffer");
        }
        at += bytes;
    }
    check_eq!(at, data.len(), "bytes in all");
    Ok(())
}
