// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The effect of each command, by `ioctl`.

use ringbar_uapi::{
    COMMAND_DURABLE, Command, OP_COMPARE, OP_COPY, OP_CRC32C, OP_DISCARD, OP_FILL, OP_FLUSH,
    OP_WRITE_ZEROES,
};

use super::bench::{self, ALL, Fixture, WINDOW};
use crate::case::{Context, During, Verdict, expect_bytes, expect_errno};
use crate::check_eq;
use crate::pattern::{self, Random};
use crate::sys;

/// Ranges within the window: empty, odd, around page boundaries and around the device's
/// chunk size.
const RANGES: [(usize, usize); 8] = [
    (0, 0),
    (5, 1),
    (4019, 4096),
    (1, 4097),
    (13, 65_535),
    (14, 65_536),
    (15, 65_537),
    (3, WINDOW - 6),
];

fn zeroing(context: &Context, opcode: u32) -> Verdict {
    for (seed, (at, length)) in RANGES.into_iter().enumerate() {
        Fixture::new(context, seed as u64)?.step(opcode, at, length, 0)?;
    }
    Ok(())
}

pub(super) fn discard(context: &Context) -> Verdict {
    zeroing(context, OP_DISCARD)
}

pub(super) fn write_zeroes(context: &Context) -> Verdict {
    zeroing(context, OP_WRITE_ZEROES)
}

pub(super) fn fill(context: &Context) -> Verdict {
    let mut b = Fixture::new(context, 20)?;
    for (i, (at, length)) in RANGES.into_iter().enumerate() {
        b.step(OP_FILL, at, length, 0x8877_6655_4433_2211 + i as u64)?;
    }
    Ok(())
}

pub(super) fn copy(context: &Context) -> Verdict {
    // Source, target and length: disjoint, overlapping slightly and nearly completely, in
    // both directions, and onto itself.
    let copies = [
        (1, 150_000, 100_001),
        (150_000, 1, 100_001),
        (7, 8, 250_000),
        (8, 7, 250_000),
        (10, 65_546, 200_000),
        (65_546, 10, 200_000),
        (0, 100_000, 200_007),
        (100_000, 0, 200_007),
        (77, 77, 70_000),
        (77, 9999, 0),
    ];
    for (seed, (from, to, length)) in copies.into_iter().enumerate() {
        let mut b = Fixture::new(context, 40 + seed as u64)?;
        b.step(OP_COPY, to, length, from)?;
    }
    Ok(())
}

pub(super) fn compare(context: &Context) -> Verdict {
    const LENGTH: usize = 140_000;
    const OTHER: usize = 150_003;

    let mut b = Fixture::new(context, 60)?;
    b.step(OP_COMPARE, 0, LENGTH, OTHER as u64)?;
    b.step(OP_COPY, OTHER, LENGTH, 1)?;
    b.step(OP_COMPARE, 1, LENGTH, OTHER as u64)?;
    b.step(OP_COMPARE, OTHER, LENGTH, 1)?;
    b.step(OP_COMPARE, 9, 0, 10)?;
    // With itself, and with a shifted range.
    b.step(OP_COMPARE, 9, LENGTH, 9)?;
    b.step(OP_COMPARE, 9, LENGTH, 10)?;
    // From the last difference to the first, so that the device always finds the first of
    // several.
    for at in [LENGTH - 1, 100_000, 65_536, 65_535, 4096, 1, 0] {
        b.flip(OTHER + at);
        b.step(OP_COMPARE, 1, LENGTH, OTHER as u64)?;
    }
    Ok(())
}

/// The CRC by the device of `length` bytes at `offset`, after `before`.
fn device_crc(b: &Fixture, offset: u64, length: u64, before: u64) -> Verdict<u64> {
    let mut command = Command {
        opcode: OP_CRC32C,
        offset,
        length,
        argument: before,
        ..Command::default()
    };
    sys::execute(&b.file, &mut command).during(|| "a CRC".into())?;
    Ok(command.result)
}

fn crc32c_vectors() -> [(Vec<u8>, u64); 4] {
    // The check value of the catalogues, and RFC 3720, B.4.
    [
        (b"123456789".to_vec(), 0xe306_9283),
        (vec![0; 32], 0x8a91_36aa),
        (vec![0xff; 32], 0x62a8_ab43),
        ((0..32).collect(), 0x46dd_794e),
    ]
}

pub(super) fn crc32c(context: &Context) -> Verdict {
    let mut b = Fixture::new(context, 80)?;
    for (bytes, crc) in crc32c_vectors() {
        b.bar.store(12345, &bytes);
        let length = bytes.len() as u64;
        check_eq!(device_crc(&b, 12345, length, 0)?, crc, "CRC of {bytes:?}");
        // Each way to split it into two commands.
        for cut in 0..=length {
            let start = device_crc(&b, 12345, cut, 0)?;
            let whole = device_crc(&b, 12345 + cut, length - cut, start)?;
            check_eq!(whole, crc, "CRC of {bytes:?}, cut after {cut}");
        }
    }
    for (at, length) in RANGES {
        b.step(OP_CRC32C, at, length, 0)?;
        b.step(OP_CRC32C, at, length, 0xffff_ffff)?;
    }
    Ok(())
}

pub(super) fn flush(context: &Context) -> Verdict {
    let file = context.open()?;
    let before = context.counter("requests")?;
    let mut command = Command {
        opcode: OP_FLUSH,
        result: 5,
        ..Command::default()
    };
    sys::execute(&file, &mut command)?;
    check_eq!(command.result, 0, "result");
    check_eq!(context.counter("requests")? - before, 1, "requests");
    Ok(())
}

pub(super) fn durable(context: &Context) -> Verdict {
    let mut b = Fixture::new(context, 100)?;
    b.step_with_flags(OP_COPY, COMMAND_DURABLE, 3, 100_000, 70_001)?;
    b.step_with_flags(OP_FILL, COMMAND_DURABLE, 5, 70_003, 0x0123_4567_89ab_cdef)?;
    b.step_with_flags(OP_WRITE_ZEROES, COMMAND_DURABLE, 7, 30_001, 0)?;
    b.step_with_flags(OP_DISCARD, COMMAND_DURABLE, 9, 60_001, 0)?;
    // A command that writes nothing cannot be durable.
    for opcode in [OP_COMPARE, OP_CRC32C, OP_FLUSH] {
        let mut command = Command {
            opcode,
            flags: COMMAND_DURABLE,
            ..Command::default()
        };
        let what = format!("durable opcode {opcode}");
        expect_errno(sys::execute(&b.file, &mut command), &[libc::EINVAL], &what)?;
    }
    Ok(())
}

pub(super) fn up_to_the_end(context: &Context) -> Verdict {
    const LENGTH: u64 = 5001;

    let b = Fixture::new(context, 120)?;
    let end = context.size();
    let start = end - LENGTH;
    let run = |opcode, offset, length, argument| -> Verdict<u64> {
        let mut command = Command {
            opcode,
            offset,
            length,
            argument,
            ..Command::default()
        };
        sys::execute(&b.file, &mut command)
            .during(|| format!("opcode {opcode}, {length} bytes at {offset}"))?;
        Ok(command.result)
    };
    let last = || b.bar.load(start as usize, LENGTH as usize);
    let data = pattern::bytes(121, LENGTH as usize);

    b.bar.store(0, data);
    check_eq!(run(OP_COPY, start, LENGTH, 0)?, LENGTH, "copied to the end");
    expect_bytes(&last(), data, "copied to the end")?;
    b.bar.store(0, &[0; LENGTH as usize]);
    check_eq!(run(OP_COPY, 0, LENGTH, start)?, LENGTH, "copied from it");
    expect_bytes(&b.bar.load(0, LENGTH as usize), data, "copied from it")?;
    check_eq!(run(OP_COMPARE, 0, LENGTH, start)?, LENGTH, "compared");
    check_eq!(
        run(OP_CRC32C, start, LENGTH, 0)?,
        u64::from(bench::crc32c(0, data)),
        "CRC"
    );
    run(OP_FILL, start, LENGTH, 0x7777_7777_7777_7777)?;
    expect_bytes(&last(), &[0x77; LENGTH as usize], "filled")?;
    for opcode in [OP_WRITE_ZEROES, OP_DISCARD] {
        b.bar.store(start as usize, data);
        run(opcode, start, LENGTH, 0)?;
        expect_bytes(&last(), &[0; LENGTH as usize], "zeroed")?;
    }
    // A length of 0, right after the last byte.
    for opcode in ALL.into_iter().filter(|opcode| *opcode != OP_FLUSH) {
        let argument = match opcode {
            OP_COPY | OP_COMPARE => end,
            _ => 0,
        };
        check_eq!(run(opcode, end, 0, argument)?, 0, "nothing at the end");
    }
    Ok(())
}

pub(in crate::suites) fn random(context: &Context) -> Verdict {
    const STEPS: usize = 120;

    let mut b = Fixture::new(context, 140)?;
    let mut random = Random::new(141);
    let mut below = |bound: usize| random.below(bound as u64) as usize;
    for _ in 0..STEPS {
        let opcode = ALL[1 + below(ALL.len() - 1)];
        let length = below(WINDOW);
        let at = below(WINDOW - length + 1);
        let argument = match opcode {
            OP_COPY | OP_COMPARE => below(WINDOW - length + 1) as u64,
            OP_FILL => 0x0101_0101_0101_0101 * below(256) as u64 + below(1 << 20) as u64,
            OP_CRC32C => below(1 << 32) as u64,
            _ => 0,
        };
        b.step(opcode, at, length, argument)?;
        // New data in each round, so that copies move something and compares find
        // something.
        let data = pattern::bytes(below(1 << 30) as u64, 40_000);
        b.put(below(WINDOW - data.len()), data);
    }
    Ok(())
}
