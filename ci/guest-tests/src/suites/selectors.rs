// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Maps selected by the upper bits of the offset: device memory with another caching,
//! counters, event log, used rings.

use std::fs::{self, File};

use ringbar_uapi::{self as uapi, Info};

use crate::case::{Case, Context, During, TIMEOUT, Verdict, expect_bytes};
use crate::fixtures::device;
use crate::pattern;
use crate::sys::{self, PAGE, Region, map_error};
use crate::{check, check_eq};

/// The cases, for the suite of maps.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a6_counters_page_counts_requests", counters),
        Case::new("a6_counters_page_is_read_only_and_bounded", counters_rights),
        Case::new("a7_event_log_in_any_fault_order", event_log),
        Case::new("a8_used_rings_move_with_requests", used_rings),
        Case::new("a9_caching_is_chosen_by_the_offset", caching),
        Case::new("a9_all_maps_have_one_caching", one_caching),
        Case::new("a3_unknown_selector_is_refused", unknown),
        Case::new("a4_map_count_returns_to_0", map_count),
    ]
}

fn offset(selector: u64) -> u64 {
    selector << uapi::MAP_SHIFT
}

fn word(region: &Region, index: usize) -> u64 {
    let mut bytes = [0; 8];
    region.load_into(8 * index, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn read_only(file: &File, selector: u64, length: usize) -> Verdict<Region> {
    device::read_only(file, selector, length).during(|| format!("mapping selector {selector}"))
}

fn reads(file: &File, count: u64) -> Verdict {
    let buffer = Region::anonymous(PAGE)?;
    for i in 0..count {
        check_eq!(
            sys::pread(file, buffer.buffer(0, PAGE), i * PAGE as u64)?,
            PAGE,
            "bytes read"
        );
    }
    Ok(())
}

fn counters(context: &Context) -> Verdict {
    let file = context.open()?;
    let page = read_only(&file, uapi::MAP_STATISTICS, PAGE)?;
    let before = word(&page, uapi::COUNTER_REQUESTS);
    check_eq!(before, context.counter("requests")?, "requests in debugfs");
    reads(&file, 10)?;
    check_eq!(
        word(&page, uapi::COUNTER_REQUESTS),
        before + 10,
        "requests after 10 reads"
    );
    Ok(())
}

fn counters_rights(context: &Context) -> Verdict {
    let file = context.open()?;
    let map = |length, protection, flags| {
        map_error(Region::of_file(
            &file,
            offset(uapi::MAP_STATISTICS),
            length,
            protection,
            flags,
        ))
    };
    let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    check_eq!(
        map(PAGE, write, libc::MAP_SHARED),
        Some(libc::EACCES),
        "writable"
    );
    check_eq!(
        map(PAGE, write, libc::MAP_PRIVATE),
        Some(libc::EINVAL),
        "private and writable"
    );
    check_eq!(
        map(2 * PAGE, read, libc::MAP_SHARED),
        Some(libc::EINVAL),
        "two pages"
    );
    let mut page = read_only(&file, uapi::MAP_STATISTICS, PAGE)?;
    let error = page.protect(write).err().and_then(|e| e.raw_os_error());
    check_eq!(error, Some(libc::EACCES), "mprotect to writable");
    Ok(())
}

fn event_log(context: &Context) -> Verdict {
    let file = context.open()?;
    let length = uapi::EVENT_LOG_PAGES * PAGE;
    let log = read_only(&file, uapi::MAP_EVENTS, length)?;
    // Last page first.
    for page in (0..uapi::EVENT_LOG_PAGES).rev() {
        log.load(page * PAGE, 8);
    }
    check!(word(&log, 0) >= 1, "no record");
    let first = uapi::EVENT_RECORD_WORDS;
    check!(word(&log, first) > 0, "the first record has no time");
    check_eq!(
        word(&log, first + 1),
        uapi::EVENT_STARTED,
        "kind of the first record"
    );
    check_eq!(word(&log, first + 2), context.size(), "bytes of the device");
    Ok(())
}

fn used_rings(context: &Context) -> Verdict {
    let file = context.open()?;
    let info = Info::from_bytes(&sys::info(&file).during(|| "asking for information".into())?);
    // The I/O queues and the control queue.
    let queues = 1 + u64::from(info.io_queues);
    let rings = (0..queues)
        .map(|queue| {
            Region::of_file(
                &file,
                offset(uapi::MAP_USED_RINGS) + queue * uapi::USED_RING_STRIDE,
                PAGE,
                libc::PROT_READ,
                libc::MAP_SHARED,
            )
            .during(|| format!("mapping the used ring of queue {queue}"))
        })
        .collect::<Verdict<Vec<_>>>()?;
    // The index is the second 16-bit word (VIRTIO 1.3, 2.7.8).
    let indices = || -> u64 {
        rings
            .iter()
            .map(|ring| u64::from(u16::from_le_bytes([ring.load(2, 1)[0], ring.load(3, 1)[0]])))
            .sum()
    };
    let before = indices();
    reads(&file, 20)?;
    check_eq!(indices(), before + 20, "used entries after 20 reads");

    let writable = Region::of_file(
        &file,
        offset(uapi::MAP_USED_RINGS),
        PAGE,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    );
    check_eq!(map_error(writable), Some(libc::EACCES), "writable");
    Ok(())
}

/// Address of the aperture, which is the largest BAR.
fn aperture(context: &Context) -> Verdict<u64> {
    // Each line has the first and last address of a BAR.
    let resources = fs::read_to_string(context.pci_device()?.join("resource"))?;
    let start = resources
        .lines()
        .filter_map(|line| {
            let mut words = line
                .split_ascii_whitespace()
                .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(0));
            let (start, end) = (words.next()?, words.next()?);
            Some((end - start, start))
        })
        .max()
        .map_or(0, |(_, start)| start);
    Ok(start)
}

/// Creates a map, and checks that it shows the device, and has this caching in the
/// kernel's list.
fn expect_caching(context: &Context, file: &File, selector: u64, name: &str) -> Verdict {
    let map = Region::shared(file, offset(selector), PAGE).during(|| format!("mapping {name}"))?;
    let expected = pattern::bytes(selector + 77, PAGE);
    map.store(0, expected);
    let buffer = Region::anonymous(PAGE)?;
    check_eq!(sys::pread(file, buffer.buffer(0, PAGE), 0)?, PAGE, "bytes");
    expect_bytes(&buffer.load(0, PAGE), expected, name)?;
    let list = "/sys/kernel/debug/x86/pat_memtype_list";
    let types = fs::read_to_string(list).during(|| format!("reading {list}"))?;
    let start = format!("[mem {:#018x}-", aperture(context)?);
    check!(
        types
            .lines()
            .any(|line| line.contains(&start) && line.contains(name)),
        "{list} has no {name} memory at {start}:\n{types}"
    );
    Ok(())
}

fn caching(context: &Context) -> Verdict {
    let file = context.open()?;
    expect_caching(context, &file, uapi::MAP_MEMORY, "write-combining")?;
    expect_caching(context, &file, uapi::MAP_MEMORY_UNCACHED, "uncached")?;
    // By the MTRRs, memory below 4 GiB that is not RAM is uncached.
    check!(aperture(context)? < 1 << 32, "the aperture is elsewhere");
    let cached = Region::shared(&file, offset(uapi::MAP_MEMORY_CACHED), PAGE);
    check_eq!(map_error(cached), Some(libc::EOPNOTSUPP), "cached");
    // The failed attempt has no effect.
    expect_caching(context, &file, uapi::MAP_MEMORY_UNCACHED, "uncached")
}

/// On a device whose aperture does not fit below 4 GiB.
pub(super) fn cached(context: &Context) -> Verdict {
    check!(aperture(context)? >= 1 << 32, "the aperture is below 4 GiB");
    let file = context.open()?;
    expect_caching(context, &file, uapi::MAP_MEMORY_CACHED, "write-back")?;
    let map = Region::shared(&file, offset(uapi::MAP_MEMORY_CACHED), PAGE)?;
    for selector in [uapi::MAP_MEMORY, uapi::MAP_MEMORY_UNCACHED] {
        let other = Region::shared(&file, offset(selector), PAGE);
        check_eq!(map_error(other), Some(libc::EBUSY), "beside a cached map");
    }
    drop(map);
    expect_caching(context, &file, uapi::MAP_MEMORY, "write-combining")
}

/// All maps of device memory have the same caching, at any offset.
fn one_caching(context: &Context) -> Verdict {
    let file = context.open()?;
    let kinds = [uapi::MAP_MEMORY, uapi::MAP_MEMORY_UNCACHED];
    for (kind, other) in [(kinds[0], kinds[1]), (kinds[1], kinds[0])] {
        let expect_busy = |what: &str| -> Verdict {
            for place in [0, 64 * PAGE as u64] {
                let map = Region::shared(&file, offset(other) + place, PAGE);
                check_eq!(map_error(map), Some(libc::EBUSY), "{what}");
            }
            Ok(())
        };
        let mut map = Region::shared(&file, offset(kind), 4 * PAGE)?;
        let same = Region::shared(&file, offset(kind) + PAGE as u64, PAGE)?;
        expect_busy("beside two maps")?;
        drop(same);
        expect_busy("beside one map")?;
        map.truncate(2 * PAGE)?;
        map.move_to(Region::anonymous(2 * PAGE)?)?;
        expect_busy("beside a part of a map elsewhere")?;
        let child = sys::fork(|| {
            loop {
                std::thread::park();
            }
        })?;
        drop(map);
        expect_busy("beside a child's map")?;
        child.kill(libc::SIGKILL)?;
        child.wait(TIMEOUT)?.ok();
        Region::shared(&file, offset(other), PAGE).during(|| "beside no map".into())?;
        check_eq!(context.counter("maps")?, 0, "maps after");
    }
    Ok(())
}

fn unknown(context: &Context) -> Verdict {
    let file = context.open()?;
    for selector in [6, 7, 127] {
        let map = Region::shared(&file, offset(selector), PAGE);
        check_eq!(map_error(map), Some(libc::EINVAL), "selector");
    }
    Ok(())
}

fn map_count(context: &Context) -> Verdict {
    let file = context.open()?;
    check_eq!(context.counter("maps")?, 0, "maps before");
    let memory = Region::shared(&file, 0, 4 * PAGE)?;
    let page = read_only(&file, uapi::MAP_STATISTICS, PAGE)?;
    check_eq!(context.counter("maps")?, 2, "maps while there are two");
    drop((memory, page));
    check_eq!(context.counter("maps")?, 0, "maps after");
    Ok(())
}
