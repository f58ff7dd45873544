// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands by io_uring.

use std::time::Duration;

use ringbar_uapi::{
    self as uapi, COMMAND_DURABLE, Command, OP_COMPARE, OP_COPY, OP_CRC32C, OP_FILL,
};

use super::bench::{self, ALL, Fixture, WINDOW};
use super::large::{self, LargeRange};
use super::refusals;
use crate::case::{Context, During, Stop, Verdict, expect_bytes, expect_errno};
use crate::pattern;
use crate::sys::{self, Buffers, CommandEntry, CommandRing, Completed, UringOperation};
use crate::{check, check_eq};

/// Timeout for results.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Executes a command that must succeed. Returns its value.
fn value(ring: &mut CommandRing, b: &Fixture, command: &Command) -> Verdict<u64> {
    let completed = ring.run(&CommandEntry::new(&b.file, command))?;
    let result = completed.result.during(|| format!("{command:?}"))?;
    check_eq!(result, 0, "result of {command:?}");
    Ok(completed.value)
}

pub(super) fn each(context: &Context) -> Verdict {
    let mut b = Fixture::new(context, 300)?;
    let mut ring = CommandRing::new(4)?;
    for opcode in ALL {
        let (at, length, argument) = match opcode {
            uapi::OP_FLUSH => (0, 0, 0),
            OP_COPY | OP_COMPARE => (100_001, 120_003, 77),
            OP_FILL => (200_001, 70_001, 0xfeed_beef_dead_c0de),
            OP_CRC32C => (3, WINDOW - 7, 0x8899_aabb),
            _ => (opcode as usize * 30_011, 9_999, 0),
        };
        let mut command = Fixture::command(opcode, at, length, argument);
        if opcode == uapi::OP_FLUSH {
            command.offset = 0;
        }
        if opcode == OP_FILL {
            command.flags = COMMAND_DURABLE;
        }
        let expected = b.model(opcode, at, length, argument);
        let found = value(&mut ring, &b, &command)?;
        check_eq!(found, expected, "value of {command:?}");
        b.expect(&format!("{command:?}"))?;
    }
    Ok(())
}

/// Checksums of `count` ranges, all in flight at once.
fn checksums(context: &Context, count: usize, length: usize) -> Verdict {
    let mut b = Fixture::new(context, 310)?;
    let mut ring = CommandRing::new(count as u32)?;
    let range = |i: usize| (i * 97 % (WINDOW - 2 * length), length + i % length);
    let entries: Vec<_> = (0..count)
        .map(|i| {
            let (at, length) = range(i);
            let command = Fixture::command(OP_CRC32C, at, length, i as u64);
            CommandEntry::new(&b.file, &command).tag(i as u64)
        })
        .collect();
    check_eq!(ring.submit(&entries)?, count, "commands taken");
    let results = ring.results(count, TIMEOUT)?;
    check_eq!(results.len(), count, "results");
    let mut seen = vec![false; count];
    for Completed { tag, result, value } in results {
        let i = tag as usize;
        check_eq!(result.during(|| format!("command {i}"))?, 0, "command {i}");
        let first = seen
            .get_mut(i)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        check!(first, "command {i} ended twice or was never given");
        let (at, length) = range(i);
        let expected = b.model(OP_CRC32C, at, length, tag);
        check_eq!(value, expected, "value of command {i}");
    }
    Ok(())
}

pub(super) fn in_flight(context: &Context) -> Verdict {
    checksums(context, 64, 10_000)
}

pub(super) fn many(context: &Context) -> Verdict {
    // The queues have 256 entries each, one of them for polled operations.
    let file = context.open()?;
    let queues = uapi::Info::from_bytes(&sys::info(&file)?).io_queues;
    checksums(context, 256 * queues as usize, 64)
}

pub(super) fn linked(context: &Context) -> Verdict {
    const LENGTH: usize = 4099;
    const OFFSET: u64 = 1_000_003;

    let b = Fixture::new(context, 320)?;
    let mut ring = CommandRing::new(8)?;
    for seed in 0..50 {
        let data = pattern::bytes(seed, LENGTH);
        b.memory.store(1, data);
        let buffer = b.memory.buffer(1, LENGTH);
        let write = UringOperation::write(&b.file, Buffers::One(buffer), OFFSET);
        let crc = Command {
            opcode: OP_CRC32C,
            offset: OFFSET,
            length: LENGTH as u64,
            ..Command::default()
        };
        // An operation after a command must wait for it, too.
        let fill = Command {
            opcode: OP_FILL,
            argument: seed,
            ..crc
        };
        let entries = [
            CommandEntry::operation(write).tag(0).linked(),
            CommandEntry::new(&b.file, &crc).tag(1).linked(),
            CommandEntry::new(&b.file, &fill).tag(2),
        ];
        check_eq!(ring.submit(&entries)?, 3, "operations taken");
        let mut results = ring.results(3, TIMEOUT)?;
        check_eq!(results.len(), 3, "results");
        results.sort_by_key(|completed| completed.tag);
        let mut values = Vec::new();
        for (i, completed) in results.into_iter().enumerate() {
            let expected = if i == 0 { LENGTH } else { 0 };
            check_eq!(completed.result?, expected, "result of operation {i}");
            values.push(completed.value);
        }
        check_eq!(
            values[1],
            u64::from(bench::crc32c(0, data)),
            "CRC of what was written"
        );
        check_eq!(values[2], LENGTH as u64, "bytes filled");
    }
    Ok(())
}

pub(super) fn large(context: &Context) -> Verdict {
    const START: usize = 5;

    let b = LargeRange::new(context, START)?;
    let mut ring = CommandRing::new(4)?;
    let mut run = |command: Command| -> Verdict<u64> {
        let completed = ring.run(&CommandEntry::new(&b.file, &command))?;
        check_eq!(completed.result?, 0, "result of {command:?}");
        Ok(completed.value)
    };
    let crc = u64::from(large::data_crc(7));
    check_eq!(run(large::command(OP_CRC32C, START, 7))?, crc, "CRC");
    // Overlapping, from the end.
    let up = START + (1 << 20);
    let copied = run(large::command(OP_COPY, up, START as u64))?;
    check_eq!(copied, large::LENGTH as u64, "bytes copied");
    check_eq!(
        run(large::command(OP_CRC32C, up, 7))?,
        crc,
        "CRC of the copy"
    );
    Ok(())
}

pub(super) fn errors(context: &Context) -> Verdict {
    let b = Fixture::new(context, 340)?;
    let mut ring = CommandRing::new(4)?;
    let mut expect = |entry: CommandEntry<'_>, errno, what: &str| -> Verdict {
        let completed = ring.run(&entry)?;
        expect_errno(completed.result, &[errno], what)?;
        check_eq!(completed.value, 0, "value of what failed: {what}");
        Ok(())
    };
    for (commands, errno) in [
        (refusals::beyond(context.size()), libc::ENXIO),
        (refusals::unknown(), libc::EINVAL),
    ] {
        for command in commands {
            let entry = CommandEntry::new(&b.file, &command);
            expect(entry, errno, &format!("{command:?}"))?;
        }
    }
    // A completion entry of 16 bytes has no place for the value.
    let command = Command {
        result: 1,
        ..refusals::harmless(OP_CRC32C)
    };
    expect(
        CommandEntry::new(&b.file, &command),
        libc::EINVAL,
        "a result on the way in",
    )?;
    for number in [0, uapi::IOC_INFO, uapi::IOC_COMMAND + 1] {
        let entry = CommandEntry::numbered(&b.file, number, &refusals::harmless(OP_CRC32C));
        expect(entry, libc::ENOTTY, &format!("number {number:#x}"))?;
    }
    let reader = context.open_with(libc::O_RDONLY)?;
    let writer = context.open_with(libc::O_WRONLY)?;
    for (opcode, reads, writes) in refusals::NEEDS {
        let command = refusals::harmless(opcode);
        for (file, allowed) in [(&reader, !writes), (&writer, !reads)] {
            let entry = CommandEntry::new(file, &command);
            if !allowed {
                expect(entry, libc::EBADF, &format!("{command:?}"))?;
            }
        }
    }
    b.expect("after refused commands")
}

pub(super) fn entry_sizes(context: &Context) -> Verdict {
    const OFFSET: usize = 2_000_001;
    const LENGTH: usize = 5000;

    let b = Fixture::new(context, 350)?;
    let fill = Command {
        opcode: OP_FILL,
        offset: OFFSET as u64,
        length: LENGTH as u64,
        argument: 0x4242_4242_4242_4242,
        ..Command::default()
    };
    b.bar.store(OFFSET, pattern::bytes(351, LENGTH));
    expect_errno(
        sys::execute_in_short_entry(&b.file, &fill),
        &[libc::EINVAL],
        "a submission entry of 64 bytes",
    )?;
    let seen = b.bar.load(OFFSET, LENGTH);
    expect_bytes(&seen, pattern::bytes(351, LENGTH), "after the refusal")?;

    let result = sys::execute_without_value(&b.file, &fill)
        .during(|| "a completion entry of 16 bytes".into())?;
    check_eq!(result, 0, "result");
    expect_bytes(&b.bar.load(OFFSET, LENGTH), &[0x42; LENGTH], "the fill")?;
    let bad = Command {
        offset: context.size(),
        ..fill
    };
    match sys::execute_without_value(&b.file, &bad) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        other => Err(Stop::Failed(format!("beyond the end: {other:?}"))),
    }
}
