// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A transport without messages: what the suite asks for is called directly.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs::File, io};

use ringbar_engine::testing::conformance::Transport;
use ringbar_engine::testing::{Adder, Rings};
use ringbar_engine::{
    Counters, DeviceModel, Doorbell, Engine, Interrupt, Options, QueueControl, QueueSetup,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// An engine. Doorbells are descriptors or calls.
struct Fake<const CALLS: bool> {
    engine: Engine<Adder, GuestMemoryMmap>,
    device: Arc<Adder>,
    file: Arc<File>,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
}

struct Queue {
    control: Arc<dyn QueueControl>,
    bell: OwnedFd,
    interrupted: Arc<AtomicBool>,
    /// Where it goes on.
    setup: Mutex<QueueSetup>,
}

struct Bell(OwnedFd);

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Doorbell for Bell {
    fn acknowledge(&self) -> io::Result<bool> {
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

struct Line(Arc<AtomicBool>);

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.store(true, Ordering::Release);
        Ok(())
    }
}

impl<const CALLS: bool> Fake<CALLS> {
    fn file(queues: u16) -> Arc<File> {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, Rings::AREA * u64::from(queues)).unwrap();
        Arc::new(File::from(file))
    }

    fn map(file: &Arc<File>, queues: u16) -> GuestMemoryMmap {
        let bytes = (Rings::AREA * u64::from(queues)) as usize;
        let range = (
            GuestAddress(0),
            bytes,
            Some(FileOffset::from_arc(Arc::clone(file), 0)),
        );
        GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
    }

    fn run(&self, queue: &Queue) {
        if !CALLS {
            let bell = Bell(queue.bell.try_clone().unwrap());
            queue.control.set_doorbell(Some(Box::new(bell)));
        }
        queue.control.start(*queue.setup.lock().unwrap());
        queue.control.enable(true);
    }
}

impl<const CALLS: bool> Transport for Fake<CALLS> {
    fn connect(device: Arc<Adder>, poll: Duration) -> Self {
        let count = device.queue_count();
        let file = Self::file(count);
        let options = Options {
            poll,
            cpus: 4,
            record: None,
        };
        let engine = Engine::new(Arc::clone(&device), Arc::<Counters>::default(), options).unwrap();
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let queue = |control| Queue {
            control,
            bell: eventfd(0, flags).unwrap(),
            interrupted: Arc::default(),
            setup: Mutex::default(),
        };
        Self {
            queues: engine.queues().into_iter().map(queue).collect(),
            memory: Self::map(&file, count),
            engine,
            device,
            file,
        }
    }

    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn start(&self, setups: &[QueueSetup]) {
        self.replace_memory();
        for (queue, setup) in self.queues.iter().zip(setups) {
            self.move_interrupt_of(queue);
            *queue.setup.lock().unwrap() = *setup;
            self.run(queue);
        }
    }

    fn stop(&self) {
        for queue in &self.queues {
            let stopped = queue.control.stop().unwrap();
            queue.setup.lock().unwrap().go_on_from(stopped);
        }
    }

    fn go_on(&self) {
        self.queues.iter().for_each(|queue| self.run(queue));
    }

    fn reset(&self) {
        self.stop();
        self.device.reset();
    }

    fn ring(&self, queue: usize) {
        let queue = &self.queues[queue];
        match CALLS {
            true => queue.control.ring_doorbell(),
            false => {
                rustix::io::write(&queue.bell, &1u64.to_ne_bytes()).unwrap();
            }
        }
    }

    fn is_interrupted(&self, queue: usize) -> bool {
        let interrupted = &self.queues[queue].interrupted;
        interrupted.swap(false, Ordering::Acquire)
    }

    fn move_interrupt(&self, queue: usize) {
        let queue = &self.queues[queue];
        queue.control.set_interrupt(None);
        // What was there before is processed between the answers, and interrupts nobody.
        (0..2).for_each(|_| queue.control.enable(true));
        self.move_interrupt_of(queue);
    }

    fn replace_memory(&self) {
        let memory = Self::map(&self.file, self.device.queue_count());
        self.engine.replace_memory(Some(memory));
    }

    fn move_memory(&mut self) {
        let count = self.device.queue_count();
        let mut bytes = vec![0; (Rings::AREA * u64::from(count)) as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        self.file = Self::file(count);
        self.memory = Self::map(&self.file, count);
        self.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        self.replace_memory();
    }

    fn config(&self, length: usize) -> Vec<u8> {
        let mut config = self.device.config();
        config.truncate(length);
        config
    }

    fn end(self) {
        drop(self.engine);
    }
}

impl<const CALLS: bool> Fake<CALLS> {
    fn move_interrupt_of(&self, queue: &Queue) {
        let line = Line(Arc::clone(&queue.interrupted));
        queue.control.set_interrupt(Some(Box::new(line)));
    }
}

mod by_descriptor {
    ringbar_engine::conformance!(super::Fake<false>);
}

mod by_call {
    ringbar_engine::conformance!(super::Fake<true>);
}
