// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Conversions between bytes and values.

use proptest::prelude::*;
use ringbar_spec::{
    ConfigError, ConfigParts, DeviceConfig, Event, HeaderError, MAX_IO_QUEUES, MIN_COMMAND_BYTES,
    Opcode, QueueFault, RequestHeader, RequestStatus, StatusCode, aperture_of,
};

const READ_WRITE: u32 = Opcode::Read.mask() | Opcode::Write.mask();

fn opcode() -> impl Strategy<Value = Opcode> {
    prop::sample::select(vec![
        Opcode::Read,
        Opcode::Write,
        Opcode::Flush,
        Opcode::Discard,
        Opcode::WriteZeroes,
        Opcode::Copy,
        Opcode::Fill,
        Opcode::Compare,
        Opcode::Crc32c,
        Opcode::MapAperture,
    ])
}

const COMMANDS: [Opcode; 6] = [
    Opcode::Discard,
    Opcode::WriteZeroes,
    Opcode::Copy,
    Opcode::Fill,
    Opcode::Compare,
    Opcode::Crc32c,
];

/// Flags and an argument that the opcode may have.
fn fit(opcode: Opcode, fua: bool, argument: u64) -> (u16, u64) {
    let flags = if fua && opcode.writes() {
        RequestHeader::FUA
    } else {
        0
    };
    let argument = match opcode {
        Opcode::Copy | Opcode::Fill | Opcode::Compare => argument,
        Opcode::Crc32c => argument & 0xffff_ffff,
        _ => 0,
    };
    (flags, argument)
}

fn config() -> impl Strategy<Value = DeviceConfig> {
    (
        1..=MAX_IO_QUEUES,
        1..=u16::MAX,
        1..=i64::MAX as u64,
        any::<u64>(),
        1..=u32::MAX,
        any::<u32>(),
        MIN_COMMAND_BYTES..=u64::MAX,
    )
        .prop_map(
            |(io_queues, max_segments, capacity, aperture, request, operations, command)| {
                let has_commands = operations & Opcode::COMMANDS != 0;
                DeviceConfig::new(ConfigParts {
                    io_queues,
                    max_segments,
                    capacity,
                    aperture_bytes: aperture_of(aperture % (capacity + 1)),
                    max_request_bytes: request,
                    operations: operations | READ_WRITE,
                    max_command_bytes: if has_commands { command } else { 0 },
                })
                .unwrap()
            },
        )
}

proptest! {
    #[test]
    fn configuration_round_trip(config in config()) {
        prop_assert_eq!(DeviceConfig::parse(&config.to_bytes()), Ok(config));
    }

    #[test]
    fn header_round_trip(
        opcode in opcode(),
        offset: u64,
        length: u64,
        argument: u64,
        fua: bool,
    ) {
        let (flags, argument) = fit(opcode, fua, argument);
        let header = RequestHeader { opcode, flags, offset, length, argument };
        prop_assert_eq!(RequestHeader::parse(&header.to_bytes()), Ok(header));
    }

    #[test]
    fn status_round_trip(raw in 0..7u32, result: u64) {
        let status = RequestStatus { code: StatusCode::from_raw(raw).unwrap(), result };
        prop_assert_eq!(RequestStatus::parse(&status.to_bytes()), Some(status));
    }

    #[test]
    fn event_round_trip(queue: u16, raw in 1..5u32, capacity in 1..=i64::MAX as u64) {
        let fault = QueueFault::from_raw(raw).unwrap();
        for event in [Event::QueueBroken { queue, fault }, Event::CapacityChanged { capacity }] {
            prop_assert_eq!(Event::parse(&event.to_bytes()), Some(event));
        }
    }

    /// A parsed header has the same bytes, reserved ones included.
    #[test]
    fn arbitrary_headers_parse_to_themselves_or_not_at_all(bytes: [u8; 32]) {
        if let Ok(header) = RequestHeader::parse(&bytes) {
            prop_assert_eq!(header.to_bytes(), bytes);
        }
    }

    #[test]
    fn damaged_headers_are_refused(
        opcode in opcode(),
        at in prop::sample::select(vec![3usize, 4, 5, 6, 7]),
        value in 1..=u8::MAX,
    ) {
        let mut bytes = RequestHeader::command(opcode, 0, 0, 0).to_bytes();
        bytes[at] = value;
        prop_assert!(RequestHeader::parse(&bytes).is_err());
    }

    /// Each opcode has the arguments and flags that it says, and no others.
    #[test]
    fn arguments_and_flags_fit_the_opcode(
        opcode in opcode(),
        flags in 0..4u16,
        argument in prop_oneof![Just(0), 1..=0xffff_ffffu64, 0x1_0000_0000u64..],
    ) {
        let header = RequestHeader { flags, ..RequestHeader::command(opcode, 0, 0, argument) };
        let fitting = fit(opcode, flags == RequestHeader::FUA, argument) == (flags, argument);
        prop_assert_eq!(RequestHeader::parse(&header.to_bytes()).is_ok(), fitting);
    }
}

#[test]
fn header_has_its_layout() {
    let header = RequestHeader {
        opcode: Opcode::Write,
        flags: RequestHeader::FUA,
        offset: 0x0102_0304_0506_0708,
        length: 0x1112_1314_1516_1718,
        argument: 0x2122_2324_2526_2728,
    };
    let mut expected = [0; 32];
    expected[0] = 2;
    expected[2] = 1;
    expected[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    expected[16..24].copy_from_slice(&[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
    expected[24..32].copy_from_slice(&[0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21]);
    assert_eq!(header.to_bytes(), expected);
    assert_eq!(Opcode::MapAperture as u16, 0x8000);
    assert_eq!(Opcode::MapAperture.mask(), 0);
    assert_eq!(RequestStatus::parse(&RequestStatus::UNWRITTEN), None);
}

#[test]
fn configuration_has_its_layout() {
    let config = DeviceConfig::new(ConfigParts {
        io_queues: 3,
        max_segments: 0x0405,
        capacity: 0x3132_3334_3536_3738,
        aperture_bytes: 0x2122_2324_2526_2000,
        max_request_bytes: 0x1112_1314,
        operations: READ_WRITE | Opcode::COMMANDS,
        max_command_bytes: 0x4142_4344_4546_4748,
    })
    .unwrap();
    let mut expected = [0; 64];
    expected[0..8].copy_from_slice(b"RINGBAR\0");
    expected[8] = 2;
    expected[10] = 3;
    expected[12..14].copy_from_slice(&[5, 4]);
    expected[16..24].copy_from_slice(&[0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31]);
    expected[24..32].copy_from_slice(&[0, 0x20, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21]);
    expected[32..36].copy_from_slice(&[0x14, 0x13, 0x12, 0x11]);
    expected[36..40].copy_from_slice(&[0xf6, 3, 0, 0]);
    expected[40..48].copy_from_slice(&[0x48, 0x47, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41]);
    assert_eq!(config.to_bytes(), expected);
}

#[test]
fn commands_are_opcodes_4_to_9() {
    for raw in 0..=u16::MAX {
        let Some(opcode) = Opcode::from_raw(raw) else {
            assert!(!matches!(raw, 1..=9 | 0x8000), "{raw}");
            continue;
        };
        assert_eq!(opcode as u16, raw);
        assert_eq!(opcode.is_command(), (4..=9).contains(&raw), "{raw}");
        assert_eq!(opcode.writes(), matches!(raw, 2 | 4..=7), "{raw}");
        assert_eq!(opcode.has_second_range(), matches!(raw, 6 | 8), "{raw}");
        assert_eq!(
            RequestHeader::command(opcode, 1, 2, 3),
            RequestHeader {
                opcode,
                flags: 0,
                offset: 1,
                length: 2,
                argument: 3
            }
        );
    }
    assert_eq!(COMMANDS.map(|opcode| opcode as u16), [4, 5, 6, 7, 8, 9]);
    assert_eq!(Opcode::COMMANDS, 0x3f0);
}

#[test]
fn unknown_values_are_refused() {
    assert_eq!(RequestHeader::parse(&[0; 32]), Err(HeaderError::Opcode(0)));
    let wide = RequestHeader::command(Opcode::Crc32c, 0, 0, 1 << 32);
    assert_eq!(
        RequestHeader::parse(&wide.to_bytes()),
        Err(HeaderError::Argument(1 << 32))
    );
    let unasked = RequestHeader::command(Opcode::Discard, 0, 0, 1);
    assert_eq!(
        RequestHeader::parse(&unasked.to_bytes()),
        Err(HeaderError::Reserved)
    );
    assert_eq!(StatusCode::from_raw(7), None);
    assert_eq!(QueueFault::from_raw(0), None);
    assert_eq!(QueueFault::from_raw(5), None);
    assert_eq!(Event::parse(&[0; 32]), None);
    // A capacity of 0, and one that is no file size.
    for capacity in [0, 1 << 63] {
        let bytes = Event::CapacityChanged { capacity }.to_bytes();
        assert_eq!(Event::parse(&bytes), None);
    }
}

/// A configuration that is as small as possible.
const SMALL: ConfigParts = ConfigParts {
    io_queues: 1,
    max_segments: 1,
    capacity: 1,
    aperture_bytes: 0,
    max_request_bytes: 1,
    operations: READ_WRITE,
    max_command_bytes: 0,
};

#[test]
fn resize_limits_the_aperture_to_the_capacity() {
    let config = DeviceConfig::new(ConfigParts {
        capacity: 100_000,
        aperture_bytes: 8192,
        ..SMALL
    })
    .unwrap();
    for (capacity, aperture) in [
        (500_000, 8192),
        (8192, 8192),
        (8191, 4096),
        (4097, 4096),
        (4095, 0),
        (1, 0),
    ] {
        let resized = config.resized(capacity, 8192).unwrap();
        assert_eq!(resized.capacity(), capacity);
        assert_eq!(resized.aperture_bytes(), aperture);
        // And back.
        assert_eq!(resized.resized(100_000, 8192), Ok(config));
    }
    for capacity in [0, 1 << 63] {
        let refused = config.resized(capacity, 8192).unwrap_err();
        assert_eq!(refused, ConfigError::Capacity(capacity));
    }
}

#[test]
fn impossible_configurations_are_refused() {
    type Error = ConfigError;
    fn refused(change: impl FnOnce(&mut ConfigParts)) -> Error {
        let mut parts = SMALL;
        change(&mut parts);
        DeviceConfig::new(parts).unwrap_err()
    }
    assert_eq!(refused(|c| c.io_queues = 0), Error::IoQueues(0));
    assert_eq!(refused(|c| c.io_queues = 65), Error::IoQueues(65));
    assert_eq!(refused(|c| c.max_segments = 0), Error::MaxSegments);
    assert_eq!(refused(|c| c.capacity = 0), Error::Capacity(0));
    assert_eq!(refused(|c| c.capacity = 1 << 63), Error::Capacity(1 << 63));
    assert_eq!(refused(|c| c.aperture_bytes = 4096), Error::Aperture(4096));
    let odd = |c: &mut ConfigParts| (c.capacity, c.aperture_bytes) = (9000, 8999);
    assert_eq!(refused(odd), Error::Aperture(8999));
    assert_eq!(refused(|c| c.max_request_bytes = 0), Error::MaxRequest);
    assert_eq!(refused(|c| c.operations = 2), Error::Operations(2));
    assert_eq!(refused(|c| c.max_command_bytes = 1), Error::MaxCommand(1));
    for opcode in COMMANDS {
        let with_command = |c: &mut ConfigParts| c.operations |= opcode.mask();
        assert_eq!(refused(with_command), Error::MaxCommand(0));
        // Less than one pattern of a fill.
        let short = |c: &mut ConfigParts| {
            with_command(c);
            c.max_command_bytes = 7;
        };
        assert_eq!(refused(short), Error::MaxCommand(7));
        let mut parts = SMALL;
        with_command(&mut parts);
        parts.max_command_bytes = 8;
        let config = DeviceConfig::new(parts).unwrap();
        assert!(
            COMMANDS
                .iter()
                .all(|other| config.supports(*other) == (*other == opcode))
        );
    }
}

#[test]
fn other_devices_are_refused() {
    let good = DeviceConfig::new(SMALL).unwrap();
    let mut bytes = good.to_bytes();
    bytes[0] ^= 1;
    assert_eq!(DeviceConfig::parse(&bytes), Err(ConfigError::NotRingbar));
    for version in [1, 3] {
        let mut bytes = good.to_bytes();
        bytes[8] = version as u8;
        assert_eq!(
            DeviceConfig::parse(&bytes),
            Err(ConfigError::Version(version))
        );
    }
}
