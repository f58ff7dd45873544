// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device on block storage: its memory cannot be mapped, and its requests wait for a disk
//! beside each other.

use std::fs::File;
use std::thread;
use std::time::Duration;

use ringbar_fio::Job;
use ringbar_uapi::{
    Command, Info, OP_COMPARE, OP_COPY, OP_CRC32C, OP_DISCARD, OP_FILL, OP_WRITE_ZEROES,
};

use super::concurrency::Worker;
use super::{commands, durability, lifecycle, resize};
use crate::case::{Case, Context, During, Stop, Suite, Verdict, expect_bytes, expect_errno};
use crate::check_eq;
use crate::fio::{ENGINES, Fio, verified};
use crate::method::Method;
use crate::needs::{Daemon, DeviceKind, HostStorage, Kernels, Needs};
use crate::pattern::{self, Random};
use crate::sys::{self, CommandEntry, CommandRing, Completed, PAGE, Region};

/// Timeout for results.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "block",
        about: "a device whose memory is on a disk, read and written by direct I/O",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(64 << 20),
                storage: HostStorage::Block,
                ..Daemon::default()
            }),
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: vec![
            Case::new("a2_block_storage_cannot_be_mapped", no_map),
            Case::new("b1_block_storage_on_disjoint_ranges", disjoint),
            Case::new("b1_block_storage_verified_by_fio", fio),
            Case::new("b7_block_storage_durable_writes", durable),
            Case::new("b14_block_storage_random_commands", random_commands),
            Case::new("b14_block_storage_64_in_flight", in_flight),
            Case::new("d2_block_storage_unbind_with_io", unbind),
            Case::new("c6_block_storage_grows", resize::growth_without_map),
        ],
    }
}

fn no_map(context: &Context) -> Verdict {
    let file = context.open()?;
    let info = Info::from_bytes(&sys::info(&file)?);
    check_eq!(info.aperture, 0, "bytes that can be mapped");
    check_eq!(info.capacity, context.size(), "capacity");
    expect_errno(
        Region::shared(&file, 0, PAGE).map(drop),
        &[libc::EINVAL],
        "a map",
    )
}

/// Several threads with transfers of any size and alignment, which share blocks at the ends of
/// their ranges.
fn disjoint(context: &Context) -> Verdict {
    const THREADS: u64 = 4;
    const STEPS: usize = 60;
    const RANGE: usize = (1 << 20) + 77;

    let file = context.open()?;
    let methods = Method::ALL.into_iter();
    let methods: Vec<_> = methods.filter(|method| !method.uses_position()).collect();
    let work = |number: u64| {
        let mut worker = Worker::new(number * RANGE as u64, RANGE, 700 + number)?;
        worker.begin(&file)?;
        for _ in 0..STEPS {
            worker.step(&file, &methods)?;
        }
        worker.expect_read(&file)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Verdict>| {
            let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
            thread.join().unwrap_or_else(panicked)
        };
        // All are joined before the first error is returned.
        let results: Vec<_> = threads.into_iter().map(join).collect();
        results.into_iter().collect()
    })
}

/// More in flight than the ring of the host takes at once, in blocks of any size.
pub(super) fn fio(context: &Context) -> Verdict {
    for engine in ENGINES {
        let job = Job {
            depth: 128,
            size: 8 << 20,
            further: vec!["--bsrange=512-64k".into(), "--bs_unaligned".into()],
            ..verified(context, engine)
        };
        let during = || format!("fio with {engine:?}");
        let mut fio = Fio::start(&job).during(during)?;
        fio.expect_good_end().during(during)?;
    }
    Ok(())
}

pub(super) fn durable(context: &Context) -> Verdict {
    for (name, write) in durability::TESTS {
        let Some(range) = durability::ranges().into_iter().find(|r| r.test == name) else {
            return Err(Stop::Failed(format!("{name} has no range")));
        };
        let memory = Region::anonymous(range.length + 3)?;
        let data = pattern::bytes(range.seed, range.length);
        memory.store(3, data);
        let buffer = memory.buffer(3, range.length);
        let written = write(context, buffer, range.offset).during(|| name.into())?;
        check_eq!(written, range.length, "bytes written");
        memory.fill(0, range.length + 3, 0);
        let file = context.open()?;
        let read = sys::pread(&file, memory.buffer(0, range.length), range.offset)?;
        check_eq!(read, range.length, "bytes read");
        expect_bytes(&memory.load(0, range.length), data, name)?;
    }
    Ok(())
}

/// Where the commands work: more bytes than the device executes in one step.
const START: u64 = (3 << 20) + 77;
const WINDOW: usize = 700_001;

pub(super) fn random_commands(context: &Context) -> Verdict {
    const STEPS: u64 = 80;
    const OPCODES: [u32; 6] = [
        OP_DISCARD,
        OP_WRITE_ZEROES,
        OP_COPY,
        OP_FILL,
        OP_COMPARE,
        OP_CRC32C,
    ];

    let file = context.open()?;
    let memory = Region::anonymous(WINDOW)?;
    let mut model = pattern::bytes(770, WINDOW).to_vec();
    memory.store(0, &model);
    check_eq!(
        sys::pwrite(&file, memory.buffer(0, WINDOW), START)?,
        WINDOW,
        "bytes written"
    );
    let mut random = Random::new(771);
    let mut below = |bound: usize| random.below(bound as u64) as usize;
    for step in 0..STEPS {
        let opcode = OPCODES[below(OPCODES.len())];
        let length = below(WINDOW);
        let at = below(WINDOW - length + 1);
        let other = below(WINDOW - length + 1);
        let pattern = [step as u8 + 1; 8];
        let mut command = Command {
            opcode,
            offset: START + at as u64,
            length: length as u64,
            argument: match opcode {
                OP_COPY | OP_COMPARE => START + other as u64,
                OP_FILL => u64::from_le_bytes(pattern),
                _ => 0,
            },
            ..Command::default()
        };
        let range = at..at + length;
        let mut expected = length as u64;
        match opcode {
            OP_DISCARD | OP_WRITE_ZEROES => model[range].fill(0),
            OP_COPY => model.copy_within(other..other + length, at),
            OP_FILL => model[range].fill(pattern[0]),
            OP_COMPARE => {
                let pairs = model[range].iter().zip(&model[other..]);
                expected = pairs.take_while(|(one, other)| one == other).count() as u64;
            }
            _ => expected = commands::crc32c(0, &model[range]).into(),
        }
        let what = format!("{command:?}");
        sys::execute(&file, &mut command).during(|| what.clone())?;
        check_eq!(command.result, expected, "{what}: result");
        expect_range(&file, &memory, &model, &what)?;
    }
    Ok(())
}

/// Checksums, all in flight at once.
fn in_flight(context: &Context) -> Verdict {
    const COUNT: usize = 64;
    const LENGTH: usize = 10_000;

    let file = context.open()?;
    let memory = Region::anonymous(WINDOW)?;
    let data = pattern::bytes(790, WINDOW);
    memory.store(0, data);
    let written = sys::pwrite(&file, memory.buffer(0, WINDOW), START)?;
    check_eq!(written, WINDOW, "bytes written");
    let range = |number: usize| number * 9001..number * 9001 + LENGTH + number;
    let entry = |number: usize| {
        let range = range(number);
        let command = Command {
            opcode: OP_CRC32C,
            offset: START + range.start as u64,
            length: range.len() as u64,
            ..Command::default()
        };
        CommandEntry::new(&file, &command).tag(number as u64)
    };
    let entries: Vec<_> = (0..COUNT).map(entry).collect();
    let mut ring = CommandRing::new(COUNT as u32)?;
    check_eq!(ring.submit(&entries)?, COUNT, "commands taken");
    let results = ring.results(COUNT, TIMEOUT)?;
    check_eq!(results.len(), COUNT, "results");
    for Completed { tag, result, value } in results {
        let what = || format!("command {tag}");
        check_eq!(result.during(what)?, 0, "command {tag}");
        let expected = commands::crc32c(0, &data[range(tag as usize)]);
        check_eq!(value, u64::from(expected), "value of command {tag}");
    }
    Ok(())
}

fn expect_range(file: &File, memory: &Region, model: &[u8], what: &str) -> Verdict {
    let read = sys::pread(file, memory.buffer(0, WINDOW), START)?;
    check_eq!(read, WINDOW, "{what}: bytes read");
    expect_bytes(&memory.load(0, WINDOW), model, what)
}

/// The device is reset with requests in flight, and works again.
pub(super) fn unbind(context: &Context) -> Verdict {
    const ROUNDS: u64 = 5;
    const LENGTH: usize = 300_001;

    for round in 0..ROUNDS {
        lifecycle::unbind_once_with_io(context).during(|| format!("round {round}"))?;
        let file = context.open()?;
        let memory = Region::anonymous(LENGTH)?;
        let data = pattern::bytes(780 + round, LENGTH);
        memory.store(0, data);
        let written = sys::pwrite(&file, memory.buffer(0, LENGTH), round)?;
        check_eq!(written, LENGTH, "bytes written");
        memory.fill(0, LENGTH, 0);
        let read = sys::pread(&file, memory.buffer(0, LENGTH), round)?;
        check_eq!(read, LENGTH, "bytes read");
        expect_bytes(&memory.load(0, LENGTH), data, "what was read back")?;
    }
    Ok(())
}
