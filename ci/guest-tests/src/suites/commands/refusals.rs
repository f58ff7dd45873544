// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that the driver must refuse, by `ioctl`.

use ringbar_uapi::{
    self as uapi, COMMAND_DURABLE, Command, OP_COMPARE, OP_COPY, OP_CRC32C, OP_DISCARD, OP_FILL,
    OP_FLUSH, OP_WRITE_ZEROES,
};

use super::bench::{ALL, Fixture};
use crate::case::{Context, During, Verdict, expect_errno};
use crate::check_eq;
use crate::sys::{self, IoVec, PAGE, Region};

/// A command without an effect.
pub(super) fn harmless(opcode: u32) -> Command {
    Command {
        opcode,
        ..Command::default()
    }
}

/// Commands on ranges that are not within the device.
pub(super) fn beyond(size: u64) -> Vec<Command> {
    let ranges = [
        (size, 1),
        (size - 1, 2),
        (0, size + 1),
        (size + 1, 0),
        (1 << 40, 4096),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (1, u64::MAX),
        (u64::MAX - 4095, 4096),
    ];
    let mut commands = Vec::new();
    for opcode in ALL.into_iter().filter(|opcode| *opcode != OP_FLUSH) {
        for (offset, length) in ranges {
            commands.push(Command {
                offset,
                length,
                ..harmless(opcode)
            });
            if opcode == OP_COPY || opcode == OP_COMPARE {
                commands.push(Command {
                    argument: offset,
                    length,
                    ..harmless(opcode)
                });
            }
        }
    }
    commands
}

/// Commands that do not exist.
pub(super) fn unknown() -> Vec<Command> {
    let mut commands = Vec::new();
    // 1 and 2 are the device's own reads and writes, and the upper half of 16 bits
    // the driver's.
    for opcode in [0, 1, 2, 10, 31, 32, 0x8001, 0xffff, 0x1_0004, u32::MAX] {
        commands.push(harmless(opcode));
    }
    for opcode in ALL {
        for flags in [2, 3, 4, 1 << 16, 1 << 31, u32::MAX] {
            commands.push(Command {
                flags,
                ..harmless(opcode)
            });
        }
    }
    for opcode in [OP_FLUSH, OP_DISCARD, OP_WRITE_ZEROES] {
        for argument in [1, u64::MAX] {
            commands.push(Command {
                argument,
                ..harmless(opcode)
            });
        }
    }
    for opcode in [OP_FLUSH, OP_COMPARE, OP_CRC32C] {
        commands.push(Command {
            flags: COMMAND_DURABLE,
            ..harmless(opcode)
        });
    }
    for (offset, length) in [(1, 0), (0, 1), (0, u64::MAX)] {
        commands.push(Command {
            offset,
            length,
            ..harmless(OP_FLUSH)
        });
    }
    // A CRC has 32 bits.
    commands.push(Command {
        argument: 1 << 32,
        ..harmless(OP_CRC32C)
    });
    commands
}

fn expect_refused(b: &Fixture, commands: Vec<Command>, errno: i32) -> Verdict {
    for mut command in commands {
        let what = format!("{command:?}");
        expect_errno(sys::execute(&b.file, &mut command), &[errno], &what)?;
    }
    b.expect("after refused commands")
}

pub(super) fn ranges(context: &Context) -> Verdict {
    let b = Fixture::new(context, 200)?;
    expect_refused(&b, beyond(context.size()), libc::ENXIO)
}

pub(super) fn arguments(context: &Context) -> Verdict {
    let b = Fixture::new(context, 201)?;
    expect_refused(&b, unknown(), libc::EINVAL)
}

/// Which access modes the opcodes need: reading, writing.
pub(super) const NEEDS: [(u32, bool, bool); 7] = [
    (OP_FLUSH, false, false),
    (OP_DISCARD, false, true),
    (OP_WRITE_ZEROES, false, true),
    (OP_COPY, true, true),
    (OP_FILL, false, true),
    (OP_COMPARE, true, false),
    (OP_CRC32C, true, false),
];

pub(super) fn access_mode(context: &Context) -> Verdict {
    let reader = context.open_with(libc::O_RDONLY)?;
    let writer = context.open_with(libc::O_WRONLY)?;
    for (opcode, reads, writes) in NEEDS {
        for (file, allowed, name) in [(&reader, !writes, "reader"), (&writer, !reads, "writer")] {
            let result = sys::execute(file, &mut harmless(opcode));
            let what = format!("opcode {opcode} of a {name}");
            if allowed {
                result.during(|| what)?;
            } else {
                expect_errno(result, &[libc::EBADF], &what)?;
            }
        }
    }
    Ok(())
}

pub(super) fn bad_pointer(context: &Context) -> Verdict {
    const EFAULT: &[i32] = &[libc::EFAULT];

    let file = context.open()?;
    let mut memory = Region::anonymous(2 * PAGE)?;
    let command = harmless(OP_CRC32C).to_bytes();
    let last = PAGE - command.len();
    memory.store(last, &command);
    // Nothing is mapped after the first page.
    memory.truncate(PAGE)?;
    sys::ioctl(&file, uapi::IOC_COMMAND, memory.buffer(last, 0))
        .during(|| "the last bytes of a page".into())?;
    let bad = [
        (IoVec::null(0), "address 0"),
        (IoVec::in_kernel_space(0), "an address of the kernel's"),
        (memory.buffer(last + 1, 0), "across the end of a map"),
    ];
    for number in [uapi::IOC_COMMAND, uapi::IOC_INFO] {
        for (argument, what) in bad {
            expect_errno(sys::ioctl(&file, number, argument), EFAULT, what)?;
        }
    }
    // The argument can be read, but the result cannot be written. Some of the commands
    // across the end of the map were executed above.
    memory.store(last, &command);
    memory.protect(libc::PROT_READ)?;
    for number in [uapi::IOC_COMMAND, uapi::IOC_INFO] {
        let result = sys::ioctl(&file, number, memory.buffer(last, 0));
        expect_errno(result, EFAULT, "read-only memory")?;
    }
    Ok(())
}

pub(super) fn unknown_ioctl(context: &Context) -> Verdict {
    let file = context.open()?;
    let memory = Region::anonymous(PAGE)?;
    memory.fill(0, PAGE, 0x5a);
    // Another number, direction, size and type, and an `ioctl` of terminals.
    for number in [
        uapi::IOC_INFO + 2,
        uapi::IOC_INFO | 1 << 30,
        uapi::IOC_INFO + (8 << 16),
        uapi::IOC_COMMAND ^ 1 << 8,
        uapi::IOC_COMMAND & 0xffff,
        0x5401,
        u32::MAX,
    ] {
        let result = sys::ioctl(&file, number, memory.buffer(0, 0));
        expect_errno(result, &[libc::ENOTTY], &format!("number {number:#x}"))?;
    }
    check_eq!(memory.load(0, PAGE), [0x5a; PAGE], "the argument");
    Ok(())
}
