// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks that the C header and the constants and structures in Rust agree.

use std::collections::BTreeMap;

use ringbar_uapi::{self as uapi, Command, Info};

const HEADER: &str = include_str!("../ringbar.h");

/// The value of a constant, as the header writes it: `5ULL`, `56`, `(1ULL << 20)`.
fn value(text: &str) -> u64 {
    let text = text.trim_matches(['(', ')']);
    let number = |text: &str| {
        let text = text.trim().trim_end_matches("ULL");
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => text.parse().unwrap(),
        }
    };
    match text.split_once("<<") {
        Some((left, right)) => number(left) << number(right),
        None => number(text),
    }
}

fn header() -> BTreeMap<&'static str, u64> {
    HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define RINGBAR_"))
        .filter(|line| {
            ["_IO(", "_IOR(", "_IOWR("]
                .iter()
                .all(|call| !line.contains(call))
        })
        .map(|line| {
            let (name, text) = line.split_once(char::is_whitespace).unwrap();
            (name, value(text.trim()))
        })
        .collect()
}

macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        BTreeMap::from([$((stringify!($name), uapi::$name as u64)),*])
    };
}

#[test]
fn header_and_driver_agree() {
    let driver = constants![
        MAP_SHIFT,
        MAP_MEMORY,
        MAP_MEMORY_UNCACHED,
        MAP_MEMORY_CACHED,
        MAP_STATISTICS,
        MAP_EVENTS,
        MAP_USED_RINGS,
        USED_RING_STRIDE,
        COUNTER_REQUESTS,
        COUNTER_DOORBELLS,
        COUNTER_INTERRUPTS,
        COUNTER_SEGMENTS,
        EVENT_LOG_PAGES,
        EVENT_RECORD_WORDS,
        EVENT_STARTED,
        EVENT_CAPACITY,
        EVENT_QUEUE_BROKEN,
        EVENT_STOPPED,
        EVENT_SUSPENDED,
        EVENT_RESET,
        RESET_BY_TIMEOUT,
        RESET_BY_ADMINISTRATOR,
        OP_FLUSH,
        OP_DISCARD,
        OP_WRITE_ZEROES,
        OP_COPY,
        OP_FILL,
        OP_COMPARE,
        OP_CRC32C,
        COMMAND_DURABLE,
        CAP_MMAP,
        CAP_IOPOLL,
        STATE_IN_SERVICE,
        STATE_OUT_OF_SERVICE,
        IOC_TYPE,
    ];
    assert_eq!(header(), driver);
    // The list above is complete.
    let in_driver = include_str!("../src/ringbar.rs")
        .lines()
        .filter(|line| line.starts_with("pub const "))
        .count();
    // The `ioctl` numbers have a test of their own.
    assert_eq!(driver.len() + 3, in_driver);
}

/// A member of a structure in the header.
struct Member {
    name: &'static str,
    alignment: usize,
    size: usize,
}

/// The members of a structure in the header.
fn members(structure: &str) -> Vec<Member> {
    let start = format!("struct {structure} {{");
    let (_, rest) = HEADER.split_once(start.as_str()).unwrap();
    let (body, _) = rest.split_once("};").unwrap();
    body.lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .map(|member| {
            let (kind, name) = member.split_once(' ').unwrap();
            let alignment = match kind {
                "__u32" => 4,
                "__u64" => 8,
                other => panic!("{other} has no fixed width"),
            };
            let (name, count) = name.split_once('[').unwrap_or((name, "1"));
            let count: usize = count.trim_end_matches(']').parse().unwrap();
            Member {
                name,
                alignment,
                size: alignment * count,
            }
        })
        .collect()
}

/// The bytes of a structure in C's layout, with these values.
fn laid_out(structure: &str, values: &[(&str, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members(structure) {
        let name = member.name;
        assert_eq!(bytes.len() % member.alignment, 0, "{name} would be padded");
        let value = values.iter().find(|(known, _)| *known == name);
        let mut content = value.map_or(0, |&(_, value)| value).to_ne_bytes().to_vec();
        content.resize(member.size, 0);
        bytes.extend(content);
    }
    assert_eq!(bytes.len() % 8, 0, "{structure} would be padded");
    bytes
}

#[test]
fn structures_are_laid_out_alike() {
    let info = Info {
        capabilities: 1 << 40,
        capacity: 2 << 40,
        aperture: 3 << 40,
        max_request: 4 << 40,
        max_command: 5 << 40,
        io_queues: 6,
        max_segments: 7,
        state: 8,
    };
    let expected = laid_out(
        "ringbar_info",
        &[
            ("capabilities", info.capabilities),
            ("capacity", info.capacity),
            ("aperture", info.aperture),
            ("max_request", info.max_request),
            ("max_command", info.max_command),
            ("io_queues", info.io_queues.into()),
            ("max_segments", info.max_segments.into()),
            ("state", info.state.into()),
        ],
    );
    assert_eq!(info.to_bytes()[..], expected);
    assert_eq!(Info::from_bytes(&info.to_bytes()), info);

    let command = Command {
        opcode: 1,
        flags: 2,
        offset: 3 << 40,
        length: 4 << 40,
        argument: 5 << 40,
        result: 6 << 40,
    };
    let expected = laid_out(
        "ringbar_command",
        &[
            ("opcode", command.opcode.into()),
            ("flags", command.flags.into()),
            ("offset", command.offset),
            ("length", command.length),
            ("argument", command.argument),
            ("result", command.result),
        ],
    );
    assert_eq!(command.to_bytes()[..], expected);
    assert_eq!(Command::from_bytes(&command.to_bytes()), command);
    let at = Command::RESULT_AT;
    assert_eq!(command.to_bytes()[at..at + 8], command.result.to_ne_bytes());
}

#[test]
fn ioctl_numbers_are_those_of_the_macros() {
    /// `_IOC` of `include/uapi/asm-generic/ioctl.h`.
    fn number(name: &str) -> u64 {
        let start = format!("#define RINGBAR_{name}");
        let line = HEADER
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap();
        let call = line[start.len()..].trim().strip_prefix("_IO").unwrap();
        let (access, arguments) = call.split_once('(').unwrap();
        let parts: Vec<_> = arguments.trim_end_matches(')').split(", ").collect();
        let direction = match access {
            "" => 0,
            "R" => 2,
            "WR" => 3,
            other => panic!("_IO{other}"),
        };
        let size: usize = parts.get(2).map_or(0, |structure| {
            let structure = structure.strip_prefix("struct ").unwrap();
            members(structure).iter().map(|member| member.size).sum()
        });
        assert_eq!(parts[0], "RINGBAR_IOC_TYPE");
        let nr: u64 = parts[1].parse().unwrap();
        direction << 30 | (size as u64) << 16 | header()["IOC_TYPE"] << 8 | nr
    }
    assert_eq!(u64::from(uapi::IOC_INFO), number("IOC_INFO"));
    assert_eq!(u64::from(uapi::IOC_COMMAND), number("IOC_COMMAND"));
    assert_eq!(u64::from(uapi::IOC_RESET), number("IOC_RESET"));
}
