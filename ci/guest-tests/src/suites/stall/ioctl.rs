// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An `ioctl` whose result cannot be stored for a while.

use std::thread;

use ringbar_uapi::{self as uapi, Command, OP_CRC32C};

use super::fixture::{Caller, Fixture};
use crate::case::{Context, During, Stop, Verdict, eventually};
use crate::check_eq;
use crate::fixtures::driver::{bind, expect_working, unbind};
use crate::sys::{self, PAGE, Region, SleepState, UserFaults};

/// The page of the argument is removed while the device works, and its fault is handled
/// only after the device was unbound.
pub(super) fn result_without_page(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let b = Fixture::new(context, 1)?;
    let argument = Region::anonymous(PAGE)?;
    let faults = UserFaults::of(&argument)?;
    faults.zero_pages(argument.address(), PAGE)?;
    let command = Command {
        opcode: OP_CRC32C,
        length: 1,
        ..Command::default()
    };
    argument.store(0, &command.to_bytes());
    b.bar.fill(0, 1, 0);
    let result: Verdict<_> = thread::scope(|scope| {
        // Within, so that both end before the threads are waited for.
        let _registered = faults.unregister_on_drop();
        let stall = b.host.stall()?;
        let (file, buffer) = (&b.file, argument.buffer(0, Command::SIZE));
        let caller = Caller::start(scope, move || sys::ioctl(file, uapi::IOC_COMMAND, buffer))?;
        caller.expect_asleep(libc::SYS_ioctl, SleepState::Uninterruptible)?;
        argument.advise(libc::MADV_DONTNEED)?;
        stall.resume()?;
        let waits = eventually("the wait for the page", || {
            Ok(caller.task.kernel_function()? == "handle_userfault")
        });
        let unbound = scope.spawn(|| unbind(&address));
        let ended = eventually("unbind", || Ok(unbound.is_finished()));
        // In any case, so that the threads end.
        faults.zero_pages(argument.address(), PAGE)?;
        let result = caller.join()?;
        unbound
            .join()
            .map_err(|_| Stop::Failed("unbind panicked".into()))??;
        waits?;
        ended?;
        Ok(result)
    });
    bind(context, &address)?;
    result?.during(|| "the ioctl".into())?;
    let crc = argument.load(Command::RESULT_AT, 8);
    check_eq!(crc, 0x527d_5351u64.to_ne_bytes(), "the result");
    expect_working(context, 7)
}
