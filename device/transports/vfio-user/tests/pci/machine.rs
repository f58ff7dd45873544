// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device behind the transport, driven by the client of the `vfio_user` crate, which is the
//! monitor and the driver.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ringbar_engine::testing::{Adder, Rings, wait_until};
use ringbar_engine::{Counters, DeviceModel, Options, QueueSetup};
use ringbar_vfio_user::{Connection, FunctionOptions, Identity, Interrupts};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX,
};
use vfio_user::Client;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Offsets within BAR 2.
pub const DEVICE: u64 = 0x2000;
pub const NOTIFY: u64 = 0x3000;
const NOTIFY_MULTIPLIER: u64 = 4;

/// Offsets within the common configuration (VIRTIO 1.3, 4.1.4.3).
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
pub const DEVICE_STATUS: u64 = 20;
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
pub const COMMAND: u64 = 4;
pub const MEMORY: u16 = 2;
pub const BUS_MASTER: u16 = 4;

/// A connected device.
pub struct Machine {
    client: Mutex<Client>,
    connection: Connection,
    pub memory: GuestMemoryMmap,
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Guest memory of `size` bytes in a file of its own.
pub fn memory(size: u64) -> GuestMemoryMmap {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    let offset = FileOffset::new(File::from(file), 0);
    let range = (GuestAddress(0), size as usize, Some(offset));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

/// Whether an eventfd was raised since this was last asked.
pub fn is_raised(event: &OwnedFd) -> bool {
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

impl Machine {
    /// Connects a device whose guest memory is that of [`Rings`] for each of its queues.
    pub fn connect(device: Arc<Adder>, interrupts: Interrupts, poll: Duration) -> Self {
        let count = device.queue_count();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let options = Options {
            poll,
            cpus: 4,
            record: None,
        };
        let function = FunctionOptions {
            identity: Identity {
                vendor: 0x1af4,
                device: 0x10f0,
                subsystem_vendor: 0x1af4,
                subsystem: 0x10f0,
                revision: 1,
                class: 0xff_0000,
            },
            interrupts,
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
        };
        this.map();
        this
    }

    pub fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap()
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        let mut client = self.client();
        client
            .region_write(VFIO_PCI_BAR2_REGION_INDEX, at, bytes)
            .unwrap();
    }

    pub fn status(&self) -> u8 {
        let mut status = [0];
        self.client()
            .region_read(VFIO_PCI_BAR2_REGION_INDEX, DEVICE_STATUS, &mut status)
            .unwrap();
        status[0]
    }

    pub fn add_status(&self, bits: u8) {
        self.write(DEVICE_STATUS, &[self.status() | bits]);
    }

    pub fn set_command(&self, bits: u16) {
        self.client()
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &bits.to_le_bytes())
            .unwrap();
    }

    /// Sets where the interrupt `number` of a type goes.
    pub fn set_target(&self, index: u32, number: u32, target: &OwnedFd) {
        self.client()
            .set_irqs(
                index,
                VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
                number,
                1,
                &[target.as_raw_fd()],
            )
            .unwrap();
    }

    pub fn bytes(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    pub fn map(&self) {
        let region = self.memory.find_region(GuestAddress(0)).unwrap();
        let file = vm_memory::GuestMemoryRegion::file_offset(region).unwrap();
        let fd = file.file().as_fd().as_raw_fd();
        self.client().dma_map(0, 0, self.bytes(), fd).unwrap();
    }

    /// Changes guest memory where nobody uses it.
    pub fn map_and_unmap_elsewhere(&self) {
        const ELSEWHERE: u64 = 1 << 40;
        const PAGE: u64 = 4096;
        let file = memfd_create("elsewhere", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE).unwrap();
        let mut client = self.client();
        client
            .dma_map(0, ELSEWHERE, PAGE, file.as_raw_fd())
            .unwrap();
        client.dma_unmap(ELSEWHERE, PAGE).unwrap();
    }

    pub fn unmap(&self) {
        self.client().dma_unmap(0, self.bytes()).unwrap();
    }

    /// Starts the device with these queues, from the beginning. Each has the vector of its number.
    pub fn start(&self, setups: &[QueueSetup]) {
        self.reset();
        self.set_command(MEMORY | BUS_MASTER);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        for (half, features) in (0u32..).zip(FEATURES) {
            self.write(DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            self.write(DRIVER_FEATURE, &features.to_le_bytes());
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

    /// Asks for a reset.
    pub fn begin_reset(&self) {
        self.write(DEVICE_STATUS, &[0]);
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.begin_reset();
        wait_until("the device is reset", || self.status() == 0);
    }

    /// Rings the doorbell of a queue.
    pub fn ring(&self, queue: usize) {
        let at = NOTIFY + NOTIFY_MULTIPLIER * queue as u64;
        self.write(at, &(queue as u16).to_le_bytes());
    }

    /// Reads the configuration space of the device, or its first `length` bytes.
    pub fn config(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.client()
            .region_read(VFIO_PCI_BAR2_REGION_INDEX, DEVICE, &mut bytes)
            .unwrap();
        bytes
    }

    /// Hangs up. Returns when the device has no worker any more.
    pub fn end(self) {
        self.client().shutdown().unwrap();
        self.connection.join().unwrap();
    }
}
