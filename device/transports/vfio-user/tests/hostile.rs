// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client that gets every field of every message wrong: the server answers with the right
//! error, and the next message as if nothing had happened.

mod support;

use std::os::fd::OwnedFd;

use ringbar_vfio_user::server::Errno;
use support::{
    Answer, BAR0, BAR1, BAR2, BAR3, BAR4, BAR4_AREAS, BAR4_OFFSET, BAR5, CONFIG, Client, DMA_MAP,
    DMA_UNMAP, Device, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, IRQS, REGION_READ, REGION_WRITE,
    REGIONS, RESET, Raw, SET_IRQS, VERSION, access, events, interrupt, memory, raw, region,
};
use vfio_bindings::bindings::vfio::*;

/// A good message, and what becomes of it for other values of its fields.
struct Case {
    name: &'static str,
    command: u16,
    /// Sizes in bytes and values.
    fields: &'static [(usize, u64)],
    /// Bytes behind the fields.
    tail: usize,
    /// Number of descriptors.
    files: usize,
    /// The expected `errno` with these fields, written down independently of the server.
    verdict: fn(&[u64]) -> Option<Errno>,
}

const OK: Option<Errno> = None;
const INVALID: Option<Errno> = Some(Errno::INVAL);

fn valid(valid: bool) -> Option<Errno> {
    if valid { OK } else { INVALID }
}

/// Whether a range has no byte, or one that 64 bits cannot address.
fn bad_range(start: u64, size: u64) -> bool {
    size == 0 || u128::from(start) + u128::from(size) > 1 << 64
}

fn access_verdict(f: &[u64], flag: u32, count: Option<u64>) -> Option<Errno> {
    let Some((size, flags)) = region(f[1] as u32) else {
        return INVALID;
    };
    if flags & flag == 0 {
        return Some(Errno::ACCESS);
    }
    let end = u128::from(f[0]) + u128::from(f[2]);
    let in_range = (1..=1 << 20).contains(&f[2]) && end <= u128::from(size);
    valid(in_range && count.is_none_or(|count| count == f[2]))
}

fn unmap_verdict(f: &[u64]) -> Option<Errno> {
    let good = match f[1] {
        0 => !bad_range(f[2], f[3]),
        2 => f[2] == 0 && f[3] == 0,
        _ => false,
    };
    valid(f[0] >= 24 && good)
}

/// With `tail` bytes and `files` descriptors behind the fields.
fn irqs_verdict(f: &[u64], tail: u64, files: u64) -> Option<Errno> {
    let [argsz, flags, index, start, count] = f.try_into().expect("five fields");
    let Some((available, properties)) = interrupt(index as u32) else {
        return INVALID;
    };
    if argsz != 20 + tail || start + count > u64::from(available) {
        return INVALID;
    }
    let (data, action) = (flags & 7, flags & !7);
    let maskable = properties & VFIO_IRQ_INFO_MASKABLE != 0;
    let eventfd = properties & VFIO_IRQ_INFO_EVENTFD != 0;
    let good_action = action == 32 || (maskable && matches!(action, 8 | 16));
    let good_data = match data {
        1 => tail == 0 && files == 0 && (count > 0 || (start == 0 && action == 32)),
        2 => tail == count && files == 0 && count > 0,
        4 => eventfd && tail == 0 && count > 0 && (files == 0 || files == count),
        _ => false,
    };
    valid(good_action && good_data)
}

const CASES: &[Case] = &[
    Case {
        name: "version again",
        command: VERSION,
        fields: &[(2, 0), (2, 0)],
        tail: 0,
        files: 0,
        verdict: |_| Some(Errno::PROTO),
    },
    Case {
        name: "map memory",
        command: DMA_MAP,
        fields: &[(4, 32), (4, 3), (8, 0x1000), (8, 0x10_0000), (8, 0x2000)],
        tail: 0,
        files: 1,
        verdict: |f| {
            let bad = bad_range(f[3], f[4]) || bad_range(f[2], f[4]);
            valid(f[0] == 32 && (1..=3).contains(&f[1]) && !bad)
        },
    },
    Case {
        name: "map without memory",
        command: DMA_MAP,
        fields: &[(4, 32), (4, 1), (8, 0), (8, 0x10_0000), (8, 0x2000)],
        tail: 0,
        files: 0,
        verdict: |f| {
            let good = f[0] == 32 && (1..=3).contains(&f[1]) && f[2] == 0;
            valid(good && !bad_range(f[3], f[4]))
        },
    },
    Case {
        name: "unmap",
        command: DMA_UNMAP,
        fields: &[(4, 24), (4, 0), (8, 0x10_0000), (8, 0x2000)],
        tail: 0,
        files: 0,
        verdict: unmap_verdict,
    },
    Case {
        name: "unmap everything",
        command: DMA_UNMAP,
        fields: &[(4, 24), (4, 2), (8, 0), (8, 0)],
        tail: 0,
        files: 0,
        verdict: unmap_verdict,
    },
    Case {
        name: "device information",
        command: GET_INFO,
        fields: &[(4, 16), (4, 0), (4, 0), (4, 0)],
        tail: 0,
        files: 0,
        verdict: |f| valid(f[0] >= 16),
    },
    Case {
        name: "region information",
        command: GET_REGION_INFO,
        fields: &[(4, 32), (4, 0), (4, 4), (4, 0), (8, 0), (8, 0)],
        tail: 0,
        files: 0,
        verdict: |f| valid(f[0] >= 32 && f[2] < REGIONS.into()),
    },
    Case {
        name: "interrupt information",
        command: GET_IRQ_INFO,
        fields: &[(4, 16), (4, 0), (4, 2), (4, 0)],
        tail: 0,
        files: 0,
        verdict: |f| valid(f[0] >= 16 && f[2] < IRQS.into()),
    },
    Case {
        name: "set descriptors",
        command: SET_IRQS,
        fields: &[(4, 20), (4, 0x24), (4, 2), (4, 4), (4, 3)],
        tail: 0,
        files: 3,
        verdict: |f| irqs_verdict(f, 0, 3),
    },
    Case {
        name: "remove descriptors",
        command: SET_IRQS,
        fields: &[(4, 20), (4, 0x24), (4, 2), (4, 21), (4, 3)],
        tail: 0,
        files: 0,
        verdict: |f| irqs_verdict(f, 0, 0),
    },
    Case {
        name: "mask",
        command: SET_IRQS,
        fields: &[(4, 20), (4, 0x09), (4, 0), (4, 0), (4, 1)],
        tail: 0,
        files: 0,
        verdict: |f| irqs_verdict(f, 0, 0),
    },
    Case {
        name: "trigger some",
        command: SET_IRQS,
        fields: &[(4, 25), (4, 0x22), (4, 2), (4, 19), (4, 5)],
        tail: 5,
        files: 0,
        verdict: |f| irqs_verdict(f, 5, 0),
    },
    Case {
        name: "disable",
        command: SET_IRQS,
        fields: &[(4, 20), (4, 0x21), (4, 2), (4, 0), (4, 0)],
        tail: 0,
        files: 0,
        verdict: |f| irqs_verdict(f, 0, 0),
    },
    Case {
        name: "read",
        command: REGION_READ,
        fields: &[(8, 0xf0), (4, CONFIG as u64), (4, 8)],
        tail: 0,
        files: 0,
        verdict: |f| access_verdict(f, VFIO_REGION_INFO_FLAG_READ, None),
    },
    Case {
        name: "read the most",
        command: REGION_READ,
        fields: &[(8, 3 << 20), (4, BAR0 as u64), (4, 1 << 20)],
        tail: 0,
        files: 0,
        verdict: |f| access_verdict(f, VFIO_REGION_INFO_FLAG_READ, None),
    },
    Case {
        name: "write",
        command: REGION_WRITE,
        fields: &[(8, 0xf0), (4, CONFIG as u64), (4, 8)],
        tail: 8,
        files: 0,
        verdict: |f| access_verdict(f, VFIO_REGION_INFO_FLAG_WRITE, Some(8)),
    },
    Case {
        name: "reset",
        command: RESET,
        fields: &[],
        tail: 0,
        files: 0,
        verdict: |_| OK,
    },
];

impl Case {
    fn values(&self) -> Vec<u64> {
        self.fields.iter().map(|(_, value)| *value).collect()
    }

    fn message(&self, values: &[u64]) -> Raw {
        let mut body = Vec::new();
        for ((width, _), value) in self.fields.iter().zip(values) {
            body.extend(&value.to_le_bytes()[..*width]);
        }
        body.resize(body.len() + self.tail, 1);
        Raw::new(self.command, body)
    }

    fn descriptors(&self, count: usize) -> Vec<OwnedFd> {
        if self.command == DMA_MAP {
            (0..count).map(|_| memory()).collect()
        } else {
            events(count)
        }
    }
}

/// Values that a field of `width` bytes is set to instead of `good`.
fn bad_values(width: usize, good: u64) -> Vec<u64> {
    let max = u64::MAX >> (64 - 8 * width);
    let mut values = vec![
        0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 0xff, 0x100, 0x1000,
    ];
    values.extend([
        good.wrapping_sub(1) & max,
        good.wrapping_add(1) & max,
        max - 1,
        max,
    ]);
    values.extend((0..8 * width).map(|bit| good ^ (1 << bit)));
    values.extend((0..8 * width).map(|bit| 1 << bit));
    values.retain(|value| *value <= max);
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn good_messages_are_good() {
    let (client, _server) = Client::negotiated(Device::new());
    for case in CASES {
        let files = case.descriptors(case.files);
        let answer = client.call(&case.message(&case.values()), &raw(&files));
        assert_eq!(
            answer.error,
            (case.verdict)(&case.values()),
            "{}",
            case.name
        );
        client.assert_in_step();
    }
}

#[test]
fn each_field_is_checked() {
    let (client, _server) = Client::negotiated(Device::new());
    let mut messages = 0;
    for case in CASES {
        for (field, (width, good)) in case.fields.iter().enumerate() {
            for value in bad_values(*width, *good) {
                let mut values = case.values();
                values[field] = value;
                let files = case.descriptors(case.files);
                let answer = client.call(&case.message(&values), &raw(&files));
                let expected = (case.verdict)(&values);
                assert_eq!(
                    answer.error, expected,
                    "{}, field {field}: {value:#x}",
                    case.name
                );
                client.assert_in_step();
                messages += 1;
            }
        }
    }
    assert!(messages > 2000, "only {messages} messages");
}

#[test]
fn pairs_of_fields_are_checked() {
    let (client, _server) = Client::negotiated(Device::new());
    for case in CASES {
        let fields = case.fields.len();
        for (first, second) in (0..fields).flat_map(|a| (a + 1..fields).map(move |b| (a, b))) {
            let extremes = |field: usize| {
                let (width, good) = case.fields[field];
                let max = u64::MAX >> (64 - 8 * width);
                [
                    0,
                    1,
                    good.wrapping_sub(1) & max,
                    good + 1,
                    max / 2,
                    max / 2 + 1,
                    max - 1,
                    max,
                ]
            };
            for (a, b) in extremes(first)
                .iter()
                .flat_map(|a| extremes(second).map(|b| (*a, b)))
            {
                let mut values = case.values();
                values[first] = a;
                values[second] = b;
                let files = case.descriptors(case.files);
                let answer = client.call(&case.message(&values), &raw(&files));
                let expected = (case.verdict)(&values);
                assert_eq!(answer.error, expected, "{}: {values:x?}", case.name);
            }
            client.assert_in_step();
        }
    }
}

#[test]
fn each_length_is_checked() {
    let (client, server) = Client::negotiated(Device::new());
    for case in CASES {
        let good = case.message(&case.values());
        let len = good.body.len();
        let lens = (0..len + 40).chain([4095, 4096, 1 << 16, (1 << 20) + 15, (1 << 20) + 16]);
        for wrong in lens.filter(|wrong| *wrong != len) {
            let mut message = good.clone();
            message.body.resize(wrong, 0);
            let files = case.descriptors(case.files);
            let answer = client.call(&message, &raw(&files));
            let expected = if case.command == VERSION {
                Errno::PROTO
            } else {
                Errno::INVAL
            };
            assert_eq!(answer.error, Some(expected), "{}: {wrong} bytes", case.name);
            client.assert_in_step();
        }
    }
    assert_eq!(server.calls(), []);
}

#[test]
fn each_number_of_descriptors_is_checked() {
    let (client, _server) = Client::negotiated(Device::new());
    for case in CASES {
        for count in [0, 1, 2, 3, 4, 15, 16, 17, 18, 64, 253] {
            let files = case.descriptors(count);
            let answer = client.call(&case.message(&case.values()), &raw(&files));
            let expected = match (case.name, count) {
                ("version again", _) => Some(Errno::PROTO),
                ("map without memory", 1) => OK,
                // The offset is not 0.
                ("map memory", 0) => INVALID,
                ("set descriptors", 0) | ("remove descriptors", 3) => OK,
                (_, count) => valid(count == case.files),
            };
            assert_eq!(answer.error, expected, "{}: {count} descriptors", case.name);
            client.assert_in_step();
        }
    }
}

#[test]
fn a_version_with_descriptors_is_refused() {
    let (client, _server) = Client::connect(Device::new());
    let answer = client.call(&Raw::new(VERSION, [0; 4]), &raw(&events(1)));
    assert_eq!(answer.error, INVALID);
    client.negotiate();
    client.assert_in_step();
}

#[test]
fn descriptors_may_come_with_any_byte_of_their_message() {
    let (client, server) = Client::negotiated(Device::new());
    let case = CASES
        .iter()
        .find(|case| case.name == "set descriptors")
        .expect("in the table");
    let bytes = case.message(&case.values()).bytes();
    for at in 0..bytes.len() - 3 {
        let files = events(3);
        client.send_bytes(&bytes[..at], &[]);
        for (step, file) in raw(&files).into_iter().enumerate() {
            client.send_bytes(&bytes[at + step..][..1], &[file]);
        }
        client.send_bytes(&bytes[at + 3..], &[]);
        assert_eq!(client.receive().error, OK);
    }
    assert_eq!(server.calls().len(), bytes.len() - 3);

    // Descriptors of the next message stay with the next message.
    let files = events(3);
    client.send(&Raw::new(RESET, []), &[]);
    client.send_bytes(&bytes, &raw(&files));
    assert_eq!(client.receive().error, OK);
    assert_eq!(client.receive().error, OK);
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
