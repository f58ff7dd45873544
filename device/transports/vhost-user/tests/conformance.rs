// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport over a real socket, with the monitor's end of the `vhost` crate.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringbar_engine::testing::conformance::Transport;
use ringbar_engine::testing::{Adder, Rings};
use ringbar_engine::{Counters, DeviceModel, Options, QueueSetup};
use ringbar_vhost_user::Connection;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A connected device.
struct VhostUser {
    frontend: Frontend,
    connection: Connection,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
}

struct Queue {
    kick: EventFd,
    /// Where interrupts went so far; the last one is the present one.
    calls: Mutex<Vec<EventFd>>,
    /// Where it goes on.
    setup: Mutex<QueueSetup>,
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

/// Guest memory of `size` bytes in a file of its own.
fn memory(size: u64) -> GuestMemoryMmap {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    let offset = FileOffset::new(File::from(file), 0);
    let range = (GuestAddress(0), size as usize, Some(offset));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

impl VhostUser {
    /// Tells the device where guest memory is.
    fn set_memory(&self) {
        let regions: Vec<_> = self
            .memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect();
        self.frontend.set_mem_table(&regions).unwrap();
    }

    /// Sets all queues up and enables them.
    fn run(&self) {
        for (index, queue) in self.queues.iter().enumerate() {
            let setup = *queue.setup.lock().unwrap();
            let host = |address| {
                let address = GuestAddress(address);
                self.memory.get_host_address(address).unwrap() as u64
            };
            let frontend = &self.frontend;
            frontend.set_vring_num(index, setup.size).unwrap();
            frontend.set_vring_base(index, setup.next_avail).unwrap();
            let addresses = VringConfigData {
                queue_max_size: setup.size,
                queue_size: setup.size,
                flags: 0,
                desc_table_addr: host(setup.desc_table),
                used_ring_addr: host(setup.used_ring),
                avail_ring_addr: host(setup.avail_ring),
                log_addr: None,
            };
            frontend.set_vring_addr(index, &addresses).unwrap();
            frontend.set_vring_kick(index, &queue.kick).unwrap();
            let calls = queue.calls.lock().unwrap();
            frontend
                .set_vring_call(index, calls.last().unwrap())
                .unwrap();
        }
        for index in 0..self.queues.len() {
            self.frontend.clone().set_vring_enable(index, true).unwrap();
        }
    }
}

impl Transport for VhostUser {
    fn connect(device: Arc<Adder>, poll: Duration) -> Self {
        let count = device.queue_count();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut frontend = Frontend::connect(&socket, count.into()).unwrap();
        let options = Options {
            poll,
            cpus: 4,
            record: None,
        };
        let counters = Arc::<Counters>::default();
        let connection = Connection::accept(device, counters, options, &listener).unwrap();

        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);

        let queue = |_| Queue {
            kick: event(),
            calls: Mutex::new(vec![event()]),
            setup: Mutex::default(),
        };
        Self {
            frontend,
            connection,
            memory: memory(Rings::AREA * u64::from(count)),
            queues: (0..count).map(queue).collect(),
        }
    }

    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn start(&self, setups: &[QueueSetup]) {
        self.frontend
            .set_features(VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES)
            .unwrap();
        self.set_memory();
        for (queue, setup) in self.queues.iter().zip(setups) {
            *queue.setup.lock().unwrap() = *setup;
        }
        self.run();
    }

    fn stop(&self) {
        for (index, queue) in self.queues.iter().enumerate() {
            let base = self.frontend.get_vring_base(index).unwrap();
            queue.setup.lock().unwrap().next_avail = base as u16;
        }
    }

    fn go_on(&self) {
        self.set_memory();
        self.run();
    }

    fn reset(&self) {
        self.stop();
        self.frontend.clone().reset_device().unwrap();
    }

    fn ring(&self, queue: usize) {
        self.queues[queue].kick.write(1).unwrap();
    }

    fn is_interrupted(&self, queue: usize) -> bool {
        let calls = self.queues[queue].calls.lock().unwrap();
        // Each of them is emptied.
        calls.iter().filter(|call| call.read().is_ok()).count() > 0
    }

    fn move_interrupt(&self, queue: usize) {
        let mut calls = self.queues[queue].calls.lock().unwrap();
        let call = event();
        self.frontend.set_vring_call(queue, &call).unwrap();
        // The one before may still have something.
        calls.push(call);
        let old = calls.len().saturating_sub(2);
        calls.drain(..old);
    }

    /// The device maps the file anew.
    fn replace_memory(&self) {
        self.set_memory();
    }

    fn move_memory(&mut self) {
        let mut bytes = vec![0; self.memory.last_addr().0 as usize + 1];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.memory = memory(bytes.len() as u64);
        self.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        self.set_memory();
    }

    fn config(&self, length: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        let mut frontend = self.frontend.clone();
        let space = vec![0; length];
        let config = frontend.get_config(0, length as u32, flags, &space);
        config.unwrap().1
    }

    fn end(self) {
        drop(self.frontend);
        self.connection.join().unwrap();
    }
}

ringbar_engine::conformance!(VhostUser);
