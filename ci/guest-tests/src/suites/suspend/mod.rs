// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspend and resume, with open files and maps of the device, and with I/O.
//!
//! The kernel's own suspend tests (`/sys/power/pm_test`) stop at a level and resume; the
//! harness ends a real suspend.

mod busy;
mod fio;
mod idle;
mod image;
mod power;

use std::fs;
use std::thread;

use ringbar_agent_protocol::machine::Transport;

use self::busy::{OpenDevice, with_io};
use self::power::{PmTest, set, sleep, to_ram};
use crate::case::{Case, Context, During, Suite, Verdict, expect_errno};
use crate::fixtures::driver::{self, expect_working};
use crate::host::Host;
use crate::needs::{Kernels, Needs};
use crate::pins::Pins;
use crate::sys::{self, PAGE, Region, SleepState, Task};
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
            ..Needs::each_transport()
        },
        cases: vec![
            // This test comes first, because the port to the host does not survive a
            // suspend.
            Case::new(
                "dr4_caller_of_a_stalled_device_refuses_sleep",
                stalled_device,
            )
            .provokes("Freezing user space processes failed")
            .only_over(Transport::VhostUser, super::stall::DOORBELLS_WAIT),
            Case::new("dr4_stages_of_suspend_to_idle", |context| {
                pm_tests(context, "freeze", &["devices", "platform"])
            })
            .over_any_transport(),
            Case::new("dr4_stages_of_suspend_to_ram", |context| {
                pm_tests(context, "mem", &["devices", "platform", "core"])
            })
            .over_any_transport(),
            Case::new("dr4_stages_of_hibernation", |context| {
                pm_tests(context, "disk", &["devices", "platform", "core"])
            })
            .over_any_transport(),
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
            })
            .over_any_transport(),
            Case::new("dr4_suspend_to_ram_twice", |context| twice(context, to_ram)),
            Case::new("dr4_stages_with_io", pm_tests_with_io).over_any_transport(),
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
    driver::unbind(&address)?;
    driver::bind(context, &address)?;
    expect_working(context, 8)?;
    check!(Pins::read()?.balanced(), "pages are still pinned");
    Ok(())
}
