// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The restrictions of the process: which thread may do what. docs/security.md explains them.
//!
//! A program opens its files and sockets, calls [`Confinement::restrict_main`], and starts all other
//! threads by [`Confinement::threads`]. Threads that are older, as that of the log, restrict
//! themselves.
//!
//! A thread that the model starts by other means has the restrictions of the thread that starts it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::ValueEnum;
use libc::{F_SETFL, FIONBIO};
use ringbar_engine::Threads;
use ringbar_sandbox::{Call, Files, Mode, Report, SPAWN, Sandbox, Sysno, ThreadKind};
use tracing::{info, warn};

use crate::args::Endpoint;

/// Whether the process restricts itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Restrict the process as far as this kernel can; a warning names what it cannot
    #[default]
    On,
    /// The same, but refuse to run if this kernel cannot restrict files or system calls
    Require,
    /// Restrict no files; the kernel executes forbidden system calls and logs them (see dmesg)
    Log,
    /// Restrict nothing
    Off,
}

/// What the user can do about a forbidden call.
const ADVICE: &str = "This is a bug or an attack: please report this line. --sandbox log or off \
                      runs the device all the same (docs/security.md)";

/// Names of kinds.
const MAIN: &str = "main";
const LOG: &str = "log";

/// All bits of an argument of the C type `int`.
const INT: u64 = u32::MAX as u64;

/// All bits of a pointer.
const POINTER: u64 = u64::MAX;

/// For all kinds: any thread may get SIGTERM or SIGINT, whose handler writes to a socket pair.
/// Replies on connected sockets are sent by the same call, without an address.
pub const SEND: &[Call] = &[Call::any(Sysno::sendto).when(4, POINTER, 0)];

/// Doorbells and interrupts are eventfds, which come from the monitor.
const EVENTS: &[Call] = &[Call::any(Sysno::fcntl).when(1, INT, F_SETFL as u64)];

/// Waiting for several descriptors.
const EPOLL: &[Call] = &Call::all([
    Sysno::epoll_ctl,
    Sysno::epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    Sysno::epoll_wait,
]);

/// For a model: transfers to and from files that are open, besides `read` and `write`.
const TRANSFER: &[Call] = &Call::all([Sysno::fallocate, Sysno::pread64, Sysno::pwrite64]);

/// Makes data of files and maps durable.
pub const FLUSH: &[Call] = &Call::all([Sysno::fdatasync, Sysno::msync]);

/// Messages with descriptors, and the end of a connection after one that fails.
const MESSAGES: &[Call] = &Call::all([Sysno::recvmsg, Sysno::sendmsg, Sysno::shutdown]);

/// Accepts connections.
pub const ACCEPT: &[Call] = &Call::all([Sysno::accept4]);

/// What the `vhost` crates do to start and end a connection.
const VHOST_USER: &[Call] = &[
    Call::any(Sysno::epoll_create1),
    Call::any(Sysno::eventfd2),
    Call::any(Sysno::getsockopt),
    Call::any(Sysno::ioctl).when(1, INT, FIONBIO),
];

/// What the main thread does besides starting threads: connections, the end.
const LIFE: &[Call] = &Call::all([
    Sysno::pipe2,
    Sysno::eventfd2,
    Sysno::epoll_create1,
    #[cfg(target_arch = "x86_64")]
    Sysno::unlink,
    Sysno::unlinkat,
]);

/// The kinds of threads of the engine and its transports.
fn engine() -> [ThreadKind; 6] {
    [
        // Calls the model, which may start threads.
        ThreadKind::new(
            "queue-worker",
            &[SEND, EVENTS, EPOLL, TRANSFER, FLUSH, MESSAGES, SPAWN],
        ),
        ThreadKind::new("mapper", &[SEND, MESSAGES]),
        ThreadKind::new("memory-watch", &[SEND]),
        // The messages of vhost-user are handled by a thread of the library, which this one starts
        // and which has the same rules.
        ThreadKind::new(
            "connection",
            &[SEND, EVENTS, EPOLL, MESSAGES, ACCEPT, VHOST_USER, SPAWN],
        ),
        // It reads and writes device memory itself where the monitor does not map it, as with INTx.
        ThreadKind::new(
            "vfio-user",
            &[
                SEND,
                EVENTS,
                MESSAGES,
                TRANSFER,
                &[Call::any(Sysno::eventfd2)],
            ],
        ),
        ThreadKind::new("function-control", &[SEND, EVENTS, MESSAGES]),
    ]
}

/// The kinds of threads that a program has besides those of the engine, its transports and the log.
#[derive(Debug, Default)]
pub struct Kinds {
    /// Those that exist before [`Confinement::restrict_main`] is called, and call
    /// [`Confinement::restrict_early`].
    pub early: Vec<ThreadKind>,
    /// Those that [`Confinement::threads`] starts.
    pub late: Vec<ThreadKind>,
}

impl Kinds {
    /// All kinds of the process.
    pub fn all(self) -> Vec<ThreadKind> {
        let Self { early, mut late } = self;
        late.extend(engine());
        // A thread has at most the calls of the thread that starts it.
        let main = ThreadKind::new(MAIN, &[SEND, LIFE, SPAWN]).with_calls_of(&late);
        let log = ThreadKind::new(LOG, &[SEND]);
        [vec![main, log], early, late].concat()
    }
}

/// The sandbox of this process, if it has one.
#[derive(Clone, Debug)]
pub struct Confinement(Option<Arc<Sandbox>>);

impl Confinement {
    /// Prepares the sandbox of the program called `name`. Restricts nothing yet.
    ///
    /// # Errors
    ///
    /// With [`SandboxMode::Require`], where this kernel lacks a part.
    pub fn new(mode: SandboxMode, name: &str, kinds: Kinds) -> anyhow::Result<Self> {
        let forbidden = match mode {
            SandboxMode::Off => return Ok(Self(None)),
            SandboxMode::Log => Mode::Log,
            SandboxMode::On | SandboxMode::Require => Mode::Enforce,
        };
        let report = Report {
            program: name.to_owned(),
            advice: ADVICE,
        };
        let sandbox =
            Sandbox::new(&kinds.all(), forbidden, report).context("cannot prepare the sandbox")?;
        if let (SandboxMode::Require, Some(missing)) = (mode, missing(&sandbox)) {
            bail!(
                "this kernel lacks {missing}, which --sandbox require needs: enable it \
                 (docs/security.md), or use --sandbox on"
            );
        }
        Ok(Self(Some(Arc::new(sandbox))))
    }

    /// Logs which parts of the sandbox this kernel lacks.
    pub(crate) fn report_missing(&self) {
        if let Some(missing) = self.0.as_deref().and_then(missing) {
            warn!(
                "this kernel lacks {missing}: the process restricts itself without it \
                 (docs/security.md)"
            );
        }
    }

    /// For the thread of the log.
    pub(crate) fn restrict_log(&self) -> anyhow::Result<()> {
        self.restrict_early(LOG)
    }

    /// Restricts the calling thread, which is of the kind called `kind` and older than the
    /// restriction of the main thread. It can open no files.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or no kind has this name.
    pub fn restrict_early(&self, kind: &str) -> anyhow::Result<()> {
        self.restrict_first(kind, &Files::default())
    }

    /// Restricts the main thread, which has opened all that the process needs. It can still remove
    /// its sockets: that of `endpoint`, and `others`.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses, or the directory of a socket cannot be opened.
    pub fn restrict_main(&self, endpoint: &Endpoint, others: &[&Path]) -> anyhow::Result<()> {
        let sockets = endpoint.path().into_iter().chain(others.iter().copied());
        let remove_in = sockets.map(directory).collect();
        self.restrict_first(MAIN, &Files { remove_in })?;
        if self.0.is_some() {
            info!("the process has restricted itself");
        }
        Ok(())
    }

    fn restrict_first(&self, kind: &str, files: &Files) -> anyhow::Result<()> {
        let Some(sandbox) = &self.0 else {
            return Ok(());
        };
        sandbox.restrict_first(kind, files).with_context(|| {
            format!("cannot restrict a thread ({kind}); --sandbox off runs without")
        })
    }

    /// Starts threads that restrict themselves by their names. The main thread is restricted
    /// before. A thread that cannot restrict itself ends the process.
    pub fn threads(&self) -> Threads {
        let Some(sandbox) = self.0.clone() else {
            return Threads::default();
        };
        Threads::with(move |name| {
            if let Err(error) = sandbox.restrict(name) {
                let error = anyhow::Error::from(error);
                ringbar_sandbox::end_process(&format!(
                    "cannot restrict a thread ({name}): {error:#}"
                ));
            }
        })
    }
}

/// The parts that this kernel lacks, for a message.
fn missing(sandbox: &Sandbox) -> Option<String> {
    let parts: Vec<_> = sandbox.missing().iter().map(ToString::to_string).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

/// The directory of a file.
fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
