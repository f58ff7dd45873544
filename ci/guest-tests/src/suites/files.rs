// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Files for poll, nonblocking files, and files whose writes are durable.

use std::fs::File;
use std::time::Duration;

use crate::case::{Case, Context, During, Suite, Verdict, expect_bytes, expect_errno};
use crate::needs::{DeviceCount, End, Needs};
use crate::pattern;
use crate::sys::{
    self, AioContext, AioOperation, Buffers, Epoll, IoVec, PAGE, Region, Ring, UringOperation,
};
use crate::{check, check_eq};

/// Poll events of a device with a free slot.
const READY: i16 = libc::POLLIN | libc::POLLOUT | libc::POLLRDNORM | libc::POLLWRNORM;

/// Timeout for an event that has already occurred.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Name of the test that makes durable writes, which the device counts.
const DURABLE_TEST: &str = "b7_durable_writes";

/// Number of these durable writes, which are the only ones of this suite.
const DURABLE_WRITES: u64 = 5;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "files",
        about: "poll and epoll on an idle device, files that must not block, durable ones",
        needs: Needs {
            end: End::PowerOff(&[DeviceCount {
                check: "b7_device_counts_the_durable_writes",
                counter: "durable_writes",
                test: DURABLE_TEST,
                value: DURABLE_WRITES,
            }]),
            ..Needs::default()
        },
        cases: vec![
            Case::new("b12_poll", poll),
            Case::new("b12_epoll", epoll),
            Case::new("b12_epoll_edge_triggered", epoll_edge),
            Case::new("b12_poll_by_io_uring", uring_poll),
            Case::new("b11_o_nonblock_moves_all_of_a_small_transfer", nonblock),
            Case::new("b11_o_nonblock_by_fcntl", nonblock_by_fcntl),
            Case::new("b11_rwf_nowait_moves_all_of_a_small_transfer", nowait),
            Case::new("b11_o_nonblock_large_transfer", nonblock_large).left_to_test_all(),
            Case::new("b11_rwf_nowait_large_transfer", nowait_large),
            Case::new(DURABLE_TEST, durable),
        ],
    }
}

/// A file that supports poll, because it was opened with `O_NONBLOCK`.
fn pollable(context: &Context) -> Verdict<File> {
    context.open_with(libc::O_RDWR | libc::O_NONBLOCK)
}

fn poll(context: &Context) -> Verdict {
    // A file without O_NONBLOCK is always ready, like a block device.
    for file in [pollable(context)?, context.open()?] {
        expect_ready(&file)?;
    }
    // The access mode changes nothing.
    let reader = context.open_with(libc::O_RDONLY | libc::O_NONBLOCK)?;
    check_eq!(sys::poll(&reader, READY, Duration::ZERO)?, READY, "reader");
    Ok(())
}

fn expect_ready(file: &File) -> Verdict {
    let poll =
        |events| sys::poll(file, events, Duration::ZERO).during(|| format!("poll for {events:#x}"));
    check_eq!(poll(READY)?, READY, "events");
    check_eq!(poll(libc::POLLIN)?, libc::POLLIN, "readable");
    check_eq!(poll(libc::POLLOUT)?, libc::POLLOUT, "writable");
    check_eq!(poll(0)?, 0, "neither error nor hang-up");
    check_eq!(poll(libc::POLLPRI)?, 0, "urgent");
    Ok(())
}

fn epoll(context: &Context) -> Verdict {
    let epoll = Epoll::new()?;
    let files = [pollable(context)?, pollable(context)?];
    let events = libc::EPOLLIN | libc::EPOLLOUT;
    for (tag, file) in files.iter().enumerate() {
        epoll
            .add(file, events, tag as u64)
            .during(|| "adding the file".into())?;
    }
    let mut seen = [false; 2];
    // Level-triggered: both files are ready each time, and take turns.
    for _ in 0..8 {
        let found = epoll.wait(TIMEOUT)?;
        let Some((found, tag)) = found else {
            return Err(crate::case::Stop::Failed("no event".into()));
        };
        check_eq!(found, events, "events of file {tag}");
        seen[usize::from(tag != 0)] = true;
    }
    check_eq!(seen, [true; 2], "files with events");
    drop(files);
    check_eq!(epoll.wait(Duration::ZERO)?, None, "event of a closed file");
    // fcntl does not change the kind of the file.
    let other = context.open()?;
    let flags = sys::file_flags(&other)?;
    for flags in [flags, flags | libc::O_NONBLOCK] {
        sys::set_file_flags(&other, flags)?;
        let result = epoll.add(&other, events, 0);
        expect_errno(result, &[libc::EPERM], "a file opened without O_NONBLOCK")?;
    }
    let file = pollable(context)?;
    sys::set_file_flags(&file, flags)?;
    epoll.add(&file, events, 5)?;
    check_eq!(
        epoll.wait(TIMEOUT)?,
        Some((events, 5)),
        "the flag taken away"
    );
    Ok(())
}

fn epoll_edge(context: &Context) -> Verdict {
    let epoll = Epoll::new()?;
    let file = pollable(context)?;
    let events = libc::EPOLLIN | libc::EPOLLOUT;
    epoll.add(&file, events | libc::EPOLLET, 7)?;
    check_eq!(epoll.wait(TIMEOUT)?, Some((events, 7)), "first event");
    check_eq!(epoll.wait(Duration::ZERO)?, None, "without a change");
    // The queue never gets full, so the state does not change.
    let memory = Region::anonymous(PAGE)?;
    check_eq!(
        sys::pread(&file, memory.buffer(0, PAGE), 0)?,
        PAGE,
        "bytes read"
    );
    check_eq!(epoll.wait(Duration::ZERO)?, None, "after a read");
    Ok(())
}

fn uring_poll(context: &Context) -> Verdict {
    let file = pollable(context)?;
    let mut ring = Ring::new(2)?;
    let events = ring.run(&UringOperation::poll(&file, READY))?;
    check_eq!(events, READY as usize, "events");
    Ok(())
}

/// Moves `length` bytes to the device and back, and checks both.
fn round_trip(
    context: &Context,
    seed: u64,
    length: usize,
    mut write: impl FnMut(IoVec, u64) -> std::io::Result<usize>,
    mut read: impl FnMut(IoVec, u64) -> std::io::Result<usize>,
) -> Verdict {
    const OFFSET: u64 = 12_345;

    let bar = context.map()?;
    let memory = Region::anonymous(length + 1)?;
    let data = pattern::bytes(seed, length);
    memory.store(1, data);
    let buffer = memory.buffer(1, length);
    let written = write(buffer, OFFSET).during(|| format!("writing {length} bytes"))?;
    check_eq!(written, length, "bytes written");
    expect_bytes(&bar.load(OFFSET as usize, length), data, "the device")?;
    memory.fill(0, length + 1, 0);
    let read = read(buffer, OFFSET).during(|| format!("reading {length} bytes"))?;
    check_eq!(read, length, "bytes read");
    expect_bytes(&memory.load(1, length), data, "what was read")
}

const SMALL: [usize; 6] = [1, 511, 4096, 4097, 65_535, 65_536];

/// All kinds of calls on a file with `O_NONBLOCK`.
fn small_transfers(context: &Context, file: &File) -> Verdict {
    check!(
        sys::file_flags(file)? & libc::O_NONBLOCK != 0,
        "the file has no O_NONBLOCK"
    );
    for (seed, length) in SMALL.into_iter().enumerate() {
        let seed = 10 * seed as u64;
        round_trip(
            context,
            seed,
            length,
            |buffer, offset| sys::pwrite(file, buffer, offset),
            |buffer, offset| sys::pread(file, buffer, offset),
        )?;
        let aio = AioContext::new(2)?;
        round_trip(
            context,
            seed + 1,
            length,
            |buffer, offset| aio.run(AioOperation::pwrite(file, buffer, offset)),
            |buffer, offset| aio.run(AioOperation::pread(file, buffer, offset)),
        )
        .during(|| "aio".into())?;
        let ring = std::cell::RefCell::new(Ring::new(2)?);
        let run = |operation: UringOperation<'_>| ring.borrow_mut().run(&operation);
        round_trip(
            context,
            seed + 2,
            length,
            |buffer, offset| run(UringOperation::write(file, Buffers::One(buffer), offset)),
            |buffer, offset| run(UringOperation::read(file, Buffers::One(buffer), offset)),
        )
        .during(|| "io_uring".into())?;
    }
    Ok(())
}

fn nonblock(context: &Context) -> Verdict {
    small_transfers(
        context,
        &context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?,
    )
}

fn nonblock_by_fcntl(context: &Context) -> Verdict {
    let file = context.open()?;
    let flags = sys::file_flags(&file)?;
    check_eq!(flags & libc::O_NONBLOCK, 0, "O_NONBLOCK at first");
    sys::set_file_flags(&file, flags | libc::O_NONBLOCK)?;
    small_transfers(context, &file)?;
    sys::set_file_flags(&file, flags)?;
    check_eq!(sys::file_flags(&file)?, flags, "flags in the end");
    Ok(())
}

fn nowait(context: &Context) -> Verdict {
    let file = context.open()?;
    let flags = libc::RWF_NOWAIT;
    for (seed, length) in SMALL.into_iter().enumerate() {
        let seed = 100 + 10 * seed as u64;
        round_trip(
            context,
            seed,
            length,
            |buffer, offset| sys::pwritev2(&file, &[buffer], Some(offset), flags),
            |buffer, offset| sys::preadv2(&file, &[buffer], Some(offset), flags),
        )?;
        let aio = AioContext::new(2)?;
        round_trip(
            context,
            seed + 1,
            length,
            |buffer, offset| aio.run(AioOperation::pwrite(&file, buffer, offset).flags(flags)),
            |buffer, offset| aio.run(AioOperation::pread(&file, buffer, offset).flags(flags)),
        )
        .during(|| "aio".into())?;
    }
    Ok(())
}

/// A large transfer may be short, but must return the right length.
fn large(
    context: &Context,
    write: impl Fn(IoVec, u64) -> std::io::Result<usize>,
    read: impl Fn(IoVec, u64) -> std::io::Result<usize>,
) -> Verdict {
    const LENGTH: usize = 64 << 20;
    const STEP: usize = 4 << 20;
    const OFFSET: usize = 5;

    let bar = context.map()?;
    let memory = Region::anonymous(LENGTH)?;
    let piece = |at: usize| pattern::bytes(500 + (at / STEP) as u64, STEP);
    for at in (0..LENGTH).step_by(STEP) {
        memory.store(at, piece(at));
        bar.store(OFFSET + at, &vec![0xee; STEP]);
    }
    // The pieces below `end`, the last one cut there.
    let cut = |end: usize| {
        (0..end)
            .step_by(STEP)
            .map(move |at| (at, STEP.min(end - at)))
    };
    let written = write(memory.buffer(0, LENGTH), OFFSET as u64)?;
    check!(
        written > 0 && written <= LENGTH,
        "{written} bytes of {LENGTH} written"
    );
    for (at, length) in cut(written) {
        let seen = bar.load(OFFSET + at, length);
        expect_bytes(&seen, &piece(at)[..length], &format!("from byte {at} on"))?;
    }
    // Nothing after the returned length was transferred.
    let rest = bar.load(OFFSET + written, LENGTH - written);
    check!(
        rest.iter().all(|&byte| byte == 0xee),
        "the device has changed behind the {written} bytes written"
    );

    for at in (0..LENGTH).step_by(STEP) {
        bar.store(OFFSET + at, piece(at));
    }
    memory.fill(0, LENGTH, 0xee);
    let read = read(memory.buffer(0, LENGTH), OFFSET as u64)?;
    check!(read > 0 && read <= LENGTH, "{read} bytes of {LENGTH} read");
    for (at, length) in cut(read) {
        let seen = memory.load(at, length);
        expect_bytes(&seen, &piece(at)[..length], &format!("from byte {at} on"))?;
    }
    let rest = memory.load(read, LENGTH - read);
    check!(
        rest.iter().all(|&byte| byte == 0xee),
        "the buffer has changed behind the {read} bytes read"
    );
    Ok(())
}

fn nonblock_large(context: &Context) -> Verdict {
    let file = context.open_with(libc::O_RDWR | libc::O_NONBLOCK)?;
    large(
        context,
        |buffer, offset| sys::pwrite(&file, buffer, offset),
        |buffer, offset| sys::pread(&file, buffer, offset),
    )?;
    let aio = AioContext::new(2)?;
    large(
        context,
        |buffer, offset| aio.run(AioOperation::pwrite(&file, buffer, offset)),
        |buffer, offset| aio.run(AioOperation::pread(&file, buffer, offset)),
    )
    .during(|| "aio".into())
}

fn nowait_large(context: &Context) -> Verdict {
    let file = context.open()?;
    let flags = libc::RWF_NOWAIT;
    large(
        context,
        |buffer, offset| sys::pwritev2(&file, &[buffer], Some(offset), flags),
        |buffer, offset| sys::preadv2(&file, &[buffer], Some(offset), flags),
    )
}

/// Each write is one request. The harness compares the device's count at its end.
fn durable(context: &Context) -> Verdict {
    let memory = Region::anonymous(PAGE)?;
    let buffer = memory.buffer(7, 99);
    let plain = context.open()?;
    let durable = context.open_with(libc::O_RDWR | libc::O_DSYNC)?;
    let dsync = libc::RWF_DSYNC;
    let aio = AioContext::new(2)?;
    let mut ring = Ring::new(2)?;
    let written = [
        sys::pwrite(&durable, buffer, 0)?,
        sys::pwritev2(&plain, &[buffer], Some(200), dsync)?,
        aio.run(AioOperation::pwrite(&durable, buffer, 400))?,
        aio.run(AioOperation::pwrite(&plain, buffer, 600).flags(dsync))?,
        ring.run(&UringOperation::write(&durable, Buffers::One(buffer), 800))?,
    ];
    check_eq!(written.len() as u64, DURABLE_WRITES, "durable writes");
    check_eq!(written, [99; DURABLE_WRITES as usize], "bytes written");
    // These are not.
    check_eq!(sys::pwrite(&plain, buffer, 1000)?, 99, "bytes written");
    check_eq!(sys::pread(&durable, buffer, 0)?, 99, "bytes read");
    Ok(())
}
