// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on demand (docs/faults.md): what callers of the driver get for each rule, and that the
//! device works afterwards.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ringbar_uapi::{self as uapi, Command};

use crate::case::{Case, Context, During, Suite, Verdict, eventually, expect_bytes, expect_errno};
use crate::fixtures::device::{all_released, info, last_events};
use crate::fixtures::driver::expect_working;
use crate::host::{Host, Injected};
use crate::kernel_log::KernelLog;
use crate::needs::Needs;
use crate::pattern;
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// Bytes of a request.
const LENGTH: usize = 8192;

/// Offset of the requests in the device memory.
const AT: u64 = 3 << 20;

/// The driver's message of a queue that the device broke.
const BROKEN: &str = "the device broke queue ";

/// The driver's message of a request that took too long.
const LATE: &str = "has not answered a request in time";

/// The driver's message of a request whose interrupt was lost.
const POLLED: &str = "they were found by polling";

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "injected",
        about: "the device injects the faults that a test asks for",
        needs: Needs::default(),
        cases: vec![
            Case::new("d7_each_error_is_the_callers_error", errors),
            Case::new("d7_third_read_of_a_range_fails", third_read),
            Case::new("d7_short_transfer_says_how_much_was_done", short),
            Case::new("e4_corrupt_byte_of_a_read_and_of_a_write", corrupt),
            Case::new("e4_latency_delays_the_request", latency),
            Case::new("e4_lost_interrupt_is_found_by_polling", lost_interrupt).provokes(POLLED),
            Case::new("d5_lost_interrupts_are_no_timeout", lost_interrupts).provokes(POLLED),
            Case::new("e4_duplicate_used_entry_ends_service", duplicate).provokes(BROKEN),
            Case::new("e4_used_entry_beyond_the_ring_is_eio", bad_id).provokes(BROKEN),
            Case::new("e4_stalled_queue_goes_on", stall),
            Case::new("d5_stalled_request_times_out", timeout).provokes(LATE),
            Case::new("d5_time_limit_is_off_and_has_limits", time_limit),
            Case::new("e4_reset_that_is_held_is_waited_for", held_reset),
        ],
    }
}

/// A device, a file of it, and memory with known data that the device has too.
struct Fixture<'a> {
    context: &'a Context,
    host: Host,
    file: std::fs::File,
    memory: Region,
}

impl<'a> Fixture<'a> {
    fn new(context: &'a Context) -> Verdict<Self> {
        let this = Self {
            context,
            host: Host::connect()?,
            file: context.open()?,
            memory: Region::anonymous(LENGTH)?,
        };
        check_eq!(this.write()?, LENGTH, "bytes written without faults");
        Ok(this)
    }

    fn data() -> &'static [u8] {
        pattern::bytes(71, LENGTH)
    }

    /// Writes the known data.
    fn write(&self) -> std::io::Result<usize> {
        self.memory.store(0, Self::data());
        sys::pwrite(&self.file, self.memory.buffer(0, LENGTH), AT)
    }

    /// Reads into memory that held other bytes.
    fn read(&self) -> std::io::Result<usize> {
        self.memory.fill(0, LENGTH, 0xee);
        sys::pread(&self.file, self.memory.buffer(0, LENGTH), AT)
    }

    fn expect_read(&self, what: &str) -> Verdict {
        check_eq!(self.read()?, LENGTH, "bytes read {what}");
        expect_bytes(&self.memory.load(0, LENGTH), Self::data(), what)
    }

    /// Checks the counters of the rules, ends them, and checks that the device works.
    fn expect_end(&self, injected: Injected<'_>, counts: &[(u64, u64)]) -> Verdict {
        check_eq!(injected.counts()?, counts, "matches and firings");
        drop(injected);
        self.expect_in_order()
    }

    fn expect_in_order(&self) -> Verdict {
        expect_working(self.context, 72)?;
        all_released()
    }

    /// Waits until the driver has taken the device out of service, and puts it into service again.
    fn expect_out_of_service(&self) -> Verdict {
        eventually("the end of service", || {
            Ok(info(&self.file)?.state == uapi::STATE_OUT_OF_SERVICE)
        })?;
        expect_errno(self.read(), &[libc::EIO], "a read out of service")?;
        all_released()?;
        sys::reset(&self.file).during(|| "the reset".into())
    }
}

fn errors(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    for (name, errno) in [
        ("EIO", libc::EIO),
        ("ENOSPC", libc::ENOSPC),
        ("ENXIO", libc::ENXIO),
        ("EINVAL", libc::EINVAL),
        ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ] {
        let rules = ["read", "write", "flush", "fill"].map(|op| format!("{op}:error={name}"));
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        let injected = fixture.host.inject(&rules)?;
        expect_errno(fixture.read(), &[errno], &format!("read with {name}"))?;
        expect_bytes(
            &fixture.memory.load(0, LENGTH),
            &[0xee; LENGTH],
            "the memory",
        )?;
        expect_errno(fixture.write(), &[errno], &format!("write with {name}"))?;
        let flush = sys::fdatasync(&fixture.file);
        expect_errno(flush, &[errno], &format!("fdatasync with {name}"))?;
        let mut fill = Command {
            opcode: uapi::OP_FILL,
            offset: AT,
            length: 8,
            ..Command::default()
        };
        let fill = sys::execute(&fixture.file, &mut fill);
        expect_errno(fill, &[errno], &format!("fill with {name}"))?;
        check_eq!(injected.counts()?, [(1, 1); 4], "matches and firings");
    }
    fixture.expect_read("after errors")?;
    fixture.expect_in_order()
}

fn third_read(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let rule = "read:offset=3M..4M:nth=3:error=EIO";
    let injected = fixture.host.inject(&[rule])?;
    fixture.expect_read("first")?;
    // Elsewhere.
    sys::pread(&fixture.file, fixture.memory.buffer(0, LENGTH), 4 << 20)?;
    fixture.expect_read("second")?;
    expect_errno(fixture.read(), &[libc::EIO], "third")?;
    fixture.expect_read("fourth")?;
    check_eq!(injected.listed()?[0].rule, rule, "the rule");
    fixture.expect_end(injected, &[(4, 1)])
}

fn short(context: &Context) -> Verdict {
    const HALF: usize = LENGTH / 2;
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["short"])?;
    check_eq!(fixture.read()?, HALF, "bytes read");
    let expected = [&Fixture::data()[..HALF], &[0xee; HALF]].concat();
    expect_bytes(&fixture.memory.load(0, LENGTH), &expected, "the memory")?;
    let byte = fixture.memory.buffer(0, 1);
    expect_errno(
        sys::pread(&fixture.file, byte, AT),
        &[libc::EIO],
        "one byte",
    )?;
    fixture.memory.fill(0, LENGTH, 0x55);
    let written = sys::pwrite(&fixture.file, fixture.memory.buffer(0, LENGTH), AT)?;
    check_eq!(written, HALF, "bytes written");
    check_eq!(injected.counts()?, [(3, 3)], "matches and firings");
    injected.clear()?;
    check_eq!(fixture.read()?, LENGTH, "bytes read afterwards");
    let expected = [&[0x55; HALF], &Fixture::data()[HALF..]].concat();
    expect_bytes(
        &fixture.memory.load(0, LENGTH),
        &expected,
        "what was written",
    )?;
    fixture.expect_end(injected, &[])
}

fn corrupt(context: &Context) -> Verdict {
    const WRONG: usize = 5000;
    let fixture = Fixture::new(context)?;
    let mut wrong = Fixture::data().to_vec();
    wrong[WRONG] = !wrong[WRONG];
    let from = AT + WRONG as u64;
    let rules = ["read", "write"].map(|op| format!("{op}:offset={from}..:times=1:corrupt"));
    let injected = fixture.host.inject(&[&rules[0]])?;
    check_eq!(fixture.read()?, LENGTH, "bytes read");
    expect_bytes(&fixture.memory.load(0, LENGTH), &wrong, "what was read")?;
    fixture.expect_read("the second time")?;
    check_eq!(injected.counts()?, [(2, 1)], "matches and firings");
    let injected = fixture.host.inject(&[&rules[1]])?;
    check_eq!(fixture.write()?, LENGTH, "bytes written");
    check_eq!(fixture.read()?, LENGTH, "bytes read");
    expect_bytes(&fixture.memory.load(0, LENGTH), &wrong, "what was written")?;
    fixture.expect_end(injected, &[(1, 1)])
}

fn latency(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["read:nth=1:latency=100ms"])?;
    let start = Instant::now();
    fixture.expect_read("late")?;
    let elapsed = start.elapsed();
    check!(
        elapsed >= Duration::from_millis(100),
        "it took {elapsed:?} only"
    );
    fixture.expect_end(injected, &[(1, 1)])
}

/// The request is late enough that its submitter sleeps, and nothing wakes it but the watchdog.
fn lost_interrupt(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let mut log = KernelLog::from_now()?;
    let rules = ["read:nth=1:latency=20ms", "nth=1:drop-interrupt"];
    let injected = fixture.host.inject(&rules)?;
    fixture.expect_read("without an interrupt")?;
    check_eq!(injected.counts()?, [(1, 1), (1, 1)], "matches and firings");
    let lines = log.of_driver()?;
    check!(
        lines.len() == 1 && lines[0].contains(POLLED),
        "the driver said {lines:?}"
    );
    drop(injected);
    fixture.expect_in_order()
}

/// For four times as long as a request may take, the driver gets no interrupt. The device makes
/// progress all the same, so the driver does not reset it.
fn lost_interrupts(context: &Context) -> Verdict {
    const LIMIT_S: u64 = 1;
    let fixture = Fixture::new(context)?;
    let limit = TimeLimit::of(context)?;
    limit.set(&LIMIT_S.to_string())?;
    let (events, _) = last_events(&fixture.file, 1)?;
    let injected = (fixture.host).inject(&["read:latency=20ms", "drop-interrupt"])?;
    // The watchdog notices the limit at its next tick, which is up to 5 s away.
    fixture.expect_read("without an interrupt")?;
    let start = Instant::now();
    let mut reads = 1;
    while reads < 3 || start.elapsed() <= Duration::from_secs(4 * LIMIT_S) {
        fixture.expect_read("without interrupts")?;
        reads += 1;
    }
    // Each of them has waited for the watchdog.
    check!(reads < 20, "{reads} reads");
    let counts = injected.counts()?;
    check_eq!(counts[0], (reads, reads), "matches and firings");
    check!(
        counts[1].1 >= reads,
        "{counts:?}: an interrupt was not lost"
    );
    drop(injected);
    check_eq!(last_events(&fixture.file, 1)?.0, events, "events");
    fixture.expect_in_order()
}

/// The request itself is good.
fn duplicate(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["nth=1:duplicate-used"])?;
    fixture.expect_read("with a used entry that comes twice")?;
    fixture.expect_out_of_service()?;
    check_eq!(injected.counts()?[0].1, 1, "firings");
    drop(injected);
    fixture.expect_in_order()
}

fn bad_id(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["nth=1:bad-used-id"])?;
    expect_errno(fixture.read(), &[libc::EIO], "the read")?;
    fixture.expect_out_of_service()?;
    check_eq!(injected.counts()?[0].1, 1, "firings");
    drop(injected);
    fixture.expect_in_order()
}

/// Reads on another thread while the queue is stalled. `unless` ends that.
fn read_stalled(
    fixture: &Fixture<'_>,
    injected: &Injected<'_>,
    end: impl FnOnce() -> Verdict,
) -> Verdict<std::io::Result<usize>> {
    thread::scope(|scope| {
        let read = scope.spawn(|| fixture.read());
        let stalled = eventually("the stall", || Ok(injected.counts()?[0].1 == 1));
        // Also after an error, or the read would not end.
        let ended = end();
        let result = read.join().expect("no panic");
        stalled.and(ended)?;
        Ok(result)
    })
}

fn stall(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["stall"])?;
    let read = read_stalled(&fixture, &injected, || injected.clear())?;
    check_eq!(read?, LENGTH, "bytes read after the stall");
    let read = fixture.memory.load(0, LENGTH);
    expect_bytes(&read, Fixture::data(), "what was read")?;
    fixture.expect_end(injected, &[])
}

/// The file of the time limit; dropping it switches the limit off, as it is by default.
struct TimeLimit(PathBuf);

impl TimeLimit {
    fn of(context: &Context) -> Verdict<Self> {
        Ok(Self(context.pci_device()?.join("timeout_s")))
    }

    fn get(&self) -> Verdict<String> {
        fs::read_to_string(&self.0).during(|| format!("reading {}", self.0.display()))
    }

    fn set(&self, value: &str) -> std::io::Result<()> {
        fs::write(&self.0, value)
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        if let Err(error) = self.set("0") {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// The driver resets the device, whose stall ends with that.
fn timeout(context: &Context) -> Verdict {
    let fixture = Fixture::new(context)?;
    let limit = TimeLimit::of(context)?;
    limit.set("2")?;
    let injected = fixture.host.inject(&["nth=1:stall"])?;
    let read = read_stalled(&fixture, &injected, || Ok(()))?;
    expect_errno(read, &[libc::EIO], "the stalled read")?;
    let (_, last) = {
        // The reset may not have ended yet.
        fixture.expect_in_order()?;
        last_events(&fixture.file, 2)?
    };
    let expected = [
        (uapi::EVENT_RESET, uapi::RESET_BY_TIMEOUT),
        (uapi::EVENT_STARTED, context.size()),
    ];
    check_eq!(last, expected, "the last events");
    check_eq!(injected.counts()?[0].1, 1, "firings");
    drop(injected);
    fixture.expect_in_order()
}

fn time_limit(context: &Context) -> Verdict {
    let limit = TimeLimit::of(context)?;
    check_eq!(limit.get()?, "0\n", "the time limit by default");
    for value in ["65536", "-1", "4294967296", "2s"] {
        expect_errno(
            limit.set(value),
            &[libc::EINVAL, libc::ERANGE],
            &format!("a limit of {value:?}"),
        )?;
    }
    for value in ["65535", "30"] {
        limit.set(value)?;
        check_eq!(limit.get()?, format!("{value}\n"), "the time limit");
    }
    expect_working(context, 73)
}

fn held_reset(context: &Context) -> Verdict {
    const HELD: Duration = Duration::from_millis(300);
    let fixture = Fixture::new(context)?;
    let injected = fixture.host.inject(&["nth=1:hold-reset=300ms"])?;
    let start = Instant::now();
    sys::reset(&fixture.file).during(|| "the reset".into())?;
    let elapsed = start.elapsed();
    check!(elapsed >= HELD, "the reset took {elapsed:?} only");
    check_eq!(injected.counts()?[0].1, 1, "firings");
    drop(injected);
    fixture.expect_read("after the reset")?;
    fixture.expect_in_order()
}
