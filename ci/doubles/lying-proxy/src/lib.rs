// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vhost-user proxy that falsifies the output of a device.
//!
//! The proxy stands between the front end (QEMU) and the ordinary, honest back end. Each
//! takes the proxy for the other:
//!
//! ```text
//! monitor  <-- socket -->  proxy  <-- socket -->  device
//! guest's available ring  -->  shadow available ring
//! guest's used ring       <--  shadow used ring
//! guest's kicks           -->  kicks
//! interrupts              <--  calls
//! ```
//!
//! The proxy forwards messages unchanged, except that the device gets the proxy's own
//! available and used rings, in an additional memory region, and the proxy's own kick and
//! call descriptors. Descriptors, requests and data stay in guest memory, where the
//! device works on them. So the proxy decides which used entries the guest sees, and
//! when, and the guest cannot have read an entry before it was falsified.
//!
//! So the tests use the device that is shipped, which itself cannot lie.
//!
//! | module | holds |
//! |---|---|
//! | `message` | vhost-user messages with their descriptors |
//! | `memory` | the guest's memory and the region of the shadow rings |
//! | `queue` | a queue and its shadow |
//! | `used` | lies about used entries |
//! | `session` | one connection, from accept to hang-up |

#![forbid(unsafe_code)]

mod memory;
mod message;
mod queue;
mod session;
mod used;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ringbar_agent_protocol::host::Lie;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use session::{Session, SessionEnd};

/// Commands to the thread.
enum Command {
    Lie(Lie),
    EndLies,
    End,
}

/// A proxy in a thread of its own. Dropping it ends the thread and the connections.
#[derive(Debug)]
pub struct Proxy {
    handle: ProxyHandle,
    thread: Option<JoinHandle<()>>,
}

/// A handle for controlling the proxy of a device.
#[derive(Clone, Debug)]
pub struct ProxyHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// A command and the sender for its completion. The lock serialises commands.
    sender: Mutex<Sender<(Command, Sender<()>)>>,
    /// An eventfd, readable while commands may be pending.
    wake: OwnedFd,
    lies_told: AtomicU64,
}

impl Proxy {
    /// Listens on a new socket at `listen`, and forwards one connection to the device's
    /// socket `device`.
    pub fn start(listen: &Path, device: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(listen)?;
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared {
            sender: Mutex::new(sender),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            lies_told: AtomicU64::new(0),
        });
        let (theirs, device) = (Arc::clone(&shared), device.to_owned());
        let thread = thread::Builder::new()
            .name("lying-proxy".into())
            .spawn(move || serve(&listener, &device, &theirs, &receiver))?;
        Ok(Self {
            handle: ProxyHandle(shared),
            thread: Some(thread),
        })
    }

    /// A handle for controlling the proxy.
    pub fn handle(&self) -> ProxyHandle {
        self.handle.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // An error means that the thread has ended.
        let _ = self.handle.send(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl ProxyHandle {
    /// Prepares a lie.
    pub fn lie(&self, lie: Lie) -> io::Result<()> {
        self.send(Command::Lie(lie))
    }

    /// Cancels the pending lies and ends the lasting ones.
    pub fn end_lies(&self) -> io::Result<()> {
        self.send(Command::EndLies)
    }

    /// Number of lies told.
    pub fn lies_told(&self) -> u64 {
        self.0.lies_told.load(Ordering::Acquire)
    }

    fn send(&self, command: Command) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the proxy has ended");
        let (done, reply) = channel();
        self.0
            .sender
            .lock()
            // A panic cannot leave a send half done.
            .unwrap_or_else(PoisonError::into_inner)
            .send((command, done))
            .map_err(|_| gone())?;
        rustix::io::write(&self.0.wake, &1u64.to_ne_bytes())?;
        reply.recv().map_err(|_| gone())
    }
}

fn serve(
    listener: &UnixListener,
    device: &Path,
    shared: &Shared,
    commands: &Receiver<(Command, Sender<()>)>,
) {
    let ended =
        Session::accept(listener, device, shared, commands).and_then(|session| match session {
            Some(mut session) => session.run(),
            None => Ok(SessionEnd::Requested),
        });
    if let Err(error) = ended {
        eprintln!("lying proxy of {}: {error}", device.display());
    }
}
