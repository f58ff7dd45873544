// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection to one client, from accept to hang-up.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ringbar_engine::model::{DeviceModel, Mapped, Mapper};
use ringbar_engine::{Counters, Engine, Options};
use ringbar_virtio_pci::{Description, Function};
use tracing::{debug, info};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::control::Control;
use crate::error::Error;
use crate::function::PciFunction;
use crate::interrupts::Interrupts;
use crate::options::FunctionOptions;
use crate::server;

/// Features of the transport and of the engine's rings.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A connection, handled by threads of its own.
pub struct Connection {
    /// Closed to end the connection.
    stop: Mutex<Option<io::PipeWriter>>,
    thread: JoinHandle<Result<(), Error>>,
    finished: io::PipeReader,
}

impl Connection {
    /// Accepts a connection and starts the engine of `device`, which counts in `counters`.
    /// Waits until a client connects.
    ///
    /// # Errors
    ///
    /// [`Error::Function`] for options that no PCI function can have, and [`Error::Resources`]
    /// where there are no descriptors or threads.
    pub fn accept<D: DeviceModel>(
        device: Arc<D>,
        counters: Arc<Counters>,
        options: Options,
        function: FunctionOptions,
        listener: &UnixListener,
    ) -> Result<Self, Error> {
        let threads = options.threads.clone();
        let mut backend = backend(device, counters, options, &function)?;
        // The write ends close when their owners end, also by a panic. The pipes are made before
        // the connection is accepted, which would be lost if there were no descriptors left.
        let (finished, running) = io::pipe().map_err(Error::Resources)?;
        let (stopped, stop) = io::pipe().map_err(Error::Resources)?;
        let (socket, _) = listener.accept().map_err(Error::Resources)?;
        info!("vfio-user client connected");
        let thread = threads
            .spawn("vfio-user", move || {
                let _running = running;
                let result = server::serve(socket, &mut backend, stopped.as_fd());
                debug!(?result, "message handler ended");
                drop(backend);
                result.map_err(Error::Connection)
            })
            .map_err(Error::Resources)?;
        Ok(Self {
            stop: Mutex::new(Some(stop)),
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
        let stop = self.stop.lock().map(|mut stop| stop.take());
        if let Ok(Some(mut stop)) = stop {
            // Readable as well as closed: whichever the reader waits for.
            let _ = stop.write_all(&[0]);
        }
    }

    /// Waits until the connection has ended and all its threads with it.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] where the client broke the protocol. A client that hangs up ends the
    /// connection without an error.
    pub fn join(self) -> Result<(), Error> {
        self.thread.join().map_err(|_| Error::Panicked)?
    }
}

/// The function of a device, with its engine and its threads.
fn backend<D: DeviceModel>(
    device: Arc<D>,
    counters: Arc<Counters>,
    options: Options,
    function: &FunctionOptions,
) -> Result<PciFunction<D>, Error> {
    let shared = device.shared_file();
    device.set_mapper(Arc::new(ClientMapper {
        has_file: shared.is_some(),
    }));
    let registers = Function::new(Description {
        identity: function.identity,
        interrupts: function.interrupts,
        features: FEATURES,
        queues: device.queue_count(),
        queue_size: function.queue_size,
        config_bytes: u32::try_from(device.config().len()).unwrap_or(u32::MAX),
        shared_region: device.shared_region().map(|region| region.bytes),
    })?;
    let registers = Arc::new(Mutex::new(registers));
    let messages = function.messages();
    let interrupts = Interrupts::new(messages.map_or(0, |(_, count)| count));
    let threads = options.threads.clone();
    let engine = Engine::new(Arc::clone(&device), counters, options).map_err(Error::Resources)?;
    let queues = engine.queues();
    let control = Control::start(
        Arc::clone(&device),
        engine,
        Arc::clone(&registers),
        Arc::clone(&interrupts),
        &threads,
    )?;
    Ok(PciFunction::new(
        device, registers, interrupts, queues, control, shared, function,
    ))
}

/// The client maps the shared region by itself, by the descriptor in the answer about its BAR. So
/// it is there whenever the device asks.
#[derive(Debug)]
struct ClientMapper {
    /// Whether the client gets the descriptor. It gets none of a storage that has no file, or where
    /// this process had no descriptor left when the client came.
    has_file: bool,
}

impl Mapper for ClientMapper {
    fn map(&self, _file: std::fs::File, _offset: u64, _length: u64, done: Mapped) {
        done(match self.has_file {
            true => Ok(()),
            false => Err(io::Error::other("the client has no file to map")),
        });
    }
}
