// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vhost-user proxy that falsifies what a device says.
//!
//! It stands between the virtual machine monitor and the ordinary, honest device. Each
//! takes it for the other:
//!
//! ```text
//! monitor  <-- socket -->  proxy  <-- socket -->  device
//! guest's available ring  -->  shadow available ring
//! guest's used ring       <--  shadow used ring
//! guest's kicks           -->  kicks
//! interrupts              <--  calls
//! ```
//!
//! Messages go through as they are, but the device is given available and used rings
//! that belong to the proxy, in one memory region more than the monitor has announced,
//! and kick and call descriptors that do. Descriptors, requests and data stay where they
//! are: the device still works on guest memory. So the proxy decides what the guest gets
//! to see of a request that has ended, and when, and nobody can have looked before it
//! was falsified.
//!
//! The device that is tested is thereby the one that is shipped, which cannot lie.
//!
//! | module | holds |
//! |---|---|
//! | `message` | vhost-user messages with their descriptors |
//! | `memory` | the guest's memory and the region of the shadow rings |
//! | `queue` | a queue and its shadow |
//! | `used` | lies about used entries |
//! | `session` | one connection, from accept to hang-up |

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

/// What is asked of the thread.
enum Command {
    Lie(Lie),
    EndLies,
    End,
}

/// A proxy in a thread of its own. Ends when dropped, as the connections do.
#[derive(Debug)]
pub struct Proxy {
    handle: ProxyHandle,
    thread: Option<JoinHandle<()>>,
}

/// A handle by which the proxy of a device is told to lie.
#[derive(Clone, Debug)]
pub struct ProxyHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// A command and where to say that it was done. Locked for one at a time.
    sender: Mutex<Sender<(Command, Sender<()>)>>,
    /// Readable while there may be a command.
    wake: OwnedFd,
    lies_told: AtomicU64,
}

impl Proxy {
    /// Listens on a new socket at `listen` for a monitor, and passes it on to the device
    /// on the socket `device`. Serves one connection.
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

    /// A handle by which to have it lie.
    pub fn handle(&self) -> ProxyHandle {
        self.handle.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // An error says that it has ended.
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

    /// Forgets the lies that were not told yet, and ends those that last.
    pub fn end_lies(&self) -> io::Result<()> {
        self.send(Command::EndLies)
    }

    /// How many lies were told.
    pub fn lies_told(&self) -> u64 {
        self.0.lies_told.load(Ordering::Acquire)
    }

    fn send(&self, command: Command) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the proxy has ended");
        let (done, reply) = channel();
        self.0
            .sender
            .lock()
            // A send is done or not.
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
