// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Maps of the device memory.

use std::time::Duration;

use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes};
use crate::needs::Needs;
use crate::pattern;
use crate::sys::{self, PAGE, Region, map_error};
use crate::{check, check_eq};

const READ: i32 = libc::PROT_READ;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const SHARED: i32 = libc::MAP_SHARED;
const PRIVATE: i32 = libc::MAP_PRIVATE;

/// Timeout for a child.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The suite.
pub fn suite() -> Suite {
    let mut cases = vec![
        Case::new("a2_store_through_the_map_is_read_by_dma", store_then_read),
        Case::new("a2_write_by_dma_is_seen_through_the_map", write_then_load),
        Case::new("a2_map_at_a_page_offset", page_offsets),
        Case::new("a2_two_maps_show_the_same_bytes", two_maps),
        Case::new("a2_read_only_map_of_a_read_only_descriptor", read_only_map),
        Case::new("a2_last_byte_of_the_device", last_byte),
        Case::new("a2_map_outlives_its_descriptor", map_without_descriptor),
        Case::new("a2_msync_flushes_the_device", msync),
        Case::new("a4_map_across_fork", map_across_fork),
        Case::new("a4_partial_munmap", partial_munmap),
        Case::new("a5_mremap_cannot_grow_a_map", mremap_growth),
        Case::new("a3_mprotect_cannot_add_rights", mprotect_rights),
        Case::new(
            "a3_private_read_only_map_stays_read_only",
            private_read_only,
        ),
    ];
    cases.extend(bounds());
    cases.extend(super::selectors::cases());
    cases.extend(super::debuggers::cases());
    cases.extend(super::nodes::cases());
    Suite {
        name: "mmap",
        about: "maps of the device memory: content, bounds, rights",
        needs: Needs::each_transport(),
        cases,
    }
}

/// Offset of a map that must be refused.
#[derive(Clone, Copy)]
enum At {
    /// At this offset.
    Start(u64),
    /// At the size of the device plus this.
    End(i64),
}

/// Maps that must be refused: name, offset, length, protection, flags, open
/// flags, errors that may come.
fn bounds() -> Vec<Case> {
    // The kernel refuses some of the largest offsets before it calls the driver.
    const RANGE: &[i32] = &[libc::EINVAL, libc::EOVERFLOW, libc::ENXIO];
    const INVALID: &[i32] = &[libc::EINVAL];
    const RIGHTS: &[i32] = &[libc::EPERM, libc::EACCES];
    const ACCESS: &[i32] = &[libc::EACCES];
    const RDWR: i32 = libc::O_RDWR;
    const EXECUTE: i32 = libc::PROT_READ | libc::PROT_EXEC;
    const TOP: u64 = 0u64.wrapping_sub(PAGE as u64);
    const P: usize = PAGE;
    const GIB_64: usize = 64 << 30;

    type Row = (&'static str, At, usize, i32, i32, i32, &'static [i32]);
    let rows: [Row; 20] = [
        (
            "length_0",
            At::Start(0),
            0,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "offset_at_the_end",
            At::End(0),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "offset_one_page_past_the_end",
            At::End(P as i64),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "last_page_and_one_more",
            At::End(-(P as i64)),
            2 * P,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "one_byte_too_long",
            At::End(-(P as i64)),
            P + 1,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "read_only_past_the_end",
            At::End(0),
            P,
            READ,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "longer_than_the_device",
            At::Start(0),
            GIB_64,
            READ,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "offset_2_to_the_40",
            At::Start(1 << 40),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        (
            "offset_2_to_the_63",
            At::Start(1 << 63),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_near_ulong_max",
            At::Start(TOP),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_near_ulong_max_2_pages",
            At::Start(TOP),
            2 * P,
            READ_WRITE,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_2_pages_below_ulong_max",
            At::Start(TOP - P as u64),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_3_pages_below_ulong_max",
            At::Start(TOP - 2 * P as u64),
            2 * P,
            READ,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_wraps_to_the_first_page",
            At::Start(TOP - 3 * P as u64),
            5 * P,
            READ,
            SHARED,
            RDWR,
            RANGE,
        ),
        (
            "offset_within_a_page",
            At::Start(1),
            P,
            READ_WRITE,
            SHARED,
            RDWR,
            INVALID,
        ),
        ("executable", At::Start(0), P, EXECUTE, SHARED, RDWR, RIGHTS),
        (
            "private_executable",
            At::Start(0),
            P,
            EXECUTE,
            PRIVATE,
            RDWR,
            &[libc::EPERM, libc::EACCES, libc::EINVAL],
        ),
        (
            "private_writable",
            At::Start(0),
            P,
            READ_WRITE,
            PRIVATE,
            RDWR,
            INVALID,
        ),
        (
            "writable_of_a_read_only_descriptor",
            At::Start(0),
            P,
            READ_WRITE,
            SHARED,
            libc::O_RDONLY,
            ACCESS,
        ),
        (
            "any_of_a_write_only_descriptor",
            At::Start(0),
            P,
            READ,
            SHARED,
            libc::O_WRONLY,
            ACCESS,
        ),
    ];
    rows.into_iter()
        .map(|(name, at, length, protection, flags, open, errors)| {
            Case::new(format!("a3_mmap_{name}"), move |context| {
                let file = context.open_with(open)?;
                let offset = match at {
                    At::Start(offset) => offset,
                    At::End(distance) => context.size().wrapping_add_signed(distance),
                };
                let result = Region::of_file(&file, offset, length, protection, flags);
                match map_error(result) {
                    Some(error) if errors.contains(&error) => Ok(()),
                    Some(error) => Err(Stop::Failed(format!(
                        "refused with {}",
                        std::io::Error::from_raw_os_error(error)
                    ))),
                    None => Err(Stop::Failed(format!(
                        "{length} bytes at {offset:#x} of a device of {:#x} could be mapped",
                        context.size()
                    ))),
                }
            })
        })
        .collect()
}

fn store_then_read(context: &Context) -> Verdict {
    let file = context.open()?;
    let map = context.map()?;
    let memory = Region::anonymous(2 * PAGE)?;
    for (i, offset) in [0, 1, 4095, 1 << 20, (2 << 20) + 4093]
        .into_iter()
        .enumerate()
    {
        let data = pattern::bytes(i as u64, PAGE + 3);
        map.store(offset, data);
        let read = sys::pread(&file, memory.buffer(5, data.len()), offset as u64)?;
        check_eq!(read, data.len(), "bytes read at {offset}");
        expect_bytes(
            &memory.load(5, data.len()),
            data,
            &format!("what DMA read at {offset}"),
        )?;
    }
    Ok(())
}

fn write_then_load(context: &Context) -> Verdict {
    let file = context.open()?;
    let map = context.map()?;
    let memory = Region::anonymous(2 * PAGE)?;
    for (i, offset) in [0, 1, 4095, 1 << 20, (2 << 20) + 4093]
        .into_iter()
        .enumerate()
    {
        let data = pattern::bytes(50 + i as u64, PAGE + 3);
        memory.store(5, data);
        let written = sys::pwrite(&file, memory.buffer(5, data.len()), offset as u64)?;
        check_eq!(written, data.len(), "bytes written at {offset}");
        expect_bytes(
            &map.load(offset, data.len()),
            data,
            &format!("what DMA wrote at {offset}"),
        )?;
    }
    Ok(())
}

fn page_offsets(context: &Context) -> Verdict {
    let file = context.open()?;
    let whole = context.map()?;
    let pages = context.size() / PAGE as u64;
    for (i, page) in [1, 2, 255, 256, 1000, pages / 2, pages - 2]
        .into_iter()
        .enumerate()
    {
        let offset = page * PAGE as u64;
        let data = pattern::bytes(100 + i as u64, 2 * PAGE);
        whole.store(offset as usize, data);
        let map = Region::shared(&file, offset, 2 * PAGE)
            .during(|| format!("mapping two pages at page {page}"))?;
        expect_bytes(&map.load(0, 2 * PAGE), data, &format!("map at page {page}"))?;
        map.store(PAGE, b"other way round");
        expect_bytes(
            &whole.load(offset as usize + PAGE, 15),
            b"other way round",
            &format!("store at page {page}"),
        )?;
    }
    Ok(())
}

fn two_maps(context: &Context) -> Verdict {
    let (one, other) = (context.map()?, context.map()?);
    let data = pattern::bytes(150, 3 * PAGE);
    one.store(12345, data);
    expect_bytes(&other.load(12345, data.len()), data, "the other map")
}

fn read_only_map(context: &Context) -> Verdict {
    let data = pattern::bytes(160, PAGE);
    context.map()?.store(3 * PAGE, data);
    let file = context.open_with(libc::O_RDONLY)?;
    let map = Region::of_file(&file, 3 * PAGE as u64, PAGE, READ, SHARED)
        .during(|| "a read-only map".into())?;
    expect_bytes(&map.load(0, PAGE), data, "the map")?;
    // A length need not be a multiple of the page size.
    let map = Region::of_file(&file, 3 * PAGE as u64, 100, READ, SHARED)
        .during(|| "a map of 100 bytes".into())?;
    expect_bytes(&map.load(0, 100), &data[..100], "the map of 100 bytes")
}

fn last_byte(context: &Context) -> Verdict {
    let file = context.open()?;
    let last = context.size() - PAGE as u64;
    let map = Region::shared(&file, last, PAGE).during(|| "mapping the last page".into())?;
    map.store(PAGE - 1, &[0xa7]);
    let memory = Region::anonymous(PAGE)?;
    let read = sys::pread(&file, memory.buffer(0, 1), context.size() - 1)?;
    check_eq!(read, 1, "bytes read");
    check_eq!(memory.load(0, 1), [0xa7], "the last byte");
    Ok(())
}

fn map_without_descriptor(context: &Context) -> Verdict {
    let file = context.open()?;
    let map = Region::shared(&file, 0, PAGE)?;
    drop(file);
    map.store(0, b"still there");
    expect_bytes(&context.map()?.load(0, 11), b"still there", "the device")
}

fn msync(context: &Context) -> Verdict {
    let map = Region::shared(&context.open()?, 0, PAGE)?;
    map.store(0, b"durable");
    let before = context.counter("requests")?;
    map.sync(libc::MS_SYNC)?;
    check_eq!(context.counter("requests")?, before + 1, "requests");
    Ok(())
}

fn map_across_fork(context: &Context) -> Verdict {
    let map = Region::shared(&context.open()?, 0, 2 * PAGE)?;
    map.store(0, b"parent");
    let child = sys::fork(|| {
        let seen = map.load(0, 6) == *b"parent";
        map.store(PAGE, b"child");
        i32::from(!seen)
    })?;
    check_eq!(child.wait(TIMEOUT)?, Ok(0), "end of the child");
    expect_bytes(&map.load(PAGE, 5), b"child", "what the child stored")
}

fn partial_munmap(context: &Context) -> Verdict {
    let mut map = Region::shared(&context.open()?, 0, 8 * PAGE)?;
    let data = pattern::bytes(170, 8 * PAGE);
    map.store(0, data);
    for pages in [5, 2, 1] {
        map.truncate(pages * PAGE)?;
        let length = map.len();
        expect_bytes(
            &map.load(0, length),
            &data[..length],
            "what is left of the map",
        )?;
    }
    Ok(())
}

fn mremap_growth(context: &Context) -> Verdict {
    let file = context.open()?;
    let last = context.size() - PAGE as u64;
    for (offset, what) in [(last, "the last page"), (0, "the first page")] {
        let mut map = Region::shared(&file, offset, PAGE)?;
        check!(
            map.resize(2 * PAGE).is_err(),
            "a map of {what} could be grown"
        );
        map.store(0, b"as before");
        expect_bytes(&map.load(0, 9), b"as before", "the map after the attempt")?;
    }
    Ok(())
}

fn mprotect_rights(context: &Context) -> Verdict {
    let reader = context.open_with(libc::O_RDONLY)?;
    let mut map = Region::of_file(&reader, 0, PAGE, READ, SHARED)?;
    check!(
        map.protect(READ_WRITE).is_err(),
        "the map of a read-only descriptor could be made writable"
    );
    let file = context.open()?;
    let mut map = Region::shared(&file, 0, PAGE)?;
    check!(
        map.protect(READ_WRITE | libc::PROT_EXEC).is_err(),
        "a map could be made executable"
    );
    map.protect(READ)?;
    map.protect(READ_WRITE)
        .during(|| "making a map writable again".into())
}

fn private_read_only(context: &Context) -> Verdict {
    let file = context.open()?;
    // The driver may refuse the map, but must not create a private copy.
    match Region::of_file(&file, 0, PAGE, READ, PRIVATE) {
        Err(error) => {
            check_eq!(error.raw_os_error(), Some(libc::EINVAL), "refused with");
        }
        Ok(mut map) => check!(
            map.protect(READ_WRITE).is_err(),
            "a private map could be made writable"
        ),
    }
    Ok(())
}
