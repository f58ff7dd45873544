// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Queues that have no free slot.

use std::fs::File;
use std::io;
use std::time::Duration;

use super::fixture::{BLOCK, Fixture, expect_whole};
use crate::case::{Context, Stop, TIMEOUT, Verdict, expect_bytes, expect_errno};
use crate::fixtures::requests::expect_results;
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, Buffers, Region, Ring, UringOperation};
use crate::{check, check_eq};

/// Bytes of the requests that fill the queues.
const LENGTH: usize = 512;

/// Maximum number of requests: more than all queues together hold.
const MAX_REQUESTS: usize = 4096;

/// Offset of those requests in the device.
const PLACE: u64 = 64 << 20;

/// Requests that fill the queues of a stalled device.
pub(super) struct FullQueues {
    aio: AioContext,
    memory: Region,
    taken: usize,
}

impl FullQueues {
    /// Fills the queues of all CPUs.
    pub(super) fn fill(file: &File) -> Verdict<Self> {
        let mut full = Self {
            aio: AioContext::new(MAX_REQUESTS as u32)?,
            memory: Region::anonymous(MAX_REQUESTS * LENGTH)?,
            taken: 0,
        };
        full.memory.store(0, Self::data());
        loop {
            let before = full.taken;
            for cpu in sys::cpus()? {
                let _pinned = sys::pin_to_cpu(cpu)?;
                // Two refusals in a row, because the first may have another cause.
                let mut refused = 0;
                while refused < 2 {
                    if full.add(file)? {
                        refused = 0;
                    } else {
                        refused += 1;
                    }
                }
            }
            if full.taken == before {
                break;
            }
        }
        check!(full.taken > 0, "not a single request was taken");
        Ok(full)
    }

    fn data() -> &'static [u8] {
        pattern::bytes(77, MAX_REQUESTS * LENGTH)
    }

    /// Submits one more request; returns whether it was accepted.
    fn add(&mut self, file: &File) -> Verdict<bool> {
        let i = self.taken;
        check!(
            i < MAX_REQUESTS,
            "the queues are not full after {i} requests"
        );
        let buffer = self.memory.buffer(i * LENGTH, LENGTH);
        let operation = AioOperation::pwrite(file, buffer, PLACE + (i * LENGTH) as u64)
            .tag(i as u64)
            .flags(libc::RWF_NOWAIT);
        check_eq!(self.aio.submit(&[operation])?, 1, "requests taken");
        // A request that is refused ends at once.
        match self.aio.results(0, 1, Duration::ZERO)?.pop() {
            None => {
                self.taken += 1;
                Ok(true)
            }
            Some((_, Err(error))) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Some(other) => Err(Stop::Failed(format!("request {i}: {other:?}"))),
        }
    }

    /// Checks that all requests succeed after the device was resumed.
    pub(super) fn finish(self, bar: &Region) -> Verdict {
        let results = self.aio.results(self.taken, self.taken, TIMEOUT)?;
        check_eq!(results.len(), self.taken, "results of the full queues");
        let mut seen = vec![false; self.taken];
        for (tag, result) in results {
            check_eq!(result?, LENGTH, "bytes of request {tag}");
            let first = seen
                .get_mut(tag as usize)
                .is_some_and(|seen| !std::mem::replace(seen, true));
            check!(first, "request {tag} ended twice or was never made");
        }
        let length = self.taken * LENGTH;
        let written = bar.load(PLACE as usize, length);
        expect_bytes(&written, &Self::data()[..length], "what filled the queues")
    }
}

/// Checks that calls are refused on each CPU.
fn expect_refused(calls: &[(&str, &dyn Fn() -> io::Result<usize>)]) -> Verdict {
    for cpu in sys::cpus()? {
        let _pinned = sys::pin_to_cpu(cpu)?;
        for (name, call) in calls {
            expect_errno(call(), &[libc::EAGAIN], &format!("{name} on CPU {cpu}"))?;
        }
    }
    Ok(())
}

pub(super) fn nowait(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    b.prepare_read(0);
    let buffers = [b.block(0)];
    let place = Some(Fixture::place(0));
    let read = || sys::preadv2(&b.file, &buffers, place, libc::RWF_NOWAIT);
    let write = || sys::pwritev2(&b.file, &buffers, place, libc::RWF_NOWAIT);
    expect_refused(&[("preadv2", &read), ("pwritev2", &write)])?;
    stall.resume()?;
    full.finish(&b.bar)?;
    // Only the wait for a slot is refused, not that for the device.
    expect_whole(read(), "preadv2 afterwards")?;
    b.expect_read(0)?;
    expect_whole(write(), "pwritev2 afterwards")?;
    b.finish()
}

pub(super) fn nonblock(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    let file = context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    b.prepare_read(0);
    let buffers = [b.block(0)];
    let place = Fixture::place(0);
    let pread = || sys::pread(&file, b.block(0), place);
    let pwrite = || sys::pwrite(&file, b.block(0), place);
    expect_refused(&[
        ("read", &|| sys::read(&file, b.block(0))),
        ("write", &|| sys::write(&file, b.block(0))),
        ("readv", &|| sys::readv(&file, &buffers)),
        ("writev", &|| sys::writev(&file, &buffers)),
        ("pread", &pread),
        ("pwrite", &pwrite),
    ])?;
    check_eq!(
        sys::lseek(&file, 0, libc::SEEK_CUR)?,
        0,
        "position after refusals"
    );
    stall.resume()?;
    full.finish(&b.bar)?;
    expect_whole(pread(), "pread afterwards")?;
    b.expect_read(0)?;
    expect_whole(pwrite(), "pwrite afterwards")?;
    b.finish()
}

pub(super) fn uring(context: &Context) -> Verdict {
    const REQUESTS: usize = 16;

    let b = Fixture::new(context, REQUESTS)?;
    let mut ring = Ring::new(REQUESTS as u32)?;
    let stall = b.host.stall()?;
    let full = FullQueues::fill(&b.file)?;
    let operations: Vec<_> = (0..REQUESTS)
        .map(|i| {
            let (buffer, place) = (Buffers::One(b.block(i)), Fixture::place(i));
            let operation = if i.is_multiple_of(2) {
                b.prepare_write(i);
                UringOperation::write(&b.file, buffer, place)
            } else {
                b.prepare_read(i);
                UringOperation::read(&b.file, buffer, place)
            };
            operation.tag(i as u64)
        })
        .collect();
    check_eq!(ring.submit(&operations)?, REQUESTS, "requests taken");
    let early = ring.results(REQUESTS, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    stall.resume()?;
    full.finish(&b.bar)?;
    expect_results(ring.results(REQUESTS, TIMEOUT)?, REQUESTS, BLOCK)?;
    for i in 0..REQUESTS {
        if i.is_multiple_of(2) {
            b.expect_written(i)?;
        } else {
            b.expect_read(i)?;
        }
    }
    b.finish()
}
