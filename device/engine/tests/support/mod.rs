// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The adder in an engine, without a transport.

use std::sync::Arc;
use std::time::Duration;

use ringbar_engine::testing::{Adder, Driver, Notify, Op};
use ringbar_engine::{Counters, Engine, Options};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A driver for the adder.
pub struct AdderDriver(Driver);

impl std::ops::Deref for AdderDriver {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.0
    }
}

impl std::ops::DerefMut for AdderDriver {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.0
    }
}

impl AdderDriver {
    pub fn put(&mut self, op: Op, bytes: &[u8]) -> u16 {
        self.put_request(&[&[op as u8], bytes].concat(), 1)
    }

    pub fn ask(&mut self, op: Op, bytes: &[u8]) -> u16 {
        let number = self.put(op, bytes);
        self.ring();
        number
    }

    /// Waits for the next sum; returns the number of its request with it.
    #[track_caller]
    pub fn sum(&mut self) -> (u16, u8) {
        let (number, output) = self.wait();
        (number, output[0])
    }
}

/// A device with its engine, and a driver for each queue.
pub struct Machine {
    pub engine: Engine<Adder, GuestMemoryMmap>,
    pub device: Arc<Adder>,
    pub counters: Arc<Counters>,
    pub mem: GuestMemoryMmap,
    pub drivers: Vec<AdderDriver>,
}

impl Machine {
    /// With guest memory and all queues running, polled for `poll` at a time.
    pub fn start(queues: u16, poll: Duration, notify: Notify) -> Self {
        let mut machine = Self::stopped(queues, poll, notify);
        machine.engine.replace_memory(Some(machine.mem.clone()));
        machine.drivers.iter_mut().for_each(|driver| driver.start());
        machine
    }

    /// Without guest memory, and with all queues stopped.
    pub fn stopped(queues: u16, poll: Duration, notify: Notify) -> Self {
        let device = Adder::new(queues);
        let counters = Arc::<Counters>::default();
        let options = Options {
            poll,
            cpus: 2,
            record: None,
        };
        let engine = Engine::new(Arc::clone(&device), Arc::clone(&counters), options).unwrap();
        let size = Driver::AREA * u64::from(queues);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        let drivers = engine
            .queues()
            .into_iter()
            .enumerate()
            .map(|(index, control)| AdderDriver(Driver::new(mem.clone(), index, control, notify)))
            .collect();
        Self {
            engine,
            device,
            counters,
            mem,
            drivers,
        }
    }
}

/// Both ways to notify, with and without polling.
pub fn variants() -> impl Iterator<Item = (Duration, Notify)> {
    let polls = [Duration::ZERO, Duration::from_micros(200)];
    polls.into_iter().flat_map(|poll| {
        [Notify::ByDescriptor, Notify::ByCall]
            .into_iter()
            .map(move |notify| (poll, notify))
    })
}
