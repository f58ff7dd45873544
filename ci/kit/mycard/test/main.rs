// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `mycard-test`: tests in the guest, with the driver loaded. Compares what the card computes with
//! a computation of its own. The exit status is 0 if all tests pass; a panic says what differs.

use std::fs::File;
use std::sync::Arc;
use std::thread;

use mycard::protocol::Opcode;
use mycard::uapi::{IOC_INFO, IOC_RUN, Info, Run};
use ringbar_card_tests::{
    Driver, PAGE, Victim, bytes, check_lies, pinned_pages, read_only_page, suspend_devices,
    under_load,
};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Updater, ioctl};

const NODE: &str = "/dev/mycard0";

/// The arguments with which this program is the process that is killed, and with which it expects a
/// card that lies: `make test-all` starts that.
const VICTIM: &str = "victim";
const LIES: &str = "lies";

/// A test, for a card whose runs have at most so many bytes.
type Test = fn(&Arc<File>, usize);

fn main() {
    let card = Arc::new(open(NODE));
    let max = info(&card);
    match std::env::args().nth(1).as_deref() {
        Some(VICTIM) => return victim(&card),
        Some(LIES) => return check_lies(|| call(&card)),
        _ => println!("{NODE}: up to {max} bytes"),
    }
    let tests: [(&str, Test); 8] = [
        ("crc32c agrees with the reference", crc32c_agrees),
        ("xor agrees with the reference", xor_agrees),
        ("threads get their own results", threads_do_not_mix),
        ("wrong calls are refused", wrong_calls_are_refused),
        ("cards work side by side", cards_do_not_mix),
        ("the system sleeps while the card works", system_sleeps),
        (
            "a process is killed while the card works",
            process_is_killed,
        ),
        (
            "the driver is unbound while the card works",
            driver_is_unbound,
        ),
    ];
    for (name, test) in tests {
        test(&card, max);
        assert_eq!(pinned_pages(), 0, "{name}: pages are still pinned");
        println!("ok: {name}");
    }
}

fn open(node: &str) -> File {
    File::open(node).unwrap_or_else(|error| panic!("{node}: {error}"))
}

/// The CRC-32C of the bytes, bit by bit.
fn crc32c(bytes: &[u8]) -> u64 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78);
        }
    }
    u64::from(!sum)
}

/// Lengths around a page, and the greatest.
fn lengths(max: usize) -> [usize; 8] {
    [1, 7, 8, PAGE - 1, PAGE, PAGE + 1, max - 1, max]
}

fn crc32c_agrees(card: &Arc<File>, max: usize) {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    for length in lengths(max) {
        let source = bytes(length + 3, length as u64);
        // Also from an address that is no multiple of anything.
        for source in [&source[..length], &source[3..]] {
            let run = crc_run(source);
            assert_eq!(execute(card, run), Ok(crc32c(source)), "{length} bytes");
        }
    }
}

fn xor_agrees(card: &Arc<File>, max: usize) {
    let key = 0x0123_4567_89ab_cdef_u64;
    for length in lengths(max) {
        let source = bytes(length, length as u64);
        let expected: Vec<u8> = source
            .iter()
            .zip(key.to_le_bytes().iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        // With bytes before and behind, which must stay.
        let mut destination = vec![0x5a; length + 10];
        let run = xor_run(&source, &mut destination[5..length + 5], key);
        assert_eq!(execute(card, run), Ok(length as u64));
        assert!(
            destination[5..length + 5] == expected,
            "{length} bytes differ"
        );
        let around = [&destination[..5], &destination[length + 5..]].concat();
        assert_eq!(
            around, [0x5a; 10],
            "{length} bytes: written beside the destination"
        );
    }
}

fn threads_do_not_mix(card: &Arc<File>, max: usize) {
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let card = Arc::clone(card);
            thread::spawn(move || {
                for round in 0..50 {
                    let source = bytes(1 + (seed * 7919 + round * 104_729) % max, seed as u64);
                    assert_eq!(execute(&card, crc_run(&source)), Ok(crc32c(&source)));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a thread found a wrong sum");
    }
}

fn wrong_calls_are_refused(card: &Arc<File>, max: usize) {
    let source = bytes(max + 1, 1);
    let mut destination = vec![0; PAGE];
    let crc = crc_run(&source[..PAGE]);
    let xor = xor_run(&source[..PAGE], &mut destination, 1);
    let no_memory = 8 * PAGE as u64;
    for (run, errno) in [
        (Run { opcode: 0, ..crc }, Errno::INVAL),
        (Run { opcode: 3, ..crc }, Errno::INVAL),
        (Run { reserved: 1, ..crc }, Errno::INVAL),
        (Run { length: 0, ..crc }, Errno::INVAL),
        (crc_run(&source), Errno::INVAL),
        (Run { key: 1, ..crc }, Errno::INVAL),
        (
            Run {
                destination: xor.destination,
                ..crc
            },
            Errno::INVAL,
        ),
        (
            Run {
                source: no_memory,
                ..crc
            },
            Errno::FAULT,
        ),
        (
            Run {
                source: u64::MAX - 1,
                ..crc
            },
            Errno::FAULT,
        ),
        (
            Run {
                destination: no_memory,
                ..xor
            },
            Errno::FAULT,
        ),
        (
            Run {
                destination: read_only_page(),
                ..xor
            },
            Errno::FAULT,
        ),
    ] {
        assert_eq!(execute(card, run), Err(errno), "{run:?}");
    }
    // SAFETY: The driver knows no such call, which has no argument.
    let unknown = unsafe { ioctl(card, NoArg::<0xd802>::new()) };
    assert_eq!(unknown, Err(Errno::NOTTY));
    assert_eq!(execute(card, crc), Ok(crc32c(&source[..PAGE])));
}

/// One call, whose result is right if it succeeds.
fn call(card: &File) -> Result<(), Errno> {
    let source = bytes(3 * PAGE, 7);
    let sum = execute(card, crc_run(&source))?;
    assert_eq!(sum, crc32c(&source));
    Ok(())
}

fn cards_do_not_mix(_card: &Arc<File>, _max: usize) {
    let count = Driver::new("mycard").functions().len();
    let cards: Vec<_> = (0..count)
        .map(|number| open(&format!("/dev/mycard{number}")))
        .collect();
    let results = under_load(2 * count, |thread| call(&cards[thread % count]), || ());
    assert_eq!(results, vec![Ok(()); 2 * count]);
}

fn system_sleeps(card: &Arc<File>, _max: usize) {
    assert_eq!(under_load(3, |_| call(card), suspend_devices), [Ok(()); 3]);
}

/// Works until it is killed.
fn victim(card: &File) {
    under_load(
        3,
        |_| call(card),
        || {
            Victim::is_ready();
            loop {
                std::thread::park();
            }
        },
    );
}

fn process_is_killed(card: &Arc<File>, _max: usize) {
    Victim::start(VICTIM).kill();
    assert_eq!(pinned_pages(), 0);
    assert_eq!(call(card), Ok(()));
}

fn driver_is_unbound(card: &Arc<File>, _max: usize) {
    let driver = Driver::new("mycard");
    let function = driver.functions().remove(0);
    let results = under_load(3, |_| call(card), || driver.unbind(&function));
    assert_eq!(results, [Err(Errno::NODEV); 3]);
    driver.bind(&function);
    assert_eq!(call(&open(NODE)), Ok(()));
}

fn crc_run(source: &[u8]) -> Run {
    Run {
        opcode: Opcode::Crc32c as u32,
        source: source.as_ptr() as u64,
        length: source.len() as u64,
        ..Run::default()
    }
}

fn xor_run(source: &[u8], destination: &mut [u8], key: u64) -> Run {
    Run {
        opcode: Opcode::Xor as u32,
        destination: destination.as_mut_ptr() as u64,
        key,
        ..crc_run(source)
    }
}

fn info(card: &File) -> usize {
    // SAFETY: The call fills in a structure of this size.
    let bytes = unsafe { ioctl(card, Getter::<IOC_INFO, [u8; Info::SIZE]>::new()) };
    Info::from_bytes(&bytes.expect("IOC_INFO")).max_bytes as usize
}

fn execute(card: &File, run: Run) -> Result<u64, Errno> {
    let mut bytes = run.to_bytes();
    // SAFETY: The call updates a structure of this size, and writes to nothing else than the
    // destination, which the caller has for itself.
    unsafe { ioctl(card, Updater::<IOC_RUN, _>::new(&mut bytes)) }?;
    Ok(Run::from_bytes(&bytes).result)
}
