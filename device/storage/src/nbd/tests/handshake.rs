// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The handshake on streams that tests make up.

use std::io::{self, Cursor, ErrorKind, Read, Write};

use proptest::prelude::*;

use super::super::error::NbdError;
use super::super::handshake::{Export, go, greet, start_tls};
use super::super::wire::{
    FIXED_NEWSTYLE, NO_ZEROES, OPT_GO, OPT_STARTTLS, REP_ACK, REP_ERROR, REP_INFO,
};
use super::{ack, greeting, info_blocks, info_export, reply};

/// Bit 0 says that there are flags: flush and write zeroes.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 6;

/// A server that sends certain bytes, whatever the client says.
struct Script {
    server: Cursor<Vec<u8>>,
    client: Vec<u8>,
}

impl Script {
    fn new(parts: &[Vec<u8>]) -> Self {
        Self {
            server: Cursor::new(parts.concat()),
            client: Vec::new(),
        }
    }
}

impl Read for Script {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.server.read(bytes)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.client.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn handshake(parts: &[Vec<u8>]) -> Result<Export, NbdError> {
    let mut script = Script::new(parts);
    greet(&mut script)?;
    go(&mut script, "disk")
}

fn good() -> [Vec<u8>; 4] {
    [
        greeting(FIXED_NEWSTYLE | NO_ZEROES),
        info_export(1 << 20, FLAGS),
        info_blocks([512, 4096, 1 << 20]),
        ack(),
    ]
}

#[test]
fn an_export_is_chosen() {
    let mut script = Script::new(&good());
    greet(&mut script).unwrap();
    let expected = Export {
        size: 1 << 20,
        minimum: 512,
        maximum: 1 << 20,
        flushes: true,
        writes_zeroes: true,
    };
    assert_eq!(go(&mut script, "disk").unwrap(), expected);
    let client = [
        &[0, 0, 0, 3][..],
        b"IHAVEOPT\0\0\0\x07\0\0\0\x0c",
        b"\0\0\0\x04disk\0\x01\0\x03",
    ];
    assert_eq!(script.client, client.concat());
}

#[test]
fn a_server_may_say_less_or_more() {
    let [greeting, export, blocks, ack] = good();
    let unknown = reply(OPT_GO, REP_INFO, &[0, 9, 1, 2, 3]);
    let found = handshake(&[greeting.clone(), unknown, blocks, export, ack.clone()]);
    assert_eq!(found.unwrap().minimum, 512);
    // The client is not to ask for more than 32 MiB then, nor for parts of 512 bytes.
    let plain = handshake(&[greeting.clone(), info_export(5, 1), ack.clone()]).unwrap();
    let expected = Export {
        size: 5,
        minimum: 512,
        maximum: 32 << 20,
        flushes: false,
        writes_zeroes: false,
    };
    assert_eq!(plain, expected);
    // A maximum that is no number of blocks, or too large for a reply.
    for (maximum, expected) in [(1500, 1024), (u32::MAX, 32 << 20)] {
        let blocks = info_blocks([512, 512, maximum]);
        let found = handshake(&[greeting.clone(), info_export(5, 1), blocks, ack.clone()]);
        assert_eq!(found.unwrap().maximum, expected);
    }
}

#[test]
fn servers_that_cannot_be_used_are_told_apart() {
    let [first, export, blocks, ack] = good();
    let after = |parts: &[Vec<u8>]| {
        let all: Vec<_> = [std::slice::from_ref(&first), parts].concat();
        handshake(&all).unwrap_err()
    };
    let refusal = |code: u32| after(&[reply(OPT_GO, REP_ERROR + code, b"a\nb")]);
    assert!(matches!(refusal(1), NbdError::NoGo));
    assert!(matches!(refusal(5), NbdError::TlsRequired(_)));
    assert!(matches!(refusal(6), NbdError::NoExport { .. }));
    assert!(matches!(refusal(7), NbdError::Refused { code: 7, .. }));
    // What the server says ends up in a log.
    assert!(
        refusal(6)
            .to_string()
            .ends_with(r#"no export "disk" (a\nb)"#)
    );

    let read_only = info_export(5, FLAGS | 1 << 1);
    assert!(matches!(
        after(&[read_only, ack.clone()]),
        NbdError::ReadOnly
    ));
    for sizes in [
        [0, 1, 1],
        [3, 4, 8],
        [1 << 17, 1 << 17, 1 << 20],
        [512, 512, 511],
    ] {
        let error = after(&[export.clone(), info_blocks(sizes), ack.clone()]);
        assert!(matches!(error, NbdError::BlockSize { .. }), "{sizes:?}");
    }
    for parts in [
        vec![ack.clone()],
        vec![blocks, ack.clone()],
        vec![reply(OPT_GO, REP_INFO, &[0]), ack.clone()],
        vec![reply(OPT_GO, REP_INFO, &[0, 0, 1]), ack.clone()],
        vec![reply(OPT_GO, REP_INFO, &[0, 3, 1]), ack.clone()],
        vec![reply(OPT_GO, 2, &[])],
        vec![reply(OPT_GO, REP_ACK, &[1])],
        vec![reply(OPT_STARTTLS, REP_ACK, &[])],
        vec![reply(OPT_GO, REP_INFO, &[0, 9].repeat(9 << 10))],
        vec![reply(OPT_GO, REP_INFO, &[0, 9]); 100],
    ] {
        let error = after(&parts);
        assert!(matches!(error, NbdError::Protocol(_)), "{error:?}");
    }
    let begins = |bytes: Vec<u8>| handshake(&[bytes, vec![0; 100]]).unwrap_err();
    assert!(matches!(begins(greeting(NO_ZEROES)), NbdError::NotFixed));
    assert!(matches!(
        begins(b"SSH-2.0-OpenSSH_9.2p1".to_vec()),
        NbdError::NotNbd
    ));
    assert!(matches!(
        begins(b"NBDMAGICIHAVE".to_vec()),
        NbdError::NotNbd
    ));
    let oldstyle = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53".to_vec();
    assert!(matches!(begins(oldstyle), NbdError::Oldstyle));
}

#[test]
fn tls_is_granted_or_not() {
    let answer =
        |kind, data: &[u8]| start_tls(&mut Script::new(&[reply(OPT_STARTTLS, kind, data)]));
    answer(REP_ACK, &[]).unwrap();
    for code in [1, 2] {
        assert!(matches!(
            answer(REP_ERROR + code, b""),
            Err(NbdError::NoTls(_))
        ));
    }
    assert!(matches!(
        answer(REP_ERROR + 3, b""),
        Err(NbdError::Refused { .. })
    ));
    assert!(matches!(answer(REP_INFO, b""), Err(NbdError::Protocol(_))));
}

#[test]
fn a_server_that_goes_away_is_noticed() {
    let bytes = good().concat();
    for length in 0..bytes.len() {
        match handshake(&[bytes[..length].to_vec()]) {
            Err(NbdError::Io(error)) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
            other => panic!("after {length} bytes: {other:?}"),
        }
    }
}

proptest! {
    /// Whatever a server says, an export that is taken can be used.
    #[test]
    fn an_export_that_is_taken_is_possible(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        size in any::<u64>(),
        flags in any::<u16>(),
        sizes in any::<[u32; 3]>(),
    ) {
        let parts = [
            greeting(FIXED_NEWSTYLE),
            info_export(size, flags),
            info_blocks(sizes),
            info_blocks([512, 512, 4096]),
            ack(),
        ];
        let mut bytes = parts.concat();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] ^= byte;
        }
        if let Ok(export) = handshake(&[bytes]) {
            prop_assert!(export.minimum.is_power_of_two());
            prop_assert!(export.maximum >= export.minimum && export.maximum <= 32 << 20);
            prop_assert!(export.maximum.is_multiple_of(export.minimum));
        }
    }
}
