// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Drivers for tests of devices and transports: a queue in guest memory of its own, with
//! ([`Driver`]) and without ([`Rings`]) the device's side of it; a device, the [`Adder`]; workers
//! without threads, [`Stepped`]; and what every transport has to do, [`conformance`].

mod adder;
pub mod conformance;
mod rings;
mod stepped;

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;

use crate::doorbell::Doorbell;
use crate::engine::QueueControl;
use crate::interrupt::Interrupt;
use crate::ring::StoppedAt;

pub use adder::{Adder, Op};
pub use rings::Rings;
pub use stepped::Stepped;

/// Longest that anything may take.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::yield_now();
    }
}

/// Calls `act` on a thread; returns once that waits for something.
#[track_caller]
pub fn asleep<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        sender.send(rustix::thread::gettid()).unwrap();
        act()
    });
    let id = receiver.recv().unwrap().as_raw_nonzero();
    let stat = format!("/proc/self/task/{id}/stat");
    wait_until("the thread sleeps", || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
    });
    thread
}

/// An eventfd as a doorbell.
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

/// Interrupts that a test receives.
struct Line(Sender<()>);

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.send(()).map_err(io::Error::other)
    }
}

/// How the driver notifies the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// By an eventfd.
    ByDescriptor,
    /// By [`QueueControl::ring_doorbell`].
    ByCall,
}

/// The driver's side of one queue, which it controls as a transport would.
pub struct Driver {
    rings: Rings,
    /// The device's side.
    pub control: Arc<dyn QueueControl>,
    notify: Notify,
    bell: OwnedFd,
    interrupts: Receiver<()>,
    line: Sender<()>,
}

impl Deref for Driver {
    type Target = Rings;

    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
}

impl Driver {
    /// As [`Rings::SIZE`].
    pub const SIZE: u16 = Rings::SIZE;
    /// As [`Rings::AREA`].
    pub const AREA: u64 = Rings::AREA;

    /// For queue number `index`, whose part of `mem` begins at [`Self::AREA`] times that.
    pub fn new(
        mem: GuestMemoryMmap,
        index: usize,
        control: Arc<dyn QueueControl>,
        notify: Notify,
    ) -> Self {
        let (line, interrupts) = channel();
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Self {
            rings: Rings::new(mem, index),
            control,
            notify,
            bell: eventfd(0, flags).unwrap(),
            interrupts,
            line,
        }
    }

    /// Connects doorbell and interrupt, and starts the queue.
    pub fn start(&mut self) {
        self.connect();
        self.rings.clear();
        self.control.start(self.setup());
        self.control.enable(true);
    }

    /// Starts the queue where it was stopped.
    pub fn go_on(&self, stopped: StoppedAt) {
        let mut setup = self.setup();
        setup.go_on_from(stopped);
        self.control.start(setup);
    }

    /// Connects doorbell and interrupt.
    pub fn connect(&self) {
        if self.notify == Notify::ByDescriptor {
            let bell = self.bell.try_clone().unwrap();
            self.control.set_doorbell(Some(Box::new(Bell(bell))));
        }
        self.control
            .set_interrupt(Some(Box::new(Line(self.line.clone()))));
    }

    /// Rings the doorbell, whether the device wants that or not.
    pub fn ring(&self) {
        match self.notify {
            Notify::ByDescriptor => {
                rustix::io::write(&self.bell, &1u64.to_ne_bytes()).unwrap();
            }
            Notify::ByCall => self.control.ring_doorbell(),
        }
    }

    /// Makes a request available and rings the doorbell.
    pub fn submit(&mut self, input: &[u8], output: u64) -> u16 {
        let number = self.put_request(input, output);
        self.ring();
        number
    }

    /// Waits for an interrupt.
    #[track_caller]
    pub fn wait_interrupt(&self) {
        self.interrupts.recv_timeout(TIMEOUT).unwrap();
    }

    /// Whether there is an interrupt that was not waited for.
    pub fn is_interrupted(&self) -> bool {
        match self.interrupts.recv_timeout(Duration::ZERO) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => panic!("the line is ours"),
        }
    }
}
