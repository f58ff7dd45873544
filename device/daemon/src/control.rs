// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Control of a running device over a Unix socket.
//!
//! [`ringbar_control`] describes requests and replies. Each connection has a thread, which locks
//! nothing that the workers of the queues need.
//!
//! A process that can open the socket can send all requests, so only the owner can open it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ringbar_control::command::{Command, Execute};
use ringbar_control::reply::{AddedFault, Cleared, Done, Fault, Statistics, Status};
use ringbar_control::wire::{Reply, Request};
use ringbar_control::{MAX_REQUEST_BYTES, command};
use ringbar_engine::Threads;
use ringbar_faults::Rule;
use ringbar_model::Device;
use ringbar_serve::logging;
use ringbar_serve::signals::Ending;
use ringbar_serve::socket::{self, SocketFile};
use ringbar_supervisor::handover::Handover;
use tracing::{debug, info, warn};

use crate::statistics;

/// Greatest number of connections at a time, each of which has a thread.
const MAX_CONNECTIONS: usize = 16;

/// Permission bits of the socket's file.
const OWNER_ONLY: u32 = 0o600;

/// Delay before another attempt after an `accept` that failed.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);

/// Longest time for which a client may leave a reply unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The device that is controlled, and what its process knows of it.
#[derive(Debug)]
pub struct Controlled {
    /// The device.
    pub device: Arc<Device>,
    /// What holds the device memory, as `--storage` says it.
    pub storage: String,
    /// The transport, as `--transport` says it.
    pub transport: &'static str,
    /// The socket of the monitor.
    pub socket: String,
    /// When the process started.
    pub started: Instant,
    /// Ends the process.
    pub ending: Ending,
    /// The supervisor of this process, if it has one.
    pub supervisor: Option<Arc<Handover>>,
}

/// The control socket, on which nobody accepts yet.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: Option<SocketFile>,
}

/// The control socket. Dropping it removes its file; connections last until the process ends.
#[derive(Debug)]
pub struct Control {
    _file: Option<SocketFile>,
}

impl ControlSocket {
    /// Creates the socket at `path`.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let (listener, file) = bind(path)?;
        Ok(Self {
            listener,
            file: Some(file),
        })
    }

    /// A socket that another process has created, and removes.
    pub const fn inherited(listener: UnixListener) -> Self {
        Self {
            listener,
            file: None,
        }
    }

    /// Starts a thread that accepts connections.
    pub fn serve(self, controlled: Controlled, threads: &Threads) -> anyhow::Result<Control> {
        let Self { listener, file } = self;
        let (controlled, own) = (Arc::new(controlled), threads.clone());
        threads
            .spawn("control", move || accept_all(&listener, &controlled, &own))
            .context("cannot start a thread")?;
        Ok(Control { _file: file })
    }
}

/// Creates the socket at `path`, and its file.
pub fn bind(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    socket::bind(path, OWNER_ONLY)
}

fn accept_all(listener: &UnixListener, controlled: &Arc<Controlled>, threads: &Threads) {
    // Its reference count is the number of connections plus 1.
    let connections = Arc::new(());
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                // Usually the process has no free descriptors; the connection stays pending.
                warn!(%error, "cannot accept a connection to the control socket now");
                thread::sleep(ACCEPT_RETRY_DELAY);
                continue;
            }
        };
        if Arc::strong_count(&connections) > MAX_CONNECTIONS {
            let error = Reply::refused("too many connections to the control socket");
            // A failure means that the client has disconnected already.
            let _ = send_reply(&stream, &error);
            continue;
        }
        let (controlled, connection) = (Arc::clone(controlled), Arc::clone(&connections));
        let thread = threads.spawn("control-client", move || {
            let _connection = connection;
            if let Err(error) = handle_connection(&stream, &controlled) {
                debug!(%error, "control connection ended");
            }
        });
        if let Err(error) = thread {
            warn!(%error, "cannot start a thread for a control connection");
        }
    }
}

/// Handles requests until the client disconnects.
fn handle_connection(stream: &UnixStream, controlled: &Controlled) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    handle_requests(BufReader::new(stream), stream, controlled)
}

/// Executes the requests of `reader` one after the other, and writes a reply to each, until the
/// last one: the input ends, asks the process to end, or exceeds the length of a request.
///
/// # Errors
///
/// Where a request cannot be read, or its reply cannot be written.
pub fn handle_requests(
    mut reader: impl BufRead,
    mut writer: impl Write,
    controlled: &Controlled,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader
            .by_ref()
            .take(MAX_REQUEST_BYTES)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(());
        }
        if line.len() as u64 == MAX_REQUEST_BYTES && line.last() != Some(&b'\n') {
            // The start of the next request is unknown.
            let error = format!("a request has at most {MAX_REQUEST_BYTES} bytes");
            return send_reply(&mut writer, &Reply::refused(&error));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let request = Request::parse(&line);
        let ends = matches!(request.command, Ok(Command::Shutdown(_)));
        let reply = match &request.command {
            Ok(command) => controlled.execute(command),
            Err(error) => Reply::refused(error),
        };
        let sent = send_reply(&mut writer, &reply.with_id(request.id));
        if ends {
            // After the reply, because the connection ends with the process. A client that does not
            // wait for it has asked as well.
            info!("asked to end over the control socket");
            controlled.ending.request()?;
            return sent;
        }
        sent?;
    }
}

fn send_reply(mut writer: impl Write, reply: &Reply) -> io::Result<()> {
    writer.write_all(reply.to_line().as_bytes())
}

/// The reply that a command has, with what it returned or the message for the client.
fn reply<E: Execute>(_command: &E, result: Result<E::Return, String>) -> Reply {
    match result {
        Ok(value) => Reply::returned::<E>(&value),
        Err(error) => Reply::refused(&error),
    }
}

impl Controlled {
    fn execute(&self, command: &Command) -> Reply {
        match command {
            Command::QueryDevice(command) => reply(command, Ok(self.status())),
            Command::QueryStatistics(command) => reply(command, Ok(self.statistics())),
            Command::Resize(command) => reply(command, self.resize(command)),
            Command::AddFault(command) => reply(command, self.add_fault(command)),
            Command::QueryFaults(command) => reply(command, Ok(self.faults())),
            Command::ClearFaults(command) => reply(command, self.clear_faults(command)),
            Command::SetLog(command) => reply(command, set_log(command)),
            Command::Shutdown(command) => reply(command, Ok(self.shutdown())),
        }
    }

    /// The process ends after the reply, or before, where something else ends it. The supervisor
    /// hears of the request first, so that no reply promises what another worker does not know.
    fn shutdown(&self) -> Done {
        let told = self.supervisor.as_ref().map(|it| it.asked_to_end());
        if let Some(Err(error)) = told {
            // It has ended, and so does this process.
            warn!(%error, "cannot tell the supervisor of the end");
        }
        Done {}
    }

    fn status(&self) -> Status {
        let config = self.device.config();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            bytes: config.capacity(),
            io_queues: config.io_queues(),
            storage: self.storage.clone(),
            storage_failure: self
                .device
                .storage()
                .failure()
                .map(|failure| failure.reason),
            transport: self.transport.to_owned(),
            socket: self.socket.clone(),
            connected: self.device.is_connected(),
            log: logging::filter(),
        }
    }

    fn statistics(&self) -> Statistics {
        statistics::of(&self.device)
    }

    fn resize(&self, command: &command::Resize) -> Result<Done, String> {
        let bytes = command.bytes;
        let resized = self.device.resize(bytes);
        resized.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        info!(bytes, "device memory resized");
        Ok(Done {})
    }

    fn add_fault(&self, command: &command::AddFault) -> Result<AddedFault, String> {
        let rule = &command.rule;
        let rule: Rule = rule
            .parse()
            .map_err(|error| format!("\"{rule}\" is no rule: {error}"))?;
        let text = rule.to_string();
        let added = self.device.faults().add(rule);
        let id = added.map_err(|error| error.to_string())?;
        info!(id, rule = text, "faults are injected");
        Ok(AddedFault { id })
    }

    fn faults(&self) -> Vec<Fault> {
        let listed = self.device.faults().list().into_iter();
        listed
            .map(|listed| Fault {
                id: listed.id,
                rule: listed.rule.to_string(),
                matches: listed.matches,
                firings: listed.firings,
            })
            .collect()
    }

    fn clear_faults(&self, command: &command::ClearFaults) -> Result<Cleared, String> {
        let faults = self.device.faults();
        let cleared = match command.id {
            None => faults.clear_all() as u64,
            Some(id) => {
                faults.clear(id).map_err(|error| error.to_string())?;
                1
            }
        };
        info!(cleared, "rules for faults cleared");
        Ok(Cleared { cleared })
    }
}

fn set_log(command: &command::SetLog) -> Result<Done, String> {
    let filter = &command.filter;
    logging::set_filter(filter).map_err(|error| format!("{error:#}"))?;
    info!(filter, "the log was changed");
    Ok(Done {})
}

#[cfg(test)]
mod tests;
