// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Beginning and end of a connection, and replies from other threads.

mod support;

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringbar_vfio_user::server::{Errno, Error, MAX_MESSAGE_BYTES, MAX_PENDING_REPLIES, Reply};
use support::{
    BAR0, CONFIG, Call, Client, DMA_MAP, DMA_UNMAP, Device, GET_INFO, NO_REPLY, REGION_READ,
    REGION_WRITE, RESET, Raw, Server, TIMEOUT, VERSION, access,
};

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

/// Waits until the server has sent as much as the socket takes.
fn wait_until_full(client: &Client) {
    let sent = || rustix::io::ioctl_fionread(&client.socket).expect("FIONREAD");
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = sent();
        if now > 0 && now == before {
            return;
        }
        before = now;
    }
}

#[test]
fn a_version_comes_first_and_once() {
    let (client, _server) = Client::connect(Device::new());
    let info = Raw::new(
        GET_INFO,
        [16u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat(),
    );
    for command in [0, DMA_MAP, GET_INFO, REGION_READ, RESET, 6, u16::MAX] {
        let answer = client.call(
            &Raw {
                command,
                ..info.clone()
            },
            &[],
        );
        assert_eq!(answer.error, Some(Errno::PROTO), "command {command}");
    }

    let json = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{}}}\0";
    let answer = client.call(&Raw::new(VERSION, json.as_slice()), &[]);
    assert_eq!(answer.error, None);
    assert_eq!(answer.body[..4], [0; 4]);
    let (end, data) = answer.body[4..].split_last().expect("version data");
    assert_eq!(*end, 0);
    let data: serde_json::Value = serde_json::from_slice(data).expect("JSON");
    assert_eq!(
        data,
        serde_json::json!({"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20}})
    );

    let answer = client.call(&Raw::new(VERSION, [0; 4]), &[]);
    assert_eq!(answer.error, Some(Errno::PROTO));
    let answer = client.call(&info, &[]);
    assert_eq!(answer.body, [16u32, 3, 9, 5].map(u32::to_ne_bytes).concat());
}

#[test]
fn a_bad_version_may_be_followed_by_a_good_one() {
    for data in [
        &b"{}"[..],
        b"\0",
        b"[]\0",
        b"{\0",
        b"\xff\0",
        b"{}\0\0",
        &[b' '; 100_000],
    ] {
        let (client, _server) = Client::connect(Device::new());
        let body = [&[0; 4], data].concat();
        assert_eq!(
            client.call(&Raw::new(VERSION, body), &[]).error,
            Some(Errno::INVAL)
        );
        for len in 0..4 {
            let short = Raw::new(VERSION, vec![0; len]);
            assert_eq!(client.call(&short, &[]).error, Some(Errno::INVAL));
        }
        client.negotiate();
        client.assert_in_step();
    }
}

#[test]
fn another_major_version_ends_the_connection() {
    let (client, server) = Client::connect(Device::new());
    let answer = client.call(
        &Raw::new(VERSION, [1u16.to_ne_bytes(), [0; 2]].concat()),
        &[],
    );
    assert_eq!(answer.error, Some(Errno::PROTONOSUPPORT));
    client.assert_closed();
    assert!(matches!(server.end(), Err(Error::Version(1, 0))));
}

#[test]
fn impossible_sizes_end_the_connection() {
    let too_long = u32::try_from(MAX_MESSAGE_BYTES).expect("32 bits") + 1;
    for (size, errno) in [
        (0, Errno::INVAL),
        (1, Errno::INVAL),
        (15, Errno::INVAL),
        (too_long, Errno::MSGSIZE),
        (u32::MAX, Errno::MSGSIZE),
    ] {
        let (client, server) = Client::negotiated(Device::new());
        let message = Raw {
            size: Some(size),
            ..Raw::new(REGION_READ, access(CONFIG, 0, 4))
        };
        assert_eq!(client.call(&message, &[]).error, Some(errno));
        client.assert_closed();
        assert!(matches!(server.end(), Err(Error::MessageSize(got)) if got == size));
    }
}

#[test]
fn a_hang_up_anywhere_is_no_error() {
    let message = Raw::new(REGION_WRITE, [access(BAR0, 0, 4), vec![1; 4]].concat()).bytes();
    for len in 0..=message.len() {
        let (client, server) = Client::negotiated(Device::new());
        client.send_bytes(&message[..len], &[]);
        drop(client);
        server.end().expect("a hang-up is no error");
        assert_eq!(
            server.calls().len(),
            usize::from(len == message.len()),
            "{len} bytes"
        );
    }
    let (client, server) = Client::connect(Device::new());
    drop(client);
    server.end().expect("a hang-up is no error");
}

#[test]
fn a_stop_ends_the_connection_anywhere() {
    let message = Raw::new(REGION_WRITE, [access(BAR0, 0, 4), vec![1; 4]].concat()).bytes();
    for len in 0..message.len() {
        let (client, server) = Client::negotiated(Device::new());
        client.send_bytes(&message[..len], &[]);
        if len % 8 == 1 {
            // The server waits for the rest by now, most likely.
            thread::sleep(Duration::from_millis(20));
        }
        assert!(!server.has_ended());
        let begin = Instant::now();
        server.stop();
        server.end().expect("a stop is no error");
        assert!(begin.elapsed() < Duration::from_secs(5));
        client.assert_closed();
    }
}

#[test]
fn a_stop_ends_a_connection_under_load() {
    let (client, server) = Client::negotiated(Device::new());
    let socket = client.socket.try_clone().expect("duplicate");
    let write = Raw {
        flags: NO_REPLY,
        ..Raw::new(REGION_WRITE, [access(BAR0, 0, 1), vec![1]].concat())
    };
    let flood = thread::spawn(move || while (&socket).write_all(&write.bytes()).is_ok() {});
    thread::sleep(Duration::from_millis(50));
    server.stop();
    server.end().expect("a stop is no error");
    flood.join().expect("the flood ends with the connection");
}

#[test]
fn a_stop_ends_a_reply_that_nobody_receives() {
    let (client, server) = Client::negotiated(Device::new());
    for _ in 0..4 {
        client.send(&Raw::new(REGION_READ, access(BAR0, 0, 1 << 20)), &[]);
    }
    wait_until_full(&client);
    assert!(!server.has_ended());
    server.stop();
    server.end().expect("a stop is no error");
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
    wait_until_full(&client);
    let answering = thread::spawn(move || reply.ok());
    thread::sleep(Duration::from_millis(20));
    assert!(!answering.is_finished());
    server.stop();
    server.end().expect("a stop is no error");
    answering.join().expect("the thread returns");
}

#[test]
fn a_slow_sender_is_served() {
    let (client, server) = Client::negotiated(Device::new());
    let message = Raw::new(REGION_WRITE, [access(CONFIG, 8, 3), vec![7; 3]].concat());
    for byte in message.bytes() {
        client.send_bytes(&[byte], &[]);
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(client.receive().body, access(CONFIG, 8, 3));
    assert_eq!(server.calls(), [Call::Write(CONFIG, 8, vec![7; 3])]);
    client.assert_in_step();
}

#[test]
fn messages_in_one_piece_are_taken_apart() {
    let (client, _server) = Client::negotiated(Device::new());
    let mut bytes = Vec::new();
    for id in 0..100 {
        bytes.extend(
            Raw {
                id,
                ..Raw::new(REGION_READ, access(CONFIG, 1, 2))
            }
            .bytes(),
        );
        bytes.extend(
            Raw {
                id,
                ..Raw::new(REGION_READ, access(CONFIG, 1, 0))
            }
            .bytes(),
        );
    }
    client.send_bytes(&bytes, &[]);
    for id in 0..100 {
        let answer = client.receive();
        assert_eq!((answer.id, &answer.body[16..]), (id, &[1, 2][..]));
        let answer = client.receive();
        assert_eq!((answer.id, answer.error), (id, Some(Errno::INVAL)));
    }
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

#[test]
fn one_server_of_a_process_does_not_wait_for_another() {
    let (slow, _slow_server) = Client::negotiated(Device::new());
    slow.send_bytes(&[0; 7], &[]);
    let (client, server): (Client, Server) = Client::negotiated(Device::new());
    client.assert_in_step();
    drop(client);
    server.end().expect("a hang-up is no error");
}
