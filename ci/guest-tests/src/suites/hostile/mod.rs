// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver that means harm, at a device beside the one that another driver uses.
//!
//! The test program takes the second device away from the kernel's driver and drives it itself,
//! from user space: it maps the registers (`resourceN` of sysfs), and puts virtqueues into memory
//! of which it knows the guest physical address (a huge page).

mod driver;
mod function;
mod memory;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use self::driver::Driver;
use self::function::Function;
use self::memory::Memory;
use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes};
use crate::fixtures::driver::{bind, expect_working, unbind};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};
use crate::pattern::{self, Random};
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// Node and class directory of the second device.
const NODE: &str = "/dev/ringbar1";
const CLASS: &str = "/sys/class/misc/ringbar1/device";

/// Number of rounds, each with a seed of its own, and of actions in each. On a slow machine there
/// are more, until the other device has done its least.
const ROUNDS: u64 = 60;
const MAX_ROUNDS: u64 = 10 * ROUNDS;
const ACTIONS: u32 = 40;

/// Least number of verified transfers of the other device meanwhile.
const MIN_TRANSFERS: u64 = 20;

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "hostile",
        about: "a driver that means harm, at a device beside the one that is used",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(64 << 20),
                transports: Transports::Each,
                ..Daemon::default()
            }),
            second_device: true,
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: vec![Case::new(
            "e10_hostile_driver_disturbs_no_other_device",
            hostile_driver,
        )],
    }
}

fn hostile_driver(context: &Context) -> Verdict {
    let other = Context::new(Path::new(NODE)).during(|| format!("opening {NODE}"))?;
    let directory = Path::new(CLASS)
        .canonicalize()
        .during(|| format!("the device of {CLASS}"))?;
    let name = directory.file_name().unwrap_or_default();
    let address = name.to_string_lossy().into_owned();
    unbind(&address)?;
    let driven = drive(context, &directory);
    // Also after a failure, so that the log of the device says more.
    bind(&other, &address)?;
    driven?;
    expect_working(&other, 1).during(|| "the device of the hostile driver".into())?;
    expect_working(context, 2).during(|| "the other device".into())
}

/// Tells the user of the other device to stop, also after a panic.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Drives the second device badly while the first one is used.
fn drive(context: &Context, directory: &Path) -> Verdict {
    let transport = context.transport()?;
    let memory = Memory::new()?;
    let function = Function::new(directory)?;
    let ended = AtomicBool::new(false);
    let transfers = AtomicU64::new(0);
    thread::scope(|scope| {
        let user = scope.spawn(|| transfer_until(context, &ended, &transfers));
        let guard = Ended(&ended);
        let mut driver = Driver::new(&function, &memory, transport);
        let is_enough = || user.is_finished() || transfers.load(Ordering::Relaxed) >= MIN_TRANSFERS;
        let mut rounds = (0..MAX_ROUNDS).take_while(|seed| *seed < ROUNDS || !is_enough());
        let driven = rounds.try_for_each(|seed| {
            driver
                .round(seed, ACTIONS)
                .during(|| format!("the round with seed {seed}"))
        });
        // Before the memory is given back.
        let driven = driven.and(function.reset());
        drop(guard);
        eprintln!("seeds from 0 on: {:?}", driver.counts);
        let used = user
            .join()
            .map_err(|_| Stop::Failed("the user of the other device panicked".into()))?;
        driven?;
        check!(driver.counts.used > 0, "the device has executed nothing");
        used
    })?;
    let transfers = transfers.into_inner();
    check!(
        transfers >= MIN_TRANSFERS,
        "only {transfers} transfers of the other device"
    );
    Ok(())
}

/// Writes, reads and compares until told to stop; counts in `transfers` how often.
fn transfer_until(context: &Context, ended: &AtomicBool, transfers: &AtomicU64) -> Verdict {
    const LENGTH: usize = 50_000;
    let file = context.open()?;
    let memory = Region::anonymous(LENGTH)?;
    let buffer = memory.buffer(0, LENGTH);
    let mut random = Random::new(1);
    while !ended.load(Ordering::Relaxed) {
        let number = transfers.load(Ordering::Relaxed);
        let offset = random.below(context.size() - LENGTH as u64);
        let data = pattern::bytes(number, LENGTH);
        memory.store(0, data);
        let during = || format!("transfer {number} of the other device");
        check_eq!(
            sys::pwrite(&file, buffer, offset).during(during)?,
            LENGTH,
            "bytes written"
        );
        memory.fill(0, LENGTH, 0);
        check_eq!(
            sys::pread(&file, buffer, offset).during(during)?,
            LENGTH,
            "bytes read"
        );
        expect_bytes(&memory.load(0, LENGTH), data, "what was read back")?;
        transfers.store(number + 1, Ordering::Relaxed);
    }
    Ok(())
}
