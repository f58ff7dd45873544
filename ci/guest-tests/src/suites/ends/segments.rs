// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Compares the number of DMA segments with the physical contiguity of the buffer's
//! pages.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::fixture::{Fixture, SOMEWHERE};
use crate::case::{Context, During, Stop, Verdict};
use crate::sys::{self, Buffers, IoVec, PAGE, Region, Ring, UringOperation};
use crate::{check, check_eq};

const HUGE: usize = 2 << 20;

/// Page frame numbers of a part of a region, from `/proc/self/pagemap`.
fn frames(region: &Region, offset: usize, length: usize) -> Verdict<Vec<u64>> {
    /// Bits of an entry.
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    let file = File::open("/proc/self/pagemap")?;
    let first = (region.address() + offset) / PAGE;
    let last = (region.address() + offset + length - 1) / PAGE;
    let mut bytes = vec![0; 8 * (last - first + 1)];
    file.read_exact_at(&mut bytes, 8 * first as u64)
        .during(|| "reading /proc/self/pagemap".into())?;
    let mut frames = Vec::new();
    for word in bytes.chunks_exact(8) {
        let entry = word
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte));
        check!(entry & PRESENT != 0, "a page of the buffer is not there");
        check!(entry & FRAME != 0, "page frames are hidden from us");
        frames.push(entry & FRAME);
    }
    Ok(frames)
}

/// Number of contiguous runs.
fn runs(frames: &[u64]) -> u64 {
    let breaks = frames.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    1 + breaks.count() as u64
}

/// Number of segments of a transfer that is one request.
fn segments(
    context: &Context,
    length: usize,
    transfer: impl FnOnce() -> std::io::Result<usize>,
) -> Verdict<u64> {
    let read =
        || -> Verdict<_> { Ok((context.counter("requests")?, context.counter("segments")?)) };
    let before = read()?;
    check_eq!(transfer()?, length, "bytes moved");
    let after = read()?;
    check_eq!(after.0 - before.0, 1, "requests");
    Ok(after.1 - before.1)
}

/// Moves a part of a region in both directions, and compares the number of segments with
/// the number of contiguous runs.
fn expect_runs(
    context: &Context,
    b: &Fixture,
    memory: &Region,
    at: usize,
    length: usize,
) -> Verdict {
    let expected = runs(&frames(memory, at, length)?);
    let buffer = memory.buffer(at, length);
    let what = format!("{length} bytes at {at}");
    let counted = segments(context, length, || sys::pwrite(&b.file, buffer, SOMEWHERE))
        .during(|| format!("writing {what}"))?;
    check_eq!(counted, expected, "segments of a write of {what}");
    let counted = segments(context, length, || sys::pread(&b.file, buffer, SOMEWHERE))
        .during(|| format!("reading {what}"))?;
    check_eq!(counted, expected, "segments of a read of {what}");
    Ok(())
}

/// A pool of huge pages, emptied when dropped.
struct HugePagePool;

impl HugePagePool {
    const PATH: &str = "/proc/sys/vm/nr_hugepages";

    fn with(pages: usize) -> Verdict<Self> {
        std::fs::write(Self::PATH, pages.to_string())
            .map_err(|_| Stop::Skipped(format!("{} cannot be written", Self::PATH)))?;
        Ok(Self)
    }

    /// Memory of populated huge pages.
    fn region(&self, pages: usize) -> Verdict<Region> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let memory = Region::anonymous_with(pages * HUGE, protection, libc::MAP_HUGETLB)
            .map_err(|_| Stop::Skipped("the pool of huge pages is empty".into()))?;
        memory.fill(0, pages * HUGE, 1);
        Ok(memory)
    }
}

impl Drop for HugePagePool {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, "0");
    }
}

pub(super) fn huge_page(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let pool = HugePagePool::with(2)?;
    let memory = pool.region(2)?;
    // The test relies on one huge page being one run.
    check_eq!(runs(&frames(&memory, 0, HUGE)?), 1, "runs of a huge page");
    for (at, length) in [
        (0, HUGE),
        (HUGE, HUGE),
        (1, HUGE - 1),
        (4097, 1 << 20),
        (5, 9),
    ] {
        expect_runs(context, &b, &memory, at, length)?;
    }
    // Across both huge pages, which may or may not be adjacent.
    expect_runs(context, &b, &memory, HUGE / 2, HUGE)?;
    expect_runs(context, &b, &memory, 4095, 2 * HUGE - 4096)
}

pub(super) fn registered_huge_page(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let pool = HugePagePool::with(2)?;
    let memory = pool.region(2)?;
    let mut ring = Ring::new(4)?;
    ring.register_buffers(&[&memory])?;
    for (at, length) in [
        (0, HUGE),
        (HUGE, HUGE),
        (1, HUGE - 1),
        (HUGE + 5000, 1 << 20),
    ] {
        let buffer = Buffers::Registered(memory.buffer(at, length), 0);
        for operation in [
            UringOperation::write(&b.file, buffer, SOMEWHERE),
            UringOperation::read(&b.file, buffer, SOMEWHERE),
        ] {
            let counted = segments(context, length, || ring.run(&operation))?;
            check_eq!(counted, 1, "segments of {length} bytes at {at}");
        }
    }
    Ok(())
}

pub(super) fn transparent_huge_page(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let memory = Region::anonymous(4 * HUGE)?;
    memory.advise(libc::MADV_HUGEPAGE)?;
    memory.fill(0, memory.len(), 1);
    let start = HUGE - memory.address() % HUGE;
    if runs(&frames(&memory, start, HUGE)?) != 1 {
        return Err(Stop::Skipped("the kernel gave no huge page".into()));
    }
    expect_runs(context, &b, &memory, start, HUGE)?;
    expect_runs(context, &b, &memory, start + 17, HUGE - 17)?;
    expect_runs(context, &b, &memory, start + HUGE / 2, HUGE)
}

pub(super) fn scattered_pages(context: &Context) -> Verdict {
    /// Fewer than a request has segments.
    const PAGES: usize = 200;

    let b = Fixture::new(context)?;
    let memory = Region::anonymous(PAGES * PAGE)?;
    memory.advise(libc::MADV_NOHUGEPAGE)?;
    memory.fill(0, memory.len(), 1);
    for (at, length) in [(0, PAGES * PAGE), (1, PAGES * PAGE - 2), (100, 50 * PAGE)] {
        expect_runs(context, &b, &memory, at, length)?;
    }
    // An order in which no frame follows its predecessor: every second page, then those
    // between.
    let frames = frames(&memory, 0, PAGES * PAGE)?;
    let mut sorted: Vec<usize> = (0..PAGES).collect();
    sorted.sort_by_key(|&page| frames[page]);
    let scattered: Vec<usize> = [0, 1]
        .into_iter()
        .flat_map(|first| sorted.iter().copied().skip(first).step_by(2))
        .collect();
    let counted = |order: &[usize]| {
        let buffers: Vec<IoVec> = order
            .iter()
            .map(|page| memory.buffer(page * PAGE, PAGE))
            .collect();
        segments(context, PAGES * PAGE, || {
            sys::pwritev(&b.file, &buffers, SOMEWHERE)
        })
    };
    check_eq!(counted(&scattered)?, PAGES as u64, "segments, scattered");
    // Adjacent buffers are merged like the pages of one buffer.
    let in_order: Vec<_> = sorted.iter().map(|&page| frames[page]).collect();
    check_eq!(counted(&sorted)?, runs(&in_order), "segments, in order");
    Ok(())
}
