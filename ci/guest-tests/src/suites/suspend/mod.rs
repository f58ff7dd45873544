// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspend and resume, with open files and maps of the device, and with I/O.
//!
//! The kernel's own suspend tests (`/sys/power/pm_test`) stop at a level and resume; the
//! harness ends a real suspend.

mod fio;
mod idle;
mod image;

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use crate::case::{Case, Context, During, Suite, TIMEOUT, Verdict, expect_bytes, expect_errno};
use crate::host::Host;
use crate::needs::{Kernels, Needs};
use crate::pattern;
use crate::pins::Pins;
use crate::suites::lifecycle::{SharedProgress, expect_good_end, expect_working, process};
use crate::sys::{
    self, AioContext, AioOperation, Buffers, PAGE, Region, Ring, SleepState, Task, UringOperation,
};
use crate::{check, check_eq};

/// Size in bytes of the disk that the memory of a sleeping machine is written to: half of
/// the guest's memory, the most that an image takes.
const DISK: u64 = 1 << 30;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "suspend",
        about: "the machine sleeps and wakes up, with files and maps open and I/O going on",
        needs: Needs {
            disk: Some(DISK),
            suspends: true,
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: vec![
            // This test comes first, because the port to the host does not survive a
            // suspend.
            Case::new(
                "dr4_caller_of_a_stalled_device_refuses_sleep",
                stalled_device,
            )
            .provokes("Freezing user space processes failed"),
            Case::new("dr4_stages_of_suspend_to_idle", |context| {
                pm_tests(context, "freeze", &["devices", "platform"])
            }),
            Case::new("dr4_stages_of_suspend_to_ram", |context| {
                pm_tests(context, "mem", &["devices", "platform", "core"])
            }),
            Case::new("dr4_stages_of_hibernation", |context| {
                pm_tests(context, "disk", &["devices", "platform", "core"])
            }),
            // Before the suspends to RAM: after one, QEMU 11.1.3 has no ACPI registers, with any
            // guest, and so no power button.
            Case::new("dr4_suspend_to_idle_twice", |context| {
                twice(context, idle::sleep)
            }),
            Case::new("dr4_suspend_to_idle_with_io", |context| {
                with_io(context, 2, idle::sleep)
            }),
            Case::new("dr4_fio_goes_on_after_suspend_to_idle", |context| {
                fio::continues(context, idle::sleep)
            }),
            Case::new("dr4_suspend_to_ram_twice", |context| twice(context, to_ram)),
            Case::new("dr4_stages_with_io", pm_tests_with_io),
            Case::new("dr4_suspend_to_ram_with_io", |context| {
                with_io(context, 2, to_ram)
            }),
            Case::new("dr4_fio_goes_on_after_suspend_to_ram", |context| {
                fio::continues(context, to_ram)
            }),
            Case::new(
                "dr4_hibernation_image_is_written_and_read",
                image::written_and_read,
            ),
            Case::new("dr4_unbind_and_bind_after_sleep", rebind),
        ],
    }
}

fn set(path: &str, value: &str) -> Verdict {
    fs::write(path, value).during(|| format!("writing {value:?} to {path}"))
}

/// Suspends the machine to this state; returns after the resume.
fn sleep(state: &str) -> io::Result<()> {
    fs::write("/sys/power/state", state)
}

/// Limits suspends to a level of `pm_test`, until dropped.
struct PmTest;

impl PmTest {
    const FILE: &str = "/sys/power/pm_test";

    fn new(level: &str) -> Verdict<Self> {
        // Delay at that level, in seconds.
        set("/sys/module/suspend/parameters/pm_test_delay", "0")?;
        set(Self::FILE, level)?;
        Ok(Self)
    }
}

impl Drop for PmTest {
    fn drop(&mut self) {
        if let Err(stop) = set(Self::FILE, "none") {
            eprintln!("{stop:?}");
        }
    }
}

/// Number of suspends since boot.
fn suspend_count() -> Verdict<u64> {
    let path = Path::new("/sys/power/suspend_stats/success");
    let text = fs::read_to_string(path).during(|| format!("reading {}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|_| crate::case::Stop::Failed(format!("{} holds {text:?}", path.display())))
}

/// A complete suspend, which the harness ends.
fn suspend(state: &str) -> Verdict {
    let count = suspend_count()?;
    sleep(state).during(|| format!("sleep to {state:?}"))?;
    check_eq!(suspend_count()?, count + 1, "how often the machine slept");
    Ok(())
}

/// Suspend to RAM.
fn to_ram() -> Verdict {
    suspend("mem")
}

/// A file and a map from before the suspend.
struct OpenDevice {
    file: fs::File,
    map: Region,
    seed: u64,
}

impl OpenDevice {
    const AT: usize = (3 << 20) + 5;
    const LENGTH: usize = 3 * PAGE;

    fn new(context: &Context, seed: u64) -> Verdict<Self> {
        let open = Self {
            file: context.open()?,
            map: context.map()?,
            seed,
        };
        open.map.store(Self::AT, pattern::bytes(seed, Self::LENGTH));
        Ok(open)
    }

    /// Checks that the old data is there, by the map and by DMA, and that both show new
    /// data.
    fn expect_alive(&self) -> Verdict {
        let old = pattern::bytes(self.seed, Self::LENGTH);
        let new = pattern::bytes(self.seed + 1000, Self::LENGTH);
        let memory = Region::anonymous(Self::LENGTH)?;
        let buffer = memory.buffer(0, Self::LENGTH);
        let position = Self::AT as u64;
        let load = || self.map.load(Self::AT, Self::LENGTH);

        expect_bytes(&load(), old, "the old map")?;
        let read = sys::pread(&self.file, buffer, position).during(|| "the old file".into())?;
        check_eq!(read, Self::LENGTH, "bytes read");
        expect_bytes(
            &memory.load(0, Self::LENGTH),
            old,
            "what the old file reads",
        )?;
        memory.store(0, new);
        let written = sys::pwrite(&self.file, buffer, position)?;
        check_eq!(written, Self::LENGTH, "bytes written");
        expect_bytes(&load(), new, "the old map after a write")?;
        self.map.store(Self::AT, old);
        sys::pread(&self.file, buffer, position)?;
        expect_bytes(&memory.load(0, Self::LENGTH), old, "a store to the old map")
    }
}

fn pm_tests(context: &Context, state: &str, pm_tests: &[&str]) -> Verdict {
    let open = OpenDevice::new(context, 1)?;
    for level in pm_tests {
        let during = || format!("{state} as far as {level}");
        {
            let _pm_test = PmTest::new(level)?;
            sleep(state).during(during)?;
        }
        open.expect_alive().during(during)?;
        expect_working(context, 2).during(during)?;
    }
    Ok(())
}

fn twice(context: &Context, sleep: fn() -> Verdict) -> Verdict {
    let open = OpenDevice::new(context, 3)?;
    for round in 0..2 {
        let during = || format!("round {round}");
        sleep().during(during)?;
        open.expect_alive().during(during)?;
        expect_working(context, 4 + round).during(during)?;
    }
    Ok(())
}

/// Number of methods of moving data.
const ENGINES: usize = 3;

/// Writes and reads back repeatedly, until told to stop.
fn move_data(context: &Context, progress: &SharedProgress, engine: usize) -> Verdict {
    const DEPTH: usize = 4;
    const LENGTH: usize = 150_001;

    let file = context.open()?;
    let memory = Region::anonymous(DEPTH * LENGTH)?;
    let buffer = |i: usize| memory.buffer(i * LENGTH, LENGTH);
    let place = |i: usize| ((16 + 2 * engine) << 20) as u64 + (i * LENGTH) as u64;
    let aio = AioContext::new(DEPTH as u32)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    let mut transfer = |write: bool| -> Verdict {
        let results = match engine {
            0 => (0..DEPTH)
                .map(|i| match write {
                    true => (i as u64, sys::pwrite(&file, buffer(i), place(i))),
                    false => (i as u64, sys::pread(&file, buffer(i), place(i))),
                })
                .collect(),
            1 => {
                let operations: Vec<_> = (0..DEPTH)
                    .map(|i| match write {
                        true => AioOperation::pwrite(&file, buffer(i), place(i)),
                        false => AioOperation::pread(&file, buffer(i), place(i)),
                    })
                    .collect();
                let taken = aio.submit(&operations)?;
                check_eq!(taken, DEPTH, "operations taken");
                aio.results(DEPTH, DEPTH, TIMEOUT)?
            }
            _ => {
                let operations: Vec<_> = (0..DEPTH)
                    .map(|i| match write {
                        true => UringOperation::write(&file, Buffers::One(buffer(i)), place(i)),
                        false => UringOperation::read(&file, Buffers::One(buffer(i)), place(i)),
                    })
                    .collect();
                check_eq!(ring.submit(&operations)?, DEPTH, "operations taken");
                ring.results(DEPTH, TIMEOUT)?
            }
        };
        check_eq!(results.len(), DEPTH, "results");
        for (_, result) in results {
            check_eq!(result?, LENGTH, "bytes moved");
        }
        Ok(())
    };
    let mut seed = 1;
    while !progress.signalled() {
        for i in 0..DEPTH {
            memory.store(i * LENGTH, pattern::bytes(seed + i as u64, LENGTH));
        }
        transfer(true).during(|| "writing".into())?;
        memory.fill(0, DEPTH * LENGTH, 0);
        transfer(false).during(|| "reading".into())?;
        for i in 0..DEPTH {
            expect_bytes(
                &memory.load(i * LENGTH, LENGTH),
                pattern::bytes(seed + i as u64, LENGTH),
                "what was read back",
            )?;
        }
        seed = seed % 50 + 1;
        progress.count(engine);
    }
    Ok(())
}

/// Suspends `times` times while data is moved by all methods, and checks that the
/// transfers continue.
fn with_io(context: &Context, times: u32, mut sleep: impl FnMut() -> Verdict) -> Verdict {
    let open = OpenDevice::new(context, 5)?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for engine in 0..ENGINES {
        children.push(process(engine, || move_data(context, &progress, engine))?);
    }
    let wait_for_progress = || -> Verdict {
        for engine in 0..ENGINES {
            progress.expect_done(engine, progress.done(engine) + 2)?;
        }
        Ok(())
    };
    let slept: Verdict = (0..times).try_for_each(|round| {
        let during = || format!("round {round}");
        wait_for_progress().during(during)?;
        sleep().during(during)?;
        wait_for_progress().during(during)?;
        open.expect_alive().during(during)
    });
    progress.signal();
    for (engine, child) in children.into_iter().enumerate() {
        expect_good_end(engine, child)?;
    }
    slept
}

fn pm_tests_with_io(context: &Context) -> Verdict {
    for (state, level) in [("mem", "devices"), ("disk", "core"), ("freeze", "platform")] {
        let _pm_test = PmTest::new(level)?;
        with_io(context, 2, || sleep(state).during(|| state.into()))?;
    }
    Ok(())
}

/// A task that waits for the device cannot be frozen, so the suspend fails, but the task
/// continues.
fn stalled_device(context: &Context) -> Verdict {
    const FREEZE_TIMEOUT: &str = "/sys/power/pm_freeze_timeout";

    let host = Host::connect()?;
    let open = OpenDevice::new(context, 6)?;
    let memory = Region::anonymous(PAGE)?;
    let timeout = fs::read_to_string(FREEZE_TIMEOUT)?;
    set(FREEZE_TIMEOUT, "1000")?;
    let stall = host.stall()?;
    let result = thread::scope(|scope| {
        // Within, so that it ends before the thread is waited for.
        let stall = stall;
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = scope.spawn(|| {
            let sender = sender;
            // The receiver waits for it.
            let _ = sender.send(Task::current());
            sys::pread(&open.file, memory.buffer(0, PAGE), 0)
        });
        let task = receiver
            .recv()
            .map_err(|_| crate::case::Stop::Failed("the thread did not start".into()))?;
        crate::case::eventually("the wait for the device", || {
            Ok(task.sleep_state_in(libc::SYS_pread64)? == Some(SleepState::Uninterruptible))
        })?;
        expect_errno(sleep("mem"), &[libc::EBUSY], "going to sleep")?;
        stall.resume()?;
        reader
            .join()
            .map_err(|_| crate::case::Stop::Failed("the thread panicked".into()))
    });
    set(FREEZE_TIMEOUT, timeout.trim())?;
    check_eq!(result??, PAGE, "bytes read meanwhile");
    open.expect_alive()?;
    expect_working(context, 7)
}

fn rebind(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    {
        let _pm_test = PmTest::new("devices")?;
        sleep("mem")?;
    }
    crate::suites::lifecycle::unbind(&address)?;
    crate::suites::lifecycle::bind(context, &address)?;
    expect_working(context, 8)?;
    check!(Pins::read()?.balanced(), "pages are still pinned");
    Ok(())
}
