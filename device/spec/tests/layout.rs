// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bytes and values are two forms of the same thing.

use proptest::prelude::*;
use ringbar_spec::{
    ConfigError, DeviceConfig, Event, HeaderError, MAX_IO_QUEUES, Opcode, QueueFault,
    RequestHeader, RequestStatus, StatusCode,
};

const READ_WRITE: u32 = Opcode::Read.mask() | Opcode::Write.mask();

fn opcode() -> impl Strategy<Value = Opcode> {
    prop::sample::select(vec![
        Opcode::Read,
        Opcode::Write,
        Opcode::Flush,
        Opcode::MapAperture,
    ])
}

fn config() -> impl Strategy<Value = DeviceConfig> {
    (
        1..=MAX_IO_QUEUES,
        1..=u16::MAX,
        1..=i64::MAX as u64,
        any::<u64>(),
        1..=u32::MAX,
        any::<u32>(),
    )
        .prop_map(
            |(queues, segments, capacity, aperture, request, operations)| {
                DeviceConfig::new(
                    queues,
                    segments,
                    capacity,
                    aperture % (capacity + 1),
                    request,
                    operations | READ_WRITE,
                )
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
    fn header_round_trip(opcode in opcode(), offset: u64, length: u64, fua: bool) {
        let flags = if fua && opcode == Opcode::Write { RequestHeader::FUA } else { 0 };
        let header = RequestHeader { opcode, flags, offset, length };
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

    /// What parses is what the bytes said, reserved ones included.
    #[test]
    fn arbitrary_headers_parse_to_themselves_or_not_at_all(bytes: [u8; 32]) {
        if let Ok(header) = RequestHeader::parse(&bytes) {
            prop_assert_eq!(header.to_bytes(), bytes);
        }
    }

    #[test]
    fn damaged_headers_are_refused(
        opcode in opcode(),
        at in prop::sample::select(vec![3usize, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31]),
        value in 1..=u8::MAX,
    ) {
        let mut bytes = RequestHeader { opcode, flags: 0, offset: 0, length: 0 }.to_bytes();
        bytes[at] = value;
        prop_assert!(RequestHeader::parse(&bytes).is_err());
    }
}

#[test]
fn values_of_the_wire() {
    let header = RequestHeader {
        opcode: Opcode::Write,
        flags: RequestHeader::FUA,
        offset: 0x0102_0304_0506_0708,
        length: 0x1112_1314_1516_1718,
    };
    let mut expected = [0; 32];
    expected[0] = 2;
    expected[2] = 1;
    expected[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    expected[16..24].copy_from_slice(&[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]);
    assert_eq!(header.to_bytes(), expected);
    assert_eq!(Opcode::MapAperture as u16, 0x8000);
    assert_eq!(Opcode::MapAperture.mask(), 0);
    assert_eq!(RequestStatus::parse(&RequestStatus::UNWRITTEN), None);
}

#[test]
fn unknown_values_are_refused() {
    assert_eq!(RequestHeader::parse(&[0; 32]), Err(HeaderError::Opcode(0)));
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

#[test]
fn impossible_configurations_are_refused() {
    type Error = ConfigError;
    let new = DeviceConfig::new;
    assert_eq!(new(0, 1, 1, 1, 1, READ_WRITE), Err(Error::IoQueues(0)));
    assert_eq!(new(65, 1, 1, 1, 1, READ_WRITE), Err(Error::IoQueues(65)));
    assert_eq!(new(1, 0, 1, 1, 1, READ_WRITE), Err(Error::MaxSegments));
    assert_eq!(new(1, 1, 0, 0, 1, READ_WRITE), Err(Error::Capacity(0)));
    assert_eq!(
        new(1, 1, 1 << 63, 0, 1, READ_WRITE),
        Err(Error::Capacity(1 << 63))
    );
    assert_eq!(new(1, 1, 1, 2, 1, READ_WRITE), Err(Error::Aperture(2)));
    assert_eq!(new(1, 1, 1, 1, 0, READ_WRITE), Err(Error::MaxRequest));
    assert_eq!(new(1, 1, 1, 1, 1, 2), Err(Error::Operations(2)));
}

#[test]
fn other_devices_are_told_apart() {
    let good = DeviceConfig::new(1, 1, 1, 1, 1, READ_WRITE).unwrap();
    let mut bytes = good.to_bytes();
    bytes[0] ^= 1;
    assert_eq!(DeviceConfig::parse(&bytes), Err(ConfigError::NotRingbar));
    let mut bytes = good.to_bytes();
    bytes[8] = 2;
    assert_eq!(DeviceConfig::parse(&bytes), Err(ConfigError::Version(2)));
}
