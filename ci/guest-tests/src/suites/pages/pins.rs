// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How often a call pins its pages, and in which thread.

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::case::{Context, During, Verdict, expect_bytes};
use crate::pattern;
use crate::pins::Pins;
use crate::suites::asynchronous::workers;
use crate::sys::{self, AioContext, AioOperation, Buffers, PAGE, Region, Ring, UringOperation};
use crate::{check, check_eq};

/// Numbers of requests of a call: one batch, one more, and many.
pub(super) const REQUESTS: [usize; 3] = [8, 9, 64];

/// Maximum bytes of a request of this suite's device.
const REQUEST: usize = 4 << 20;

/// Timeout for a process that reads the most requests with each engine: a gibibyte, which takes
/// the debug kernel half a minute.
const READS: Duration = Duration::from_secs(240);

/// I/O engine of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Pread,
    Aio,
    Uring,
    UringNowait,
}

impl Engine {
    const ALL: [Self; 4] = [Self::Pread, Self::Aio, Self::Uring, Self::UringNowait];

    /// Makes the call, at offset 0 of the device. Returns the number of bytes.
    fn read(self, file: &File, memory: &Region) -> io::Result<usize> {
        let buffer = memory.buffer(0, memory.len());
        let uring = |operation: UringOperation<'_>| Ring::new(1)?.run(&operation);
        match self {
            Self::Pread => sys::pread(file, buffer, 0),
            Self::Aio => AioContext::new(1)?.run(AioOperation::pread(file, buffer, 0)),
            Self::Uring => uring(UringOperation::read(file, Buffers::One(buffer), 0)),
            Self::UringNowait => uring(UringOperation::read_nowait(file, buffer, 0)),
        }
    }
}

pub(super) fn each_page_once(context: &Context, requests: usize) -> Verdict {
    // A process of its own has no workers of earlier tests.
    let child = sys::fork(|| match count_pins(context, requests) {
        Ok(()) => 0,
        Err(stop) => {
            eprintln!("{stop:?}");
            1
        }
    })?;
    check_eq!(child.wait(READS)?, Ok(0), "end of the process");
    Ok(())
}

fn count_pins(context: &Context, requests: usize) -> Verdict {
    let file = context.open()?;
    let memory = Region::anonymous(requests * REQUEST)?;
    check!(memory.len() as u64 <= context.size(), "the device is small");
    memory.fill(0, memory.len(), 0);
    let pages = (memory.len() / PAGE) as u64;
    for engine in Engine::ALL {
        let before = (Pins::read()?, context.counter("requests")?);
        let read = engine
            .read(&file, &memory)
            .during(|| format!("{engine:?}"))?;
        check_eq!(read, memory.len(), "bytes of {engine:?}");
        let after = (Pins::read()?, context.counter("requests")?);
        let pinned = after.0.acquired - before.0.acquired;
        check_eq!(pinned, pages, "pins of {engine:?} for {pages} pages");
        let made = after.1 - before.1;
        check!(made >= requests as u64, "{engine:?}: {made} requests");
        check_eq!(workers()?, 0, "worker threads after {engine:?}");
    }
    Ok(())
}

/// Unaligned buffers need no additional pins, because requests end at page boundaries.
pub(super) fn unaligned(context: &Context) -> Verdict {
    let file = context.open()?;
    let bar = context.map()?;
    // Two requests.
    let length = REQUEST + REQUEST / 2;
    let memory = Region::anonymous(length + PAGE)?;
    memory.fill(0, memory.len(), 0);
    let data = pattern::bytes(61, length);
    bar.store(0, data);
    let before = Pins::read()?.acquired;
    let read = sys::pread(&file, memory.buffer(77, length), 0)?;
    check_eq!(read, length, "bytes read");
    let pinned = Pins::read()?.acquired - before;
    check_eq!(pinned, (length / PAGE + 1) as u64, "pins");
    expect_bytes(&memory.load(77, length), data, "what was read")
}

/// A nonblocking synchronous call is limited by the free slots, which suffice on an idle
/// device.
pub(super) fn nowait(context: &Context) -> Verdict {
    /// More than a batch.
    const REQUESTS: usize = 12;

    let file = context.open()?;
    let bar = context.map()?;
    let length = REQUESTS * REQUEST;
    let memory = Region::anonymous(length)?;
    memory.fill(0, length, 0);
    let data = |i: usize| pattern::bytes(70 + i as u64, REQUEST);
    for i in 0..REQUESTS {
        bar.store(i * REQUEST, data(i));
    }
    let buffers = [memory.buffer(0, length)];
    let read = sys::preadv2(&file, &buffers, Some(0), libc::RWF_NOWAIT)?;
    check_eq!(read, length, "bytes read");
    for i in 0..REQUESTS {
        let seen = memory.load(i * REQUEST, REQUEST);
        expect_bytes(&seen, data(i), &format!("request {i}"))?;
    }
    Ok(())
}
