// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Resizing the device while its driver runs.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use ringbar_uapi::{self as uapi, Info};

use crate::case::{
    Case, Context, During, Stop, Suite, Verdict, eventually, expect_bytes, expect_errno,
};
use crate::fixtures::device::{last_event, reachable, statistics};
use crate::fixtures::driver;
use crate::fixtures::requests::expect_round_trip;
use crate::host::Host;
use crate::kernel_log::KernelLog;
use crate::needs::Needs;
use crate::pattern;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

/// Bytes by which the tests grow and shrink the device.
const STEP: u64 = 32 << 20;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "resize",
        about: "the host resizes the device while its driver runs",
        needs: Needs::each_transport(),
        cases: vec![
            // This test comes first, because the driver limits the events per second of a device.
            Case::new("c6_many_sizes_do_not_fill_the_log", many),
            Case::new("c6_growth_is_seen_without_reload", growth),
            Case::new("c6_size_need_not_be_a_multiple_of_a_page", odd_size),
            Case::new("c6_end_of_a_smaller_device", smaller),
            Case::new("c6_maps_end_where_a_smaller_device_ends", maps),
            Case::new("c6_used_rings_stay_when_the_device_shrinks", used_ring),
            Case::new("c6_resize_with_io", with_io),
            Case::new("c6_reload_after_resize_maps_all", reload),
        ],
    }
}

/// Resizes the device; dropping it restores the former size.
struct Resizer<'a> {
    host: Host,
    context: &'a Context,
    file: File,
}

impl<'a> Resizer<'a> {
    fn new(context: &'a Context) -> Verdict<Self> {
        Ok(Self {
            host: Host::connect()?,
            context,
            file: context.open()?,
        })
    }

    /// Resizes the device, and waits until its driver has handled the event.
    fn resize(&self, bytes: u64) -> Verdict {
        self.host.resize(bytes)?;
        eventually(&format!("{bytes} bytes"), || {
            Ok(self.info()?.capacity == bytes)
        })
    }

    fn info(&self) -> Verdict<Info> {
        Ok(Info::from_bytes(&sys::info(&self.file)?))
    }
}

impl Drop for Resizer<'_> {
    fn drop(&mut self) {
        if let Err(stop) = self.resize(self.context.size()) {
            eprintln!("giving the device its size back: {stop:?}");
        }
    }
}

/// Checks that nothing can be read or written from `end` on.
fn expect_end(file: &File, end: u64) -> Verdict {
    check_eq!(sys::lseek(file, 0, libc::SEEK_END)?, end, "SEEK_END");
    let memory = Region::anonymous(PAGE)?;
    let across = sys::pread(file, memory.buffer(0, 100), end - 10)?;
    check_eq!(across, 10, "bytes read across the end");
    let beyond = sys::pread(file, memory.buffer(0, 100), end)?;
    check_eq!(beyond, 0, "bytes read at the end");
    let beyond = sys::pwrite(file, memory.buffer(0, 1), end);
    expect_errno(beyond, &[libc::ENOSPC], "a write at the end")
}

/// The host gives the device another size, and its driver reaches the new end.
pub(super) fn growth_without_map(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    let larger = context.size() + STEP;
    resizer.resize(larger)?;
    expect_round_trip(&resizer.file, larger - 300_001, 300_001, larger)?;
    expect_round_trip(&resizer.file, context.size() - 5000, 10_000, 7)?;
    expect_end(&resizer.file, larger)
}

fn growth(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    let file = &resizer.file;
    let aperture = resizer.info()?.aperture;
    let interrupts = context.interrupts()?;
    let (events, ..) = last_event(file)?;
    let larger = context.size() + STEP;
    resizer.resize(larger)?;

    check!(
        context.interrupts()? > interrupts,
        "the size changed without an interrupt"
    );
    check_eq!(
        last_event(file)?,
        (events + 1, uapi::EVENT_CAPACITY, larger),
        "count, kind and value of the last event"
    );
    // An old file works like a new one.
    for file in [file, &context.open()?] {
        expect_round_trip(file, larger - 300_001, 300_001, larger)?;
        expect_round_trip(file, context.size() - 5000, 10_000, 7)?;
        expect_end(file, larger)?;
    }
    check_eq!(resizer.info()?.aperture, aperture, "bytes of the aperture");
    let map = Region::shared(file, aperture, PAGE);
    expect_errno(map.map(drop), &[libc::EINVAL], "a map beyond the aperture")
}

/// The device cannot flood the kernel log by changing its size often. All changes are in
/// the event log, which has a fixed size.
fn many(context: &Context) -> Verdict {
    const TIMES: u64 = 30;
    /// Lines in each of these times (`include/linux/ratelimit_types.h`).
    const BURST: u64 = 10;
    const SECONDS: u64 = 5;

    let resizer = Resizer::new(context)?;
    let mut log = KernelLog::from_now()?;
    let (events, ..) = last_event(&resizer.file)?;
    let started = Instant::now();
    for change in 1..=TIMES {
        resizer.resize(context.size() - PAGE as u64 * change)?;
    }
    let intervals = started.elapsed().as_secs() / SECONDS + 2;
    let lines = log.of_driver()?;
    let said = lines.iter().filter(|line| line.contains("now has")).count() as u64;
    check_eq!(
        last_event(&resizer.file)?.0 - events,
        TIMES,
        "changes in the event log"
    );
    check!(
        intervals * BURST < TIMES,
        "{TIMES} changes took {:?}: too long to see a limit",
        started.elapsed()
    );
    check!(
        said <= intervals * BURST,
        "{said} of {TIMES} changes are in the kernel log: {lines:?}"
    );
    Ok(())
}

fn odd_size(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    for bytes in [
        context.size() + 1,
        context.size() - 1,
        context.size() + 4097,
    ] {
        resizer.resize(bytes)?;
        expect_round_trip(&resizer.file, bytes - 777, 777, bytes)?;
        expect_end(&resizer.file, bytes)?;
    }
    Ok(())
}

fn smaller(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    let file = &resizer.file;
    let end = context.size() - STEP;
    expect_round_trip(file, end, 10_000, 1)?;
    resizer.resize(end)?;
    expect_end(file, end)?;
    expect_round_trip(file, end - 10_000, 10_000, 2)?;
    // The content is unchanged when the size is restored.
    resizer.resize(context.size())?;
    let memory = Region::anonymous(10_000)?;
    sys::pread(file, memory.buffer(0, 10_000), end)?;
    let expected = pattern::bytes(1, 10_000);
    expect_bytes(&memory.load(0, 10_000), expected, "what was beyond the end")
}

fn maps(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    // One after the other, because all maps of device memory have the same caching.
    for selector in [uapi::MAP_MEMORY, uapi::MAP_MEMORY_UNCACHED] {
        maps_of(&resizer, selector).during(|| format!("selector {selector}"))?;
    }
    Ok(())
}

fn maps_of(resizer: &Resizer<'_>, selector: u64) -> Verdict {
    let (context, file) = (resizer.context, &resizer.file);
    let length = context.size() as usize;
    let all = || Region::shared(file, selector << uapi::MAP_SHIFT, length);
    let map = all()?;
    let counters = statistics(file)?;

    // The last page is partial, and its end is not device memory.
    let end = context.size() - STEP + 100;
    let last = (end as usize - 100) - PAGE;
    check!(
        reachable(&map, last + PAGE)?,
        "the map is not there at first"
    );
    resizer.resize(end)?;
    check_eq!(resizer.info()?.aperture, end, "bytes of the aperture");
    for offset in [last + PAGE, length - 8] {
        eventually(&format!("the map without {offset}"), || {
            Ok(!reachable(&map, offset)?)
        })?;
    }
    check!(reachable(&map, last)?, "the map ends too early");
    map.store(last + PAGE - 8, b"the last");
    check!(reachable(&counters, 0)?, "another map went with it");

    let offset = (selector << uapi::MAP_SHIFT) + last as u64;
    let two = Region::shared(file, offset, 2 * PAGE);
    expect_errno(two.map(drop), &[libc::EINVAL], "a map beyond the end")?;
    Region::shared(file, offset, PAGE).during(|| "mapping the last page".into())?;

    // Removed maps stay removed, but the memory can be mapped again.
    resizer.resize(context.size())?;
    check!(!reachable(&map, length - 8)?, "the map came back");
    let again = all()?;
    check!(reachable(&again, length - 8)?, "the new map lacks its end");
    expect_bytes(&again.load(last + PAGE - 8, 8), b"the last", "the map")
}

/// Maps of used rings are independent of the device memory, even of its first page.
fn used_ring(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    let file = &resizer.file;
    let memory = Region::shared(file, 0, PAGE)?;
    let ring = Region::of_file(
        file,
        uapi::MAP_USED_RINGS << uapi::MAP_SHIFT,
        PAGE,
        libc::PROT_READ,
        libc::MAP_SHARED,
    )?;
    resizer.resize(512)?;
    eventually("the map of the memory to go", || {
        Ok(!reachable(&memory, 0)?)
    })?;
    check!(reachable(&ring, 0)?, "the used ring has gone with it");
    Ok(())
}

fn reload(context: &Context) -> Verdict {
    let resizer = Resizer::new(context)?;
    resizer.resize(context.size() - STEP)?;
    // Restores the size of the device.
    drop(resizer);
    driver::remove()?;
    driver::load(context)?;
    driver::expect_working(context, 90)
}

fn with_io(context: &Context) -> Verdict {
    const ROUNDS: u64 = 20;
    let resizer = Resizer::new(context)?;
    let (low, high) = (context.size() - STEP, context.size() + STEP);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..2u64)
            .map(|worker| {
                let done = &done;
                scope.spawn(move || -> Verdict {
                    let file = context.open()?;
                    let mut seed = worker;
                    while !done.load(Ordering::Relaxed) {
                        expect_round_trip(&file, worker * 400_000, 300_001, seed)?;
                        across(&file, low + (seed % 7) * PAGE as u64)?;
                        seed += 2;
                    }
                    check!(seed > worker, "no I/O");
                    Ok(())
                })
            })
            .collect();
        let resized = (0..ROUNDS).try_for_each(|_| {
            resizer.resize(high)?;
            resizer.resize(low)
        });
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            worker
                .join()
                .map_err(|_| Stop::Failed("a worker panicked".into()))??;
        }
        resized
    })?;
    expect_end(&resizer.file, low)
}

/// A transfer near the changing end: it succeeds as far as there is device memory, or
/// returns the error for its end.
fn across(file: &File, offset: u64) -> Verdict {
    const LENGTH: usize = 100_000;
    let memory = Region::anonymous(LENGTH)?;
    type Transfer = fn(&File, IoVec, u64) -> io::Result<usize>;
    for (what, transfer) in [
        ("write", sys::pwrite as Transfer),
        ("read", sys::pread as Transfer),
    ] {
        match transfer(file, memory.buffer(0, LENGTH), offset) {
            Ok(bytes) if bytes <= LENGTH => {}
            // ENXIO: in flight when the device became smaller.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENXIO)) => {}
            other => return Err(Stop::Failed(format!("{what} at {offset}: {other:?}"))),
        }
    }
    Ok(())
}
