// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The life of the process: storage, device, socket, connections, and the end.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ringbar_model::{Counts, Device};
use ringbar_storage::{BlockStorage, FileStorage, MemoryStorage, Storage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::{error, info, warn};

use crate::cli::{Endpoint, Options, StorageKind};
use crate::control::Control;
use crate::signals::Termination;
use crate::socket::{self, Socket};
use crate::transport::Connection;

/// Longest time that requests in progress may take after a SIGTERM or SIGINT.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Delay before another attempt after a connection that could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Result of waiting for a descriptor.
enum Ready {
    Termination,
    Other,
    Timeout,
}

/// Runs a device until its last connection has ended, or the process gets a signal.
pub fn run(options: &Options) -> anyhow::Result<()> {
    // Before this process opens any descriptor, which could have the number given by mistake.
    let endpoint = socket::PreparedSocket::new(&options.endpoint)?;
    let termination = Termination::catch().context("cannot catch signals")?;
    let storage = open_storage(options)?;
    let device = Arc::new(Device::new(Arc::clone(&storage), options.device)?);
    for rule in &options.faults {
        let id = device.faults().add(rule.clone());
        id.with_context(|| format!("cannot add the fault {rule}"))?;
        info!(%rule, "faults are injected");
    }
    let mut socket = endpoint.listen()?;
    let _control = match &options.control_socket {
        Some(path) => Some(Control::listen(path, Arc::clone(&device))?),
        None => None,
    };
    log_listening(&device, options);

    let served = serve_connections(&device, &mut socket, &termination, options);
    let flushed = storage
        .flush()
        .context("cannot write the last data to the storage");
    log_counts(&device);
    served.and(flushed)
}

fn open_storage(options: &Options) -> anyhow::Result<Arc<dyn Storage>> {
    Ok(match (&options.storage, options.size) {
        (StorageKind::Memory, Some(size)) => Arc::new(MemoryStorage::new(size)?),
        (StorageKind::Memory, None) => bail!("memory storage needs a size"),
        (StorageKind::File(path), size) => Arc::new(FileStorage::open(path, size)?),
        (StorageKind::Block(path), size) => Arc::new(BlockStorage::open(path, size)?),
    })
}

fn log_listening(device: &Device, options: &Options) {
    let endpoint = match &options.endpoint {
        Endpoint::Path { path, .. } => path.display().to_string(),
        Endpoint::Fd(fd) => format!("descriptor {fd}"),
    };
    info!(
        bytes = device.config().capacity(),
        io_queues = device.config().io_queues(),
        "listening on {endpoint}"
    );
}

fn serve_connections(
    device: &Arc<Device>,
    socket: &mut Socket,
    termination: &Termination,
    options: &Options,
) -> anyhow::Result<()> {
    while let Some(listener) = socket.listener() {
        if let Ready::Termination = wait(termination, Some(listener.as_fd()), None)? {
            info!("asked to end");
            return Ok(());
        }
        let connection = match Connection::accept(device, options.transport, options.poll, listener)
        {
            Ok(connection) => connection,
            Err(error) if options.keep_running => {
                error!("cannot serve a connection now: {error:#}");
                // The connection may still be pending, so the listener would be readable again
                // at once.
                if let Ready::Termination = wait(termination, None, Some(ACCEPT_RETRY_DELAY))? {
                    info!("asked to end");
                    return Ok(());
                }
                continue;
            }
            Err(error) => return Err(error).context("cannot serve a connection"),
        };
        if !options.keep_running {
            socket.close();
        }

        if let Ready::Termination = wait(termination, Some(connection.finished()), None)? {
            info!("asked to end: closing the connection");
            connection.shut_down();
            return match wait_ended(&connection)? {
                true => connection.join(),
                false => {
                    // Only the monitor or a stuck storage can delay a thread for so long. The
                    // process ends in any case.
                    warn!("requests in progress did not end in time");
                    Ok(())
                }
            };
        }
        match connection.join() {
            Ok(()) => info!("virtual machine monitor disconnected"),
            Err(error) if options.keep_running => error!("{error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until the process gets a signal, which has priority, or `other` is readable.
fn wait(
    termination: &Termination,
    other: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> anyhow::Result<Ready> {
    let mut fds = vec![PollFd::new(termination, PollFlags::IN)];
    fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    poll_retry(&mut fds, timeout)?;
    Ok(match fds.iter().position(|fd| !fd.revents().is_empty()) {
        Some(0) => Ready::Termination,
        Some(_) => Ready::Other,
        None => Ready::Timeout,
    })
}

fn wait_ended(connection: &Connection) -> anyhow::Result<bool> {
    let finished = connection.finished();
    let mut fds = [PollFd::new(&finished, PollFlags::IN)];
    poll_retry(&mut fds, Some(SHUTDOWN_TIMEOUT))?;
    Ok(!fds[0].revents().is_empty())
}

fn poll_retry(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> anyhow::Result<()> {
    let timeout = timeout.map(|duration| Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    });
    loop {
        match poll(fds, timeout.as_ref()) {
            // A caught signal interrupted the call; its descriptor is readable now.
            Err(Errno::INTR) => {}
            other => return other.map(drop).context("cannot wait for events"),
        }
    }
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
