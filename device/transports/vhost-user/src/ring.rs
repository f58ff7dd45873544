// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtqueue as two parties see it: the thread that handles messages of the
//! virtual machine monitor (the library's), and the worker that serves it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory as the library keeps it.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The library's vring, with these differences.
///
/// - Handing over is fair. A worker holds the vring for a whole batch and takes
///   it again at once; without a queue to wait in, a message that stops the
///   vring could starve behind a busy guest. The worker sees that a message
///   waits, and ends its batch for it.
/// - A kick that is gone when the worker comes to read it is no error. In the
///   library it ends the worker thread; it happens when a vring is stopped and
///   started anew while its kick waits behind that of another vring. A kick that
///   cannot be read at all is left to the worker.
/// - It can be broken: then the device serves it no longer, until it starts from
///   index 0 again. Only a driver that has reset the device starts there; a
///   monitor that stops and continues the guest starts it where it was. (QEMU
///   does not pass the reset on as a message; where a monitor does,
///   `VHOST_USER_RESET_DEVICE` disables the vring, and it starts when it is
///   enabled.)
/// - A size that is no power of two (`VHOST_USER_SET_VRING_NUM`), which the library
///   would ignore, makes it unusable.
/// - It is counted how often it was kicked.
/// - An interrupt that the worker holds back goes out before the vring stops, be it by
///   `VHOST_USER_GET_VRING_BASE` or by `VHOST_USER_SET_VRING_ENABLE`.
/// - The descriptors of `VHOST_USER_SET_VRING_KICK` and `VHOST_USER_SET_VRING_CALL` do
///   not block.
#[derive(Clone)]
pub(crate) struct Ring<M: GuestAddressSpace = Memory> {
    vring: VringMutex<M>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Held while waiting for the vring.
    turn: Mutex<()>,
    /// Number of messages that wait for the vring.
    waiting: AtomicUsize,
    broken: AtomicBool,
    owing: AtomicBool,
    kicks: AtomicU64,
    /// Why the kick descriptor cannot be read.
    kick_error: Mutex<Option<io::Error>>,
    /// The size that was asked for, where it is none that a ring can have; else 0.
    refused_size: AtomicU16,
}

/// A message that waits for the vring or has it.
struct MessageTurn<'a> {
    shared: &'a Shared,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for MessageTurn<'_> {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<M: GuestAddressSpace + 'static> Ring<M> {
    /// Waits in the queue for the vring, as a message.
    fn in_turn<T>(&self, act: impl FnOnce(&VringMutex<M>) -> T) -> T {
        let _turn = self.message_turn();
        act(&self.vring)
    }

    fn message_turn(&self) -> MessageTurn<'_> {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        MessageTurn {
            shared: &self.shared,
            _turn: self.turn(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // Nothing is protected but the order, so poison means nothing.
        self.shared
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message waits for the vring, so that its holder should let it go.
    pub(crate) fn is_wanted(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether the device has stopped serving the vring.
    pub(crate) fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// Marks the vring as broken. To be called with the vring locked, so that a
    /// new start comes either before or after.
    pub(crate) fn set_broken(&self) {
        self.shared.broken.store(true, Ordering::Release);
    }

    /// Whether the ring has a size that it can have and lies within guest memory.
    pub(crate) fn is_valid(&self, vring: &VringState<M>, mem: &impl GuestMemory) -> bool {
        match self.shared.refused_size.load(Ordering::Relaxed) {
            0 => vring.get_queue().is_valid(mem),
            size => {
                warn!(
                    size,
                    "the size of the ring is no power of two (VIRTIO 1.3, 2.7)"
                );
                false
            }
        }
    }

    /// Changes whether the ring runs, and does what belongs to a start or stop. All
    /// of it with the vring locked: the worker has seen nothing of the change, or
    /// all of it.
    fn start_or_stop(&self, change: impl FnOnce(&mut VringState<M>)) {
        let _turn = self.message_turn();
        let mut vring = self.vring.get_mut();
        let ran = is_started(&vring);
        change(&mut vring);
        if !is_started(&vring) {
            // One interrupt too many does no harm.
            if self.take_owed() {
                signal(&vring);
            }
        } else if !ran && vring.get_queue().next_avail() == 0 {
            self.shared.broken.store(false, Ordering::Release);
        }
    }

    /// Notes that the worker holds an interrupt back. To be called with the vring
    /// locked, as [`Self::take_owed`].
    pub(crate) fn owe_interrupt(&self) {
        self.shared.owing.store(true, Ordering::Relaxed);
    }

    /// Whether an interrupt was held back, and it is now for the caller to send.
    pub(crate) fn take_owed(&self) -> bool {
        self.shared.owing.swap(false, Ordering::Relaxed)
    }

    /// Why the kick descriptor cannot be read, if so. It stays readable, so whoever
    /// takes this has to stop waiting for it.
    pub(crate) fn take_kick_error(&self) -> Option<io::Error> {
        self.shared
            .kick_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// How many kicks were read since this was last asked.
    pub(crate) fn take_kicks(&self) -> u64 {
        self.shared.kicks.swap(0, Ordering::Relaxed)
    }
}

/// Whether the ring is both started and enabled (vhost-user, "Ring states").
pub(crate) fn is_started<M: GuestAddressSpace>(vring: &VringState<M>) -> bool {
    vring.is_enabled() && vring.get_queue().ready()
}

/// Sends the driver an interrupt. Returns whether one is on its way.
pub(crate) fn signal<M: GuestAddressSpace>(vring: &VringState<M>) -> bool {
    match vring.signal_used_queue() {
        Ok(()) => true,
        // The descriptor is full of interrupts that nobody has taken yet.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) => {
            warn!(%error, "cannot notify the driver");
            false
        }
    }
}

impl<'a, M: GuestAddressSpace + 'static> VringStateGuard<'a, M> for Ring<M> {
    type G = MutexGuard<'a, VringState<M>>;
}

impl<'a, M: GuestAddressSpace + 'static> VringStateMutGuard<'a, M> for Ring<M> {
    type G = MutexGuard<'a, VringState<M>>;
}

impl<M: GuestAddressSpace + 'static> VringT<M> for Ring<M> {
    fn new(mem: M, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            vring: VringMutex::new(mem, max_queue_size)?,
            shared: Arc::default(),
        })
    }

    /// For messages.
    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        let _turn = self.message_turn();
        self.vring.get_ref()
    }

    /// For workers.
    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, M>>::G {
        let _turn = self.turn();
        self.vring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.in_turn(|vring| vring.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.in_turn(VringT::signal_used_queue)
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.in_turn(VringT::enable_notification)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.in_turn(VringT::disable_notification)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.in_turn(VringT::needs_notification)
    }

    fn set_enabled(&self, enabled: bool) {
        self.start_or_stop(|vring| vring.set_enabled(enabled));
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.in_turn(|vring| vring.set_queue_info(desc, avail, used))
    }

    fn queue_next_avail(&self) -> u16 {
        self.in_turn(VringT::queue_next_avail)
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.in_turn(|vring| vring.set_queue_next_avail(base));
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.in_turn(|vring| vring.set_queue_next_used(idx));
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.in_turn(VringT::queue_used_idx)
    }

    fn set_queue_size(&self, num: u16) {
        self.in_turn(|vring| {
            let refused = match vring.get_mut().get_queue_mut().try_set_size(num) {
                Ok(()) => 0,
                Err(_) => num,
            };
            self.shared.refused_size.store(refused, Ordering::Relaxed);
        });
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.in_turn(|vring| vring.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.start_or_stop(|vring| vring.get_queue_mut().set_ready(ready));
    }

    fn set_kick(&self, file: Option<File>) {
        // A read that finds nothing must not block the worker.
        set_nonblocking(file.as_ref());
        self.in_turn(|vring| vring.set_kick(file));
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.in_turn(|vring| match vring.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Ok(enabled) => {
                self.shared.kicks.fetch_add(1, Ordering::Relaxed);
                Ok(enabled)
            }
            // An error from here would end the worker, and with it other queues.
            Err(error) => {
                *self
                    .shared
                    .kick_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(error);
                Ok(true)
            }
        })
    }

    fn set_call(&self, file: Option<File>) {
        // A write that finds no room must not block whoever has the vring.
        set_nonblocking(file.as_ref());
        self.in_turn(|vring| vring.set_call(file));
    }

    fn set_err(&self, file: Option<File>) {
        self.in_turn(|vring| vring.set_err(file));
    }
}

/// Those of QEMU are non-blocking already.
fn set_nonblocking(file: Option<&File>) {
    let set = |file: &File| -> io::Result<()> {
        let flags = fcntl_getfl(file.as_fd())?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK)?;
        }
        Ok(())
    };
    if let Some(Err(error)) = file.map(set) {
        warn!(%error, "cannot make the descriptor of a queue non-blocking");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
    use std::sync::mpsc::channel;
    use std::thread::{JoinHandle, spawn};
    use std::time::Duration;

    use vm_memory::GuestAddress;
    use vmm_sys_util::eventfd::EventFd;

    use crate::testing::Thread;

    use super::*;

    fn ring() -> Ring {
        Ring::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 256).unwrap()
    }

    /// A kick descriptor that would block.
    fn kick() -> (EventFd, File) {
        let kick = EventFd::new(0).unwrap();
        let copy = kick.try_clone().unwrap().into_raw_fd();
        // SAFETY: the copy was given up just now.
        (kick, unsafe { File::from_raw_fd(copy) })
    }

    #[test]
    fn kick_that_is_gone_is_no_error() {
        let ring = ring();
        ring.set_enabled(true);
        let (kick, copy) = kick();
        ring.set_kick(Some(copy));
        assert!(!ring.read_kick().unwrap());
        kick.write(1).unwrap();
        assert!(ring.read_kick().unwrap());
        assert!(!ring.read_kick().unwrap());
        assert_eq!(ring.take_kicks(), 1);
        assert_eq!(ring.take_kicks(), 0);
    }

    /// Both ends of a descriptor that would block.
    fn call() -> (EventFd, File) {
        kick()
    }

    /// Calls `act` on a thread; returns once that waits for something.
    fn waiting<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let (sender, receiver) = channel();
        let handle = spawn(move || {
            sender.send(Thread::current()).unwrap();
            act()
        });
        receiver.recv().unwrap().until_asleep();
        handle
    }

    #[test]
    fn a_kick_that_cannot_be_read_leaves_the_worker_alive() {
        let ring = ring();
        let (reader, writer) = io::pipe().unwrap();
        ring.set_kick(Some(File::from(OwnedFd::from(reader))));
        assert!(!ring.read_kick().unwrap());
        assert!(ring.take_kick_error().is_none());
        drop(writer);
        // Handled, whether enabled or not: it is readable for ever.
        assert!(ring.read_kick().unwrap());
        let error = ring.take_kick_error().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_interrupt_does_not_wait_for_a_monitor_that_takes_none() {
        let ring = ring();
        let (call, copy) = call();
        ring.set_call(Some(copy));
        // No room for one more.
        call.write(u64::MAX - 1).unwrap();
        let (sender, done) = channel();
        let other = ring.clone();
        spawn(move || sender.send(signal(&other.get_mut())));
        assert!(done.recv_timeout(Duration::from_secs(10)).unwrap());
        assert_eq!(call.read().unwrap(), u64::MAX - 1);
    }

    #[test]
    fn a_size_that_no_ring_can_have_makes_it_unusable() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let ring = Ring::new(GuestMemoryAtomic::new(mem.clone()), 256).unwrap();
        ring.set_queue_info(0, 0x4000, 0x8000).unwrap();
        ring.set_queue_ready(true);
        for (size, usable) in [(256, true), (100, false), (512, false), (64, true)] {
            ring.set_queue_size(size);
            assert_eq!(ring.is_valid(&ring.get_mut(), &mem), usable, "{size}");
        }
        assert_eq!(ring.get_mut().get_queue().size(), 64);
    }

    #[test]
    fn ho13_an_interrupt_owed_by_the_batch_in_progress_comes_before_the_stop() {
        for stop in [Ring::set_queue_ready, Ring::set_enabled] {
            let ring = ring();
            ring.set_queue_ready(true);
            ring.set_enabled(true);
            let (call, copy) = call();
            ring.set_call(Some(copy));
            // The worker is within a batch, and a message waits for its end.
            let batch = ring.get_mut();
            let other = ring.clone();
            let message = waiting(move || stop(&other, false));
            ring.owe_interrupt();
            drop(batch);
            message.join().unwrap();
            // Empty, it says so instead of blocking.
            assert_eq!(call.read().unwrap(), 1);
        }
    }

    #[test]
    fn ho4_a_message_that_waits_is_seen_and_comes_before_the_next_batch() {
        let ring = ring();
        for round in 0..100 {
            let batch = ring.get_mut();
            assert!(!ring.is_wanted());
            let other = ring.clone();
            let message = waiting(move || other.set_queue_next_avail(round));
            assert!(ring.is_wanted());
            drop(batch);
            // What the worker does next.
            assert_eq!(ring.get_mut().get_queue().next_avail(), round);
            message.join().unwrap();
        }
        assert!(!ring.is_wanted());
    }

    #[test]
    fn ho13_a_broken_ring_is_whole_after_a_reset_message() {
        let ring = ring();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        ring.set_broken();
        // What the library makes of VHOST_USER_RESET_DEVICE, and what follows.
        ring.set_enabled(false);
        assert!(ring.is_broken());
        ring.set_queue_next_avail(0);
        ring.set_enabled(true);
        assert!(!ring.is_broken());
    }

    #[test]
    fn only_a_start_from_0_makes_a_broken_ring_whole() {
        let ring = ring();
        ring.set_enabled(true);
        ring.set_broken();
        ring.set_queue_ready(false);
        ring.set_queue_next_avail(7);
        ring.set_queue_ready(true);
        assert!(ring.is_broken());
        ring.set_queue_ready(false);
        ring.set_queue_next_avail(0);
        assert!(ring.is_broken());
        ring.set_queue_ready(true);
        assert!(!ring.is_broken());
    }

    #[test]
    fn clones_are_one_ring() {
        let ring = ring();
        let other = ring.clone();
        ring.set_broken();
        assert!(other.is_broken());
        other.set_queue_next_avail(3);
        assert_eq!(ring.queue_next_avail(), 3);
    }
}
