// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client that gets headers, commands and regions wrong, and what it is told of regions.

use super::support::*;
use ringbar_vfio_user::server::Errno;

const OK: Option<Errno> = None;
const INVALID: Option<Errno> = Some(Errno::INVAL);

#[test]
fn a_version_with_descriptors_is_refused() {
    let (client, _server) = Client::connect(Device::new());
    let answer = client.call(&Raw::new(VERSION, [0; 4]), &raw(&events(1)));
    assert_eq!(answer.error, INVALID);
    client.negotiate();
    client.assert_in_step();
}

#[test]
fn each_field_of_the_header_is_checked() {
    let (client, _server) = Client::negotiated(Device::new());
    let good = Raw::new(REGION_READ, access(CONFIG, 0x40, 2));
    for id in [0, 1, u16::MAX] {
        assert_eq!(client.call(&Raw { id, ..good.clone() }, &[]).error, OK);
    }
    for error in [0, 1, u32::MAX] {
        assert_eq!(
            client
                .call(
                    &Raw {
                        error,
                        ..good.clone()
                    },
                    &[]
                )
                .error,
            OK
        );
    }
    for bit in (0..32).filter(|bit| !matches!(bit, 0 | 4)) {
        let message = Raw {
            flags: 1 << bit,
            ..good.clone()
        };
        assert_eq!(client.call(&message, &[]).error, INVALID, "bit {bit}");
    }
    for flags in [2, 3, 7, 15, 0x20, 0x23, !0x1f] {
        assert_eq!(
            client
                .call(
                    &Raw {
                        flags,
                        ..good.clone()
                    },
                    &[]
                )
                .error,
            INVALID
        );
        client.assert_in_step();
    }
    // Replies are ignored, errors or not, whatever they answer.
    for flags in [1, 0x21, 0x11, 0xffff_fff1] {
        client.send(
            &Raw {
                flags,
                ..good.clone()
            },
            &raw(&events(1)),
        );
        client.assert_in_step();
    }
    for size in 16..32 {
        let message = Raw {
            size: Some(size),
            body: vec![0; size as usize - 16],
            ..good.clone()
        };
        assert_eq!(client.call(&message, &[]).error, INVALID);
        client.assert_in_step();
    }
}

#[test]
fn unknown_commands_are_not_supported() {
    let (client, server) = Client::negotiated(Device::new());
    let known = [
        VERSION,
        DMA_MAP,
        DMA_UNMAP,
        GET_INFO,
        GET_REGION_INFO,
        GET_IRQ_INFO,
        SET_IRQS,
    ];
    let others = [REGION_READ, REGION_WRITE, RESET];
    let commands = (0..300).chain([0x7fff, 0x8000, u16::MAX]);
    for command in commands.filter(|command| !known.iter().chain(&others).any(|c| c == command)) {
        for len in [0, 3, 16, 5000] {
            let answer = client.call(&Raw::new(command, vec![0xff; len]), &raw(&events(2)));
            assert_eq!(answer.error, Some(Errno::OPNOTSUPP), "command {command}");
        }
    }
    client.assert_in_step();
    assert_eq!(server.calls(), []);
}

#[test]
fn errors_of_the_device_are_passed_on() {
    let (client, _server) = Client::negotiated(Device::new());
    for message in [
        Raw::new(REGION_READ, access(CONFIG, 0xff, 1)),
        Raw::new(REGION_WRITE, [access(CONFIG, 0xff, 1), vec![0]].concat()),
    ] {
        assert_eq!(client.call(&message, &[]).error, Some(Errno::BUSY));
        client.assert_in_step();
    }
}

#[test]
fn permissions_of_regions_are_kept() {
    let (client, _server) = Client::negotiated(Device::new());
    let write = |region| Raw::new(REGION_WRITE, [access(region, 0, 1), vec![0]].concat());
    let read = |region| Raw::new(REGION_READ, access(region, 0, 1));
    for (message, expected) in [
        (read(BAR3), Some(Errno::ACCESS)),
        (write(BAR2), Some(Errno::ACCESS)),
        (read(BAR2), OK),
        (write(BAR3), OK),
        (read(BAR1), INVALID),
        (write(BAR1), INVALID),
        (read(REGIONS), INVALID),
        (write(u32::MAX), INVALID),
    ] {
        assert_eq!(client.call(&message, &[]).error, expected);
    }
}

fn region_information(client: &Client, index: u32, argsz: u32) -> Answer {
    let mut body = vec![0; 32];
    body[..4].copy_from_slice(&argsz.to_ne_bytes());
    body[8..12].copy_from_slice(&index.to_ne_bytes());
    client.call(&Raw::new(GET_REGION_INFO, body), &[])
}

#[test]
fn areas_come_only_where_they_fit() {
    let (client, _server) = Client::negotiated(Device::new());
    let word =
        |body: &[u8], at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().expect("4 bytes"));
    let full = 32 + 16 + 16 * BAR4_AREAS.len() as u32;
    for argsz in [32, 33, full - 1] {
        let answer = region_information(&client, BAR4, argsz);
        assert_eq!(answer.body.len(), 32);
        assert_eq!((word(&answer.body, 0), word(&answer.body, 4)), (full, 3));
        assert_eq!(word(&answer.body, 12), 0, "no capability");
        assert!(
            answer.file.is_none(),
            "a descriptor without the areas it is for"
        );
    }
    for argsz in [full, full + 1, u32::MAX] {
        let answer = region_information(&client, BAR4, argsz);
        assert_eq!(answer.body.len(), full as usize);
        assert_eq!((word(&answer.body, 0), word(&answer.body, 4)), (full, 0xf));
        assert_eq!(word(&answer.body, 12), 32);
        assert_eq!(answer.body[24..32], BAR4_OFFSET.to_ne_bytes());
        assert_eq!(word(&answer.body, 40), 2);
        assert!(answer.file.is_some());
    }
    assert_eq!(word(&region_information(&client, BAR5, 32).body, 4), 7);
    assert_eq!(word(&region_information(&client, BAR1, 32).body, 4), 0);
}

#[test]
fn a_client_without_descriptors_gets_none() {
    let (client, _server) = Client::connect(Device::new());
    let version = [&[0; 4][..], b"{\"capabilities\":{\"max_msg_fds\":0}}\0"].concat();
    assert_eq!(client.call(&Raw::new(VERSION, version), &[]).error, OK);
    for index in [BAR4, BAR5] {
        let answer = region_information(&client, index, 1000);
        assert_eq!(answer.body.len(), 32);
        assert_eq!(answer.body[4..8], 3u32.to_ne_bytes());
        assert!(answer.file.is_none());
    }
}

#[test]
fn each_interrupt_gets_one_descriptor_where_the_type_has_any() {
    let (client, server) = Client::negotiated(Device::new());
    let set = |index: u32, count: u32| {
        Raw::new(
            SET_IRQS,
            [20, 0x24, index, 0, count].map(u32::to_ne_bytes).concat(),
        )
    };
    // Type 3 has no descriptors.
    for count in [0, 1] {
        assert_eq!(client.call(&set(3, 1), &raw(&events(count))).error, INVALID);
    }
    // One more than the greatest number, which is received in part.
    assert_eq!(client.call(&set(2, 16), &raw(&events(17))).error, INVALID);
    assert_eq!(client.call(&set(2, 17), &raw(&events(17))).error, INVALID);
    assert_eq!(server.calls(), []);
    assert_eq!(client.call(&set(2, 16), &raw(&events(16))).error, OK);
}
