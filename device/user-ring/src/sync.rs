// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every ordering and every fence of the protocol, with the reason for each.
//!
//! All other accesses of the crate are relaxed. The protocol uses fences and no `SeqCst`
//! accesses, because only a fence orders a store before a later load of another word on every
//! processor, and because loom treats `SeqCst` accesses as `AcqRel`.
//!
//! The models remove each point once (`models::mutations`).

use core::sync::atomic::Ordering;
#[cfg(not(loom))]
use core::sync::atomic::fence;
#[cfg(loom)]
use loom::sync::atomic::fence;

/// An access or a fence on which the protocol relies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyncPoint {
    /// Process, store of word 0 of a submission entry. Release: the device that sees the lap
    /// sees words 1 to 7 of the entry, and the data of a `Write`. It also keeps the load of the
    /// completion that freed the slot before the store, so an entry that the device still reads
    /// is not overwritten.
    PublishSubmission,
    /// Device, load of word 0 of a submission entry. Acquire: pairs with
    /// [`Self::PublishSubmission`], so the words that are loaded next are those of this lap.
    TakeSubmission,
    /// Device, store of word 1 of a completion entry. Release: the process that sees the lap
    /// sees word 0, and the data of a `Read`. It also keeps the loads of the submission entry
    /// before the store, so the process that then writes to the slot cannot change what was
    /// taken.
    PublishCompletion,
    /// Process, load of word 1 of a completion entry. Acquire: pairs with
    /// [`Self::PublishCompletion`], so word 0 and the data that are loaded next are those of
    /// this lap.
    ReapCompletion,
    /// Process, between the stores of word 0 and the load of `need_wakeup`. Full fence (store
    /// buffering): process and device each store their own word before they load the other's,
    /// so at least one of them sees the other's store. Either the device finds the entry or the
    /// process kicks.
    SubmitFence,
    /// Device, between the store of `need_wakeup` and the loads of word 0: the other half of
    /// [`Self::SubmitFence`].
    SleepFence,
    /// Device, store of `completed`. Release: a driver that sees the number returns to the
    /// process, which must then find these completions in the ring; otherwise it would wait for
    /// a number that was already reached, and return at once again.
    PublishCompleted,
    /// Driver, load of `completed`. Acquire: pairs with [`Self::PublishCompleted`].
    LoadCompleted,
    /// Device, between the store of `completed` and the load of `armed`. Full fence, as
    /// [`Self::SubmitFence`]: either the driver sees the completions or the device sees that
    /// the driver waits.
    TurnFence,
    /// Driver, between the store of `armed` and the load of `completed`: the other half of
    /// [`Self::TurnFence`].
    WaitFence,
}

impl SyncPoint {
    /// The ordering of an access.
    #[inline(always)]
    pub(crate) fn ordering(self) -> Ordering {
        #[cfg(all(test, loom))]
        if crate::models::mutations::is_removed(self) {
            return Ordering::Relaxed;
        }
        match self {
            Self::PublishSubmission | Self::PublishCompletion | Self::PublishCompleted => {
                Ordering::Release
            }
            Self::TakeSubmission | Self::ReapCompletion | Self::LoadCompleted => Ordering::Acquire,
            Self::SubmitFence | Self::SleepFence | Self::TurnFence | Self::WaitFence => {
                Ordering::SeqCst
            }
        }
    }

    /// A fence.
    #[inline(always)]
    pub(crate) fn fence(self) {
        #[cfg(all(test, loom))]
        if crate::models::mutations::is_removed(self) {
            return;
        }
        fence(self.ordering());
    }
}
