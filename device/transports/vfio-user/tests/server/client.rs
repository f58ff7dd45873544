// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The client of the `vfio_user` crate drives every message that it knows.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use super::support::{
    BAR0, BAR1, BAR2, BAR3, BAR4, BAR4_AREAS, BAR4_OFFSET, BAR5, CONFIG, Call, Data, Device,
    REGIONS, Server, events, interrupt, memory, raw, region,
};
use ringbar_vfio_user::dma::{DmaMap, DmaUnmap};
use ringbar_vfio_user::server::InterruptAction;
use vfio_bindings::bindings::vfio::*;
use vfio_user::Client;
use vm_memory::Permissions;

fn connect() -> (Client, Server) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let server = Server::new(move || listener.accept().expect("accept").0, Device::new());
    (Client::new(&path).expect("connect"), server)
}

#[test]
fn regions_are_described() {
    let (client, server) = connect();
    for index in 0..REGIONS {
        let described = client.region(index).expect("every index is answered");
        let (size, flags) = region(index).unwrap_or_default();
        assert_eq!(described.size, size, "region {index}");
        let mapped = match index {
            BAR4 => VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS,
            BAR5 => VFIO_REGION_INFO_FLAG_MMAP,
            _ => 0,
        };
        assert_eq!(described.flags, flags | mapped, "region {index}");
        assert_eq!(
            described.file_offset.is_some(),
            mapped != 0,
            "region {index}"
        );
    }

    let mapped = client.region(BAR4).expect("region");
    let areas: Vec<_> = mapped
        .sparse_areas
        .iter()
        .map(|area| (area.offset, area.size))
        .collect();
    assert_eq!(areas, BAR4_AREAS.map(|area| (area.offset, area.size)));
    let file = mapped.file_offset.as_ref().expect("descriptor");
    assert_eq!(file.start(), BAR4_OFFSET);
    assert_eq!(file.file().metadata().expect("metadata").len(), 0x10000);

    client.shutdown().expect("shut down");
    server.end().expect("a hang-up is no error");
}

#[test]
fn regions_are_read_and_written() {
    let (mut client, server) = connect();
    let mut data = [0; 8];
    client.region_read(BAR2, 0x3ff8, &mut data).expect("read");
    assert_eq!(data, [0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]);
    client.region_write(CONFIG, 4, &[6, 1]).expect("write");
    client.region_read(CONFIG, 2, &mut data).expect("read");
    assert_eq!(data, [2, 3, 6, 1, 6, 7, 8, 9]);
    client.region_write(BAR3, 0, &[9]).expect("write");

    let mut large = vec![0; 1 << 20];
    client.region_read(BAR0, 3 << 20, &mut large).expect("read");
    assert!(large.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    client.region_write(BAR0, 0, &large).expect("write");
    assert_eq!(
        server.calls(),
        [
            Call::Write(CONFIG, 4, vec![6, 1]),
            Call::Write(BAR3, 0, vec![9]),
            Call::Write(BAR0, 0, large)
        ]
    );
    assert_eq!(client.region(BAR1).expect("answered").size, 0);
}

#[test]
fn memory_is_mapped_and_unmapped() {
    let (mut client, server) = connect();
    client
        .dma_map(0x1000, 0x8000_0000, 0x2000, memory().as_raw_fd())
        .expect("map");
    client.dma_unmap(0x8000_0000, 0x2000).expect("unmap");
    client.reset().expect("reset");
    let map = DmaMap {
        address: 0x8000_0000,
        size: 0x2000,
        offset: 0x1000,
        access: Permissions::ReadWrite,
    };
    assert_eq!(
        server.calls(),
        [
            Call::Map(map, true),
            Call::Unmap(DmaUnmap::Range {
                address: 0x8000_0000,
                size: 0x2000
            }),
            Call::Reset
        ]
    );
}

#[test]
fn interrupts_are_described_and_set() {
    let (mut client, server) = connect();
    for index in 0..super::support::IRQS {
        let info = client.get_irq_info(index).expect("information");
        let (count, flags) = interrupt(index).unwrap_or_default();
        assert_eq!((info.index, info.count, info.flags), (index, count, flags));
    }

    let trigger = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    client
        .set_irqs(2, trigger, 0, 16, &raw(&events(16)))
        .expect("set");
    client
        .set_irqs(2, trigger, 16, 8, &raw(&events(8)))
        .expect("set");
    client.set_irqs(2, trigger, 3, 2, &[]).expect("set");
    let unmask = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    client.set_irqs(0, unmask, 0, 1, &[]).expect("set");
    let disable = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(2, disable, 0, 0, &[]).expect("set");

    let set = |index, start, count, action, data| Call::Set {
        index,
        start,
        count,
        action,
        data,
    };
    assert_eq!(
        server.calls(),
        [
            set(2, 0, 16, InterruptAction::Trigger, Data::EventFds(16)),
            set(2, 16, 8, InterruptAction::Trigger, Data::EventFds(8)),
            set(2, 3, 2, InterruptAction::Trigger, Data::EventFds(0)),
            set(0, 0, 1, InterruptAction::Unmask, Data::None),
            set(2, 0, 0, InterruptAction::Trigger, Data::None),
        ]
    );
}
