// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of the process: storage, device, socket, connections, and the end.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use ringbar_model::{Counts, Device, Session};
use ringbar_serve::sandbox::Confinement;
use ringbar_serve::service_manager::ServiceManager;
use ringbar_serve::signals::Termination;
use ringbar_serve::socket::{PreparedSocket, Socket};
use ringbar_storage::{BlockStorage, FileStorage, MemoryStorage, NbdStorage, Storage};
use tracing::info;

use crate::cli::{Options, StorageKind};
use crate::control::{ControlSocket, Controlled};
use crate::sandbox::{BLOCK_IO, NBD_IO};

/// Runs a device until its last connection has ended, or the process gets a signal.
pub fn run(options: &Options, confinement: &Confinement) -> anyhow::Result<()> {
    let started = Instant::now();
    // Before this process opens any descriptor, which could have the number given by mistake.
    let endpoint = PreparedSocket::new(&options.serve.endpoint)?;
    let termination = Termination::catch().context("cannot catch signals")?;
    let storage = open_storage(options, confinement)?;
    let mut socket = endpoint.listen()?;
    let control = match &options.control_socket {
        Some(path) => Some(ControlSocket::bind(path)?),
        None => None,
    };
    let manager = ServiceManager::connect();
    let mut engine = options.serve.engine(confinement.threads());
    // From here on nothing can be opened. All other threads start restricted.
    let others: Vec<_> = options.control_socket.as_deref().into_iter().collect();
    confinement.restrict_main(&options.serve.endpoint, &others)?;
    let device = make_device(storage, options, &mut engine)?;
    let controlled = controlled(&device, options, started, &termination);
    let _control = match control {
        Some(control) => Some(control.serve(controlled, &engine.threads)?),
        None => None,
    };
    log_listening(&device, options);
    let options = &options.serve;
    serve(
        &device,
        &mut socket,
        &termination,
        &manager,
        options,
        &engine,
    )
}

/// Makes a device with the faults of the options, of which `engine` gets those of queues.
pub fn make_device(
    storage: Arc<dyn Storage>,
    options: &Options,
    engine: &mut ringbar_engine::Options,
) -> anyhow::Result<Arc<Device>> {
    let device = Arc::new(Device::new(storage, options.device, &engine.threads)?);
    engine.faults = ringbar_serve::faults::injection(Arc::clone(device.faults()));
    for rule in &options.serve.faults {
        let id = device.faults().add(rule.clone());
        id.with_context(|| format!("cannot add the fault {rule}"))?;
        info!(%rule, "faults are injected");
    }
    Ok(device)
}

/// What the control socket tells of this process, and controls.
pub fn controlled(
    device: &Arc<Device>,
    options: &Options,
    started: Instant,
    termination: &Termination,
) -> Controlled {
    Controlled {
        device: Arc::clone(device),
        storage: options.storage.to_string(),
        transport: options.serve.transport.name(),
        socket: options.serve.endpoint.to_string(),
        started,
        ending: termination.ending(),
        supervisor: None,
    }
}

/// Serves connections, and writes the last data to the storage.
pub fn serve(
    device: &Arc<Device>,
    socket: &mut Socket,
    termination: &Termination,
    manager: &ServiceManager,
    options: &ringbar_serve::Options,
    engine: &ringbar_engine::Options,
) -> anyhow::Result<()> {
    let served = ringbar_serve::serve(socket, termination, manager, options, engine, || {
        let session = Arc::new(Session::new(Arc::clone(device))?);
        let counters = Arc::clone(session.queue_counters());
        Ok((session, counters))
    });
    let flushed = device
        .storage()
        .flush()
        .context("cannot write the last data to the storage");
    log_counts(device);
    served.and(flushed)
}

/// Restricts the thread of a storage, which is older than the restriction of the main thread.
pub fn early(
    confinement: &Confinement,
    kind: &'static str,
) -> impl FnOnce() -> io::Result<()> + Send + 'static {
    let confinement = confinement.clone();
    move || confinement.restrict_early(kind).map_err(io::Error::other)
}

/// Opens the storage of the options.
pub fn open_storage(
    options: &Options,
    confinement: &Confinement,
) -> anyhow::Result<Arc<dyn Storage>> {
    Ok(match (&options.storage, options.size) {
        (StorageKind::Memory, Some(size)) => Arc::new(match options.memory_huge_pages {
            Some(page) => MemoryStorage::with_huge_pages(size, page)?,
            None => MemoryStorage::new(size)?,
        }),
        (StorageKind::Memory, None) => bail!("memory storage needs a size"),
        (StorageKind::File(path), size) => Arc::new(FileStorage::open(path, size)?),
        (StorageKind::Block(path), size) => {
            let ready = early(confinement, BLOCK_IO);
            Arc::new(BlockStorage::open_with_ready(path, size, ready)?)
        }
        (StorageKind::Nbd(uri), size) => {
            let ready = early(confinement, NBD_IO);
            Arc::new(NbdStorage::open_with_ready(uri, size, ready)?)
        }
    })
}

fn log_listening(device: &Device, options: &Options) {
    info!(
        bytes = device.config().capacity(),
        io_queues = device.config().io_queues(),
        "listening on {}",
        options.serve.endpoint
    );
}

fn log_counts(device: &Device) {
    let Counts { queues, requests } = device.counts();
    info!(
        requests = queues.requests,
        reads = requests.reads,
        writes = requests.writes,
        durable_writes = requests.durable_writes,
        flushes = requests.flushes,
        discards = requests.discards,
        write_zeroes = requests.write_zeroes,
        copies = requests.copies,
        fills = requests.fills,
        compares = requests.compares,
        checksums = requests.checksums,
        bytes_read = requests.bytes_read,
        bytes_written = requests.bytes_written,
        errors = requests.errors,
        kicks = queues.kicks,
        interrupts = queues.interrupts,
        events = requests.events,
        broken_queues = queues.broken_queues,
        "done"
    );
}
