// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of the process: storage, device, socket, connections, and the end.

use std::sync::Arc;

use anyhow::{Context, bail};
use ringbar_model::{Counts, Device, Session};
use ringbar_serve::signals::Termination;
use ringbar_serve::socket::{PreparedSocket, Socket};
use ringbar_storage::{BlockStorage, FileStorage, MemoryStorage, Storage};
use tracing::info;

use crate::cli::{Options, StorageKind};
use crate::control::Control;

/// Runs a device until its last connection has ended, or the process gets a signal.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // Before this process opens any descriptor, which could have the number given by mistake.
    let endpoint = PreparedSocket::new(&options.serve.endpoint)?;
    let termination = Termination::catch().context("cannot catch signals")?;
    let device = make_device(open_storage(options)?, options)?;
    let mut socket = endpoint.listen()?;
    let _control = match &options.control_socket {
        Some(path) => Some(Control::listen(path, Arc::clone(&device))?),
        None => None,
    };
    log_listening(&device, options);
    serve(&device, &mut socket, &termination, &options.serve)
}

/// Makes a device with the faults of the options.
pub fn make_device(storage: Arc<dyn Storage>, options: &Options) -> anyhow::Result<Arc<Device>> {
    let device = Arc::new(Device::new(storage, options.device)?);
    for rule in &options.faults {
        let id = device.faults().add(rule.clone());
        id.with_context(|| format!("cannot add the fault {rule}"))?;
        info!(%rule, "faults are injected");
    }
    Ok(device)
}

/// Serves connections, and writes the last data to the storage.
pub fn serve(
    device: &Arc<Device>,
    socket: &mut Socket,
    termination: &Termination,
    options: &ringbar_serve::Options,
) -> anyhow::Result<()> {
    let served = ringbar_serve::serve(socket, termination, options, || {
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

/// Opens the storage of the options.
pub fn open_storage(options: &Options) -> anyhow::Result<Arc<dyn Storage>> {
    Ok(match (&options.storage, options.size) {
        (StorageKind::Memory, Some(size)) => Arc::new(MemoryStorage::new(size)?),
        (StorageKind::Memory, None) => bail!("memory storage needs a size"),
        (StorageKind::File(path), size) => Arc::new(FileStorage::open(path, size)?),
        (StorageKind::Block(path), size) => Arc::new(BlockStorage::open(path, size)?),
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
