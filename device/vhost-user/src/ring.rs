// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtqueue as two parties see it: the thread that handles messages of the
//! virtual machine monitor (the library's), and the worker that serves it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tracing::warn;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory as the library keeps it.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The library's vring, with five differences.
///
/// - Handing over is fair. A worker holds the vring for a whole batch and takes
///   it again at once; without a queue to wait in, a message that stops the
///   vring could starve behind a busy guest.
/// - A kick that is gone when the worker comes to read it is no error. In the
///   library it ends the worker thread; it happens when a vring is stopped and
///   started anew while its kick waits behind that of another vring.
/// - It can be broken: then the device serves it no longer, until it starts from
///   index 0 again. Only a driver that has reset the device starts there; a
///   monitor that stops and continues the guest starts it where it was. (QEMU
///   does not pass the reset on as a message.)
/// - It is counted how often it was kicked.
/// - An interrupt that the worker holds back goes out before the vring stops.
#[derive(Clone)]
pub(crate) struct Ring<M: GuestAddressSpace = Memory> {
    vring: VringMutex<M>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Held while waiting for the vring.
    turn: Mutex<()>,
    broken: AtomicBool,
    owing: AtomicBool,
    kicks: AtomicU64,
}

impl<M: GuestAddressSpace + 'static> Ring<M> {
    /// Waits in the queue for the vring.
    fn in_turn<T>(&self, act: impl FnOnce(&VringMutex<M>) -> T) -> T {
        let _turn = self.turn();
        act(&self.vring)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // Nothing is protected but the order, so poison means nothing.
        self.shared
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// Notes that the worker holds an interrupt back. To be called with the vring
    /// locked, as [`Self::take_owed`].
    pub(crate) fn owe_interrupt(&self) {
        self.shared.owing.store(true, Ordering::Relaxed);
    }

    /// Whether an interrupt was held back, and it is now for the caller to send.
    pub(crate) fn take_owed(&self) -> bool {
        self.shared.owing.swap(false, Ordering::Relaxed)
    }

    /// Sends the interrupt that is held back; one too many does no harm.
    fn settle(&self, vring: &VringMutex<M>) {
        if self.take_owed()
            && let Err(error) = vring.signal_used_queue()
        {
            warn!(%error, "cannot notify the driver");
        }
    }

    /// How many kicks were read since this was last asked.
    pub(crate) fn take_kicks(&self) -> u64 {
        self.shared.kicks.swap(0, Ordering::Relaxed)
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

    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        let _turn = self.turn();
        self.vring.get_ref()
    }

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
        self.in_turn(|vring| {
            if !enabled {
                self.settle(vring);
            }
            vring.set_enabled(enabled);
        });
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
        self.in_turn(|vring| vring.set_queue_size(num));
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.in_turn(|vring| vring.set_queue_event_idx(enabled));
    }

    fn set_queue_ready(&self, ready: bool) {
        self.in_turn(|vring| {
            if ready && vring.queue_next_avail() == 0 {
                self.shared.broken.store(false, Ordering::Release);
            }
            if !ready {
                self.settle(vring);
            }
            vring.set_queue_ready(ready);
        });
    }

    fn set_kick(&self, file: Option<File>) {
        if let Some(file) = &file {
            // A read that finds nothing must not block the worker. QEMU's are
            // non-blocking already.
            if let Err(error) = set_nonblocking(file) {
                warn!(%error, "cannot make a kick descriptor non-blocking");
            }
        }
        self.in_turn(|vring| vring.set_kick(file));
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.in_turn(|vring| match vring.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Ok(enabled) => {
                self.shared.kicks.fetch_add(1, Ordering::Relaxed);
                Ok(enabled)
            }
            Err(error) => Err(error),
        })
    }

    fn set_call(&self, file: Option<File>) {
        self.in_turn(|vring| vring.set_call(file));
    }

    fn set_err(&self, file: Option<File>) {
        self.in_turn(|vring| vring.set_err(file));
    }
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file.as_fd())?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::os::fd::IntoRawFd;

    use vmm_sys_util::eventfd::EventFd;

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

    #[test]
    fn only_a_start_from_0_makes_a_broken_ring_whole() {
        let ring = ring();
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
