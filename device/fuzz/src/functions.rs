// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Functions to be fuzzed, and what holds for the actions of any.

use std::cell::{Cell, RefCell};

use ringbar_virtio_pci::{
    Action, Actions, Description, Function, Identity, Interrupts, Queue, Surroundings,
};

/// `VIRTIO_F_VERSION_1`.
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Descriptions that differ in all that is optional.
pub(crate) fn description(which: u8) -> Description {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x10f0,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        revision: 1,
        class: 0x078000,
    };
    let (interrupts, queues, queue_size, config_bytes, shared_region) = match which % 4 {
        0 => (Interrupts::MsiX { vectors: 5 }, 4, 256, 64, Some(1 << 21)),
        1 => (Interrupts::Msi { vectors: 4 }, 3, 1024, 12, None),
        2 => (Interrupts::IntxOnly, 1, 2, 0, Some(1 << 12)),
        _ => (
            Interrupts::MsiX { vectors: 2048 },
            1024,
            32768,
            4096,
            Some(1 << 40),
        ),
    };
    Description {
        identity,
        interrupts,
        features: VERSION_1 | 1 << 28 | 1 << 29 | 1 << 33 | 1 << 5,
        queues,
        queue_size,
        config_bytes,
        shared_region,
    }
}

/// Number of message vectors.
pub(crate) fn vectors(description: &Description) -> u16 {
    match description.interrupts {
        Interrupts::MsiX { vectors } | Interrupts::Msi { vectors } => vectors,
        Interrupts::IntxOnly => 0,
    }
}

/// The device behind the function.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub(crate) config: RefCell<Vec<u8>>,
    pub(crate) interrupt_status: Cell<u8>,
}

impl Surroundings for Device {
    fn device_config(&self) -> Vec<u8> {
        self.config.borrow().clone()
    }

    fn take_interrupt_status(&self) -> u8 {
        self.interrupt_status.take()
    }
}

/// What the actions so far have led to. Panics at the first one that cannot follow them.
#[derive(Debug)]
pub(crate) struct Effects {
    description: Description,
    /// Features and queues while the device is started.
    pub(crate) started: Option<(u64, Vec<Queue>)>,
    pub(crate) paused: bool,
    /// [`Action::Reset`] was the last of a run.
    pub(crate) resetting: bool,
    pub(crate) config_vector: Option<u16>,
    pub(crate) queue_vectors: Vec<Option<u16>>,
    pub(crate) intx_disabled: bool,
}

impl Effects {
    pub(crate) fn new(description: &Description) -> Self {
        Self {
            description: description.clone(),
            started: None,
            paused: false,
            resetting: false,
            config_vector: None,
            queue_vectors: vec![None; description.queues.into()],
            intx_disabled: false,
        }
    }

    /// Applies the actions of one access.
    pub(crate) fn apply(&mut self, actions: &Actions) {
        for action in actions {
            self.apply_one(action);
        }
    }

    fn apply_one(&mut self, action: &Action) {
        match action {
            Action::Start { features, queues } => {
                assert!(self.started.is_none() && !self.resetting, "{action:?}");
                assert_eq!(features & !self.description.features, 0);
                assert_ne!(features & VERSION_1, 0);
                assert!(queues.is_sorted_by(|a, b| a.index < b.index));
                queues.iter().for_each(|queue| self.check_queue(queue));
                self.started = Some((*features, queues.clone()));
                self.paused = false;
            }
            Action::StartQueue(queue) => {
                assert!(!self.paused);
                self.check_queue(queue);
                let (_, queues) = self.started.as_mut().expect("started");
                assert!(queues.iter().all(|other| other.index != queue.index));
                queues.push(*queue);
            }
            Action::Pause => {
                assert!(self.started.is_some() && !self.paused);
                self.paused = true;
            }
            Action::Resume => {
                assert!(self.started.is_some() && self.paused);
                self.paused = false;
            }
            Action::Reset => {
                assert!(!self.resetting);
                self.resetting = true;
                self.started = None;
                self.paused = false;
                self.config_vector = None;
                self.queue_vectors.fill(None);
            }
            Action::Notify { queue } => {
                let (_, queues) = self.started.as_ref().expect("started");
                assert!(queues.iter().any(|other| other.index == *queue));
            }
            Action::QueueVector { queue, vector } => {
                self.check_vector(*vector);
                let old = &mut self.queue_vectors[usize::from(*queue)];
                assert_ne!(old, vector, "no change");
                *old = *vector;
            }
            Action::ConfigVector { vector } => {
                self.check_vector(*vector);
                assert_ne!(self.config_vector, *vector, "no change");
                self.config_vector = *vector;
            }
            Action::IntxDisable(disabled) => {
                assert_ne!(self.intx_disabled, *disabled, "no change");
                self.intx_disabled = *disabled;
            }
        }
    }

    fn check_queue(&self, queue: &Queue) {
        assert!(queue.index < self.description.queues);
        assert!(queue.size.is_power_of_two() && queue.size <= self.description.queue_size);
    }

    fn check_vector(&self, vector: Option<u16>) {
        assert!(vector.is_none_or(|vector| vector < vectors(&self.description)));
    }

    /// The device has stopped.
    pub(crate) fn reset_done(&mut self, function: &mut Function) {
        assert_eq!(self.resetting, function.is_resetting());
        function.reset_done();
        assert!(!function.is_resetting());
        self.resetting = false;
    }
}
