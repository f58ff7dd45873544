// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Attempts to cancel requests in flight. The device has no way to cancel a request, so
//! each attempt is refused and each request completes once, in full.

use std::time::Duration;

use super::fixture::{BLOCK, Fixture, expect_whole};
use crate::case::{Context, During, Stop, TIMEOUT, Verdict, expect_bytes, expect_errno};
use crate::fixtures::requests::expect_results;
use crate::sys::{AioContext, AioOperation, Buffers, Delay, Ring, UringOperation};
use crate::{check, check_eq};

/// io_uring's errors for a request that cannot be cancelled any more: io_uring does not
/// search requests that a driver has, or finds them too late.
const REFUSED: [i32; 2] = [libc::ENOENT, libc::EALREADY];

/// Tag of the operation that tries to cancel.
const ATTEMPT: u64 = 99;

fn write(b: &Fixture, i: usize) -> UringOperation<'static> {
    b.prepare_write(i);
    UringOperation::write(&b.file, Buffers::One(b.block(i)), Fixture::place(i)).tag(i as u64)
}

/// Checks that the only result of a ring is that of the attempt.
fn expect_refused(ring: &mut Ring) -> Verdict {
    let mut results = ring.results(1, TIMEOUT)?;
    let Some((tag, result)) = results.pop() else {
        return Err(Stop::Failed("the attempt has no result".into()));
    };
    check_eq!(tag, ATTEMPT, "what ended while the device stalled");
    expect_errno(result, &REFUSED, "the attempt")?;
    let early = ring.results(1, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    Ok(())
}

pub(super) fn uring_cancel(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    let mut ring = Ring::new(4)?;
    let stall = b.host.stall()?;
    check_eq!(ring.submit(&[write(&b, 0)])?, 1, "requests taken");
    let cancel = UringOperation::cancel(0).tag(ATTEMPT);
    check_eq!(ring.submit(&[cancel])?, 1, "attempts taken");
    expect_refused(&mut ring)?;
    expect_errno(ring.cancel_now(0), &REFUSED, "the synchronous attempt")?;
    stall.resume()?;
    expect_results(ring.results(1, TIMEOUT)?, 1, BLOCK)?;
    b.expect_written(0)?;
    b.finish()
}

pub(super) fn uring_link_timeout(context: &Context) -> Verdict {
    let b = Fixture::new(context, 1)?;
    let mut ring = Ring::new(4)?;
    let delay = Delay::new(Duration::from_millis(10));
    let stall = b.host.stall()?;
    let timeout = UringOperation::link_timeout(&delay).tag(ATTEMPT);
    let taken = ring.submit(&[write(&b, 0).linked(), timeout])?;
    check_eq!(taken, 2, "operations taken");
    expect_refused(&mut ring)?;
    stall.resume()?;
    expect_results(ring.results(1, TIMEOUT)?, 1, BLOCK)?;
    b.expect_written(0)?;
    b.finish()
}

pub(super) fn uring_broken_link(context: &Context) -> Verdict {
    /// Bytes between the offset of the short read and the end of the device.
    const LEFT: usize = 100;

    let b = Fixture::new(context, 2)?;
    let end = context.size() - LEFT as u64;
    b.bar.store(end as usize, &[7; LEFT]);
    b.memory.fill(0, BLOCK, 0xbb);
    let mut ring = Ring::new(4)?;
    let stall = b.host.stall()?;
    let short = UringOperation::read(&b.file, Buffers::One(b.block(0)), end).tag(0);
    let behind = write(&b, 1);
    let taken = ring.submit(&[short.linked(), behind])?;
    check_eq!(taken, 2, "operations taken");
    let early = ring.results(1, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    stall.resume()?;
    let mut results = ring.results(2, TIMEOUT)?;
    results.sort_by_key(|(tag, _)| *tag);
    let [(0, first), (1, second)] = <[_; 2]>::try_from(results)
        .map_err(|results| Stop::Failed(format!("results {results:?}")))?
    else {
        return Err(Stop::Failed("a result came twice".into()));
    };
    check_eq!(first.during(|| "the read".into())?, LEFT, "bytes read");
    expect_errno(second, &[libc::ECANCELED], "the request behind")?;
    let seen = b.memory.load(0, LEFT);
    expect_bytes(&seen, &[7; LEFT], "what was read")?;
    let untouched = b.bar.load(Fixture::place(1) as usize, BLOCK);
    expect_bytes(&untouched, &[0xaa; BLOCK], "the device behind the link")?;
    b.finish()
}

pub(super) fn io_cancel(context: &Context) -> Verdict {
    let b = Fixture::new(context, 2)?;
    let aio = AioContext::new(4)?;
    b.prepare_write(0);
    b.prepare_read(1);
    let mut write = AioOperation::pwrite(&b.file, b.block(0), Fixture::place(0)).tag(0);
    let mut read = AioOperation::pread(&b.file, b.block(1), Fixture::place(1)).tag(1);
    let stall = b.host.stall()?;
    for operation in [&mut write, &mut read] {
        aio.submit_in_place(operation)?;
        // The kernel does not find a request without a cancel function.
        expect_errno(aio.cancel(operation), &[libc::EINVAL], "io_cancel")?;
    }
    let early = aio.results(0, 4, Duration::ZERO)?;
    check!(early.is_empty(), "results of a stalled device: {early:?}");
    stall.resume()?;
    expect_results(aio.results(2, 4, TIMEOUT)?, 2, BLOCK)?;
    expect_errno(
        aio.cancel(&write),
        &[libc::EINVAL],
        "io_cancel of what has ended",
    )?;
    b.expect_written(0)?;
    b.expect_read(1)?;
    b.finish()?;
    let late = aio.results(0, 4, Duration::ZERO)?;
    check!(late.is_empty(), "results came twice: {late:?}");
    expect_whole(
        aio.run(AioOperation::pwrite(&b.file, b.block(1), Fixture::place(1))),
        "a request afterwards",
    )
}
