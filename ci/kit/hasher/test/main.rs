// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `hasher-test`: tests in the guest, with the driver loaded. Compares what the card computes with
//! what the crate `sha2` computes on the CPU. The exit status is 0 if all tests pass; a panic says
//! what differs.

use std::fs::File;
use std::sync::Arc;
use std::thread;

use hasher::protocol::{BLOCK, MAX_BYTES};
use hasher::uapi::{IOC_INFO, IOC_SHA256, Info, Sha256};
use ringbar_card_tests::{
    Driver, PAGE, Victim, bytes, check_lies, pinned_pages, suspend_devices, under_load,
};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Updater, ioctl};
use sha2::Digest;

const NODE: &str = "/dev/hasher0";

/// The arguments with which this program is the process that is killed, and with which it expects a
/// card that lies: `make test-all` starts that.
const VICTIM: &str = "victim";
const LIES: &str = "lies";

/// A test, with the open card.
type Test = fn(&Arc<File>);

fn main() {
    let card = Arc::new(open(NODE));
    match std::env::args().nth(1).as_deref() {
        Some(VICTIM) => return victim(&card),
        Some(LIES) => return check_lies(|| call(&card)),
        _ => println!("{NODE}: messages of up to {} bytes", max_bytes(&card)),
    }
    let tests: [(&str, Test); 8] = [
        ("digests agree with the reference", digests_agree),
        ("threads get their own digests", threads_do_not_mix),
        ("a long message may change between calls", messages_change),
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
        test(&card);
        assert_eq!(pinned_pages(), 0, "{name}: pages are still pinned");
        println!("ok: {name}");
    }
}

fn open(node: &str) -> File {
    File::open(node).unwrap_or_else(|error| panic!("{node}: {error}"))
}

/// The digest that the CPU computes.
fn reference(message: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(message).into()
}

fn digests_agree(card: &Arc<File>) {
    let request = MAX_BYTES as usize;
    let lengths = [
        // Around the padding, blocks, pages, and requests.
        0,
        1,
        55,
        56,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        request - 1,
        request,
        request + 1,
        // Eight requests, each of which has a segment for almost each page.
        1 << 20,
        (1 << 20) + 55,
    ];
    for length in lengths {
        let message = bytes(length + 3, length as u64);
        // Also from an address that is no multiple of anything.
        for message in [&message[..length], &message[3..]] {
            assert_eq!(
                sha256(card, message),
                Ok(reference(message)),
                "{length} bytes"
            );
        }
    }
}

fn threads_do_not_mix(card: &Arc<File>) {
    let threads: Vec<_> = (0..24)
        .map(|seed| {
            let card = Arc::clone(card);
            thread::spawn(move || {
                for round in 0..20 {
                    let length = (seed * 7919 + round * 104_729) % (2 * MAX_BYTES as usize);
                    let message = bytes(length, seed as u64);
                    assert_eq!(sha256(&card, &message), Ok(reference(&message)));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a thread found a wrong digest");
    }
}

fn messages_change(card: &Arc<File>) {
    let mut message = bytes(4 << 20, 5);
    for _ in 0..3 {
        assert_eq!(sha256(card, &message), Ok(reference(&message)));
        message.iter_mut().for_each(|byte| *byte ^= 0x5a);
    }
}

fn wrong_calls_are_refused(card: &Arc<File>) {
    let message = bytes(PAGE, 1);
    let call = request(&message);
    let max = max_bytes(card);
    for (wrong, errno) in [
        (
            Sha256 {
                length: max + 1,
                ..call
            },
            Errno::INVAL,
        ),
        (
            Sha256 {
                length: u64::MAX,
                ..call
            },
            Errno::INVAL,
        ),
        (
            Sha256 {
                address: 8 * PAGE as u64,
                ..call
            },
            Errno::FAULT,
        ),
        (
            Sha256 {
                address: u64::MAX - 1,
                ..call
            },
            Errno::FAULT,
        ),
        // The message ends where there is no memory.
        (
            Sha256 {
                address: 1 << 46,
                length: max,
                ..call
            },
            Errno::FAULT,
        ),
    ] {
        assert_eq!(execute(card, wrong), Err(errno), "{wrong:?}");
    }
    // SAFETY: The driver knows no such call, which has no argument.
    let unknown = unsafe { ioctl(card, NoArg::<0xd802>::new()) };
    assert_eq!(unknown, Err(Errno::NOTTY));
    assert_eq!(execute(card, call), Ok(reference(&message)));
}

/// One call, whose digest is right if it succeeds.
fn call(card: &File) -> Result<(), Errno> {
    let message = bytes(3 * PAGE, 7);
    assert_eq!(sha256(card, &message)?, reference(&message));
    Ok(())
}

fn cards_do_not_mix(_card: &Arc<File>) {
    let count = Driver::new("hasher").functions().len();
    let cards: Vec<_> = (0..count)
        .map(|number| open(&format!("/dev/hasher{number}")))
        .collect();
    let results = under_load(2 * count, |thread| call(&cards[thread % count]), || ());
    assert_eq!(results, vec![Ok(()); 2 * count]);
}

fn system_sleeps(card: &Arc<File>) {
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
                thread::park();
            }
        },
    );
}

fn process_is_killed(card: &Arc<File>) {
    Victim::start(VICTIM).kill();
    assert_eq!(pinned_pages(), 0);
    assert_eq!(call(card), Ok(()));
}

fn driver_is_unbound(card: &Arc<File>) {
    let driver = Driver::new("hasher");
    let function = driver.functions().remove(0);
    let results = under_load(3, |_| call(card), || driver.unbind(&function));
    assert_eq!(results, [Err(Errno::NODEV); 3]);
    driver.bind(&function);
    assert_eq!(call(&open(NODE)), Ok(()));
}

fn max_bytes(card: &File) -> u64 {
    // SAFETY: The call fills in a structure of this size.
    let bytes = unsafe { ioctl(card, Getter::<IOC_INFO, [u8; Info::SIZE]>::new()) };
    Info::from_bytes(&bytes.expect("IOC_INFO")).max_bytes
}

fn request(message: &[u8]) -> Sha256 {
    Sha256 {
        address: message.as_ptr() as u64,
        length: message.len() as u64,
        digest: [0; 32],
    }
}

fn sha256(card: &File, message: &[u8]) -> Result<[u8; 32], Errno> {
    execute(card, request(message))
}

fn execute(card: &File, call: Sha256) -> Result<[u8; 32], Errno> {
    let mut bytes = call.to_bytes();
    // SAFETY: The call updates a structure of this size, and writes to nothing else.
    unsafe { ioctl(card, Updater::<IOC_SHA256, _>::new(&mut bytes)) }?;
    Ok(Sha256::from_bytes(&bytes).digest)
}
