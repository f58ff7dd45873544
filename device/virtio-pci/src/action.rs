// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The effects of an access on the device behind the function.

use std::{iter, option, slice, vec};

/// A virtqueue as the driver has set it up (VIRTIO 1.3, 4.1.4.3).
///
/// The function does not check the addresses: it knows no memory.
///
/// # Invariants
///
/// `index` is less than [`Description::queues`](crate::Description::queues). `size` is a power
/// of two and at most [`Description::queue_size`](crate::Description::queue_size).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Index of the queue.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor area, in bytes of the device's address space.
    pub descriptors: u64,
    /// Address of the driver area (available ring).
    pub driver: u64,
    /// Address of the device area (used ring).
    pub device: u64,
}

/// An effect of an access. The surroundings carry out actions in the order in which the function
/// has returned them.
///
/// Each sequence of actions consists of runs from [`Action::Start`] to [`Action::Reset`].
/// `StartQueue`, `Pause`, `Resume` and `Notify` occur only within a run, and after `Pause` the next
/// of `Pause`, `Resume` and `StartQueue` is `Resume`. The other actions occur at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The driver has set `DRIVER_OK` and bus mastering is enabled: process these queues.
    Start {
        /// The negotiated features: a subset of those offered, with `VIRTIO_F_VERSION_1`.
        features: u64,
        /// The enabled queues, in ascending order of index.
        queues: Vec<Queue>,
    },
    /// The driver has enabled a queue after `DRIVER_OK`: process it too.
    StartQueue(Queue),
    /// Bus mastering was disabled: access no memory of the driver until [`Action::Resume`], and send
    /// no messages (MSI, MSI-X), which are such accesses too. The queues keep their positions.
    Pause,
    /// Bus mastering is enabled again: continue to process the queues.
    Resume,
    /// Stop all queues, clear the interrupt status, and then call
    /// [`Function::reset_done`](crate::Function::reset_done), once. All vectors are `None` from now
    /// on. The next reset is returned after that call at the earliest.
    Reset,
    /// The driver has notified the device of a started queue. Also occurs while the queues are
    /// paused.
    Notify {
        /// Index of the queue.
        queue: u16,
    },
    /// The interrupt vector of a queue has changed.
    QueueVector {
        /// Index of the queue.
        queue: u16,
        /// The vector; `None` if the queue has none (`VIRTIO_MSI_NO_VECTOR`).
        vector: Option<u16>,
    },
    /// The interrupt vector of configuration changes has changed.
    ConfigVector {
        /// The vector; `None` if there is none (`VIRTIO_MSI_NO_VECTOR`).
        vector: Option<u16>,
    },
    /// The interrupt disable bit of the command register has changed: whether the function must
    /// not assert INTx.
    IntxDisable(bool),
}

/// The actions of an access, in the order in which they take effect.
///
/// One action needs no allocation: a notification is the most frequent access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "actions are the effects of an access"]
pub struct Actions {
    // INVARIANT: Empty `first` implies empty `more`.
    first: Option<Action>,
    more: Vec<Action>,
}

impl Actions {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The actions, in their order.
    pub fn iter(&self) -> iter::Chain<option::Iter<'_, Action>, slice::Iter<'_, Action>> {
        self.first.iter().chain(&self.more)
    }

    pub(crate) fn push(&mut self, action: Action) {
        if self.first.is_none() {
            self.first = Some(action);
        } else {
            self.more.push(action);
        }
    }
}

impl IntoIterator for Actions {
    type Item = Action;
    type IntoIter = iter::Chain<option::IntoIter<Action>, vec::IntoIter<Action>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

impl<'a> IntoIterator for &'a Actions {
    type Item = &'a Action;
    type IntoIter = iter::Chain<option::Iter<'a, Action>, slice::Iter<'a, Action>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_keep_their_order() {
        let mut actions = Actions::default();
        assert!(actions.is_empty());
        for queue in 0..3 {
            actions.push(Action::Notify { queue });
        }
        assert!(!actions.is_empty());
        let expected: Vec<_> = (0..3).map(|queue| Action::Notify { queue }).collect();
        assert_eq!(actions.iter().cloned().collect::<Vec<_>>(), expected);
        assert_eq!(actions.into_iter().collect::<Vec<_>>(), expected);
    }
}
