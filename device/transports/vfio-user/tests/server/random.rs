// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whatever bytes come, the server neither panics nor hangs.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use super::support::{CONFIG, Client, Device, Raw, access, events, raw};
use proptest::collection::vec;
use proptest::prelude::*;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// A message with good and bad fields mixed.
fn message() -> impl Strategy<Value = Raw> {
    let interesting = prop_oneof![
        4 => 0u32..40,
        1 => Just(u32::MAX),
        1 => Just(1 << 20),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => Just(0), 2 => Just(0x10), 1 => Just(1), 1 => any::<u32>()];
    let size = prop_oneof![
        12 => Just(None),
        1 => (0u32..80).prop_map(Some),
        1 => any::<u32>().prop_map(Some),
    ];
    let body = prop_oneof![
        vec(interesting, 0..10).prop_map(|words| words
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect::<Vec<_>>()),
        (0u32..10, 0u64..0x110, 0u32..20).prop_map(|(region, offset, count)| {
            [access(region, offset, count), vec![3; count as usize]].concat()
        }),
        (0u32..10, 0u64..0x110, 0u32..20)
            .prop_map(|(region, offset, count)| { access(region, offset, count) }),
        vec(any::<u8>(), 0..100),
        "\\PC{0,40}".prop_map(|text| [&[0; 4], text.as_bytes(), b"\0"].concat()),
        Just(b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":3}}\0".to_vec()),
    ];
    (any::<u16>(), 0u16..19, size, flags, any::<u32>(), body).prop_map(
        |(id, command, size, flags, error, body)| Raw {
            id,
            command,
            size,
            flags,
            error,
            body,
        },
    )
}

/// Sends `pieces` and hangs up; the server has to end.
fn run(negotiated: bool, pieces: &[(Vec<u8>, usize)]) {
    let (client, server) = if negotiated {
        Client::negotiated(Device::new())
    } else {
        Client::connect(Device::new())
    };
    let mut receiving = client.socket.try_clone().expect("duplicate");
    let receiver = thread::spawn(move || {
        let mut sink = [0; 4096];
        while receiving.read(&mut sink).is_ok_and(|bytes| bytes > 0) {}
    });
    for (bytes, count) in pieces.iter().filter(|(bytes, _)| !bytes.is_empty()) {
        let files = events(*count);
        let sent = if files.is_empty() {
            (&client.socket).write_all(bytes).is_ok()
        } else {
            client
                .socket
                .send_with_fds(&[&bytes[..]], &raw(&files))
                .is_ok()
        };
        if !sent {
            // The server has ended the connection already.
            break;
        }
    }
    // An error means that it has ended already.
    let _ = client.socket.shutdown(Shutdown::Write);
    // An error is right as well: the bytes may break the protocol.
    let _ = server.end();
    receiver.join().expect("the server closes the connection");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_no_harm(
        negotiated: bool,
        pieces in vec((vec(any::<u8>(), 0..200), 0usize..20), 0..6),
    ) {
        run(negotiated, &pieces);
    }

    #[test]
    fn random_messages_do_no_harm(
        negotiated: bool,
        messages in vec((message(), prop_oneof![4 => Just(0usize), 1 => 0usize..20]), 0..20),
    ) {
        let pieces: Vec<_> =
            messages.iter().map(|(message, files)| (message.bytes(), *files)).collect();
        run(negotiated, &pieces);
    }

    #[test]
    fn mutated_streams_do_no_harm(
        messages in vec(message(), 1..10),
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 0..10),
        cut: prop::sample::Index,
    ) {
        let mut bytes: Vec<u8> = messages.iter().flat_map(Raw::bytes).collect();
        for (at, byte) in mutations {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        run(true, &[(bytes, 0)]);
    }

    /// Messages that leave the stream in step are each answered, or not, as their header says.
    #[test]
    fn messages_in_step_stay_in_step(messages in vec(message(), 0..20)) {
        let (client, _server) = Client::negotiated(Device::new());
        for message in messages {
            let message = Raw { size: None, ..message };
            client.send(&message, &[]);
            let replied = message.flags & 0xf != 1 && message.flags & 0x10 == 0;
            if replied {
                let answer = client.receive();
                prop_assert_eq!((answer.id, answer.command), (message.id, message.command));
            }
        }
        // The byte at 0x10 may have been written; the length and the order say enough.
        let last = Raw { id: 9, ..Raw::new(super::support::REGION_READ, access(CONFIG, 0, 5)) };
        let answer = client.call(&last, &[]);
        prop_assert_eq!((answer.error, answer.body.len()), (None, 21));
    }
}
