// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device in two processes. The supervisor holds the connection of the monitor, and the
//! worker runs the device. Another worker goes on where one has ended ([`ringbar_supervisor`]).
//!
//! The first worker opens the storage, and leaves two descriptors to the next ones: [`Saved`], and
//! the file of the storage where that can be mapped. A block device is opened anew: the kernel
//! keeps the lock of the former worker until its last operation has ended, so none of these can
//! overwrite what the next worker writes.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic;
use std::sync::{Arc, Once};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ringbar_engine::Record;
use ringbar_serve::args::Endpoint;
use ringbar_serve::sandbox::Confinement;
use ringbar_serve::service_manager::ServiceManager;
use ringbar_serve::signals::{Termination, catch_hangup};
use ringbar_serve::socket::PreparedSocket;
use ringbar_storage::{
    BlockStorage, FileStorage, MemoryStorage, OpenError, Storage, StorageFailure,
};
use ringbar_supervisor::handover::{Handover, Start};
use ringbar_supervisor::{Notice, Signals, supervise as supervise_workers};
use tracing::{error, info};

use crate::cli::{Options, StorageKind};
use crate::control::{self, ControlSocket, Controlled};
use crate::run::{controlled, early, make_device, open_storage, serve};
use crate::sandbox::BLOCK_IO;
use crate::saved::Saved;

/// Longest time that the operations of a worker that was killed may take.
const BLOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two attempts to open a block device.
const BLOCK_RETRY: Duration = Duration::from_millis(10);

/// Runs the supervisor.
pub fn supervise(options: &Options) -> anyhow::Result<()> {
    // Before this process opens any descriptor, which could have the number given by mistake.
    let endpoint = PreparedSocket::new(&options.serve.endpoint)?;
    let signals = Signals {
        end: Termination::catch().context("cannot catch signals")?.into(),
        upgrade: catch_hangup().context("cannot catch SIGHUP")?,
    };
    let mut socket = endpoint.listen()?;
    let (control, _file) = match &options.control_socket {
        Some(path) => {
            let (listener, file) = control::bind(path)?;
            (Some(listener), Some(file))
        }
        None => (None, None),
    };
    let Some(listener) = socket.take_listener() else {
        bail!("nobody listens on {}", options.serve.endpoint);
    };
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    arguments.push("--worker".into());
    let workers = ringbar_supervisor::Options {
        arguments,
        keep_running: options.serve.keep_running,
    };
    let manager = ServiceManager::connect();
    supervise_workers(listener, control, signals, workers, |notice| match notice {
        Notice::Ready => {
            info!("listening on {}", options.serve.endpoint);
            manager.ready();
        }
        Notice::Stopping => manager.stopping(),
    })?;
    Ok(())
}

/// Runs a worker.
pub fn work(options: &Options, confinement: &Confinement) -> anyhow::Result<()> {
    let started = Instant::now();
    abort_on_panic();
    let (handover, start) = Handover::receive().context("--worker is for the supervisor only")?;
    let Start {
        listener,
        record,
        control,
        kept,
        resumes,
    } = start;
    let termination = Termination::catch().context("cannot catch signals")?;
    let mut kept = kept.into_iter().map(File::from);
    let (storage, saved) = match kept.next() {
        None => {
            let storage = open_storage(options, confinement)?;
            let saved = Saved::new(storage.capacity())?;
            (storage, saved)
        }
        Some(saved) => {
            let saved = Saved::adopt(saved);
            (
                adopt_storage(options, confinement, kept.next(), &saved)?,
                saved,
            )
        }
    };
    let saved = Arc::new(saved);
    let mut engine = options.serve.engine(confinement.threads());
    engine.record = Some(Record::open(record).context("cannot map the record")?);
    // From here on nothing can be opened. The sockets are the supervisor's to remove.
    confinement.restrict_main(&Endpoint::Handover, &[])?;
    let device = make_device(Arc::clone(&storage), options, &mut engine)?;
    if saved.failure()?.is_some() {
        // Fails at once, and finds out whether the file is too short for anybody to map.
        let _ = storage.flush();
    }
    // Before the monitor can connect.
    match resumes {
        true => device.resume(saved.connection()?),
        false => saved.connected(device.config().aperture_bytes())?,
    }
    let listener_saved = Arc::clone(&saved);
    device.set_size_listener(move |capacity| {
        if let Err(error) = listener_saved.resized(capacity) {
            error!(%error, "the next worker will not know the new capacity");
        }
    });
    let (failure_saved, once) = (Arc::clone(&saved), Once::new());
    device.set_failure_listener(move |failure| {
        // Other requests that fail wait until it is done.
        once.call_once(|| save_failure(&failure_saved, failure));
    });
    let handover = Arc::new(handover);
    let controlled = Controlled {
        supervisor: Some(Arc::clone(&handover)),
        ..controlled(&device, options, started, &termination)
    };
    let mut serve_options = options.serve.clone();
    serve_options.keep_running = false;
    let mut socket = PreparedSocket::Inherited(listener).listen()?;

    let mut files = vec![saved.as_fd()];
    let mappable = storage.mappable();
    files.extend(mappable.iter().map(|mappable| mappable.file.as_fd()));
    handover.ready(&files).context("the supervisor is gone")?;
    drop(files);
    // After it: a supervisor of a former version hears nothing after a request to end.
    let _control = match control.map(ControlSocket::inherited) {
        Some(control) => Some(control.serve(controlled, &engine.threads)?),
        None => None,
    };
    info!(
        bytes = device.config().capacity(),
        resumes, "worker is ready"
    );
    let served = serve(
        &device,
        &mut socket,
        &termination,
        // The service manager hears of the supervisor only.
        &ServiceManager::default(),
        &serve_options,
        &engine,
    );
    // That of the last data as well.
    if let Some(failure) = storage.failure() {
        save_failure(&saved, &failure);
    }
    served
}

fn save_failure(saved: &Saved, failure: &StorageFailure) {
    if let Err(error) = saved.failed(failure) {
        error!(%error, "the next worker will not know that the storage has failed");
    }
}

/// Opens the storage that another worker had; `file` is what it has left.
fn adopt_storage(
    options: &Options,
    confinement: &Confinement,
    file: Option<File>,
    saved: &Saved,
) -> anyhow::Result<Arc<dyn Storage>> {
    let (capacity, failure) = (saved.capacity()?, saved.failure()?);
    let missing = "the supervisor has kept no file for the storage";
    Ok(match &options.storage {
        StorageKind::Memory => Arc::new(MemoryStorage::adopt(
            file.context(missing)?,
            capacity,
            options.memory_huge_pages,
            failure,
        )?),
        StorageKind::File(path) => {
            let file = file.context(missing)?;
            Arc::new(FileStorage::adopt(file, path, capacity, failure)?)
        }
        StorageKind::Block(path) => {
            let deadline = Instant::now() + BLOCK_TIMEOUT;
            loop {
                let ready = early(confinement, BLOCK_IO);
                match BlockStorage::reopen(path, capacity, failure.clone(), ready) {
                    Err(OpenError::InUse(_)) if Instant::now() < deadline => sleep(BLOCK_RETRY),
                    opened => break Arc::new(opened?),
                }
            }
        }
        // The server may still execute requests of the former connection, after those of a new one.
        StorageKind::Nbd(_) => bail!("a worker cannot take over an NBD storage"),
    })
}

/// A panic of any thread ends the process, so that another one takes over. Without a supervisor
/// the other threads go on.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
