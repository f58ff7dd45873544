// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts of the function: messages (MSI-X or MSI), and the line INTx.
//!
//! The client says by `VFIO_USER_DEVICE_SET_IRQS` where interrupts go. Which of the two kinds is in
//! use follows from that: messages from the first message with a descriptor on, INTx again when
//! the client disables the messages.
//!
//! ```text
//!              raise (a queue, or the configuration)
//!                           │
//!          messages are on? ├── yes ─► its vector: eventfd there? ── yes ─► raised
//!                           │                          └─ no ─► pending, raised by the next eventfd
//!                           └── no ──► ISR bit, INTx
//! ```
//!
//! INTx is a level: it is high while the interrupt status register holds a bit. The client masks it
//! by itself with each interrupt (`VFIO_IRQ_INFO_AUTOMASKED`), and unmasks it once the driver has
//! handled it; then the function raises it again if it is still high.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbar_engine::{EventFd, Interrupt, InterruptSlot};
use tracing::warn;

/// Bits of the interrupt status register (VIRTIO 1.3, 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// "No vector" in [`Source`].
const NO_VECTOR: u16 = u16::MAX;

/// All interrupts of a function.
#[derive(Debug)]
pub(crate) struct Interrupts {
    messages: Vec<InterruptSlot>,
    /// Whether the device runs and may send messages: only then a change of its configuration is
    /// announced.
    runs: AtomicBool,
    /// Whether the client has given messages a descriptor, and has not disabled them since.
    uses_messages: AtomicBool,
    line: Mutex<Line>,
}

/// The line INTx.
#[derive(Debug, Default)]
struct Line {
    target: Option<EventFd>,
    /// The interrupt status register.
    status: u8,
    /// Whether the client waits for the driver to handle an interrupt.
    masked: bool,
    /// Whether the driver has disabled it in the command register.
    disabled: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is complete after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Raises the interrupt if the line is high and nobody handles it yet.
    fn update(&mut self) {
        if self.status == 0 || self.disabled || self.masked {
            return;
        }
        if let Some(target) = &self.target {
            raise(target);
            self.masked = true;
        }
    }
}

fn raise(target: &EventFd) {
    if let Err(error) = target.raise() {
        warn!(%error, "cannot interrupt the driver");
    }
}

impl Interrupts {
    /// For so many messages. None has a target.
    pub(crate) fn new(messages: u16) -> Arc<Self> {
        Arc::new(Self {
            messages: (0..messages).map(|_| InterruptSlot::default()).collect(),
            runs: AtomicBool::new(false),
            uses_messages: AtomicBool::new(false),
            line: Mutex::default(),
        })
    }

    /// Sets the targets of messages from `first` on, `None` for those without one. The caller has
    /// checked that there are so many.
    pub(crate) fn set_messages(&self, first: usize, targets: Vec<Option<OwnedFd>>) {
        if targets.iter().any(Option::is_some) {
            self.uses_messages.store(true, Ordering::Release);
        }
        for (message, target) in self.messages.iter().skip(first).zip(targets) {
            message.set(target.map(|target| Box::new(EventFd::new(target)) as Box<_>));
        }
    }

    /// Takes the targets of all messages away; INTx is in use from now on.
    pub(crate) fn disable_messages(&self) {
        self.uses_messages.store(false, Ordering::Release);
        for message in &self.messages {
            message.set(None);
        }
    }

    /// Raises a message as a test of the client.
    pub(crate) fn trigger_message(&self, index: usize) {
        if let Some(message) = self.messages.get(index) {
            message.raise();
        }
    }

    /// Sets the target of INTx, unmasked.
    pub(crate) fn set_line(&self, target: Option<OwnedFd>) {
        let mut line = lock(&self.line);
        line.target = target.map(EventFd::new);
        line.masked = false;
        line.update();
    }

    /// Masks INTx, or has it raised again if it is still high.
    pub(crate) fn mask_line(&self, masked: bool) {
        let mut line = lock(&self.line);
        line.masked = masked;
        line.update();
    }

    /// Raises INTx as a test of the client.
    pub(crate) fn trigger_line(&self) {
        if let Some(target) = &lock(&self.line).target {
            raise(target);
        }
    }

    /// Disables INTx as the command register says (PCI 3.0, 6.2.2).
    pub(crate) fn disable_line(&self, disabled: bool) {
        let mut line = lock(&self.line);
        line.disabled = disabled;
        line.update();
    }

    /// Reads the interrupt status register, which clears it and lowers INTx.
    pub(crate) fn take_status(&self) -> u8 {
        std::mem::take(&mut lock(&self.line).status)
    }

    /// The VIRTIO device was reset: nothing is pending any more. Targets stay, and so does what
    /// the command register says.
    pub(crate) fn reset(&self) {
        for message in &self.messages {
            message.forget();
        }
        lock(&self.line).status = 0;
    }

    /// The driver has started the device, or may not be interrupted by it any more.
    pub(crate) fn set_runs(&self, runs: bool) {
        self.runs.store(runs, Ordering::Release);
    }

    /// Whether the driver has started the device.
    pub(crate) fn runs(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    fn raise(&self, vector: u16, status: u8) {
        // A vector that nothing listens to keeps the interrupt: the client disables all messages
        // for a moment when it wants another number of them.
        if let Some(message) = self.messages.get(usize::from(vector)) {
            message.raise();
        }
        if !self.uses_messages.load(Ordering::Acquire) {
            let mut line = lock(&self.line);
            line.status |= status;
            line.update();
        }
    }
}

/// What raises an interrupt: a queue, or the configuration. The driver may move it to another
/// vector at any time.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    interrupts: Arc<Interrupts>,
    /// Bit of the interrupt status register.
    status: u8,
    vector: Arc<AtomicU16>,
}

impl Source {
    fn new(interrupts: &Arc<Interrupts>, status: u8) -> Self {
        Self {
            interrupts: Arc::clone(interrupts),
            status,
            vector: Arc::new(AtomicU16::new(NO_VECTOR)),
        }
    }

    /// A queue, without a vector.
    pub(crate) fn queue(interrupts: &Arc<Interrupts>) -> Self {
        Self::new(interrupts, ISR_QUEUE)
    }

    /// The configuration, without a vector.
    pub(crate) fn config(interrupts: &Arc<Interrupts>) -> Self {
        Self::new(interrupts, ISR_CONFIG)
    }

    /// Moves it to another vector.
    pub(crate) fn set_vector(&self, vector: Option<u16>) {
        self.vector
            .store(vector.unwrap_or(NO_VECTOR), Ordering::Relaxed);
    }
}

impl Interrupt for Source {
    fn raise(&self) -> io::Result<()> {
        let vector = self.vector.load(Ordering::Relaxed);
        self.interrupts.raise(vector, self.status);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::read;

    use super::*;

    struct Event(OwnedFd);

    impl Event {
        fn new() -> Self {
            Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
        }

        fn theirs(&self) -> OwnedFd {
            self.0.try_clone().unwrap()
        }

        fn is_raised(&self) -> bool {
            read(&self.0, &mut [0; 8]).is_ok()
        }
    }

    #[test]
    fn queues_interrupt_by_their_vectors_only() {
        let interrupts = Interrupts::new(2);
        let events = [Event::new(), Event::new()];
        interrupts.set_messages(0, events.iter().map(|event| Some(event.theirs())).collect());
        let queue = Source::queue(&interrupts);
        queue.raise().unwrap();
        assert!(!events[0].is_raised() && !events[1].is_raised());
        for (vector, raised) in [(1, [false, true]), (0, [true, false]), (7, [false, false])] {
            queue.set_vector(Some(vector));
            queue.raise().unwrap();
            assert_eq!(events.each_ref().map(Event::is_raised), raised);
        }
        assert_eq!(interrupts.take_status(), 0);
    }

    #[test]
    fn message_without_a_target_is_kept_as_one() {
        let interrupts = Interrupts::new(1);
        let event = Event::new();
        let queue = Source::queue(&interrupts);
        queue.set_vector(Some(0));
        interrupts.set_messages(0, vec![Some(event.theirs())]);
        interrupts.disable_messages();
        queue.raise().unwrap();
        queue.raise().unwrap();
        assert!(!event.is_raised());
        interrupts.set_messages(0, vec![Some(event.theirs())]);
        assert!(event.is_raised());
        // It is not raised by a reset that came in between.
        interrupts.set_messages(0, vec![None]);
        queue.raise().unwrap();
        interrupts.reset();
        interrupts.set_messages(0, vec![Some(event.theirs())]);
        assert!(!event.is_raised());
    }

    #[test]
    fn line_is_raised_once_until_it_is_unmasked() {
        let interrupts = Interrupts::new(1);
        let event = Event::new();
        interrupts.set_line(Some(event.theirs()));
        let (queue, config) = (Source::queue(&interrupts), Source::config(&interrupts));
        queue.raise().unwrap();
        assert!(event.is_raised());
        config.raise().unwrap();
        assert!(!event.is_raised(), "it is masked");
        assert_eq!(interrupts.take_status(), ISR_QUEUE | ISR_CONFIG);
        interrupts.mask_line(false);
        assert!(!event.is_raised(), "it is low");
        queue.raise().unwrap();
        assert!(event.is_raised());
        // Not handled yet.
        interrupts.mask_line(false);
        assert!(event.is_raised());
    }

    #[test]
    fn line_that_the_driver_disables_is_quiet() {
        let interrupts = Interrupts::new(0);
        let event = Event::new();
        interrupts.set_line(Some(event.theirs()));
        let queue = Source::queue(&interrupts);
        interrupts.disable_line(true);
        queue.raise().unwrap();
        assert!(!event.is_raised());
        interrupts.disable_line(false);
        assert!(event.is_raised());
        // A reset of the VIRTIO device leaves the command register alone.
        interrupts.disable_line(true);
        interrupts.reset();
        assert_eq!(interrupts.take_status(), 0);
        interrupts.mask_line(false);
        queue.raise().unwrap();
        assert!(!event.is_raised());
    }

    #[test]
    fn messages_replace_the_line() {
        let interrupts = Interrupts::new(1);
        let (line, message) = (Event::new(), Event::new());
        interrupts.set_line(Some(line.theirs()));
        interrupts.set_messages(0, vec![Some(message.theirs())]);
        let queue = Source::queue(&interrupts);
        queue.set_vector(Some(0));
        queue.raise().unwrap();
        assert!(message.is_raised() && !line.is_raised());
        interrupts.disable_messages();
        queue.raise().unwrap();
        assert!(!message.is_raised() && line.is_raised());
    }
}
