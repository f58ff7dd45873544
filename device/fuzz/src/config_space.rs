// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The configuration space of a virtio-pci function, and its registers through the window in it
//! (VIRTIO 1.3, 4.1.4.9).
//!
//! What identifies the function never changes, the list of capabilities is the same at any time,
//! BARs have the bits that their size allows, and each write changes only its own bytes.

use ringbar_virtio_pci::{Function, MSIX_BAR, REGISTER_BAR, SHARED_BAR, Space};

use crate::functions::{Device, Effects, description};
use crate::input::Input;

const CONFIG: Space = Space::Config;
/// Bytes with a meaning. The rest is compared at the end of an input.
const HEAD: usize = 0x100;
const COMMAND: usize = 4;
/// Bits of the command register that PCI Express lets a function have.
const COMMAND_WRITABLE: u16 = 0x0547;
const CAPABILITIES: usize = 0x34;
const BAR0: usize = 0x10;
/// Ids of the capabilities that the function may have: MSI, vendor, PCI Express, MSI-X.
const IDS: [u8; 4] = [0x05, 0x09, 0x10, 0x11];
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const WINDOW: u8 = 5;

struct Run {
    function: Function,
    effects: Effects,
    device: Device,
    /// After power-on.
    initial: Vec<u8>,
    /// Offset and id of the capabilities.
    capabilities: Vec<(usize, u8)>,
    /// Offsets of two capabilities.
    window: usize,
    express: usize,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let description = description(input.u8());
    let mut function = Function::new(description.clone()).unwrap();
    let device = Device::default();
    let window = window(&mut function, &device);
    let initial = all(&mut function, &device, window, HEAD);
    let capabilities = capabilities(&initial);
    let express = capabilities.iter().find(|(_, id)| *id == EXPRESS);
    let mut run = Run {
        window,
        express: express.expect("there is one").0,
        function,
        effects: Effects::new(&description),
        device,
        initial,
        capabilities,
    };
    while !input.is_empty() {
        run.step(&mut input);
        run.check();
    }
    let size = run.size();
    let all = all(&mut run.function, &run.device, run.window, size);
    assert!(all[HEAD..].iter().all(|byte| *byte == 0));
}

/// The space up to `end`. The data of the window read as 0: a read of them is one of a BAR.
fn all(function: &mut Function, device: &Device, window: usize, end: usize) -> Vec<u8> {
    let mut bytes = vec![0; end];
    let data = window + 16;
    for range in [0..data, data + 4..end] {
        let part = &mut bytes[range.clone()];
        function
            .read(CONFIG, range.start as u64, part, device)
            .unwrap();
    }
    bytes
}

/// Offset of the window: that of the vendor's capability with its type.
fn window(function: &mut Function, device: &Device) -> usize {
    let mut byte = |at: usize| {
        let mut data = [0];
        function.read(CONFIG, at as u64, &mut data, device).unwrap();
        data[0]
    };
    let mut at = usize::from(byte(CAPABILITIES));
    while (byte(at), byte(at + 3)) != (VENDOR, WINDOW) {
        at = byte(at + 1).into();
        assert_ne!(at, 0, "there is no window");
    }
    at
}

fn capabilities(bytes: &[u8]) -> Vec<(usize, u8)> {
    let mut found = Vec::new();
    let mut at = usize::from(bytes[CAPABILITIES]);
    while at != 0 {
        assert!((0x40..0x100).contains(&at) && at.is_multiple_of(4));
        assert!(
            found.iter().all(|(other, _)| *other != at),
            "the list has no end"
        );
        assert!(IDS.contains(&bytes[at]));
        found.push((at, bytes[at]));
        at = bytes[at + 1].into();
    }
    found
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0..=1 => {
                let at = input.choose(&[COMMAND, BAR0, BAR0 + 4, BAR0 + 8, BAR0 + 16, BAR0 + 20]);
                let value = input.u32().to_le_bytes();
                let width = input.choose(&[4, 2, 1]);
                self.write(at, &value[..width]);
            }
            2 => {
                // Somewhere in a capability.
                let index = usize::from(input.u8()) % self.capabilities.len();
                let at = self.capabilities[index].0 + usize::from(input.u8() % 20);
                let value = input.u32().to_le_bytes();
                let width = input.choose(&[4, 2, 1]);
                self.write(at, &value[..width]);
            }
            3 => {
                let at = usize::from(input.u16() % 0x1008);
                let count = usize::from(input.u8() % 40);
                let bytes = input.bytes(count).to_vec();
                self.write(at, &bytes);
            }
            4 => self.read(usize::from(input.u16() % 0x1008), input.u8().into()),
            5 => {
                // An access through the window.
                let bar = input.choose(&[REGISTER_BAR, MSIX_BAR, SHARED_BAR, 0, 0xff]);
                let offset = u32::from(input.u16() % 0x4004);
                let width = input.choose(&[1u32, 2, 4, 0, 3, 8]);
                self.write(self.window + 4, &[bar]);
                self.write(self.window + 8, &offset.to_le_bytes());
                self.write(self.window + 12, &width.to_le_bytes());
                let value = input.u32().to_le_bytes();
                let data = self.window + 16;
                if input.u8().is_multiple_of(2) {
                    self.write(data, &value);
                } else {
                    self.read_window(bar, offset, width as usize);
                }
            }
            6 if input.u8() < 64 => {
                let actions = self.function.reset();
                self.effects.apply(&actions);
                let now = self.all();
                assert_eq!(now, self.initial, "a reset sets all of the space");
            }
            _ => self.effects.reset_done(&mut self.function),
        }
    }

    fn size(&self) -> usize {
        self.function.size(CONFIG).unwrap() as usize
    }

    fn all(&mut self) -> Vec<u8> {
        all(&mut self.function, &self.device, self.window, HEAD)
    }

    /// Whether an access touches the data of the window.
    fn touches_window(&self, at: usize, count: usize) -> bool {
        let data = self.window + 16;
        at < data + 4 && data < at + count
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        let before = self.all();
        let result = self.function.write(CONFIG, at as u64, data);
        assert_eq!(result.is_ok(), at + data.len() <= self.size());
        let Ok(actions) = result else { return };
        self.effects.apply(&actions);
        // The second byte of device control has the bit that resets the function.
        let control = self.express + 9;
        let resets = control.checked_sub(at).and_then(|n| data.get(n));
        if resets.is_some_and(|byte| byte & 0x80 != 0) {
            return;
        }
        let after = self.all();
        for (n, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(
                before == after || (at..at + data.len()).contains(&n),
                "{n:#x} changed"
            );
            if let Some(new) = n.checked_sub(at).and_then(|n| data.get(n)) {
                // Each bit is as before or as written.
                assert_eq!((before ^ after) & (new ^ after), 0, "{n:#x}");
            }
        }
    }

    /// A long read has the same bytes as short ones.
    fn read(&mut self, at: usize, count: usize) {
        let mut data = vec![0; count];
        let result = self
            .function
            .read(CONFIG, at as u64, &mut data, &self.device);
        assert_eq!(result.is_ok(), at + count <= self.size());
        if result.is_err() || self.touches_window(at, count) {
            return;
        }
        for (at, byte) in (at..).zip(data) {
            let mut single = [0];
            self.function
                .read(CONFIG, at as u64, &mut single, &self.device)
                .unwrap();
            assert_eq!(byte, single[0], "{at:#x}");
        }
    }

    /// The window shows what a read of the BAR does.
    fn read_window(&mut self, bar: u8, offset: u32, width: usize) {
        let mut data = [0; 4];
        let at = self.window as u64 + 16;
        self.function
            .read(CONFIG, at, &mut data, &self.device)
            .unwrap();
        if !matches!(width, 1 | 2 | 4) || !offset.is_multiple_of(width as u32) {
            return;
        }
        let mut direct = [0; 4];
        let direct = &mut direct[..width];
        let result = self
            .function
            .read(Space::Bar(bar), offset.into(), direct, &self.device);
        if result.is_ok() {
            assert_eq!(data[..width], *direct, "BAR {bar} at {offset:#x}");
        }
    }

    fn check(&mut self) {
        let now = self.all();
        let word = |at: usize| u32::from_le_bytes([now[at], now[at + 1], now[at + 2], now[at + 3]]);
        // Identity, revision and class, header type, subsystem, capabilities, pin.
        for range in [0..4, 8..12, 0x0e..0x0f, 0x2c..0x30, 0x34..0x35, 0x3d..0x3e] {
            assert_eq!(now[range.clone()], self.initial[range]);
        }
        assert_eq!(capabilities(&now), self.capabilities);
        let command = word(COMMAND) as u16;
        assert_eq!(command & !COMMAND_WRITABLE, 0, "{command:#x}");
        assert_eq!(command & 1 << 10 != 0, self.effects.intx_disabled);
        if self.effects.started.is_some() {
            assert_eq!(command & 1 << 2 == 0, self.effects.paused);
        }
        for bar in 0..6u8 {
            let at = BAR0 + 4 * usize::from(bar);
            let low = word(at);
            let upper_half = bar == SHARED_BAR + 1;
            match self.function.size(Space::Bar(bar)) {
                None if upper_half && self.function.size(Space::Bar(SHARED_BAR)).is_some() => {}
                None => assert_eq!(low, 0, "BAR {bar}"),
                Some(size) => {
                    let is_64 = low & 4 != 0;
                    let high = if is_64 { word(at + 4) } else { 0 };
                    let address = (u64::from(high) << 32 | u64::from(low)) & !0xf;
                    assert!(address.is_multiple_of(size), "BAR {bar} at {address:#x}");
                }
            }
        }
    }
}
