// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport over a real socket, with the client of the `vfio_user` crate as the monitor and
//! the driver.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ringbar_engine::testing::conformance::Transport;
use ringbar_engine::testing::{Adder, Rings, wait_until};
use ringbar_engine::{Counters, DeviceModel, Options, QueueSetup};
use ringbar_vfio_user::{Connection, FunctionOptions, Identity, Interrupts};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Offsets within BAR 2.
const COMMON: u64 = 0;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_MULTIPLIER: u64 = 4;

/// Offsets within the common configuration (VIRTIO 1.3, 4.1.4.3).
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const DEVICE_STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_MSIX_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// `VIRTIO_F_EVENT_IDX`, and `VIRTIO_F_VERSION_1` and `VIRTIO_F_ACCESS_PLATFORM`.
const FEATURES: [u32; 2] = [1 << 29, 0b11];

/// The command register, and its bits for memory and bus mastering.
const COMMAND: u64 = 4;
const MEMORY: u16 = 2;
const BUS_MASTER: u16 = 4;

/// A connected device.
struct VfioUser {
    client: Mutex<Client>,
    connection: Connection,
    memory: GuestMemoryMmap,
    /// Where interrupts of each queue went so far; the last one is the present one.
    events: Vec<Mutex<Vec<OwnedFd>>>,
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Guest memory of `size` bytes in a file of its own.
fn memory(size: u64) -> GuestMemoryMmap {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    let offset = FileOffset::new(File::from(file), 0);
    let range = (GuestAddress(0), size as usize, Some(offset));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

impl VfioUser {
    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let mut client = self.client();
        client
            .region_write(VFIO_PCI_BAR2_REGION_INDEX, at, bytes)
            .unwrap();
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.client()
            .region_read(VFIO_PCI_BAR2_REGION_INDEX, DEVICE_STATUS, &mut status)
            .unwrap();
        status[0]
    }

    fn add_status(&self, bits: u8) {
        self.write(DEVICE_STATUS, &[self.status() | bits]);
    }

    fn set_command(&self, bits: u16) {
        self.client()
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &bits.to_le_bytes())
            .unwrap();
    }

    fn set_event(&self, queue: usize, event: &OwnedFd) {
        self.client()
            .set_irqs(
                VFIO_PCI_MSIX_IRQ_INDEX,
                VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
                queue as u32,
                1,
                &[event.as_raw_fd()],
            )
            .unwrap();
    }

    fn bytes(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    fn map(&self) {
        let region = self.memory.find_region(GuestAddress(0)).unwrap();
        let file = vm_memory::GuestMemoryRegion::file_offset(region).unwrap();
        let fd = file.file().as_fd().as_raw_fd();
        self.client().dma_map(0, 0, self.bytes(), fd).unwrap();
    }

    fn unmap(&self) {
        self.client().dma_unmap(0, self.bytes()).unwrap();
    }
}

impl Transport for VfioUser {
    fn connect(device: Arc<Adder>, poll: Duration) -> Self {
        let count = device.queue_count();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let options = Options { poll, cpus: 4 };
        let function = FunctionOptions {
            identity: Identity {
                vendor: 0x1af4,
                device: 0x10f0,
                subsystem_vendor: 0x1af4,
                subsystem: 0x10f0,
                revision: 1,
                class: 0xff_0000,
            },
            interrupts: Interrupts::MsiX { vectors: count },
            queue_size: 256,
        };
        // The client waits for the answers of the server, so it connects on a thread of its own.
        let client = std::thread::spawn(move || Client::new(&socket).unwrap());
        let counters = Arc::<Counters>::default();
        let connection =
            Connection::accept(device, counters, options, function, &listener).unwrap();
        let this = Self {
            client: Mutex::new(client.join().unwrap()),
            connection,
            memory: memory(Rings::AREA * u64::from(count)),
            events: (0..count).map(|_| Mutex::new(vec![event()])).collect(),
        };
        for (queue, events) in this.events.iter().enumerate() {
            this.set_event(queue, &events.lock().unwrap()[0]);
        }
        this.map();
        this
    }

    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn start(&self, setups: &[QueueSetup]) {
        self.reset();
        self.set_command(MEMORY | BUS_MASTER);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        for (half, features) in (0u32..).zip(FEATURES) {
            self.write(COMMON + DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            self.write(COMMON + DRIVER_FEATURE, &features.to_le_bytes());
        }
        self.add_status(FEATURES_OK);
        assert_ne!(self.status() & FEATURES_OK, 0);
        for (index, setup) in (0u16..).zip(setups) {
            self.write(QUEUE_SELECT, &index.to_le_bytes());
            self.write(QUEUE_SIZE, &setup.size.to_le_bytes());
            self.write(QUEUE_MSIX_VECTOR, &index.to_le_bytes());
            self.write(QUEUE_DESC, &setup.desc_table.to_le_bytes());
            self.write(QUEUE_DRIVER, &setup.avail_ring.to_le_bytes());
            self.write(QUEUE_DEVICE, &setup.used_ring.to_le_bytes());
            self.write(QUEUE_ENABLE, &1u16.to_le_bytes());
        }
        self.add_status(DRIVER_OK);
    }

    /// A monitor has no message for it; the driver can take bus mastering away.
    fn stop(&self) {
        self.set_command(MEMORY);
    }

    fn go_on(&self) {
        self.set_command(MEMORY | BUS_MASTER);
    }

    fn reset(&self) {
        self.write(DEVICE_STATUS, &[0]);
        wait_until("the device is reset", || self.status() == 0);
    }

    fn ring(&self, queue: usize) {
        let at = NOTIFY + NOTIFY_MULTIPLIER * queue as u64;
        self.write(at, &(queue as u16).to_le_bytes());
    }

    fn is_interrupted(&self, queue: usize) -> bool {
        let events = self.events[queue].lock().unwrap();
        let taken = |event: &&OwnedFd| rustix::io::read(event, &mut [0; 8]).is_ok();
        // Each of them is emptied.
        events.iter().filter(taken).count() > 0
    }

    fn move_interrupt(&self, queue: usize) {
        let mut events = self.events[queue].lock().unwrap();
        let event = event();
        self.set_event(queue, &event);
        // The one before may still have something.
        events.push(event);
        let old = events.len().saturating_sub(2);
        events.drain(..old);
    }

    /// The device maps the file anew.
    fn replace_memory(&self) {
        self.unmap();
        self.map();
    }

    fn move_memory(&mut self) {
        let mut bytes = vec![0; self.bytes() as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.unmap();
        self.memory = memory(bytes.len() as u64);
        self.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        self.map();
    }

    fn config(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.client()
            .region_read(VFIO_PCI_BAR2_REGION_INDEX, DEVICE, &mut bytes)
            .unwrap();
        bytes
    }

    fn end(self) {
        self.client().shutdown().unwrap();
        self.connection.join().unwrap();
    }
}

ringbar_engine::conformance!(VfioUser);
