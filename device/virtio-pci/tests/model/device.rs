// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that carries out actions, and insists on what their documentation says.

use std::collections::BTreeMap;

use ringbar_virtio_pci::{Action, Queue};

/// Started queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub features: u64,
    pub queues: BTreeMap<u16, Queue>,
    pub is_paused: bool,
}

/// The device behind a function.
#[derive(Debug, Default)]
pub struct Consumer {
    pub run: Option<Run>,
    /// Vectors of queues, and of the configuration as `None`.
    pub vectors: BTreeMap<Option<u16>, u16>,
    pub is_intx_disabled: bool,
    /// Whether it has a reset to end.
    pub is_resetting: bool,
    pub notified: Vec<u16>,
}

/// The limits of actions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub queues: u16,
    pub queue_size: u16,
    pub vectors: u16,
}

impl Consumer {
    /// Carries out an action. Panics if it is not allowed now, or has a bad value.
    pub fn apply(&mut self, action: Action, limits: Limits) {
        let check = |queue: &Queue| {
            assert!(queue.index < limits.queues, "{queue:?}");
            assert!(queue.size.is_power_of_two(), "{queue:?}");
            assert!(queue.size <= limits.queue_size, "{queue:?}");
        };
        match action {
            Action::Start { features, queues } => {
                assert!(self.run.is_none(), "second start");
                assert!(!self.is_resetting, "start during a reset");
                queues.iter().for_each(check);
                assert!(queues.is_sorted_by(|a, b| a.index < b.index), "{queues:?}");
                self.run = Some(Run {
                    features,
                    queues: queues.into_iter().map(|q| (q.index, q)).collect(),
                    is_paused: false,
                });
            }
            Action::StartQueue(queue) => {
                check(&queue);
                let run = self.run.as_mut().expect("queue started without device");
                assert!(!run.is_paused, "queue started while paused");
                let old = run.queues.insert(queue.index, queue);
                assert_eq!(old, None, "queue started twice");
            }
            Action::Pause => {
                let run = self.run.as_mut().expect("pause without device");
                assert!(!run.is_paused, "second pause");
                run.is_paused = true;
            }
            Action::Resume => {
                let run = self.run.as_mut().expect("resume without device");
                assert!(run.is_paused, "resume without pause");
                run.is_paused = false;
            }
            Action::Reset => {
                assert!(!self.is_resetting, "second reset");
                self.run = None;
                self.vectors.clear();
                self.is_resetting = true;
            }
            Action::Notify { queue } => {
                let run = self.run.as_ref().expect("notification without device");
                assert!(run.queues.contains_key(&queue), "notification of {queue}");
                self.notified.push(queue);
            }
            Action::QueueVector { queue, vector } => {
                assert!(queue < limits.queues, "vector of queue {queue}");
                self.set_vector(Some(queue), vector, limits);
            }
            Action::ConfigVector { vector } => self.set_vector(None, vector, limits),
            Action::IntxDisable(disabled) => {
                assert_ne!(self.is_intx_disabled, disabled, "INTx has not changed");
                self.is_intx_disabled = disabled;
            }
        }
    }

    fn set_vector(&mut self, of: Option<u16>, vector: Option<u16>, limits: Limits) {
        assert!(!self.is_resetting, "vector during a reset");
        let old = match vector {
            Some(vector) => {
                assert!(vector < limits.vectors, "vector {vector}");
                self.vectors.insert(of, vector)
            }
            None => self.vectors.remove(&of),
        };
        assert_ne!(old, vector, "vector of {of:?} has not changed");
    }
}
