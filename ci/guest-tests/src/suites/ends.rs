// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Transfers at the ends: of the device, and of what a buffer can be.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes, expect_errno};
use crate::pattern;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

/// Where in the device memory tests without a place of their own work.
const SOMEWHERE: u64 = 5 << 20;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "ends",
        about: "ends of the device, and buffers that are bad, odd or special",
        cases: vec![
            Case::new("b12_read_at_the_end_returns_0", read_at_the_end),
            Case::new("b12_read_across_the_end_is_short", read_across_the_end),
            Case::new("b12_write_at_the_end_is_enospc", write_at_the_end),
            Case::new("b12_write_across_the_end_is_short", write_across_the_end),
            Case::new("b12_zero_length", zero_length),
            Case::new("b12_lseek", lseek),
            Case::new("b12_access_mode", access_mode),
            Case::new("b1_bad_address_is_efault", bad_address),
            Case::new("b1_bad_address_in_segment_k", bad_segment),
            Case::new("b1_bad_page_within_a_buffer", bad_page),
            Case::new("b1_read_into_read_only_memory_is_efault", read_only_target),
            Case::new("b1_write_from_read_only_memory", read_only_source),
            Case::new("b1_write_from_the_zero_page", zero_page_source),
            Case::new("b1_write_from_a_private_file_map", private_file_source),
            Case::new("b1_file_map_as_buffer", file_buffer),
            Case::new("b1_same_page_twice", same_page_twice),
            Case::new("b1_many_small_segments", many_segments),
            Case::new("b3_transparent_huge_pages", transparent_huge_pages),
            Case::new("b3_hugetlb_pages", hugetlb_pages),
            Case::new("b13_one_write_of_64_mib", large_write),
        ],
    }
}

/// An open device, its map, and a buffer.
struct Bench {
    file: File,
    bar: Region,
    memory: Region,
    size: u64,
}

impl Bench {
    fn new(context: &Context) -> Verdict<Self> {
        Ok(Self {
            file: context.open()?,
            bar: context.map()?,
            memory: Region::anonymous(16 * PAGE)?,
            size: context.size(),
        })
    }
}

fn read_at_the_end(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    b.memory.fill(0, PAGE, 0x77);
    for offset in [b.size, b.size + 1, b.size + (1 << 40), 1 << 62] {
        let read = sys::pread(&b.file, b.memory.buffer(0, PAGE), offset)
            .during(|| format!("pread at {offset}"))?;
        check_eq!(read, 0, "bytes read at {offset}");
    }
    expect_bytes(&b.memory.load(0, PAGE), &[0x77; PAGE], "the buffer")
}

fn read_across_the_end(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    for (seed, rest) in [1usize, 511, 4096, 5000].into_iter().enumerate() {
        let data = pattern::bytes(seed as u64, rest);
        let offset = b.size - rest as u64;
        b.bar.store(offset as usize, data);
        b.memory.fill(0, 4 * PAGE, 0x77);
        let read = sys::pread(&b.file, b.memory.buffer(3, 3 * PAGE), offset)?;
        check_eq!(read, rest, "bytes read {rest} before the end");
        expect_bytes(&b.memory.load(3, rest), data, "the data")?;
        let untouched = b.memory.load(3 + rest, 3 * PAGE - rest);
        check!(
            untouched.iter().all(|&byte| byte == 0x77),
            "bytes behind those read have changed"
        );
        // A vectored one ends within its second segment.
        let buffers = [b.memory.buffer(0, 1), b.memory.buffer(PAGE, 2 * PAGE)];
        let read = sys::preadv(&b.file, &buffers, offset)?;
        check_eq!(read, rest, "bytes of a preadv {rest} before the end");
    }
    Ok(())
}

fn write_at_the_end(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    for offset in [b.size, b.size + 1, b.size + (1 << 40)] {
        let result = sys::pwrite(&b.file, b.memory.buffer(0, PAGE), offset);
        expect_errno(result, &[libc::ENOSPC], &format!("pwrite at {offset}"))?;
    }
    // Close to the largest offset a file can have.
    let result = sys::pwrite(&b.file, b.memory.buffer(0, PAGE), i64::MAX as u64 - 100);
    let expected = [libc::ENOSPC, libc::EFBIG, libc::EINVAL, libc::EOVERFLOW];
    expect_errno(result, &expected, "pwrite near 2^63")
}

fn write_across_the_end(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    for (seed, rest) in [1usize, 511, 4096, 5000].into_iter().enumerate() {
        let data = pattern::bytes(100 + seed as u64, 3 * PAGE);
        let offset = b.size - rest as u64;
        b.memory.store(1, data);
        let written = sys::pwrite(&b.file, b.memory.buffer(1, 3 * PAGE), offset)?;
        check_eq!(written, rest, "bytes written {rest} before the end");
        expect_bytes(
            &b.bar.load(offset as usize, rest),
            &data[..rest],
            "the end of the device",
        )?;
    }
    Ok(())
}

fn zero_length(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    let buffer = b.memory.buffer(0, 0);
    for offset in [0, SOMEWHERE, b.size - 1, b.size] {
        let what = format!("0 bytes at {offset}");
        check_eq!(sys::pread(&b.file, buffer, offset)?, 0, "pread of {what}");
        check_eq!(sys::pwrite(&b.file, buffer, offset)?, 0, "pwrite of {what}");
        check_eq!(
            sys::preadv(&b.file, &[buffer, buffer], offset)?,
            0,
            "preadv of {what}"
        );
        check_eq!(
            sys::pwritev(&b.file, &[], offset)?,
            0,
            "pwritev of no buffer at {offset}"
        );
    }
    // No byte is touched, so the address does not matter.
    check_eq!(
        sys::pread(&b.file, IoVec::null(0), 0)?,
        0,
        "pread of 0 bytes to address 0"
    );
    Ok(())
}

fn lseek(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    let size = b.size.cast_signed();
    check_eq!(sys::lseek(&b.file, 0, libc::SEEK_END)?, b.size, "the end");
    check_eq!(
        sys::lseek(&b.file, -1, libc::SEEK_END)?,
        b.size - 1,
        "the last byte"
    );
    check_eq!(sys::lseek(&b.file, 100, libc::SEEK_SET)?, 100, "byte 100");
    check_eq!(sys::lseek(&b.file, 23, libc::SEEK_CUR)?, 123, "23 further");
    for (offset, whence, what) in [
        (-1, libc::SEEK_SET, "before the start"),
        (-124, libc::SEEK_CUR, "before the start from here"),
        (-size - 1, libc::SEEK_END, "before the start from the end"),
    ] {
        expect_errno(sys::lseek(&b.file, offset, whence), &[libc::EINVAL], what)?;
    }
    check_eq!(
        sys::lseek(&b.file, 0, libc::SEEK_CUR)?,
        123,
        "position after refused seeks"
    );
    // Two descriptors have two positions.
    let other = context.open()?;
    check_eq!(
        sys::lseek(&other, 0, libc::SEEK_CUR)?,
        0,
        "position of another descriptor"
    );
    Ok(())
}

fn access_mode(context: &Context) -> Verdict {
    let memory = Region::anonymous(PAGE)?;
    let buffer = memory.buffer(0, 16);
    let reader = context.open_with(libc::O_RDONLY)?;
    expect_errno(
        sys::pwrite(&reader, buffer, 0),
        &[libc::EBADF],
        "pwrite on a descriptor for reading",
    )?;
    let writer = context.open_with(libc::O_WRONLY)?;
    expect_errno(
        sys::pread(&writer, buffer, 0),
        &[libc::EBADF],
        "pread on a descriptor for writing",
    )?;
    check_eq!(sys::pread(&reader, buffer, 0)?, 16, "pread");
    check_eq!(sys::pwrite(&writer, buffer, 0)?, 16, "pwrite");
    Ok(())
}

/// Buffers that no process may use for either direction.
fn bad_buffers(inaccessible: &Region) -> [(IoVec, &'static str); 4] {
    [
        (IoVec::null(PAGE), "address 0"),
        (IoVec::in_kernel_space(PAGE), "an address of the kernel's"),
        (inaccessible.buffer(0, PAGE), "a page without access"),
        (inaccessible.buffer(7, 100), "part of a page without access"),
    ]
}

fn bad_address(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
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

/// A transfer with a bad address in it either fails as a whole or moves some of
/// what comes before that address, and nothing else.
fn expect_prefix(b: &Bench, buffers: &[IoVec], good: usize, source: &[u8], what: &str) -> Verdict {
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
    // An attempt may have got further than what was acknowledged, but never
    // beyond the bad address.
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

fn bad_segment(context: &Context) -> Verdict {
    const SEGMENTS: usize = 5;
    const LENGTH: usize = 1000;

    let b = Bench::new(context)?;
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

fn bad_page(context: &Context) -> Verdict {
    const PAGES: usize = 6;
    let b = Bench::new(context)?;
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
            // What lies behind is no longer mapped.
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

fn read_only_target(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
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

fn read_only_source(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
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

fn zero_page_source(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    b.bar.store(SOMEWHERE as usize, pattern::bytes(5, 4 * PAGE));
    // Never written to: all its pages are the kernel's one page of zeroes.
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

/// A file in memory with these bytes.
fn scratch_file(bytes: &[u8]) -> Verdict<File> {
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

fn private_file_source(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
    let data = pattern::bytes(6, 3 * PAGE);
    let file = scratch_file(data)?;
    let memory = Region::of_file(&file, 0, 3 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE)?;
    let written = sys::pwrite(&b.file, memory.buffer(0, 3 * PAGE), SOMEWHERE)
        .during(|| "pwrite from a private read-only file map".into())?;
    check_eq!(written, 3 * PAGE, "bytes written");
    expect_bytes(&b.bar.load(SOMEWHERE as usize, written), data, "the device")
}

fn file_buffer(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
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

fn same_page_twice(context: &Context) -> Verdict {
    let b = Bench::new(context)?;
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
    // Which of the two comes last is not promised, for no byte.
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

fn many_segments(context: &Context) -> Verdict {
    /// `UIO_MAXIOV`
    const MOST: usize = 1024;
    /// Each segment on a page of its own, so that none can be merged.
    const LENGTH: usize = 33;

    let b = Bench::new(context)?;
    let memory = Region::anonymous(MOST * PAGE)?;
    let data = pattern::bytes(11, MOST * LENGTH);
    let mut buffers = Vec::new();
    for i in 0..MOST {
        let at = i * PAGE + i % (PAGE - LENGTH);
        memory.store(at, &data[i * LENGTH..(i + 1) * LENGTH]);
        buffers.push(memory.buffer(at, LENGTH));
    }
    let written = sys::pwritev(&b.file, &buffers, SOMEWHERE + 1)
        .during(|| format!("pwritev of {MOST} segments"))?;
    check_eq!(written, MOST * LENGTH, "bytes written");
    let seen = b.bar.load(SOMEWHERE as usize + 1, written);
    expect_bytes(&seen, data, "the device")?;

    memory.fill(0, memory.len(), 0);
    let read = sys::preadv(&b.file, &buffers, SOMEWHERE + 1)
        .during(|| format!("preadv of {MOST} segments"))?;
    check_eq!(read, MOST * LENGTH, "bytes read");
    for i in 0..MOST {
        let at = i * PAGE + i % (PAGE - LENGTH);
        let expected = &data[i * LENGTH..(i + 1) * LENGTH];
        expect_bytes(&memory.load(at, LENGTH), expected, &format!("segment {i}"))?;
    }
    Ok(())
}

const HUGE: usize = 2 << 20;

/// Moves data through a region in both directions, at odd offsets.
fn exercise(context: &Context, memory: &Region, at: usize, length: usize) -> Verdict {
    let b = Bench::new(context)?;
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

fn transparent_huge_pages(context: &Context) -> Verdict {
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

fn hugetlb_pages(context: &Context) -> Verdict {
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

fn large_write(context: &Context) -> Verdict {
    const LENGTH: usize = 64 << 20;
    const STEP: usize = 4 << 20;

    let b = Bench::new(context)?;
    check!(b.size > LENGTH as u64, "the device is too small");
    let memory = Region::anonymous(LENGTH + PAGE)?;
    for i in 0..LENGTH / STEP {
        memory.store(1 + i * STEP, pattern::bytes(300 + i as u64, STEP));
    }
    let written = sys::pwrite(&b.file, memory.buffer(1, LENGTH), 3)?;
    check_eq!(written, LENGTH, "bytes written");
    for i in 0..LENGTH / STEP {
        let seen = b.bar.load(3 + i * STEP, STEP);
        expect_bytes(
            &seen,
            pattern::bytes(300 + i as u64, STEP),
            &format!("MiB {}", 4 * i),
        )?;
    }
    memory.fill(0, memory.len(), 0);
    let read = sys::pread(&b.file, memory.buffer(1, LENGTH), 3)?;
    check_eq!(read, LENGTH, "bytes read");
    for i in 0..LENGTH / STEP {
        let seen = memory.load(1 + i * STEP, STEP);
        expect_bytes(
            &seen,
            pattern::bytes(300 + i as u64, STEP),
            &format!("MiB {} read back", 4 * i),
        )?;
    }
    Ok(())
}
