// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transport over a real socket.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::machine::{BUS_MASTER, MEMORY, Machine, event, is_raised, memory};
use ringbar_engine::testing::Adder;
use ringbar_engine::testing::conformance::Transport;
use ringbar_engine::{DeviceModel, QueueSetup};
use ringbar_vfio_user::Interrupts;
use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A connected device, and where its interrupts go.
struct VfioUser {
    machine: Machine,
    /// Where interrupts of each queue went so far; the last one is the present one.
    events: Vec<Mutex<Vec<OwnedFd>>>,
}

impl VfioUser {
    fn set_event(&self, queue: usize, event: &OwnedFd) {
        let vector = queue as u32;
        self.machine
            .set_target(VFIO_PCI_MSIX_IRQ_INDEX, vector, event);
    }
}

impl Transport for VfioUser {
    fn connect(device: Arc<Adder>, poll: Duration) -> Self {
        let vectors = device.queue_count();
        let this = Self {
            machine: Machine::connect(device, Interrupts::MsiX { vectors }, poll),
            events: (0..vectors).map(|_| Mutex::new(vec![event()])).collect(),
        };
        for (queue, events) in this.events.iter().enumerate() {
            this.set_event(queue, &events.lock().unwrap()[0]);
        }
        this
    }

    fn memory(&self) -> &GuestMemoryMmap {
        &self.machine.memory
    }

    fn start(&self, setups: &[QueueSetup]) {
        self.machine.start(setups);
    }

    /// A monitor has no message for it; the driver can take bus mastering away.
    fn stop(&self) {
        self.machine.set_command(MEMORY);
    }

    fn go_on(&self) {
        self.machine.set_command(MEMORY | BUS_MASTER);
    }

    fn reset(&self) {
        self.machine.reset();
    }

    fn ring(&self, queue: usize) {
        self.machine.ring(queue);
    }

    fn is_interrupted(&self, queue: usize) -> bool {
        let events = self.events[queue].lock().unwrap();
        // Each of them is emptied.
        events.iter().filter(|event| is_raised(event)).count() > 0
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

    /// Without any memory the device waits, so nothing is lost in between.
    fn replace_memory(&self) {
        self.machine.unmap();
        self.machine.map();
    }

    fn move_memory(&mut self) {
        let machine = &mut self.machine;
        let mut bytes = vec![0; machine.bytes() as usize];
        let former = &machine.memory;
        former.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        machine.unmap();
        machine.memory = memory(bytes.len() as u64);
        let memory = &machine.memory;
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        machine.map();
    }

    fn config(&self, length: usize) -> Vec<u8> {
        self.machine.config(length)
    }

    fn end(self) {
        self.machine.end();
    }
}

ringbar_engine::conformance!(VfioUser);
