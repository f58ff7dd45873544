// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests to the monitor to map the device's memory
//! (vhost-user, `VHOST_USER_BACKEND_SHMEM_MAP`).
//!
//! Each request has a thread, which waits for the reply. The wait has no timeout, because the
//! `vhost` crate has none. Before it replies, the monitor sends messages of its own (the new
//! memory table) and waits until they are handled.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use ringbar_engine::Threads;
use ringbar_engine::model::{Mapped, Mapper};
use tracing::warn;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

/// Id of the only shared memory region.
const REGION: u8 = 0;

/// Sends requests to map memory to the monitor of one connection.
pub(crate) struct MonitorMapper {
    threads: Threads,
    backend: Mutex<Option<Backend>>,
}

impl fmt::Debug for MonitorMapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorMapper").finish_non_exhaustive()
    }
}

impl MonitorMapper {
    /// Without a channel so far.
    pub(crate) fn new(threads: Threads) -> Self {
        Self {
            threads,
            backend: Mutex::default(),
        }
    }

    /// Sets the channel on which the monitor accepts requests.
    pub(crate) fn set_backend(&self, backend: Backend) {
        *self.backend.lock().unwrap_or_else(PoisonError::into_inner) = Some(backend);
    }
}

impl Mapper for MonitorMapper {
    fn map(&self, file: File, offset: u64, length: u64, done: Mapped) {
        let backend = self
            .backend
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let request = move || done(request(backend, &file, offset, length));
        if let Err(error) = self.threads.spawn("mapper", request) {
            warn!(%error, "no thread to have memory mapped");
        }
    }
}

fn request(backend: Option<Backend>, file: &File, offset: u64, length: u64) -> io::Result<()> {
    let backend = backend.ok_or_else(|| {
        io::Error::other("the monitor opened no channel for requests of the device")
    })?;
    let request = VhostUserMMap {
        shmid: REGION,
        padding: [0; 7],
        fd_offset: offset,
        shm_offset: 0,
        len: length,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    match backend.shmem_map(&request, file)? {
        0 => Ok(()),
        code => Err(io::Error::other(format!("the monitor answered {code:#x}"))),
    }
}
