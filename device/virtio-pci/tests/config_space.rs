// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The configuration space as enumeration software and a driver use it.

mod support;

use ringbar_virtio_pci::{
    AccessError, Action, Description, DescriptionError, Function, Interrupts, Space,
};
use support::*;

const MSIX: Interrupts = Interrupts::MsiX { vectors: 4 };
const ALL: [Interrupts; 3] = [MSIX, Interrupts::Msi { vectors: 8 }, Interrupts::IntxOnly];

#[test]
fn header_has_the_identity() {
    let mut machine = Machine::new(MSIX);
    assert_eq!(machine.config(0, 4), 0x10f0_1af4);
    assert_eq!(machine.config(8, 4), 0x0780_0302);
    assert_eq!(machine.config(0x2c, 4), 0x10f1_1af5);
    // Header of type 0, INTA.
    assert_eq!((machine.config(0xe, 1), machine.config(0x3d, 1)), (0, 1));
    // None of it can be written.
    for at in [0, 8, 0x2c, 0x34, 0x3d] {
        let before = machine.config(at, 4);
        assert_eq!(machine.set_config(at, 4, !before), []);
        assert_eq!(machine.config(at, 4), before, "at {at:#x}");
    }
}

/// The size of the BAR at `at`, by the method of PCI.
fn probe_size(machine: &mut Machine, at: u64, width: usize) -> (u64, u64) {
    let flags = machine.config(at, width) & 0xf;
    assert_eq!(machine.set_config(at, width, u64::MAX), []);
    let mask = machine.config(at, width) & !0xf;
    let size = mask.wrapping_neg() & if width == 4 { 0xffff_ffff } else { u64::MAX };
    machine.set_config(at, width, 0);
    (flags, if mask == 0 { 0 } else { size })
}

#[test]
fn bars_have_sizes_and_take_addresses() {
    for interrupts in ALL {
        let mut machine = Machine::new(interrupts);
        let has_msix = interrupts == MSIX;
        let msix_size = if has_msix { 0x1000 } else { 0 };
        assert_eq!(probe_size(&mut machine, 0x10, 4), (0, 0));
        assert_eq!(probe_size(&mut machine, 0x14, 4), (0, msix_size));
        assert_eq!(probe_size(&mut machine, 0x18, 4), (0, 0x4000));
        assert_eq!(probe_size(&mut machine, 0x1c, 4), (0, 0));
        assert_eq!(probe_size(&mut machine, 0x20, 8), (0xc, 0x20_0000));
        // No expansion ROM.
        assert_eq!(probe_size(&mut machine, 0x30, 4), (0, 0));
        let bar = |bar| machine.function.size(Space::Bar(bar));
        assert_eq!(bar(0), None);
        assert_eq!(bar(1), has_msix.then_some(0x1000));
        assert_eq!(bar(2), Some(0x4000));
        assert_eq!((bar(3), bar(4), bar(5)), (None, Some(0x20_0000), None));
        assert_eq!((bar(6), bar(255)), (None, None));
        assert_eq!(machine.function.size(Space::Config), Some(0x1000));

        machine.set_config(0x20, 4, 0xfeed_beef);
        machine.set_config(0x24, 4, 0x7f);
        assert_eq!(machine.config(0x20, 8), 0x7f_fee0_000c);
        machine.set_config(0x18, 4, 0xfeed_beef);
        assert_eq!(machine.config(0x18, 4), 0xfeed_8000);
    }
}

#[test]
fn large_region_has_a_size_beyond_32_bits() {
    for size in [0x1000, 1 << 32, 1 << 36, 1 << 63] {
        let mut machine = Machine::of(Description {
            shared_region: Some(size),
            ..description(MSIX)
        });
        assert_eq!(probe_size(&mut machine, 0x20, 8), (0xc, size));
        let at = machine.virtio_capability(8).unwrap();
        let low = machine.config(at + 12, 4);
        assert_eq!(low | machine.config(at + 20, 4) << 32, size);
        assert_eq!(
            (machine.config(at + 8, 4), machine.config(at + 16, 4)),
            (0, 0)
        );
    }
}

#[test]
fn capabilities_are_disjoint_and_complete() {
    for interrupts in ALL {
        let mut machine = Machine::new(interrupts);
        let mut end = 0x40;
        let mut ids = Vec::new();
        for (at, id) in machine.capabilities() {
            assert!(
                at >= end,
                "capability {id:#x} at {at:#x} begins before {end:#x}"
            );
            let length = match id {
                0x05 => 14,
                0x09 => machine.config(at + 2, 1),
                0x10 => 0x3c,
                0x11 => 12,
                _ => panic!("capability {id:#x}"),
            };
            end = at + length;
            ids.push(id);
        }
        assert!(end <= 0x100, "the capabilities end at {end:#x}");
        let count = |id| ids.iter().filter(|&&found| found == id).count();
        assert_eq!((count(0x09), count(0x10)), (6, 1));
        assert_eq!(count(0x11), usize::from(interrupts == MSIX));
        assert_eq!(
            count(0x05),
            usize::from(matches!(interrupts, Interrupts::Msi { .. }))
        );
        // No extended capability.
        assert_eq!(machine.config(0x100, 4), 0);
    }
}

#[test]
fn virtio_capabilities_name_the_parts() {
    let mut machine = Machine::new(MSIX);
    // Type, length of the capability, BAR, offset, length.
    for (kind, length, bar, offset, bytes) in [
        (1, 16, 2, 0, 56),
        (2, 20, 2, 0x3000, 12),
        (3, 16, 2, 0x1000, 1),
        (4, 16, 2, 0x2000, 8),
        (5, 20, 0, 0, 0),
        (8, 24, 4, 0, 0x20_0000),
    ] {
        let at = machine.virtio_capability(kind).unwrap();
        assert_eq!(machine.config(at + 2, 1), length, "type {kind}");
        // BAR, id, padding.
        assert_eq!(machine.config(at + 4, 4), bar, "type {kind}");
        assert_eq!(machine.config(at + 8, 4), offset, "type {kind}");
        assert_eq!(machine.config(at + 12, 4), bytes, "type {kind}");
    }
    let notify = machine.virtio_capability(2).unwrap();
    assert_eq!(machine.config(notify + 16, 4), 4);

    let mut bare = Machine::of(Description {
        config_bytes: 0,
        shared_region: None,
        ..description(MSIX)
    });
    assert_eq!(bare.virtio_capability(4), None);
    assert_eq!(bare.virtio_capability(8), None);
}

#[test]
fn msix_names_table_and_pending_bits() {
    for (vectors, pending, bar) in [
        (1, 0x801, 0x1000),
        (4, 0x801, 0x1000),
        (300, 0x12c1, 0x2000),
    ] {
        let mut machine = Machine::new(Interrupts::MsiX { vectors });
        let (at, _) = machine
            .capabilities()
            .into_iter()
            .find(|c| c.1 == 0x11)
            .unwrap();
        assert_eq!(machine.config(at + 2, 2), u64::from(vectors) - 1);
        assert_eq!(machine.config(at + 4, 8), 1 | pending << 32);
        assert_eq!(machine.function.size(Space::Bar(1)), Some(bar));
        // Enable and function mask, and nothing else.
        machine.set_config(at + 2, 2, 0xffff);
        assert_eq!(machine.config(at + 2, 2), 0xc000 + u64::from(vectors) - 1);

        machine.write(Space::Bar(1), 0, 4, 0xfee0_0000);
        assert_eq!(machine.read(Space::Bar(1), 0, 4), 0xfee0_0000);
        machine.function_level_reset();
        assert_eq!(machine.read(Space::Bar(1), 0, 4), 0);
        assert_eq!(machine.config(at + 2, 2), u64::from(vectors) - 1);
    }
}

#[test]
fn msi_has_64_bit_addresses() {
    for (vectors, count) in [(1, 0), (2, 1), (32, 5)] {
        let mut machine = Machine::new(Interrupts::Msi { vectors });
        let (at, _) = machine
            .capabilities()
            .into_iter()
            .find(|c| c.1 == 0x05)
            .unwrap();
        assert_eq!(machine.config(at + 2, 2), 0x80 | count << 1);
        machine.set_config(at + 2, 2, 0xffff);
        assert_eq!(machine.config(at + 2, 2), 0xf1 | count << 1);
        machine.set_config(at + 4, 8, u64::MAX);
        assert_eq!(machine.config(at + 4, 8), !3);
        machine.set_config(at + 12, 2, 0x4021);
        assert_eq!(machine.config(at + 12, 2), 0x4021);
    }
}

#[test]
fn express_endpoint_can_reset_its_function() {
    let mut machine = Machine::new(MSIX);
    let (at, _) = machine
        .capabilities()
        .into_iter()
        .find(|c| c.1 == 0x10)
        .unwrap();
    // Version 2, endpoint.
    assert_eq!(machine.config(at + 2, 2), 2);
    assert_ne!(machine.config(at + 4, 4) & 1 << 28, 0);
    assert_eq!(machine.config(at + 8, 2), 0x2810);
    // The bit reads 0, and a write of the other byte resets nothing.
    machine.set_config(0x3c, 1, 11);
    machine.set_config(at + 8, 1, 0x8f);
    assert_eq!(machine.config(at + 8, 2), 0x288f);
    assert_eq!(machine.config(0x3c, 1), 11);
    machine.set_config(at + 9, 1, 0xff);
    assert_eq!(machine.config(at + 8, 2), 0x2810);
    assert_eq!(machine.config(0x3c, 1), 0);
}

#[test]
fn command_register_has_only_bits_with_a_meaning() {
    let mut machine = Machine::new(MSIX);
    assert_eq!(
        machine.set_config(COMMAND, 2, 0xffff),
        [Action::IntxDisable(true)]
    );
    assert_eq!(machine.config(COMMAND, 2), 0x0546);
    assert_eq!(machine.set_config(COMMAND, 2, 0x0546), []);
    // By bytes, too.
    assert_eq!(
        machine.set_config(COMMAND + 1, 1, 0),
        [Action::IntxDisable(false)]
    );
    assert_eq!(machine.config(COMMAND, 2), 0x0046);
    // An access that ends in it.
    assert_eq!(
        machine.set_config(2, 4, 0x0404_0000),
        [Action::IntxDisable(true)]
    );
    assert_eq!(machine.config(COMMAND, 2), 0x0404);
}

/// Accesses the registers by means of configuration space.
struct Window {
    at: u64,
}

impl Window {
    fn new(machine: &mut Machine) -> Self {
        let at = machine.virtio_capability(5).unwrap();
        Self { at }
    }

    fn aim(&self, machine: &mut Machine, bar: u64, offset: u64, length: u64) {
        machine.set_config(self.at + 4, 1, bar);
        machine.set_config(self.at + 8, 4, offset);
        machine.set_config(self.at + 12, 4, length);
    }

    fn get(&self, machine: &mut Machine, offset: u64, length: usize) -> u64 {
        self.aim(machine, 2, offset, length as u64);
        machine.config(self.at + 16, length)
    }

    fn set(&self, machine: &mut Machine, offset: u64, length: usize, value: u64) -> Vec<Action> {
        self.aim(machine, 2, offset, length as u64);
        machine.set_config(self.at + 16, length, value)
    }
}

#[test]
fn registers_are_accessed_through_configuration_space() {
    let mut machine = Machine::new(MSIX);
    let window = Window::new(&mut machine);
    assert_eq!(window.get(&mut machine, 18, 2), 3);
    assert_eq!(window.get(&mut machine, 20, 4), 0);
    assert_eq!(window.set(&mut machine, 20, 1, 3), []);
    assert_eq!(window.get(&mut machine, 20, 1), 3);
    machine.device.interrupt_status.set(1);
    assert_eq!(window.get(&mut machine, INTERRUPT_STATUS, 1), 1);
    assert_eq!(window.get(&mut machine, INTERRUPT_STATUS, 1), 0);
    *machine.device.config.borrow_mut() = vec![1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(window.get(&mut machine, DEVICE_CONFIG + 4, 4), 0x0807_0605);
    assert_eq!(window.set(&mut machine, 20, 1, 0), [Action::Reset]);
    machine.function.reset_done();

    machine.start();
    let notified = window.set(&mut machine, NOTIFY + 8, 2, 2);
    assert_eq!(notified, [Action::Notify { queue: 2 }]);
    // Only accesses to the data have an effect.
    machine.device.interrupt_status.set(1);
    window.aim(&mut machine, 2, INTERRUPT_STATUS, 1);
    machine.config(window.at + 12, 4);
    machine.config(window.at + 20, 4);
    assert_eq!(machine.device.interrupt_status.get(), 1);
    machine.config(window.at + 19, 4);
    assert_eq!(machine.device.interrupt_status.get(), 0);
    window.aim(&mut machine, 2, NOTIFY, 2);
    assert_eq!(machine.set_config(window.at + 12, 4, 2), []);
    assert_eq!(machine.set_config(window.at + 15, 1, 0), []);
}

#[test]
fn impossible_access_through_configuration_space_has_no_effect() {
    let mut machine = Machine::new(MSIX);
    let window = Window::new(&mut machine);
    machine.start();
    for (bar, offset, length) in [
        (0, 0, 4),
        (4, 0, 4),
        (5, 0, 4),
        (0xff, 0, 4),
        (2, 0x4000, 4),
        (2, 0xffff_fffc, 4),
        (2, 0x3002, 4),
        (2, 0x3001, 2),
        (2, 0x3000, 0),
        (2, 0x3000, 3),
        (2, 0x3000, 8),
        (2, 0x3000, 0xffff_ffff),
    ] {
        window.aim(&mut machine, bar, offset, length);
        assert_eq!(machine.set_config(window.at + 16, 4, 0x1234_5678), []);
        assert_eq!(machine.config(window.at + 16, 4), 0x1234_5678);
    }
}

#[test]
fn access_outside_a_space_is_an_error() {
    let mut machine = Machine::new(Interrupts::IntxOnly);
    let Machine { function, device } = &mut machine;
    let mut read = |space, offset, length| {
        let mut data = vec![7; length];
        let result = function.read(space, offset, &mut data, device);
        assert_eq!(function.write(space, offset, &data).err(), result.err());
        assert!(result.is_ok() || data.iter().all(|&byte| byte == 7));
        result
    };
    assert_eq!(read(Space::Config, 0xffc, 4), Ok(()));
    assert_eq!(read(Space::Config, 0x1000, 0), Ok(()));
    assert_eq!(read(Space::Bar(2), 0, 0x4000), Ok(()));
    for (space, offset, length, size) in [
        (Space::Config, 0xffd, 4, 0x1000),
        (Space::Config, u64::MAX, 1, 0x1000),
        (Space::Bar(2), 0x3fff, 2, 0x4000),
        (Space::Bar(2), u64::MAX - 3, 8, 0x4000),
    ] {
        let error = AccessError::OutOfRange {
            space,
            offset,
            length,
            size,
        };
        assert_eq!(read(space, offset, length), Err(error));
    }
    for bar in [0, 1, 3, 5, 6, 255] {
        assert_eq!(read(Space::Bar(bar), 0, 4), Err(AccessError::NoBar(bar)));
    }
    assert_eq!(read(Space::Bar(4), 0, 4), Err(AccessError::SharedRegion));
}

#[test]
fn impossible_descriptions_are_rejected() {
    let good = description(MSIX);
    let check = |description: Description| Function::new(description).err();
    assert_eq!(check(good.clone()), None);
    for interrupts in [
        Interrupts::MsiX { vectors: 0 },
        Interrupts::MsiX { vectors: 2049 },
        Interrupts::Msi { vectors: 0 },
        Interrupts::Msi { vectors: 3 },
        Interrupts::Msi { vectors: 64 },
    ] {
        let error = DescriptionError::Vectors(interrupts);
        assert_eq!(check(description(interrupts)), Some(error));
    }
    let mut bad = good.clone();
    bad.identity.class = 1 << 24;
    assert_eq!(check(bad), Some(DescriptionError::Class(1 << 24)));
    for (features, error) in [
        (1, DescriptionError::NoVersion1(1)),
        (
            VERSION_1 | 1 << 34 | 1 << 40,
            DescriptionError::NotImplemented(1 << 34 | 1 << 40),
        ),
    ] {
        let bad = Description {
            features,
            ..good.clone()
        };
        assert_eq!(check(bad), Some(error));
    }
    for queues in [0, 1025] {
        let bad = Description {
            queues,
            ..good.clone()
        };
        assert_eq!(check(bad), Some(DescriptionError::Queues(queues)));
    }
    for queue_size in [0, 3, 65535] {
        let bad = Description {
            queue_size,
            ..good.clone()
        };
        assert_eq!(check(bad), Some(DescriptionError::QueueSize(queue_size)));
    }
    let bad = Description {
        config_bytes: 4097,
        ..good.clone()
    };
    assert_eq!(check(bad), Some(DescriptionError::ConfigBytes(4097)));
    for size in [0, 2048, 0x3000] {
        let bad = Description {
            shared_region: Some(size),
            ..good.clone()
        };
        assert_eq!(check(bad), Some(DescriptionError::SharedRegion(size)));
    }
}
