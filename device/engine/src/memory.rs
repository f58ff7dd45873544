// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as all workers of an engine see it.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

/// Guest memory that the transport replaces while the workers use it.
#[derive(Debug)]
pub(crate) struct SharedMemory<M>(ArcSwapOption<M>);

/// Guest memory as it was at one moment, which stays mapped as long as this lives.
pub(crate) struct Snapshot<M>(
    /// # Invariants
    ///
    /// There is memory.
    Guard<Option<Arc<M>>>,
);

impl<M> Deref for Snapshot<M> {
    type Target = M;

    fn deref(&self) -> &M {
        // PANIC: by the invariant.
        self.0.as_deref().expect("a snapshot is of some memory")
    }
}

impl<M> SharedMemory<M> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(ArcSwapOption::empty())
    }

    /// Replaces guest memory. Does not wait for the workers, see
    /// [`crate::Engine::replace_memory`].
    pub(crate) fn replace(&self, memory: Option<M>) {
        self.0.store(memory.map(Arc::new));
    }

    /// The memory as it is now, if there is any.
    pub(crate) fn get(&self) -> Option<Snapshot<M>> {
        let guard = self.0.load();
        // INVARIANT: checked here.
        guard.is_some().then_some(Snapshot(guard))
    }
}
