// SPDX-License-Identifier: GPL-2.0

//! The buffers of a program, and the threads that wait until the device has filled one.
//!
//! ```text
//!            post             the device fills it               take
//!  Idle --------------> Posted -------------------> Filled --------------> Idle
//!                        |  ^
//!          stop          v  | start, in the same order
//!                      Withdrawn
//! ```

use super::buffer::{
    Buffer,
    Released, //
};
use crate::{
    abstractions::{
        fs::poll::{
            Pollers,
            Readiness, //
        },
        task::wait::{
            Signals,
            WaitQueue, //
        }, //
    },
    virtio::reset::Quiesced, //
};
use core::mem::{
    replace,
    take, //
};
use kernel::{
    device::Bound,
    new_spinlock_irq,
    pci,
    prelude::*,
    sync::{
        Arc,
        SpinLockIrq, //
    }, //
};

/// A buffer that the device has filled.
pub(crate) struct Filled<const M: usize> {
    /// Number of the buffer.
    pub(crate) index: usize,
    /// Number of bytes that the device says it has written, at most those of the buffer.
    pub(crate) bytes: usize,
    /// The metadata.
    pub(crate) metadata: [u8; M],
}

/// A buffer, or the place of one.
enum Slot<const M: usize> {
    /// The program may use the buffer.
    Idle(KBox<Buffer>),
    /// The queue owns the buffer, or a thread that posts or takes it.
    Away,
    /// It was posted, and the device was stopped.
    Withdrawn(KBox<Buffer>),
    /// The device has filled it, after this number of others.
    Filled(u64, KBox<Buffer>, Filled<M>),
    /// The program has withdrawn it.
    Released(#[expect(dead_code, reason = "to be dropped")] Released),
}

/// Whether the device fills buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It does.
    InService,
    /// It broke the queue, or does not start.
    Failed,
    /// The driver is being unbound.
    Gone,
}

struct State<const M: usize> {
    list: KVec<Slot<M>>,
    /// Numbers of buffers that were posted, filled, and taken.
    posted: u64,
    filled: u64,
    taken: u64,
    condition: Condition,
    /// Nobody wants the buffers any more, but the device has not been stopped yet.
    abandoned: bool,
}

/// The buffers. They outlive the hardware, but do not contain any buffers then.
#[pin_data]
pub(crate) struct Slots<const M: usize> {
    #[pin]
    state: SpinLockIrq<State<M>>,
    #[pin]
    waiting: WaitQueue,
    #[pin]
    pollers: Pollers,
}

impl<const M: usize> Slots<M> {
    /// Without buffers.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock_irq!(State {
                    list: KVec::new(),
                    posted: 0,
                    filled: 0,
                    taken: 0,
                    condition: Condition::InService,
                    abandoned: false,
                }),
                waiting <- WaitQueue::new(),
                pollers <- Pollers::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The threads that wait in `poll`.
    pub(crate) fn pollers(&self) -> &Pollers {
        &self.pollers
    }

    /// Whether [`Stream::take`](super::stream::Stream::take) would return a buffer. Any context.
    pub(crate) fn readiness(&self) -> Readiness {
        let state = self.state.lock();
        if state.filled != state.taken {
            Readiness::Ready
        } else if state.condition == Condition::InService {
            Readiness::Busy
        } else {
            Readiness::Gone
        }
    }

    /// Waits until [`Self::readiness`] may have changed from [`Readiness::Busy`]. Sleeps. An error if
    /// the task has got one of these `signals`.
    pub(crate) fn wait(&self, signals: Signals) -> Result {
        let state = self.state.lock();
        if state.filled != state.taken || state.condition != Condition::InService {
            return Ok(());
        }
        self.waiting.wait(signals, None, || drop(state))
    }

    /// Wakes all who wait. Any context.
    pub(super) fn notify(&self) {
        self.waiting.notify_all();
        self.pollers.notify();
    }

    /// Sets the condition. Any context; the caller notifies.
    pub(super) fn set_condition(&self, condition: Condition) {
        self.state.lock().condition = condition;
    }

    /// Adds buffers, if there are none and the device fills buffers; otherwise returns them.
    pub(super) fn set(
        &self,
        buffers: KVec<KBox<Buffer>>,
    ) -> Result<(), (Error, KVec<KBox<Buffer>>)> {
        let Ok(mut list) = KVec::with_capacity(buffers.len(), GFP_KERNEL) else {
            return Err((ENOMEM, buffers));
        };
        let mut state = self.state.lock();
        if state.condition != Condition::InService {
            return Err((EIO, buffers));
        }
        if !state.list.is_empty() {
            return Err((EBUSY, buffers));
        }
        for buffer in buffers {
            // It has capacity for all of them.
            let _ = list.push_within_capacity(Slot::Idle(buffer));
        }
        state.list = list;
        Ok(())
    }

    /// Takes an idle buffer that is going to be posted. `EINVAL` if there is no such buffer, `EBUSY`
    /// if it is not idle, `EIO` if the device does not fill buffers. Any context.
    pub(super) fn take_idle(&self, index: usize) -> Result<KBox<Buffer>> {
        let mut state = self.state.lock();
        if state.condition != Condition::InService {
            return Err(EIO);
        }
        let posted = state.posted;
        let slot = state.list.get_mut(index).ok_or(EINVAL)?;
        match replace(slot, Slot::Away) {
            Slot::Idle(mut buffer) => {
                buffer.posted = posted;
                state.posted += 1;
                Ok(buffer)
            }
            other => {
                *slot = other;
                Err(EBUSY)
            }
        }
    }

    /// Returns a buffer that the device does not have. Any context.
    pub(super) fn put_idle(&self, buffer: KBox<Buffer>) {
        self.state.lock().put(buffer, Slot::Idle);
    }

    /// Returns a buffer that the device had when it was stopped. Any context.
    pub(super) fn put_withdrawn(&self, buffer: KBox<Buffer>) {
        self.state.lock().put(buffer, Slot::Withdrawn);
    }

    /// Returns a buffer that the device has filled, and has written `len` bytes, as it says. Returns
    /// whether that is possible. Any context; the caller notifies.
    pub(super) fn put_filled(&self, buffer: KBox<Buffer>, len: u32) -> bool {
        let mut state = self.state.lock();
        let bytes = (len as usize)
            .checked_sub(M)
            .filter(|&bytes| bytes <= buffer.bytes());
        let (Some(bytes), Some(metadata)) = (bytes, buffer.metadata()) else {
            state.put(buffer, Slot::Idle);
            return false;
        };
        let filled = Filled {
            index: buffer.index(),
            bytes,
            metadata,
        };
        let number = state.filled;
        state.filled += 1;
        state.put(buffer, |buffer| Slot::Filled(number, buffer, filled));
        true
    }

    /// Takes the buffer that the device has filled first. `None` if there is none yet; `EIO` if there
    /// will be none, because the device does not fill buffers. Any context.
    pub(super) fn take_filled(&self) -> Result<Option<(KBox<Buffer>, Filled<M>)>> {
        let mut state = self.state.lock();
        let next = state.taken;
        let is_next =
            |slot: &&mut Slot<M>| matches!(slot, Slot::Filled(number, ..) if *number == next);
        if let Some(slot) = state.list.iter_mut().find(is_next) {
            if let Slot::Filled(_, buffer, filled) = replace(slot, Slot::Away) {
                state.taken += 1;
                return Ok(Some((buffer, filled)));
            }
        }
        match state.condition {
            Condition::InService => Ok(None),
            _ => Err(EIO),
        }
    }

    /// Takes the withdrawn buffer that was posted first. Any context.
    pub(super) fn take_withdrawn(&self) -> Option<KBox<Buffer>> {
        let mut state = self.state.lock();
        let posted = |slot: &Slot<M>| match slot {
            Slot::Withdrawn(buffer) => Some(buffer.posted),
            _ => None,
        };
        let slot = (state.list.iter_mut())
            .filter(|slot| posted(slot).is_some())
            .min_by_key(|slot| posted(slot))?;
        match replace(slot, Slot::Away) {
            Slot::Withdrawn(buffer) => Some(buffer),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Takes all buffers away from a device that was stopped, none of which is [`Slot::Away`].
    pub(super) fn release_all(
        &self,
        device: &pci::Device<Bound>,
        quiesced: &Quiesced,
    ) -> ReleasedSlots<M> {
        let mut list = {
            let mut state = self.state.lock();
            (state.posted, state.filled, state.taken) = (0, 0, 0);
            state.abandoned = false;
            take(&mut state.list)
        };
        for slot in &mut list {
            *slot = match replace(slot, Slot::Away) {
                Slot::Idle(buffer) | Slot::Withdrawn(buffer) | Slot::Filled(_, buffer, _) => {
                    Slot::Released(KBox::into_inner(buffer).release(device, quiesced))
                }
                other => other,
            };
        }
        ReleasedSlots(list)
    }

    /// Keeps the buffers until the device can be stopped: nobody takes those that are filled. Any
    /// context.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.taken = state.filled;
        state.abandoned = true;
    }

    /// Whether [`Self::release_all`] has to follow as soon as the device was stopped. Any context.
    pub(super) fn are_abandoned(&self) -> bool {
        self.state.lock().abandoned
    }

    /// Leaves all buffers to a device that cannot be stopped, and that the driver forgets.
    pub(super) fn leak_all(&self) {
        core::mem::forget(take(&mut self.state.lock().list));
    }
}

impl<const M: usize> State<M> {
    fn put(&mut self, buffer: KBox<Buffer>, slot: impl FnOnce(KBox<Buffer>) -> Slot<M>) {
        if let Some(place) = self.list.get_mut(buffer.index()) {
            *place = slot(buffer);
        }
    }
}

/// Buffers that no device has any more. Dropping this unpins their pages, which sleeps for any time.
#[must_use = "dropping them sleeps"]
pub(crate) struct ReleasedSlots<const M: usize>(
    #[expect(dead_code, reason = "to be dropped")] KVec<Slot<M>>,
);
