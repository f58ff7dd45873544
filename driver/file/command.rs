// SPDX-License-Identifier: GPL-2.0

//! The commands of the device, for `ioctl` and io_uring. See [`uapi`].

use crate::{
    abstractions::{
        fs::{
            chardev::Access,
            poll::Readiness, //
        },
        io_uring::command::{
            UringCommand, //
            UringReturn,
        },
        pci::revocable::Guard,
        task::wait::Signals, //
    },
    device::Device,
    hardware::Hardware,
    layout::{
        Opcode,
        RequestHeader, //
    },
    queue::{
        poll_policy::WaitStrategy,
        state::QueueRef, //
    },
    uapi::{
        self,
        Command as Wire,
        Info, //
    }, //
};
use kernel::{
    prelude::*,
    sync::ArcBorrow, //
};

/// User space uses the opcodes of the device.
const _: () = assert!(
    uapi::OP_FLUSH == Opcode::Flush as u32
        && uapi::OP_DISCARD == Opcode::Discard as u32
        && uapi::OP_WRITE_ZEROES == Opcode::WriteZeroes as u32
        && uapi::OP_COPY == Opcode::Copy as u32
        && uapi::OP_FILL == Opcode::Fill as u32
        && uapi::OP_COMPARE == Opcode::Compare as u32
        && uapi::OP_CRC32C == Opcode::Crc32c as u32
);

/// Executes a command. Returns its result and its outcome: also after an error the result is the
/// number of bytes done. Sleeps. To be called by a system call.
///
/// `Err` if the command was not begun.
pub(super) fn execute(device: &Device, access: Access, wire: &Wire) -> Result<(u64, Result)> {
    let hardware = device.hardware()?;
    let command = Command::new(device, &hardware, access, wire)?;
    let mut result = 0;
    let outcome = command.execute(&hardware, &mut result, Signals::Any);
    Ok((result, outcome))
}

/// Executes a command of io_uring. May sleep, except if [`UringCommand::nonblocking`].
pub(super) fn uring<'call>(
    device: ArcBorrow<'_, Device>,
    access: Access,
    uring: UringCommand<'call>,
) -> UringReturn<'call> {
    let hardware = match device.hardware() {
        Ok(hardware) => hardware,
        Err(error) => return uring.done(Err(error)),
    };
    let parsed = parse(&uring).and_then(|wire| Command::new(&device, &hardware, access, &wire));
    let command = match parsed {
        Ok(command) => command,
        Err(error) => return uring.done(Err(error)),
    };
    if uring.nonblocking() {
        return match command.single(&hardware) {
            Some(header) => submit(device, &hardware, header, uring),
            // Several requests, one after the other, which a worker thread of io_uring executes.
            None => uring.retry_blocking(),
        };
    }
    let mut result = 0;
    let outcome = command.execute(&hardware, &mut result, Signals::Fatal);
    uring.done(outcome.map(|()| result))
}

fn parse(uring: &UringCommand<'_>) -> Result<Wire> {
    if uring.number() != uapi::IOC_COMMAND {
        return Err(ENOTTY);
    }
    let wire = Wire::from_bytes(&uring.payload().ok_or(EINVAL)?);
    // io_uring does not copy a result to this field.
    if wire.result != 0 {
        return Err(EINVAL);
    }
    Ok(wire)
}

/// Submits one request, which completes the command later. Does not sleep.
fn submit<'call>(
    device: ArcBorrow<'_, Device>,
    hardware: &Guard<'_, Hardware>,
    header: RequestHeader,
    uring: UringCommand<'call>,
) -> UringReturn<'call> {
    let (queue, slot) = match hardware.find_queue(QueueRef::try_acquire) {
        Ok(found) => found,
        Err(error) if error == EAGAIN => return uring.retry_blocking(),
        Err(error) => return uring.done(Err(error)),
    };
    match slot.prepare_command(header).for_caller().submit(uring) {
        Ok(answer) => {
            Device::defer_kick(device, hardware, queue, WaitStrategy::Interrupt);
            answer
        }
        Err((error, uring)) => uring.done(Err(error)),
    }
}

/// The description of the device for user space.
pub(super) fn info(device: &Device) -> Result<Info> {
    let hardware = device.hardware()?;
    let config = hardware.config();
    let mut capabilities = 0;
    for opcode in 0..u32::BITS {
        // CAST: Below 32.
        if Opcode::from_raw(opcode as u16).is_some_and(|opcode| config.supports(opcode)) {
            capabilities |= 1 << opcode;
        }
    }
    let mut aperture = 0;
    if device.aperture_ready() {
        capabilities |= uapi::CAP_MMAP;
        aperture = config.aperture_bytes().min(device.capacity() as u64);
    }
    if hardware.has_polled_queue() {
        capabilities |= uapi::CAP_IOPOLL;
    }
    Ok(Info {
        capabilities,
        // CAST: A capacity is never negative.
        capacity: device.capacity() as u64,
        aperture,
        max_request: config.max_request_bytes().into(),
        max_command: config.max_command_bytes(),
        // CAST: At most `MAX_IO_QUEUES`.
        io_queues: hardware.io_queues() as u32,
        max_segments: config.max_segments().into(),
        state: match device.readiness() {
            Readiness::Gone => uapi::STATE_OUT_OF_SERVICE,
            _ => uapi::STATE_IN_SERVICE,
        },
    })
}

/// A command that the device executes, on ranges within it.
struct Command {
    opcode: Opcode,
    flags: u16,
    offset: u64,
    length: u64,
    argument: u64,
    /// Greatest number of bytes of a request.
    limit: u64,
}

impl Command {
    /// Validates the command of user space.
    fn new(device: &Device, hardware: &Hardware, access: Access, wire: &Wire) -> Result<Self> {
        let opcode = u16::try_from(wire.opcode)
            .ok()
            .and_then(Opcode::from_raw)
            .filter(|opcode| opcode.is_command() || matches!(opcode, Opcode::Flush))
            .ok_or(EINVAL)?;
        let flags = match wire.flags {
            0 => 0,
            uapi::COMMAND_DURABLE if opcode.writes() => RequestHeader::FUA,
            _ => return Err(EINVAL),
        };
        let reads = matches!(opcode, Opcode::Copy | Opcode::Compare | Opcode::Crc32c);
        if opcode.writes() && !access.write || reads && !access.read {
            return Err(EBADF);
        }
        if !hardware.config().supports(opcode) {
            return Err(EOPNOTSUPP);
        }
        // CAST: A capacity is never negative.
        let capacity = device.capacity() as u64;
        let within = |start: u64| {
            start
                .checked_add(wire.length)
                .is_some_and(|end| end <= capacity)
        };
        match opcode {
            Opcode::Copy | Opcode::Compare if !within(wire.argument) => return Err(ENXIO),
            Opcode::Copy | Opcode::Compare | Opcode::Fill | Opcode::Crc32c => {}
            _ if wire.argument != 0 => return Err(EINVAL),
            Opcode::Flush if wire.offset != 0 || wire.length != 0 => return Err(EINVAL),
            _ => {}
        }
        if !within(wire.offset) {
            return Err(ENXIO);
        }
        Ok(Self {
            opcode,
            flags,
            offset: wire.offset,
            length: wire.length,
            argument: wire.argument,
            // A multiple of 8, so that a pattern continues where the previous request ended. At
            // least 8 if the device supports commands.
            limit: hardware.config().max_command_bytes() & !7,
        })
    }

    fn header(&self, offset: u64, length: u64, argument: u64) -> RequestHeader {
        RequestHeader {
            opcode: self.opcode,
            flags: self.flags,
            offset,
            length,
            argument,
        }
    }

    /// The only request of the command, if it has only one.
    fn single(&self, hardware: &Hardware) -> Option<RequestHeader> {
        (self.length <= hardware.config().max_command_bytes())
            .then(|| self.header(self.offset, self.length, self.argument))
    }

    /// The part of a command in several requests that follows after `done` bytes: its offset in the
    /// range, and its length.
    fn part(&self, done: u64) -> (u64, u64) {
        let length = self.limit.min(self.length - done);
        // In descending order, if the start of the target is the end of the source.
        let backwards = matches!(self.opcode, Opcode::Copy) && self.argument < self.offset;
        let at = if backwards {
            self.length - done - length
        } else {
            done
        };
        (at, length)
    }

    /// Executes the command, in several requests if it is long, one after the other. Updates
    /// `result` after each request. Sleeps. `signals` end it before anything was done.
    fn execute(
        &self,
        hardware: &Guard<'_, Hardware>,
        result: &mut u64,
        signals: Signals,
    ) -> Result {
        if let Some(header) = self.single(hardware) {
            *result = hardware.execute(header, signals)?;
            return Ok(());
        }
        let mut done = 0;
        if matches!(self.opcode, Opcode::Crc32c) {
            *result = self.argument;
        }
        while done < self.length {
            let (at, length) = self.part(done);
            let argument = match self.opcode {
                Opcode::Copy | Opcode::Compare => self.argument + at,
                Opcode::Crc32c => *result,
                _ => self.argument,
            };
            let header = self.header(self.offset + at, length, argument);
            // A restarted copy would copy bytes that were already overwritten.
            let signals = if done > 0 { Signals::Fatal } else { signals };
            let value = hardware.execute(header, signals)?;
            match self.opcode {
                Opcode::Crc32c => *result = value,
                _ => *result += value,
            }
            if matches!(self.opcode, Opcode::Compare) && value < length {
                break;
            }
            done += length;
        }
        Ok(())
    }
}

#[kernel::macros::kunit_tests(ringbar_command)]
mod tests {
    use super::*;

    fn command(opcode: Opcode, offset: u64, argument: u64) -> Command {
        Command {
            opcode,
            flags: 0,
            offset,
            length: 100,
            argument,
            limit: 32,
        }
    }

    #[test]
    fn parts_follow_each_other_to_the_end() {
        let fill = command(Opcode::Fill, 5, 0);
        assert_eq!(fill.part(0), (0, 32));
        assert_eq!(fill.part(32), (32, 32));
        assert_eq!(fill.part(96), (96, 4));
    }

    #[test]
    fn copy_to_behind_its_source_begins_at_the_end() {
        let up = command(Opcode::Copy, 50, 40);
        assert_eq!(up.part(0), (68, 32));
        assert_eq!(up.part(32), (36, 32));
        assert_eq!(up.part(96), (0, 4));
        let down = command(Opcode::Copy, 40, 50);
        assert_eq!(down.part(0), (0, 32));
        // Only a copy overwrites bytes that it still has to read.
        let compare = command(Opcode::Compare, 50, 40);
        assert_eq!(compare.part(0), (0, 32));
    }
}
