// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client that gets every field of every message wrong: the server answers with the right
//! error, and the next message as if nothing had happened.

use std::os::fd::OwnedFd;

use super::support::*;
use ringbar_vfio_user::server::Errno;
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
