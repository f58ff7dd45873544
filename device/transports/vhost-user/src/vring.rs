// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vring of the `vhost-user-backend` crate that forwards to a queue of the engine.
//!
//! The crate keeps the state that messages set in a vring, and processes vrings with a kick
//! descriptor on threads of its own. This vring shows the crate no kick descriptor, so the
//! crate does not process it; the engine has the descriptor and processes the queue.
//!
//! | message | effect |
//! |---|---|
//! | `SET_VRING_NUM`, `_ADDR`, `_BASE`, `SET_FEATURES` | setup of the next start; a running queue is restarted with it |
//! | `SET_VRING_KICK` | sets the doorbell, starts the queue |
//! | `SET_VRING_CALL` | sets the interrupt |
//! | `SET_VRING_ENABLE` | enables or disables the queue |
//! | `GET_VRING_BASE` | stops the queue |
//!
//! The crate creates the vrings itself and passes neither the device nor an index. It creates
//! them in ascending order on the thread that creates the daemon, so that thread puts the
//! queues in place before ([`Queues`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbar_engine::{EventFd, QueueControl, QueueSetup};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::descriptors::Kick;

/// Guest memory as the crate keeps it.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

thread_local! {
    /// Queues for the vrings that this thread creates next.
    static QUEUES: RefCell<VecDeque<Arc<dyn QueueControl>>> = RefCell::default();
}

/// Guard of the queues for which this thread creates vrings; dropping it removes them.
pub(crate) struct Queues(());

impl Queues {
    pub(crate) fn hand_over(queues: Vec<Arc<dyn QueueControl>>) -> Self {
        QUEUES.set(queues.into());
        Self(())
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        QUEUES.take();
    }
}

/// A vring that forwards to a queue.
#[derive(Clone)]
pub(crate) struct Vring<M: GuestAddressSpace = Memory> {
    /// State of the vring as the crate reads it, without descriptors.
    mirror: VringMutex<M>,
    queue: Arc<dyn QueueControl>,
    /// State that the monitor last set.
    state: Arc<Mutex<VringState>>,
}

/// State of a queue that the monitor last set.
#[derive(Debug, Default)]
struct VringState {
    /// As of the last start.
    setup: QueueSetup,
    started: bool,
    enabled: bool,
}

impl<M: GuestAddressSpace + 'static> Vring<M> {
    fn state(&self) -> MutexGuard<'_, VringState> {
        // Each change is a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the setup except for its indices, and restarts a running queue if it differs.
    fn change_setup(&self, change: impl Fn(&mut QueueSetup)) {
        let mut state = self.state();
        let mut setup = state.setup;
        change(&mut setup);
        if setup != state.setup {
            self.change_setup_and_restart(&mut state, change);
        }
    }

    /// Changes the setup, and restarts a running queue with it.
    fn change_setup_and_restart(&self, state: &mut VringState, change: impl Fn(&mut QueueSetup)) {
        if state.started
            && let Some(stopped) = self.queue.stop()
        {
            state.setup.go_on_from(stopped);
        }
        change(&mut state.setup);
        if state.started {
            self.queue.start(state.setup);
        }
    }
}

impl<'a, M: GuestAddressSpace + 'static> VringStateGuard<'a, M> for Vring<M> {
    type G = <VringMutex<M> as VringStateGuard<'a, M>>::G;
}

impl<'a, M: GuestAddressSpace + 'static> VringStateMutGuard<'a, M> for Vring<M> {
    type G = <VringMutex<M> as VringStateMutGuard<'a, M>>::G;
}

impl<M: GuestAddressSpace + 'static> VringT<M> for Vring<M> {
    fn new(mem: M, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self {
            mirror: VringMutex::new(mem, max_queue_size)?,
            // The crate creates as many vrings as the device has queues.
            queue: QUEUES
                .with_borrow_mut(VecDeque::pop_front)
                .ok_or(QueueError::QueueNotReady)?,
            state: Arc::default(),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, M>>::G {
        self.mirror.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, M>>::G {
        self.mirror.get_mut()
    }

    // The crate calls these for devices that process vrings on its threads.

    fn add_used(&self, _desc_index: u16, _len: u32) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(false)
    }

    // The crate calls these when it handles messages.

    fn set_enabled(&self, enabled: bool) {
        self.mirror.set_enabled(enabled);
        self.state().enabled = enabled;
        self.queue.enable(enabled);
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.mirror
            .set_queue_info(desc_table, avail_ring, used_ring)?;
        self.change_setup(|setup| {
            setup.desc_table = desc_table;
            setup.avail_ring = avail_ring;
            setup.used_ring = used_ring;
        });
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.state().setup.next_avail
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.change_setup_and_restart(&mut self.state(), |setup| setup.next_avail = base);
    }

    /// The crate reads the index out of guest memory, where a running queue advances it. So a
    /// running queue keeps its own.
    fn set_queue_next_used(&self, idx: u16) {
        let mut state = self.state();
        if !state.started || !state.enabled {
            self.change_setup_and_restart(&mut state, |setup| setup.next_used = idx);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.mirror.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.change_setup(|setup| setup.size = num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.change_setup(|setup| setup.event_idx = enabled);
    }

    /// The crate calls this with `false` to stop a vring. It would start only vrings with a kick
    /// descriptor.
    fn set_queue_ready(&self, ready: bool) {
        let mut state = self.state();
        if ready || !state.started {
            return;
        }
        state.started = false;
        if let Some(stopped) = self.queue.stop() {
            state.setup.go_on_from(stopped);
        }
        self.queue.set_doorbell(None);
    }

    fn set_kick(&self, file: Option<File>) {
        let Some(file) = file else {
            self.queue.set_doorbell(None);
            return;
        };
        self.queue.set_doorbell(Some(Box::new(Kick::new(file))));
        let mut state = self.state();
        if !state.started {
            state.started = true;
            self.queue.start(state.setup);
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.queue
            .set_interrupt(file.map(|file| Box::new(EventFd::new(file)) as Box<_>));
    }

    fn set_err(&self, _file: Option<File>) {}
}
