// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Every ordering and every fence of the protocol, with the reason for each.
//!
//! All other accesses of the crate are relaxed. The protocol uses fences and no `SeqCst`
//! accesses, because only a fence orders a store before a later load of another word on every
//! processor, and because loom treats `SeqCst` accesses as `AcqRel`.
//!
//! The models remove each point once (`models::mutations`). What loom cannot show is said at the
//! point.

use core::sync::atomic::Ordering;
#[cfg(not(loom))]
use core::sync::atomic::fence;
#[cfg(loom)]
use loom::sync::atomic::fence;

/// Makes the type and the list of its values, so that a point that is added is in the list.
macro_rules! sync_points {
    ($($(#[$doc:meta])* $point:ident: $ordering:ident,)*) => {
        /// An access or a fence on which the protocol relies.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum SyncPoint {
            $($(#[$doc])* $point,)*
        }

        impl SyncPoint {
            #[cfg(all(test, loom))]
            pub(crate) const ALL: &[Self] = &[$(Self::$point),*];

            #[inline(always)]
            const fn needed(self) -> Ordering {
                match self {
                    $(Self::$point => Ordering::$ordering,)*
                }
            }
        }
    };
}

sync_points! {
    /// Process, store of word 0 of a submission entry. Release: the device that sees the lap
    /// sees words 1 to 7 of the entry, and the data of a `Write`.
    PublishSubmission: Release,
    /// Device, load of word 0 of a submission entry. Acquire: pairs with
    /// [`Self::PublishSubmission`], so the words that are loaded next are those of this lap.
    TakeSubmission: Acquire,
    /// Device, store of word 1 of a completion entry. Release: the process that sees the lap
    /// sees word 0, and the data of a `Read`. The loads of the submission entry, and of the data
    /// of a `Write`, come before the store.
    PublishCompletion: Release,
    /// Process, load of word 1 of a completion entry. Acquire: pairs with
    /// [`Self::PublishCompletion`], so word 0 and the data that are loaded next are those of
    /// this lap. The stores to the slot that the completion freed come after the load.
    ///
    /// Both together protect a slot that the device reads: the device's loads happen before the
    /// process's stores to the same slot, so no load can return what such a store writes. Loom
    /// does not show this half: it explores no load buffering, where a load returns a value
    /// that is stored later in the execution.
    ReapCompletion: Acquire,
    /// Process, between the stores of word 0 and the load of `need_wakeup`. Full fence (store
    /// buffering): process and device each store their own word before they load the other's,
    /// so at least one of them sees the other's store. Either the device finds the entry or the
    /// process kicks.
    SubmitFence: SeqCst,
    /// Device, between the store of `need_wakeup` and the loads of word 0: the other half of
    /// [`Self::SubmitFence`].
    SleepFence: SeqCst,
    /// Device, store of `completed`. Release: a driver that sees the number returns to the
    /// process, which must then find these completions in the ring; otherwise it would wait for
    /// a number that was already reached, and return at once again.
    PublishCompleted: Release,
    /// Driver, load of `completed`. Acquire: pairs with [`Self::PublishCompleted`].
    LoadCompleted: Acquire,
    /// Device, between the store of `completed` and the load of `armed`. Full fence, as
    /// [`Self::SubmitFence`]: either the driver sees the completions or the device sees that
    /// the driver waits.
    TurnFence: SeqCst,
    /// Driver, between the store of `armed` and the load of `completed`: the other half of
    /// [`Self::TurnFence`].
    WaitFence: SeqCst,
}

impl SyncPoint {
    /// The ordering of an access.
    #[inline(always)]
    pub(crate) fn ordering(self) -> Ordering {
        #[cfg(all(test, loom))]
        if crate::models::mutations::is_removed(self) {
            return Ordering::Relaxed;
        }
        self.needed()
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
