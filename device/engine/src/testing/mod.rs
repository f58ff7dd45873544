// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver for tests of devices and transports: one queue in guest memory of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::doorbell::Doorbell;
use crate::engine::QueueControl;
use crate::interrupt::Interrupt;
use crate::ring::{QueueSetup, StoppedAt};

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

/// The driver's side of one queue. Its rings and buffers lie in a part of guest memory of
/// their own.
pub struct Driver {
    mem: GuestMemoryMmap,
    base: u64,
    /// The device's side.
    pub control: Arc<dyn QueueControl>,
    notify: Notify,
    bell: OwnedFd,
    interrupts: Receiver<()>,
    line: Sender<()>,
    next_avail: u16,
    next_used: u16,
}

impl Driver {
    /// Entries of the ring.
    pub const SIZE: u16 = 64;
    /// Bytes of guest memory for each queue.
    pub const AREA: u64 = 0x1_0000;
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;
    const INPUT: u64 = 0x4000;
    const OUTPUT: u64 = 0x8000;
    /// Greatest number of bytes in each direction of a request.
    pub const STRIDE: u64 = 64;

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
            mem,
            base: Self::AREA * index as u64,
            control,
            notify,
            bell: eventfd(0, flags).unwrap(),
            interrupts,
            line,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// The setup of a queue that starts from the beginning.
    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: Self::SIZE,
            desc_table: self.base,
            avail_ring: self.base + Self::AVAIL,
            used_ring: self.base + Self::USED,
            next_avail: 0,
            next_used: 0,
            event_idx: true,
        }
    }

    fn put<const N: usize>(&self, bytes: [u8; N], at: u64) {
        self.mem
            .write_slice(&bytes, GuestAddress(self.base + at))
            .unwrap();
    }

    fn get16(&self, at: u64) -> u16 {
        self.mem
            .load::<u16>(GuestAddress(self.base + at), Ordering::Acquire)
            .unwrap()
    }

    /// Connects doorbell and interrupt, and starts the queue.
    pub fn start(&mut self) {
        self.connect();
        (self.next_avail, self.next_used) = (0, 0);
        self.put([0; 0x800], Self::AVAIL);
        self.put([0; 0x800], Self::USED);
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

    /// As [`Self::put_request_in`], in one buffer after the other. Returns the request's number.
    pub fn put_request(&mut self, input: &[u8], output: u64) -> u16 {
        let number = self.next_avail;
        self.put_request_in(number % (Self::SIZE / 2), input, output);
        number
    }

    /// Makes a request available without a notification: a device-readable buffer that holds
    /// `input`, and a device-writable one of `output` bytes; both are number `at` of half as
    /// many as the ring has entries, and not in use.
    pub fn put_request_in(&mut self, at: u16, input: &[u8], output: u64) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        // Two descriptors each.
        let at = u64::from(at);
        let length = input.len() as u64;
        assert!(length <= Self::STRIDE && output <= Self::STRIDE);
        let readable = Self::INPUT + Self::STRIDE * at;
        let writable = Self::OUTPUT + Self::STRIDE * at;
        self.mem
            .write_slice(input, GuestAddress(self.base + readable))
            .unwrap();
        self.put([0xee; Self::STRIDE as usize], writable);
        for (index, addr, len, flags) in [
            (2 * at, readable, length, NEXT),
            (2 * at + 1, writable, output, WRITE),
        ] {
            let descriptor = 16 * index;
            self.put((self.base + addr).to_le_bytes(), descriptor);
            self.put((len as u32).to_le_bytes(), descriptor + 8);
            self.put(flags.to_le_bytes(), descriptor + 12);
            self.put((index as u16 + 1).to_le_bytes(), descriptor + 14);
        }
        self.put_head(2 * at as u16);
    }

    /// Makes the chain at this descriptor available.
    pub fn put_head(&mut self, head: u16) {
        let entry = u64::from(self.next_avail % Self::SIZE);
        self.put(head.to_le_bytes(), Self::AVAIL + 4 + 2 * entry);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.mem
            .store(
                self.next_avail,
                GuestAddress(self.base + Self::AVAIL + 2),
                Ordering::Release,
            )
            .unwrap();
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

    /// Whether the device asks to be notified of the last entry that was made available.
    pub fn wants_bell(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        let event = self.get16(Self::USED + 4 + 8 * u64::from(Self::SIZE));
        event == self.next_avail.wrapping_sub(1)
    }

    /// Makes a request available and rings the doorbell.
    pub fn submit(&mut self, input: &[u8], output: u64) -> u16 {
        let number = self.put_request(input, output);
        self.ring();
        number
    }

    /// Number of requests that are used.
    pub fn used(&self) -> u16 {
        self.get16(Self::USED + 2)
    }

    /// Waits for the next used entry; returns the number of its buffers, and what the device
    /// has written.
    #[track_caller]
    pub fn wait(&mut self) -> (u16, Vec<u8>) {
        wait_until("a request is used", || self.used() != self.next_used);
        let entry = u64::from(self.next_used % Self::SIZE);
        let head = self.get16(Self::USED + 4 + 8 * entry);
        self.next_used = self.next_used.wrapping_add(1);
        // Asks for an interrupt at the next one.
        let event = Self::AVAIL + 4 + 2 * u64::from(Self::SIZE);
        self.put(self.next_used.to_le_bytes(), event);
        let at = self.base + Self::OUTPUT + Self::STRIDE * u64::from(head / 2);
        let mut output = vec![0; Self::STRIDE as usize];
        self.mem.read_slice(&mut output, GuestAddress(at)).unwrap();
        (head / 2, output)
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
