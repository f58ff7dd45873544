// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Replies from other threads, and commands without reply.

use std::io::Read;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::support::*;
use ringbar_vfio_user::server::{Errno, MAX_PENDING_REPLIES, Reply};

/// A device whose replies come out of the receiver.
fn deferring() -> (Device, Receiver<Reply>) {
    let (sender, receiver) = channel();
    (
        Device {
            replies: Some(sender),
            ..Device::new()
        },
        receiver,
    )
}

fn map() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(32u32.to_ne_bytes());
    body.extend(3u32.to_ne_bytes());
    for field in [0u64, 0x1000, 0x1000] {
        body.extend(field.to_ne_bytes());
    }
    body
}

fn unmap() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(24u32.to_ne_bytes());
    body.extend(0u32.to_ne_bytes());
    body.extend(0x1000u64.to_ne_bytes());
    body.extend(0x1000u64.to_ne_bytes());
    body
}

#[test]
fn the_end_of_the_connection_releases_a_thread_that_replies() {
    let (device, replies) = deferring();
    let (client, server) = Client::negotiated(device);
    // A reply in part on the way, and another thread behind it.
    client.send(&Raw::new(RESET, []), &[]);
    let reply = replies.recv_timeout(TIMEOUT).expect("reply");
    for _ in 0..4 {
        client.send(&Raw::new(REGION_READ, access(BAR0, 0, 1 << 20)), &[]);
    }
    client.wait_until_full();
    let answering = thread::spawn(move || reply.ok());
    thread::sleep(Duration::from_millis(20));
    assert!(!answering.is_finished());
    server.stop();
    server.end().expect("a stop is no error");
    answering.join().expect("the thread returns");
}

#[test]
fn commands_without_reply_get_none() {
    let (client, server) = Client::connect(Device::new());
    let quiet = |command, body: Vec<u8>| Raw {
        flags: NO_REPLY,
        ..Raw::new(command, body)
    };
    client.send(&quiet(VERSION, vec![0; 2]), &[]);
    client.send(&quiet(VERSION, vec![0; 4]), &[]);
    client.send(&quiet(VERSION, vec![0; 4]), &[]);
    client.send(
        &quiet(REGION_WRITE, [access(CONFIG, 0x20, 1), vec![5]].concat()),
        &[],
    );
    client.send(
        &quiet(REGION_WRITE, [access(CONFIG, 0xff, 1), vec![5]].concat()),
        &[],
    );
    client.send(&quiet(REGION_WRITE, access(99, 0, 1)), &[]);
    client.send(&quiet(REGION_READ, access(CONFIG, 0, 1)), &[]);
    client.send(&quiet(DMA_MAP, map()), &[]);
    client.send(&quiet(DMA_UNMAP, unmap()), &[]);
    client.send(&quiet(RESET, vec![]), &[]);
    client.send(&quiet(GET_INFO, vec![]), &[]);
    client.send(&quiet(999, vec![1]), &[]);
    client.assert_in_step();
    assert_eq!(server.calls().len(), 4);

    let (device, replies) = deferring();
    let (client, _server) = Client::negotiated(device);
    for _ in 0..3 {
        client.send(&quiet(RESET, vec![]), &[]);
    }
    replies.recv_timeout(TIMEOUT).expect("reply").ok();
    replies
        .recv_timeout(TIMEOUT)
        .expect("reply")
        .error(Errno::BUSY);
    drop(replies.recv_timeout(TIMEOUT).expect("reply"));
    client.assert_in_step();
}

#[test]
fn replies_come_in_any_order_from_any_thread() {
    let (device, replies) = deferring();
    let (client, _server) = Client::negotiated(device);
    client.send(
        &Raw {
            id: 1,
            ..Raw::new(DMA_MAP, map())
        },
        &[],
    );
    client.send(
        &Raw {
            id: 2,
            ..Raw::new(DMA_UNMAP, unmap())
        },
        &[],
    );
    client.send(
        &Raw {
            id: 3,
            ..Raw::new(RESET, [])
        },
        &[],
    );
    client.send(
        &Raw {
            id: 4,
            ..Raw::new(RESET, [])
        },
        &[],
    );
    client.assert_in_step();
    let next = || replies.recv_timeout(TIMEOUT).expect("reply");
    let (first, second, third, fourth) = (next(), next(), next(), next());

    thread::spawn(move || fourth.ok()).join().expect("join");
    let answer = client.receive();
    assert_eq!((answer.id, answer.command, answer.error), (4, RESET, None));
    thread::spawn(move || second.ok()).join().expect("join");
    let answer = client.receive();
    assert_eq!((answer.id, answer.body), (2, unmap()));
    first.error(Errno::EXIST);
    let answer = client.receive();
    assert_eq!(
        (answer.id, answer.command, answer.error),
        (1, DMA_MAP, Some(Errno::EXIST))
    );
    client.assert_in_step();
    drop(third);
    let answer = client.receive();
    assert_eq!((answer.id, answer.error), (3, Some(Errno::IO)));
    client.assert_in_step();
}

#[test]
fn replies_of_many_threads_do_not_mix() {
    let (device, replies) = deferring();
    let (client, _server) = Client::negotiated(device);
    let answering: Vec<_> = (0..4)
        .map(|_| channel::<Reply>())
        .map(|(sender, receiver)| {
            (
                sender,
                thread::spawn(move || receiver.iter().for_each(Reply::ok)),
            )
        })
        .collect();
    const ROUNDS: u16 = 500;
    let socket = client.socket.try_clone().expect("duplicate");
    let sending = thread::spawn(move || {
        let client = Client { socket };
        for id in 0..ROUNDS {
            client.send(
                &Raw {
                    id,
                    ..Raw::new(DMA_UNMAP, unmap())
                },
                &[],
            );
            client.send(
                &Raw {
                    id,
                    ..Raw::new(REGION_READ, access(BAR0, 5, 3000))
                },
                &[],
            );
        }
    });
    let distributing = thread::spawn(move || {
        for at in 0..usize::from(ROUNDS) {
            let reply = replies.recv_timeout(TIMEOUT).expect("reply");
            answering[at % answering.len()]
                .0
                .send(reply)
                .expect("the thread runs");
        }
        for (sender, thread) in answering {
            drop(sender);
            thread.join().expect("join");
        }
    });
    let mut unmapped = vec![false; ROUNDS.into()];
    let mut reads = 0;
    for _ in 0..2 * ROUNDS {
        let answer = client.receive();
        assert_eq!(answer.error, None);
        if answer.command == DMA_UNMAP {
            assert_eq!(answer.body, unmap());
            assert!(!std::mem::replace(
                &mut unmapped[usize::from(answer.id)],
                true
            ));
        } else {
            assert_eq!(answer.id, reads, "reads are answered in their order");
            assert_eq!(answer.body.len(), 16 + 3000);
            reads += 1;
        }
    }
    sending.join().expect("join");
    distributing.join().expect("join");
}

#[test]
fn pending_replies_are_limited() {
    let (device, replies) = deferring();
    let (client, server) = Client::negotiated(device);
    for id in 0..MAX_PENDING_REPLIES as u16 + 2 {
        client.send(
            &Raw {
                id,
                ..Raw::new(RESET, [])
            },
            &[],
        );
    }
    let mut pending = Vec::new();
    for _ in 0..MAX_PENDING_REPLIES {
        pending.push(replies.recv_timeout(TIMEOUT).expect("reply"));
    }
    let wait = Duration::from_millis(100);
    assert!(replies.recv_timeout(wait).is_err(), "the limit is not kept");
    // Each answer makes room for one command.
    for _ in 0..2 {
        pending.pop().expect("pending").ok();
        client.receive();
        pending.push(replies.recv_timeout(TIMEOUT).expect("reply"));
        assert!(replies.recv_timeout(wait).is_err());
    }
    server.stop();
    server.end().expect("a stop is no error");
    drop(pending);
    client.assert_closed();
}

#[test]
fn a_reply_after_the_end_has_no_effect() {
    let (device, replies) = deferring();
    let (client, server) = Client::negotiated(device);
    client.send(&Raw::new(RESET, []), &[]);
    let reply = replies.recv_timeout(TIMEOUT).expect("reply");
    server.stop();
    server.end().expect("a stop is no error");
    // The client sees the end although a reply is pending.
    assert_eq!(
        (&client.socket).read(&mut [0]).expect("end of the stream"),
        0
    );
    reply.ok();
    client.assert_closed();
}

#[test]
fn a_device_without_reset_refuses_it() {
    let (client, server) = Client::negotiated(Device {
        flags: 2,
        ..Device::new()
    });
    assert_eq!(
        client.call(&Raw::new(RESET, []), &[]).error,
        Some(Errno::OPNOTSUPP)
    );
    assert_eq!(server.calls(), []);
    client.assert_in_step();
}
