// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The `ioctl`s of block devices, and programs that use them.

use std::fs::File;
use std::process::Command;

use ringbar_fio::{Access, Engine, Job};
use ringbar_uapi::Info;

use crate::case::{Context, During, Verdict, expect_errno};
use crate::fio::Fio;
use crate::sys::{self, IoVec, PAGE, Region};
use crate::{check, check_eq};

const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKFLSBUF: u32 = 0x1261;
const BLKRAGET: u32 = 0x1263;
const BLKSSZGET: u32 = 0x1268;
const BLKBSZGET: u32 = 0x8008_1270;
const BLKGETSIZE64: u32 = 0x8008_1272;
const BLKDISCARD: u32 = 0x1277;
const BLKIOMIN: u32 = 0x1278;
const BLKIOOPT: u32 = 0x1279;
const BLKALIGNOFF: u32 = 0x127a;
const BLKPBSZGET: u32 = 0x127b;
const BLKSECDISCARD: u32 = 0x127d;
const BLKROTATIONAL: u32 = 0x127e;
const BLKZEROOUT: u32 = 0x127f;
/// `BLKBSZGET` and the others in 32-bit programs.
const BLKBSZGET_32: u32 = 0x8004_1270;
const BLKGETSIZE64_32: u32 = 0x8004_1272;

/// Value of bytes that the kernel has not written.
const UNTOUCHED: u8 = 0xa5;

/// Queries a value; checks it, and that no byte after it was written.
fn expect_value(
    memory: &Region,
    number: u32,
    value: &[u8],
    ask: impl Fn(IoVec) -> std::io::Result<()>,
) -> Verdict {
    memory.fill(0, 16, UNTOUCHED);
    let what = || format!("number {number:#x}");
    ask(memory.buffer(0, 16)).during(what)?;
    let mut expected = [UNTOUCHED; 16];
    expected[..value.len()].copy_from_slice(value);
    check_eq!(memory.load(0, 16), expected, "{}", what());
    Ok(())
}

pub(super) fn queries(context: &Context) -> Verdict {
    let file = context.open_with(libc::O_RDONLY)?;
    let memory = Region::anonymous(PAGE)?;
    let max_request = Info::from_bytes(&sys::info(&file)?).max_request as u32;
    let size = context.size();
    for (number, value) in [
        (BLKGETSIZE64, &size.to_ne_bytes()[..]),
        (BLKGETSIZE, &(size / 512).to_ne_bytes()),
        (BLKSSZGET, &512u32.to_ne_bytes()),
        (BLKPBSZGET, &512u32.to_ne_bytes()),
        (BLKBSZGET, &512u32.to_ne_bytes()),
        (BLKIOMIN, &512u32.to_ne_bytes()),
        (BLKIOOPT, &max_request.to_ne_bytes()),
        (BLKALIGNOFF, &0u32.to_ne_bytes()),
        (BLKROGET, &0u32.to_ne_bytes()),
        (BLKRAGET, &0u64.to_ne_bytes()),
        (BLKROTATIONAL, &0u16.to_ne_bytes()),
    ] {
        expect_value(&memory, number, value, |buffer| {
            sys::ioctl(&file, number, buffer)
        })?;
        for bad in [IoVec::null(0), IoVec::in_kernel_space(0)] {
            let result = sys::ioctl(&file, number, bad);
            expect_errno(result, &[libc::EFAULT], &format!("number {number:#x}"))?;
        }
    }
    for number in [BLKSECDISCARD, BLKGETSIZE64_32, BLKBSZGET_32] {
        let result = sys::ioctl(&file, number, memory.buffer(0, 16));
        expect_errno(result, &[libc::ENOTTY], &format!("number {number:#x}"))?;
    }
    Ok(())
}

/// A 32-bit program has a `long` of 4 bytes, and other numbers.
pub(super) fn compat_queries(context: &Context) -> Verdict {
    let file = context.open()?;
    let memory = Region::anonymous_with(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_32BIT)?;
    let size = context.size();
    for (number, value) in [
        (BLKGETSIZE64_32, &size.to_ne_bytes()[..]),
        (BLKGETSIZE, &((size / 512) as u32).to_ne_bytes()),
        (BLKBSZGET_32, &512u32.to_ne_bytes()),
        (BLKRAGET, &0u32.to_ne_bytes()),
        (BLKROTATIONAL, &0u16.to_ne_bytes()),
    ] {
        expect_value(&memory, number, value, |buffer| {
            sys::compat_ioctl(&file, number, buffer)
        })?;
    }
    for number in [BLKGETSIZE64, BLKBSZGET] {
        let result = sys::compat_ioctl(&file, number, memory.buffer(0, 16));
        expect_errno(result, &[libc::ENOTTY], &format!("number {number:#x}"))?;
    }
    memory.store(0, &range(1 << 20, 4096));
    sys::compat_ioctl(&file, BLKDISCARD, memory.buffer(0, 16)).during(|| "discard".into())
}

/// The argument of the calls that change a range.
fn range(start: u64, length: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&start.to_ne_bytes());
    bytes[8..].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Changes ranges, and compares the device with what must be left of it.
fn expect_zeroed(context: &Context, change: impl Fn(u64, u64) -> Verdict) -> Verdict {
    const WINDOW: usize = 1 << 20;

    let bar = context.map()?;
    let size = context.size();
    for (start, length) in [
        (512, 512),
        (8 << 20, 64 << 10),
        (size - 4096, 4096),
        (3 << 20, 512 * 513),
    ] {
        let first = start.saturating_sub(WINDOW as u64 / 4);
        let window = WINDOW.min((size - first) as usize);
        bar.fill(first as usize, window, 0x77);
        change(start, length).during(|| format!("{length} bytes at {start}"))?;
        let mut expected = vec![0x77; window];
        let at = (start - first) as usize;
        expected[at..at + length as usize].fill(0);
        let seen = bar.load(first as usize, window);
        crate::case::expect_bytes(&seen, &expected, &format!("{length} bytes at {start}"))?;
    }
    Ok(())
}

pub(super) fn changes(context: &Context) -> Verdict {
    let file = context.open_with(libc::O_WRONLY)?;
    let memory = Region::anonymous(PAGE)?;
    for number in [BLKDISCARD, BLKZEROOUT] {
        expect_zeroed(context, |start, length| {
            memory.store(0, &range(start, length));
            Ok(sys::ioctl(&file, number, memory.buffer(0, 16))?)
        })
        .during(|| format!("number {number:#x}"))?;
    }
    sys::ioctl(&file, BLKFLSBUF, IoVec::null(0)).during(|| "flush".into())
}

pub(super) fn refusals(context: &Context) -> Verdict {
    let file = context.open()?;
    let reader = context.open_with(libc::O_RDONLY)?;
    let memory = Region::anonymous(PAGE)?;
    let bar = context.map()?;
    let size = context.size();
    bar.fill(0, PAGE, 0x77);
    for number in [BLKDISCARD, BLKZEROOUT] {
        let change = |file: &File, start, length| {
            memory.store(0, &range(start, length));
            sys::ioctl(file, number, memory.buffer(0, 16))
        };
        let what = format!("number {number:#x}");
        expect_errno(change(&reader, 0, 512), &[libc::EBADF], &what)?;
        for (start, length) in [
            (0, 0),
            (1, 512),
            (0, 511),
            (511, 1),
            (256, 256),
            (size, 512),
            (size - 512, 1024),
            (0, size + 512),
            (512, u64::MAX - 511),
            (u64::MAX - 511, 512),
            (u64::MAX - 511, 1024),
            (1 << 63, 512),
        ] {
            let what = format!("{what}, {length} bytes at {start}");
            expect_errno(change(&file, start, length), &[libc::EINVAL], &what)?;
        }
        for bad in [IoVec::null(0), IoVec::in_kernel_space(0)] {
            expect_errno(sys::ioctl(&file, number, bad), &[libc::EFAULT], &what)?;
        }
    }
    check_eq!(bar.load(0, PAGE), [0x77; PAGE], "the device");
    Ok(())
}

/// Runs a program; returns its output, and whether it succeeded.
fn run(program: &str, arguments: &[&str]) -> Verdict<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .during(|| format!("running {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

pub(super) fn blockdev(context: &Context) -> Verdict {
    let path = context.path().to_string_lossy();
    let size = context.size();
    for (option, answer) in [
        ("--getsize64", size),
        ("--getsz", size / 512),
        ("--getsize", size / 512),
        ("--getss", 512),
        ("--getpbsz", 512),
        ("--getbsz", 512),
        ("--getiomin", 512),
        ("--getalignoff", 0),
        ("--getro", 0),
        ("--getra", 0),
    ] {
        let (success, text) = run("blockdev", &[option, &path])?;
        check!(
            success && text.trim() == answer.to_string(),
            "blockdev {option} says {text:?} instead of {answer}"
        );
    }
    let (success, text) = run("blockdev", &["--flushbufs", &path])?;
    check!(success, "blockdev --flushbufs: {text}");
    let (success, text) = run("busybox", &["blockdev", "--getsize64", &path])?;
    check!(
        success && text.trim() == size.to_string(),
        "BusyBox's blockdev: {text}"
    );
    Ok(())
}

pub(super) fn blkdiscard(context: &Context) -> Verdict {
    let path = context.path().to_string_lossy();
    expect_zeroed(context, |start, length| {
        let (start, length) = (start.to_string(), length.to_string());
        let (success, text) = run(
            "busybox",
            &["blkdiscard", "-o", &start, "-l", &length, &path],
        )?;
        check!(success, "BusyBox's blkdiscard: {text}");
        Ok(())
    })
}

/// fio assumes size 0 for a character device, and does no I/O beyond an offset.
pub(super) fn fio(context: &Context) -> Verdict {
    const TRIMMED: usize = 1 << 20;

    let bar = context.map()?;
    let path = context.path().to_string_lossy();
    for access in [Access::Trim, Access::RandTrim] {
        bar.fill(0, 2 * TRIMMED, 0x77);
        let during = || format!("fio's {}", access.name());
        let job = Job {
            access,
            direct: false,
            ..Job::new("trim", &*path, Engine::Psync, TRIMMED as u64)
        };
        let mut fio = Fio::start(&job).during(during)?;
        fio.expect_good_end().during(during)?;
        let mut expected = vec![0; 2 * TRIMMED];
        expected[TRIMMED..].fill(0x77);
        let seen = bar.load(0, 2 * TRIMMED);
        crate::case::expect_bytes(&seen, &expected, access.name())?;
    }
    Ok(())
}
