// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Beginning and end of a connection.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use super::support::*;
use ringbar_vfio_user::server::{Errno, Error, MAX_MESSAGE_BYTES};

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

        // A reply is not answered.
        let (client, server) = Client::negotiated(Device::new());
        client.send(
            &Raw {
                flags: 1,
                ..message
            },
            &[],
        );
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
fn a_hang_up_before_the_reply_is_received_is_no_error() {
    let (client, server) = Client::negotiated(Device::new());
    client.send(&Raw::new(REGION_READ, access(CONFIG, 0, 4)), &[]);
    client.wait_until_full();
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
    client.wait_until_full();
    assert!(!server.has_ended());
    server.stop();
    server.end().expect("a stop is no error");
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
fn one_server_of_a_process_does_not_wait_for_another() {
    let (slow, _slow_server) = Client::negotiated(Device::new());
    slow.send_bytes(&[0; 7], &[]);
    let (client, server): (Client, Server) = Client::negotiated(Device::new());
    client.assert_in_step();
    drop(client);
    server.end().expect("a hang-up is no error");
}
