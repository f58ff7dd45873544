// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Connections one after the other, until the last one or a signal.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ringbar_engine::{Counters, DeviceModel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::{error, info, warn};

use crate::args::Options;
use crate::connection::Connection;
use crate::signals::Termination;
use crate::socket::Socket;

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

/// Serves connections until the last one has ended, or the process gets a signal. `connect` makes
/// the device of a connection that is about to come, and says where its queues are counted.
///
/// # Errors
///
/// Where a connection cannot be accepted or breaks its protocol; with `keep_running` these are
/// logged instead, and the next connection is accepted.
pub fn serve<D: DeviceModel>(
    socket: &mut Socket,
    termination: &Termination,
    options: &Options,
    mut connect: impl FnMut() -> anyhow::Result<(Arc<D>, Arc<Counters>)>,
) -> anyhow::Result<()> {
    while let Some(listener) = socket.listener() {
        if let Ready::Termination = wait(termination, Some(listener.as_fd()), None)? {
            info!("asked to end");
            return Ok(());
        }
        let accepted = connect()
            .and_then(|(device, counters)| Connection::accept(device, counters, options, listener));
        let connection = match accepted {
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
