// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a suite of the guest's tests in a virtual machine of its own.
//!
//! What a suite needs is data ([`ringbar_guest_tests::needs`]), so nothing here depends on
//! which suite it is. A suite ends with checks, which are tests themselves: all planned
//! tests ran, no page is still pinned, the kernel log has no problems, the device exited
//! cleanly. Results are sent as they arrive. The end of the channel means that no further
//! result comes, whatever the reason.
//!
//! | module | what it does |
//! |---|---|
//! | [`plan`] | the tests to run, and their results |
//! | `machine` | the virtual machine |
//! | `output` | runs the test program and reads its results |
//! | [`checks`] | the checks at the end |
//! | `debug`, `pins`, `device_report` | what the checks read: checkers of the debug kernel, pinned pages, counters of the device |

pub mod checks;
pub(crate) mod debug;
mod device_report;
mod machine;
mod output;
mod pins;
pub mod plan;

use std::fs;
use std::sync::mpsc::Sender;

use ringbar_vm::setup::{Kernel, Setup};
use ringbar_vm::vm::Vm;

use self::checks::Check;
use self::plan::{Plan, Report};
use crate::ktap::Outcome;

/// Runs a suite and sends its results until the sender is dropped. A missing result means
/// that the test was not reached, for the reason that [`Check::AllTestsRan`] gives.
pub fn run(setup: &Setup, plan: &Plan, results: &Sender<Report>) {
    let send = |check: Check, result| {
        let (outcome, message) = match result {
            Ok(()) => (Outcome::Passed, String::new()),
            Err(message) => (Outcome::Failed, message),
        };
        // The receiver may be gone.
        let _ = results.send(Report {
            name: check.name().to_owned(),
            outcome,
            message,
        });
    };
    match start(setup, plan) {
        Ok(mut vm) => {
            let ran = output::run(&mut vm, plan, results);
            let alive = ran.is_ok();
            send(Check::AllTestsRan, ran);
            finish(vm, plan, alive, send);
        }
        Err(error) => send(Check::AllTestsRan, Err(error.to_string())),
    }
    // Only the logs are kept. Most suites have none of these files.
    let _ = fs::remove_file(machine::image(plan));
    let _ = fs::remove_file(machine::disk(plan));
}

/// Starts the machine and loads the driver.
fn start(setup: &Setup, plan: &Plan) -> ringbar_vm::error::Result<Vm> {
    let mut vm = Vm::start(setup, &machine::options(plan)?)?;
    if plan.kernel == Kernel::Debug {
        debug::prepare(vm.agent())?;
    }
    vm.load_driver()?;
    Ok(vm)
}

/// Makes the checks at the end. If the tests did not run to their end (`alive` is false),
/// only the kernel log can be checked.
fn finish(vm: Vm, plan: &Plan, alive: bool, send: impl Fn(Check, Result<(), String>)) {
    let mut running = Some(vm);
    for check in Check::of(&plan.needs, plan.kernel) {
        if check == Check::AllTestsRan || !alive && check != Check::KernelLogClean {
            continue;
        }
        let result = match check {
            Check::DeviceCounts(count) => checks::device_counts(plan, &count),
            Check::CleanEnd => running.take().map_or(Ok(()), |vm| {
                checks::shut_down(vm, checks::device_status(plan))
            }),
            check => match &mut running {
                Some(vm) => check_running(check, vm, plan, alive),
                None => Err("the machine has ended already".into()),
            },
        };
        send(check, result);
    }
}

/// A check that needs the running machine.
fn check_running(check: Check, vm: &mut Vm, plan: &Plan, alive: bool) -> Result<(), String> {
    match check {
        Check::PinsBalanced => checks::pins(vm),
        Check::CorruptionIsFound => checks::corruption(vm),
        Check::DmaMappingsGone => debug::dma_mappings(vm.agent()),
        Check::NothingLeaked => debug::unload_and_scan(vm.agent()),
        Check::KernelLogClean => checks::kernel_log(vm, plan, alive),
        Check::FileHoldsWhatWasSynced => checks::kill_and_compare(vm, plan, &machine::image(plan)),
        Check::AllTestsRan | Check::CleanEnd | Check::DeviceCounts(_) => Ok(()),
    }
}
