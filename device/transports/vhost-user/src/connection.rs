// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection to one virtual machine monitor, from accept to hang-up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use ringbar_engine::model::DeviceModel;
use ringbar_engine::{Counters, Options};
use tracing::{debug, info};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as BackendError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::backend::DeviceBackend;
use crate::error::Error;

/// A connection, handled by threads of its own.
pub struct Connection {
    shutdown: Option<ShutdownHandle>,
    thread: JoinHandle<Result<(), Error>>,
    finished: io::PipeReader,
}

impl Connection {
    /// Accepts a connection and starts the engine of `device`, which counts in `counters`.
    /// Waits until a monitor connects.
    pub fn accept<D: DeviceModel>(
        device: Arc<D>,
        counters: Arc<Counters>,
        options: Options,
        listener: &UnixListener,
    ) -> Result<Self, Error> {
        let listener = Listener::from(listener.try_clone().map_err(Error::Resources)?);
        let threads = options.threads.clone();
        let backend = Arc::new(DeviceBackend::new(device, counters, options)?);
        // The write end closes when the thread ends, also by a panic. The pipe is made before
        // the connection is accepted, which would be lost if there were no descriptors left.
        let (finished, running) = io::pipe().map_err(Error::Resources)?;
        let (started, wait_started) = channel();
        let thread = threads
            .spawn("connection", move || {
                let _running = running;
                // The library starts its thread from this one, which so inherits all that was
                // done to this one at its start.
                let mut daemon = match start(&backend, listener) {
                    Ok(daemon) => daemon,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = started.send(Ok(daemon.shutdown_handle()));
                let result = daemon.wait();
                debug!(?result, "message handler ended");
                // Each worker ends after its current step, also with requests in its rings.
                backend.engine().ender().end();
                drop(daemon);
                drop(backend);
                connection_result(result)
            })
            .map_err(Error::Resources)?;
        let shutdown = match wait_started.recv() {
            Ok(Ok(shutdown)) => shutdown,
            Ok(Err(error)) => {
                // Nothing of the connection is left when the caller gets the error.
                let _ = thread.join();
                return Err(error);
            }
            Err(_) => return Err(Error::Panicked),
        };
        info!("virtual machine monitor connected");
        Ok(Self {
            shutdown,
            thread,
            finished,
        })
    }

    /// A descriptor that becomes readable (end of file) when the connection has ended.
    pub fn finished(&self) -> BorrowedFd<'_> {
        self.finished.as_fd()
    }

    /// Closes the connection after the current step of each worker.
    pub fn shut_down(&self) {
        if let Some(shutdown) = &self.shutdown {
            shutdown.shutdown();
        }
    }

    /// Waits until the connection has ended and all its threads with it.
    pub fn join(self) -> Result<(), Error> {
        self.thread.join().map_err(|_| Error::Panicked)?
    }
}

/// Accepts a connection and starts the thread that handles its messages.
fn start<D: DeviceModel>(
    backend: &Arc<DeviceBackend<D>>,
    mut listener: Listener,
) -> Result<VhostUserDaemon<Arc<DeviceBackend<D>>>, Error> {
    let queues = backend.hand_over_queues();
    let mut daemon = VhostUserDaemon::new(
        "vhost-user".to_owned(),
        Arc::clone(backend),
        GuestMemoryAtomic::new(GuestMemoryMmap::new()),
    )
    .map_err(backend_error)?;
    drop(queues);
    daemon.start(&mut listener).map_err(backend_error)?;
    Ok(daemon)
}

/// Keeps the text of an error of the library, because the error itself is not `Sync`.
fn backend_error(error: BackendError) -> Error {
    Error::Backend(error.to_string())
}

/// Result of a connection. A monitor that hangs up ends it without an error.
fn connection_result(result: Result<(), BackendError>) -> Result<(), Error> {
    match result {
        Ok(())
        | Err(BackendError::HandleRequest(
            ProtocolError::Disconnected | ProtocolError::PartialMessage,
        )) => Ok(()),
        Err(BackendError::WaitDaemon(_)) => Err(Error::Panicked),
        Err(BackendError::HandleRequest(error)) => Err(Error::Protocol(error)),
        Err(error) => Err(backend_error(error)),
    }
}
