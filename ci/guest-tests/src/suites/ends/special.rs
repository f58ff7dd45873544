// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Buffers in maps: of the device itself, and of files.

use std::os::unix::fs::FileExt;

use ringbar_uapi as uapi;

use super::buffers::{expect_prefix, scratch_file};
use super::fixture::{Fixture, SOMEWHERE};
use crate::case::{Context, During, Verdict, expect_bytes, expect_errno};
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, Buffers, PAGE, Region, Ring, UringOperation};
use crate::{check, check_eq};

const EFAULT: &[i32] = &[libc::EFAULT];

/// Offset in the device of the map that serves as a buffer.
const BUFFER: usize = 20 << 20;

/// Device memory cannot be a buffer, because it has no pages to pin.
pub(super) fn device_map(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let (inside, outside) = (pattern::bytes(30, 2 * PAGE), pattern::bytes(31, 2 * PAGE));
    b.bar.store(BUFFER, inside);
    b.bar.store(SOMEWHERE as usize, outside);
    let aio = AioContext::new(2)?;
    let mut ring = Ring::new(2)?;
    for (at, length) in [(BUFFER, 2 * PAGE), (BUFFER + 7, 100)] {
        let buffer = b.bar.buffer(at, length);
        let (file, one) = (&b.file, Buffers::One(buffer));
        expect_errno(sys::pread(file, buffer, SOMEWHERE), EFAULT, "pread")?;
        expect_errno(sys::pwrite(file, buffer, SOMEWHERE), EFAULT, "pwrite")?;
        let read = aio.run(AioOperation::pread(file, buffer, SOMEWHERE));
        expect_errno(read, EFAULT, "aio pread")?;
        let write = aio.run(AioOperation::pwrite(file, buffer, SOMEWHERE));
        expect_errno(write, EFAULT, "aio pwrite")?;
        let read = ring.run(&UringOperation::read(file, one, SOMEWHERE));
        expect_errno(read, EFAULT, "io_uring read")?;
        let write = ring.run(&UringOperation::write(file, one, SOMEWHERE));
        expect_errno(write, EFAULT, "io_uring write")?;
    }
    // It cannot be registered, either.
    let part = Region::shared(&b.file, BUFFER as u64, 2 * PAGE)?;
    expect_errno(ring.register_buffers(&[&part]), EFAULT, "registering")?;
    expect_bytes(&b.bar.load(BUFFER, 2 * PAGE), inside, "the buffer")?;
    let seen = b.bar.load(SOMEWHERE as usize, 2 * PAGE);
    expect_bytes(&seen, outside, "the place")
}

pub(super) fn device_map_in_segment(context: &Context) -> Verdict {
    const LENGTH: usize = 5000;

    let b = Fixture::new(context)?;
    let source = pattern::bytes(33, 3 * LENGTH);
    for bad in 0..3 {
        let mut buffers = Vec::new();
        for i in 0..3 {
            let at = i * LENGTH;
            b.memory.store(at, &source[at..at + LENGTH]);
            buffers.push(if i == bad {
                b.bar.buffer(BUFFER, LENGTH)
            } else {
                b.memory.buffer(at, LENGTH)
            });
        }
        let what = format!("the device's map in segment {bad}");
        expect_prefix(&b, &buffers, bad * LENGTH, source, &what)?;
    }
    Ok(())
}

/// The page of counters is the driver's own memory, and read-only.
pub(super) fn counters_map(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let page = Region::of_file(
        &b.file,
        uapi::MAP_STATISTICS << uapi::MAP_SHIFT,
        PAGE,
        libc::PROT_READ,
        libc::MAP_SHARED,
    )?;
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * uapi::COUNTER_REQUESTS..][..8]);
        u64::from_le_bytes(word)
    };
    let buffer = page.buffer(0, PAGE);
    let before = word(&page.load(0, PAGE));
    let written = sys::pwrite(&b.file, buffer, SOMEWHERE)
        .during(|| "writing from the page of counters".into())?;
    check_eq!(written, PAGE, "bytes written");
    let seen = word(&b.bar.load(SOMEWHERE as usize, PAGE));
    check!(
        (before..=before + 1).contains(&seen),
        "the device got {seen} requests, {before} were counted before"
    );
    expect_errno(
        sys::pread(&b.file, buffer, SOMEWHERE),
        EFAULT,
        "reading to it",
    )
}

pub(super) fn private_file_target(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let (old, new) = (pattern::bytes(35, 3 * PAGE), pattern::bytes(36, PAGE));
    let file = scratch_file(old)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let memory = Region::of_file(&file, 0, 3 * PAGE, protection, libc::MAP_PRIVATE)?;
    b.bar.store(SOMEWHERE as usize, new);
    let read = sys::pread(&b.file, memory.buffer(PAGE + 9, PAGE), SOMEWHERE)
        .during(|| "pread into a private file map".into())?;
    check_eq!(read, PAGE, "bytes read");
    let mut expected = old.to_vec();
    expected[PAGE + 9..2 * PAGE + 9].copy_from_slice(new);
    expect_bytes(&memory.load(0, 3 * PAGE), &expected, "the map")?;
    let mut content = vec![0; 3 * PAGE];
    file.read_exact_at(&mut content, 0)?;
    expect_bytes(&content, old, "the file")
}
