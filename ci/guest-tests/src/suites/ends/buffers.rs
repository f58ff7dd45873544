// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Invalid and unusual buffers.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::fixture::{Fixture, SOMEWHERE};
use crate::case::{Context, During, Stop, Verdict, expect_bytes, expect_errno};
use crate::pattern;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

/// Buffers that are invalid for both directions.
fn bad_buffers(inaccessible: &Region) -> [(IoVec, &'static str); 4] {
    [
        (IoVec::null(PAGE), "address 0"),
        (IoVec::in_kernel_space(PAGE), "an address of the kernel's"),
        (inaccessible.buffer(0, PAGE), "a page without access"),
        (inaccessible.buffer(7, 100), "part of a page without access"),
    ]
}

pub(super) fn bad_address(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let inaccessible = Region::anonymous_with(PAGE, libc::PROT_NONE, 0)?;
    let content = pattern::bytes(7, 2 * PAGE);
    b.bar.store(SOMEWHERE as usize, content);
    for (buffer, what) in bad_buffers(&inaccessible) {
        let errno = &[libc::EFAULT];
        let file = &b.file;
        expect_errno(sys::pread(file, buffer, SOMEWHERE), errno, what)?;
        expect_errno(sys::pwrite(file, buffer, SOMEWHERE), errno, what)?;
        expect_errno(sys::preadv(file, &[buffer], SOMEWHERE), errno, what)?;
        expect_errno(sys::pwritev(file, &[buffer], SOMEWHERE), errno, what)?;
    }
    expect_bytes(
        &b.bar.load(SOMEWHERE as usize, 2 * PAGE),
        content,
        "the device after refused writes",
    )
}

/// A transfer with a bad address either fails as a whole or moves only bytes before that
/// address.
pub(super) fn expect_prefix(
    b: &Fixture,
    buffers: &[IoVec],
    good: usize,
    source: &[u8],
    what: &str,
) -> Verdict {
    let total: usize = buffers.iter().map(IoVec::len).sum();
    let background = pattern::bytes(17, total);
    b.bar.store(SOMEWHERE as usize, background);
    let written = match sys::pwritev(&b.file, buffers, SOMEWHERE) {
        Ok(0) => return Err(Stop::Failed(format!("{what}: pwritev returned 0"))),
        Ok(n) => n,
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => 0,
        Err(error) => return Err(Stop::Failed(format!("{what}: pwritev: {error}"))),
    };
    check!(
        written <= good,
        "{what}: pwritev says {written} bytes, but only {good} could be read"
    );
    let seen = b.bar.load(SOMEWHERE as usize, total);
    expect_bytes(&seen[..written], &source[..written], what)?;
    // A transfer may have moved more than it acknowledged, but never beyond the bad
    // address.
    expect_bytes(
        &seen[good..],
        &background[good..],
        &format!("{what}: behind the bad address"),
    )?;

    let content = pattern::bytes(18, total);
    b.bar.store(SOMEWHERE as usize, content);
    match sys::preadv(&b.file, buffers, SOMEWHERE) {
        Ok(n) => check!(
            n > 0 && n <= good,
            "{what}: preadv says {n} bytes, but only {good} could be written"
        ),
        Err(error) => check_eq!(error.raw_os_error(), Some(libc::EFAULT), "{what}: preadv"),
    }
    Ok(())
}

pub(super) fn bad_segment(context: &Context) -> Verdict {
    const SEGMENTS: usize = 5;
    const LENGTH: usize = 1000;

    let b = Fixture::new(context)?;
    let inaccessible = Region::anonymous_with(PAGE, libc::PROT_NONE, 0)?;
    for bad in 0..SEGMENTS {
        let source = pattern::bytes(bad as u64, SEGMENTS * LENGTH);
        let mut buffers = Vec::new();
        for i in 0..SEGMENTS {
            let at = i * (PAGE + 100);
            b.memory.store(at, &source[i * LENGTH..(i + 1) * LENGTH]);
            buffers.push(if i == bad {
                inaccessible.buffer(0, LENGTH)
            } else {
                b.memory.buffer(at, LENGTH)
            });
        }
        let what = format!("segment {bad} of {SEGMENTS}");
        expect_prefix(&b, &buffers, bad * LENGTH, source, &what)?;
    }
    Ok(())
}

pub(super) fn bad_page(context: &Context) -> Verdict {
    const PAGES: usize = 6;
    let b = Fixture::new(context)?;
    for bad in 0..PAGES {
        let mut memory = Region::anonymous(PAGES * PAGE)?;
        let offset = 9;
        let source = pattern::bytes(200 + bad as u64, PAGES * PAGE - offset);
        memory.store(offset, source);
        let buffer = memory.buffer(offset, source.len());
        let good = (bad * PAGE).saturating_sub(offset);
        if bad == 0 {
            memory.protect(libc::PROT_NONE)?;
        } else {
            // The pages behind it are unmapped.
            memory.truncate(bad * PAGE)?;
        }
        expect_prefix(
            &b,
            &[buffer],
            good,
            source,
            &format!("page {bad} of {PAGES}"),
        )?;
    }
    Ok(())
}

pub(super) fn read_only_target(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    b.bar.store(SOMEWHERE as usize, pattern::bytes(3, 4 * PAGE));
    let mut memory = Region::anonymous(4 * PAGE)?;
    memory.fill(0, 4 * PAGE, 0x42);
    memory.protect(libc::PROT_READ)?;
    let buffer = memory.buffer(5, 2 * PAGE);
    expect_errno(
        sys::pread(&b.file, buffer, SOMEWHERE),
        &[libc::EFAULT],
        "pread into read-only memory",
    )?;
    check!(
        memory.load(0, 4 * PAGE).iter().all(|&byte| byte == 0x42),
        "read-only memory has changed"
    );
    Ok(())
}

pub(super) fn read_only_source(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let data = pattern::bytes(4, 3 * PAGE);
    let mut memory = Region::anonymous(3 * PAGE)?;
    memory.store(0, data);
    memory.protect(libc::PROT_READ)?;
    let written = sys::pwrite(&b.file, memory.buffer(1, 3 * PAGE - 1), SOMEWHERE)
        .during(|| "pwrite from read-only memory".into())?;
    check_eq!(written, 3 * PAGE - 1, "bytes written");
    expect_bytes(
        &b.bar.load(SOMEWHERE as usize, written),
        &data[1..],
        "the device",
    )
}

pub(super) fn zero_page_source(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    b.bar.store(SOMEWHERE as usize, pattern::bytes(5, 4 * PAGE));
    // Memory that was never written: all its pages are the kernel's zero page.
    let memory = Region::anonymous_with(4 * PAGE, libc::PROT_READ, 0)?;
    let written = sys::pwrite(&b.file, memory.buffer(0, 4 * PAGE), SOMEWHERE)
        .during(|| "pwrite from the zero page".into())?;
    check_eq!(written, 4 * PAGE, "bytes written");
    expect_bytes(
        &b.bar.load(SOMEWHERE as usize, written),
        &[0; 4 * PAGE],
        "the device",
    )
}

/// A file on tmpfs with these bytes.
pub(super) fn scratch_file(bytes: &[u8]) -> Verdict<File> {
    let path = format!("/tmp/ringbar-{}", std::process::id());
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .during(|| format!("creating {path}"))?;
    std::fs::remove_file(&path)?;
    file.write_all_at(bytes, 0)?;
    Ok(file)
}

pub(super) fn private_file_source(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let data = pattern::bytes(6, 3 * PAGE);
    let file = scratch_file(data)?;
    let memory = Region::of_file(&file, 0, 3 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE)?;
    let written = sys::pwrite(&b.file, memory.buffer(0, 3 * PAGE), SOMEWHERE)
        .during(|| "pwrite from a private read-only file map".into())?;
    check_eq!(written, 3 * PAGE, "bytes written");
    expect_bytes(&b.bar.load(SOMEWHERE as usize, written), data, "the device")
}

pub(super) fn file_buffer(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let file = scratch_file(&[0; 4 * PAGE])?;
    let memory = Region::shared(&file, 0, 4 * PAGE)?;
    let data = pattern::bytes(8, 3 * PAGE);
    b.bar.store(SOMEWHERE as usize, data);
    let read = sys::pread(&b.file, memory.buffer(11, 3 * PAGE), SOMEWHERE)
        .during(|| "pread into a shared file map".into())?;
    check_eq!(read, 3 * PAGE, "bytes read");
    let mut content = vec![0; 3 * PAGE];
    file.read_exact_at(&mut content, 11)?;
    expect_bytes(&content, data, "the file")?;
    let written = sys::pwrite(&b.file, memory.buffer(11, 3 * PAGE), SOMEWHERE + (1 << 20))?;
    check_eq!(written, 3 * PAGE, "bytes written");
    let seen = b.bar.load((SOMEWHERE + (1 << 20)) as usize, written);
    expect_bytes(&seen, data, "the device")
}

pub(super) fn same_page_twice(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    let page = pattern::bytes(9, PAGE);
    b.memory.store(0, page);
    let twice = [b.memory.buffer(0, PAGE), b.memory.buffer(0, PAGE)];
    let written = sys::pwritev(&b.file, &twice, SOMEWHERE)
        .during(|| "pwritev of the same page twice".into())?;
    check_eq!(written, 2 * PAGE, "bytes written");
    let expected = [page, page].concat();
    expect_bytes(
        &b.bar.load(SOMEWHERE as usize, 2 * PAGE),
        &expected,
        "the device",
    )?;

    let content = pattern::bytes(10, 2 * PAGE);
    b.bar.store(SOMEWHERE as usize, content);
    let read = sys::preadv(&b.file, &twice, SOMEWHERE)
        .during(|| "preadv into the same page twice".into())?;
    check_eq!(read, 2 * PAGE, "bytes read");
    // Either buffer may be written last, for each byte.
    let seen = b.memory.load(0, PAGE);
    for (i, byte) in seen.iter().enumerate() {
        check!(
            *byte == content[i] || *byte == content[PAGE + i],
            "byte {i} is {byte:#x}, which neither half holds"
        );
    }
    // Overlapping by half a page.
    let overlapping = [b.memory.buffer(0, PAGE), b.memory.buffer(PAGE / 2, PAGE)];
    b.memory.store(0, &expected[..2 * PAGE]);
    let written = sys::pwritev(&b.file, &overlapping, SOMEWHERE)?;
    check_eq!(written, 2 * PAGE, "bytes written from overlapping buffers");
    let expected = [b.memory.load(0, PAGE), b.memory.load(PAGE / 2, PAGE)].concat();
    expect_bytes(
        &b.bar.load(SOMEWHERE as usize, 2 * PAGE),
        &expected,
        "the device, from overlapping buffers",
    )
}

pub(super) fn many_segments(context: &Context) -> Verdict {
    /// `UIO_MAXIOV`
    const UIO_MAXIOV: usize = 1024;
    /// Each segment on a page of its own, so that none can be merged.
    const LENGTH: usize = 33;

    let b = Fixture::new(context)?;
    let memory = Region::anonymous(UIO_MAXIOV * PAGE)?;
    let data = pattern::bytes(11, UIO_MAXIOV * LENGTH);
    let mut buffers = Vec::new();
    for i in 0..UIO_MAXIOV {
        let at = i * PAGE + i % (PAGE - LENGTH);
        memory.store(at, &data[i * LENGTH..(i + 1) * LENGTH]);
        buffers.push(memory.buffer(at, LENGTH));
    }
    let written = sys::pwritev(&b.file, &buffers, SOMEWHERE + 1)
        .during(|| format!("pwritev of {UIO_MAXIOV} segments"))?;
    check_eq!(written, UIO_MAXIOV * LENGTH, "bytes written");
    let seen = b.bar.load(SOMEWHERE as usize + 1, written);
    expect_bytes(&seen, data, "the device")?;

    memory.fill(0, memory.len(), 0);
    let read = sys::preadv(&b.file, &buffers, SOMEWHERE + 1)
        .during(|| format!("preadv of {UIO_MAXIOV} segments"))?;
    check_eq!(read, UIO_MAXIOV * LENGTH, "bytes read");
    for i in 0..UIO_MAXIOV {
        let at = i * PAGE + i % (PAGE - LENGTH);
        let expected = &data[i * LENGTH..(i + 1) * LENGTH];
        expect_bytes(&memory.load(at, LENGTH), expected, &format!("segment {i}"))?;
    }
    Ok(())
}

const HUGE: usize = 2 << 20;

/// Moves data through a region in both directions, at odd offsets.
fn exercise(context: &Context, memory: &Region, at: usize, length: usize) -> Verdict {
    let b = Fixture::new(context)?;
    let data = pattern::bytes(12, length);
    memory.store(at, data);
    let written = sys::pwrite(&b.file, memory.buffer(at, length), SOMEWHERE)?;
    check_eq!(written, length, "bytes written");
    expect_bytes(&b.bar.load(SOMEWHERE as usize, length), data, "the device")?;

    let content = pattern::bytes(13, length);
    b.bar.store(SOMEWHERE as usize, content);
    let read = sys::pread(&b.file, memory.buffer(at, length), SOMEWHERE)?;
    check_eq!(read, length, "bytes read");
    expect_bytes(&memory.load(at, length), content, "the buffer")
}

pub(super) fn transparent_huge_pages(context: &Context) -> Verdict {
    let memory = Region::anonymous(4 * HUGE)?;
    memory.advise(libc::MADV_HUGEPAGE)?;
    memory.fill(0, memory.len(), 1);
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let huge = smaps.lines().any(|line| {
        line.strip_prefix("AnonHugePages:")
            .is_some_and(|size| !size.trim_start().starts_with("0 "))
    });
    if !huge {
        return Err(Stop::Skipped("the kernel gave no huge page".into()));
    }
    exercise(context, &memory, 4095, 3 * HUGE + 17)
}

pub(super) fn hugetlb_pages(context: &Context) -> Verdict {
    let pool = "/proc/sys/vm/nr_hugepages";
    if std::fs::write(pool, "4").is_err() {
        return Err(Stop::Skipped(format!("{pool} cannot be written")));
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let Ok(memory) = Region::anonymous_with(2 * HUGE, protection, libc::MAP_HUGETLB) else {
        return Err(Stop::Skipped("the pool of huge pages is empty".into()));
    };
    let result = exercise(context, &memory, 1, 2 * HUGE - 2);
    drop(memory);
    std::fs::write(pool, "0")?;
    result
}
