// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Boundary cases: the end of the device, and unusual buffers.

mod buffers;
mod fixture;
mod segments;
mod special;

use self::fixture::{Fixture, SOMEWHERE};
use crate::case::{Case, Context, During, Suite, Verdict, expect_bytes, expect_errno};
use crate::needs::Needs;
use crate::pattern;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "ends",
        about: "ends of the device, and buffers that are bad, odd or special",
        needs: Needs::default(),
        cases: vec![
            Case::new("b12_read_at_the_end_returns_0", read_at_the_end),
            Case::new("b12_read_across_the_end_is_short", read_across_the_end),
            Case::new("b12_write_at_the_end_is_enospc", write_at_the_end),
            Case::new("b12_write_across_the_end_is_short", write_across_the_end),
            Case::new("b12_zero_length", zero_length),
            Case::new("b12_lseek", lseek),
            Case::new("b12_access_mode", access_mode),
            Case::new("b1_bad_address_is_efault", buffers::bad_address),
            Case::new("b1_bad_address_in_segment_k", buffers::bad_segment),
            Case::new("b1_bad_page_within_a_buffer", buffers::bad_page),
            Case::new(
                "b1_read_into_read_only_memory_is_efault",
                buffers::read_only_target,
            ),
            Case::new("b1_write_from_read_only_memory", buffers::read_only_source),
            Case::new("b1_write_from_the_zero_page", buffers::zero_page_source),
            Case::new(
                "b1_write_from_a_private_file_map",
                buffers::private_file_source,
            ),
            Case::new("b1_file_map_as_buffer", buffers::file_buffer),
            Case::new(
                "b1_read_into_a_private_file_map",
                special::private_file_target,
            ),
            Case::new("b1_map_of_the_device_is_efault", special::device_map),
            Case::new(
                "b1_map_of_the_device_in_segment_k",
                special::device_map_in_segment,
            ),
            Case::new("b1_write_from_the_counters_page", special::counters_map),
            Case::new("b1_same_page_twice", buffers::same_page_twice),
            Case::new("b1_many_small_segments", buffers::many_segments),
            Case::new("b3_transparent_huge_pages", buffers::transparent_huge_pages),
            Case::new("b3_hugetlb_pages", buffers::hugetlb_pages),
            Case::new("b3_huge_page_is_one_segment", segments::huge_page),
            Case::new(
                "b3_transparent_huge_page_is_one_segment",
                segments::transparent_huge_page,
            ),
            Case::new(
                "b3_registered_huge_page_is_one_segment",
                segments::registered_huge_page,
            ),
            Case::new("b3_contiguous_pages_are_merged", segments::scattered_pages),
            Case::new("b13_one_write_of_64_mib", large_write),
        ],
    }
}

fn read_at_the_end(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    b.memory.fill(0, PAGE, 0x77);
    for offset in [b.size, b.size + 1, b.size + (1 << 40), 1 << 62] {
        let read = sys::pread(&b.file, b.memory.buffer(0, PAGE), offset)
            .during(|| format!("pread at {offset}"))?;
        check_eq!(read, 0, "bytes read at {offset}");
    }
    expect_bytes(&b.memory.load(0, PAGE), &[0x77; PAGE], "the buffer")
}

fn read_across_the_end(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
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
        // A vectored read ends within its second segment.
        let buffers = [b.memory.buffer(0, 1), b.memory.buffer(PAGE, 2 * PAGE)];
        let read = sys::preadv(&b.file, &buffers, offset)?;
        check_eq!(read, rest, "bytes of a preadv {rest} before the end");
    }
    Ok(())
}

fn write_at_the_end(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
    for offset in [b.size, b.size + 1, b.size + (1 << 40)] {
        let result = sys::pwrite(&b.file, b.memory.buffer(0, PAGE), offset);
        expect_errno(result, &[libc::ENOSPC], &format!("pwrite at {offset}"))?;
    }
    // Close to the maximum offset of a file.
    let result = sys::pwrite(&b.file, b.memory.buffer(0, PAGE), i64::MAX as u64 - 100);
    let expected = [libc::ENOSPC, libc::EFBIG, libc::EINVAL, libc::EOVERFLOW];
    expect_errno(result, &expected, "pwrite near 2^63")
}

fn write_across_the_end(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
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
    let b = Fixture::new(context)?;
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
    // No byte is accessed, so the address does not matter.
    check_eq!(
        sys::pread(&b.file, IoVec::null(0), 0)?,
        0,
        "pread of 0 bytes to address 0"
    );
    Ok(())
}

fn lseek(context: &Context) -> Verdict {
    let b = Fixture::new(context)?;
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

fn large_write(context: &Context) -> Verdict {
    const LENGTH: usize = 64 << 20;
    const STEP: usize = 4 << 20;

    let b = Fixture::new(context)?;
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
