// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `hasher-test`: tests in the guest, with the driver loaded. Compares what the card computes with
//! what the crate `sha2` computes on the CPU. The exit status is 0 if all tests pass; a panic says
//! what differs.

use std::fs::File;
use std::sync::Arc;
use std::thread;

use hasher::protocol::{BLOCK, MAX_BYTES};
use hasher::uapi::{IOC_INFO, IOC_SHA256, Info, Sha256};
use ringbar_card_tests::{PAGE, bytes, pinned_pages};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Updater, ioctl};
use sha2::Digest;

const NODE: &str = "/dev/hasher0";

/// A test, with the open card.
type Test = fn(&Arc<File>);

fn main() {
    let card = Arc::new(File::open(NODE).unwrap_or_else(|error| panic!("{NODE}: {error}")));
    println!("{NODE}: messages of up to {} bytes", max_bytes(&card));
    let tests: [(&str, Test); 4] = [
        ("digests agree with the reference", digests_agree),
        ("threads get their own digests", threads_do_not_mix),
        ("a long message may change between calls", messages_change),
        ("wrong calls are refused", wrong_calls_are_refused),
    ];
    for (name, test) in tests {
        test(&card);
        assert_eq!(pinned_pages(), 0, "{name}: pages are still pinned");
        println!("ok: {name}");
    }
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
    let call = call(&message);
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

fn max_bytes(card: &File) -> u64 {
    // SAFETY: The call fills in a structure of this size.
    let bytes = unsafe { ioctl(card, Getter::<IOC_INFO, [u8; Info::SIZE]>::new()) };
    Info::from_bytes(&bytes.expect("IOC_INFO")).max_bytes
}

fn call(message: &[u8]) -> Sha256 {
    Sha256 {
        address: message.as_ptr() as u64,
        length: message.len() as u64,
        digest: [0; 32],
    }
}

fn sha256(card: &File, message: &[u8]) -> Result<[u8; 32], Errno> {
    execute(card, call(message))
}

fn execute(card: &File, call: Sha256) -> Result<[u8; 32], Errno> {
    let mut bytes = call.to_bytes();
    // SAFETY: The call updates a structure of this size, and writes to nothing else.
    unsafe { ioctl(card, Updater::<IOC_SHA256, _>::new(&mut bytes)) }?;
    Ok(Sha256::from_bytes(&bytes).digest)
}
