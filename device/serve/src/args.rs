// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The arguments that all devices have, and their validation.

use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ringbar_engine::Threads;
use ringbar_faults::Rule;

use crate::connection::{Function, MAX_VECTORS, Transport, TransportName};
use crate::sandbox::SandboxMode;

/// Default busy-poll time in microseconds.
const DEFAULT_POLL_US: u64 = 200;

/// Greatest busy-poll time in microseconds. Longer polling is no faster than sleeping.
const MAX_POLL_US: u64 = 1000;

/// The arguments, to be flattened into those of a program.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Unix socket to create and listen on. The socket of a process that has ended is
    /// replaced; a socket in use is an error. The process locks PATH.lock meanwhile, and
    /// removes both files at exit
    #[arg(long, value_name = "PATH", group = "endpoint")]
    socket_path: Option<PathBuf>,

    /// Descriptor of a listening Unix socket that the parent process passes on. Not needed if a
    /// socket unit of systemd starts the program
    #[arg(long, value_name = "FD", group = "endpoint")]
    fd: Option<RawFd>,

    /// Permission bits of --socket-path in octal: they decide who can connect
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = parse_mode)]
    socket_mode: u32,

    /// Protocol between this program and the virtual machine monitor. Over vfio-user the device
    /// has a vector for each queue and works behind an IOMMU, but each doorbell is a message
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    transport: TransportName,

    /// Greatest number of entries of a queue, a power of two from 2 to 1024, only over vfio-user:
    /// over vhost-user the monitor decides. The default is 256
    #[arg(long, value_name = "N")]
    queue_size: Option<u16>,

    /// Number of interrupt vectors, 0 to 128, only over vfio-user. With fewer than the driver has
    /// use for, queues share them. 0 leaves INTx only. Default: as many as the driver can use
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..=i64::from(MAX_VECTORS)))]
    vectors: Option<u16>,

    /// Offer MSI instead of MSI-X, only over vfio-user. QEMU 11.1.3 aborts when a function with
    /// MSI-X is unplugged. --vectors must then be a power of two, at most 32; the default is
    /// rounded up to one. Without interrupt remapping, Linux uses one of them
    #[arg(long)]
    msi_only: bool,

    /// Busy-poll time in microseconds before a worker with empty queues sleeps, at most 1000. 0
    /// disables polling and interrupt moderation. After polls that miss, a worker skips some,
    /// so an idle device sleeps
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_POLL_US,
        value_parser = clap::value_parser!(u64).range(..=MAX_POLL_US),
    )]
    poll_us: u64,

    /// Fault to inject, for tests of drivers; can be given several times. The parts of a rule are
    /// separated by colons: conditions (queue=N, nth=N, times=N) and an effect of queues
    /// (drop-interrupt, duplicate-used, bad-used-id, stall, hold-reset=TIME); ringbar-device has
    /// effects of requests too (docs/faults.md). Example: queue=2:nth=3:drop-interrupt
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Rule>,

    /// Accept the next virtual machine when one disconnects, until SIGTERM
    #[arg(long)]
    keep_running: bool,

    /// Restriction of this process once it has opened its files and sockets: it can open no others,
    /// has no capabilities, and each of its threads has only the system calls that it needs. A
    /// forbidden call ends the process with status 3
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    sandbox: SandboxMode,

    /// Level of the log: error, warn, info, debug, trace, or a filter with levels for modules
    /// (for example "info,ringbar_engine=debug")
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "RINGBAR_LOG"
    )]
    log: String,

    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl ServeArgs {
    /// Validates the arguments for a device with this function. Without a socket among them, it is
    /// that of a socket unit. The error is a message for the user.
    pub fn options(&self, function: &Function) -> Result<Options, String> {
        self.validate(function, || activated().map(Endpoint::Fd))
    }

    /// The same for a process that has its socket from another one, whose arguments these are.
    pub fn options_of_worker(&self, function: &Function) -> Result<Options, String> {
        self.validate(function, || Ok(Endpoint::Handover))
    }

    /// `default` gives the endpoint where none is among the arguments.
    fn validate(
        &self,
        function: &Function,
        default: impl FnOnce() -> Result<Endpoint, String>,
    ) -> Result<Options, String> {
        let endpoint = match (&self.socket_path, self.fd) {
            (Some(path), None) => Endpoint::Path {
                path: path.clone(),
                mode: self.socket_mode,
            },
            (None, Some(fd)) => Endpoint::Fd(fd),
            (None, None) => default()?,
            (Some(_), Some(_)) => return Err("give either --socket-path or --fd".into()),
        };
        Ok(Options {
            endpoint,
            transport: Transport::new(
                self.transport,
                function,
                self.queue_size,
                self.vectors,
                self.msi_only,
            )?,
            poll: Duration::from_micros(self.poll_us),
            faults: self.faults.clone(),
            keep_running: self.keep_running,
            sandbox: self.sandbox,
            log: self.log.clone(),
            log_format: self.log_format,
        })
    }
}

/// The descriptor of a process that a socket unit of systemd has started (sd_listen_fds(3)). The
/// error is a message for the user.
fn activated() -> Result<RawFd, String> {
    let mut fds = sd_notify::listen_fds().map_err(|error| format!("LISTEN_FDS: {error}"))?;
    match (fds.next(), fds.len()) {
        (Some(fd), 0) => Ok(fd),
        (None, _) => Err("give --socket-path or --fd, unless a socket unit starts this".into()),
        (Some(_), more) => Err(format!(
            "the socket unit passes {} sockets, but a device has one",
            more + 1
        )),
    }
}

/// Parses octal permission bits, as chmod(1) does.
fn parse_mode(text: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 0..=0o777) => Ok(mode),
        _ => Err("expected octal permission bits, for example 0660"),
    }
}

/// Format of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text for each message
    #[default]
    Text,
    /// One JSON object for each message
    Json,
}

/// The socket to which the virtual machine monitor connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to create.
    Path {
        /// Its file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// A listening socket inherited from the parent.
    Fd(RawFd),
    /// A socket of another process, which hands over one connection after the other.
    Handover,
}

impl Endpoint {
    /// The file of the socket, if this process creates it.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path { path, .. } => Some(path),
            Self::Fd(_) | Self::Handover => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, .. } => path.display().fmt(f),
            Self::Fd(fd) => write!(f, "descriptor {fd}"),
            Self::Handover => f.write_str("a socket of the supervisor"),
        }
    }
}

/// Validated arguments.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket to which the monitor connects.
    pub endpoint: Endpoint,
    /// The protocol that the monitor speaks.
    pub transport: Transport,
    /// Busy-poll time before a worker with empty queues sleeps.
    pub poll: Duration,
    /// Faults that are injected from the start.
    pub faults: Vec<Rule>,
    /// Whether to accept another connection after one has ended.
    pub keep_running: bool,
    /// Whether the process restricts itself.
    pub sandbox: SandboxMode,
    /// Log filter.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
}

impl Options {
    /// Options of the engine, whose threads `threads` starts. Reads the number of CPUs from files of
    /// the system, so it is called before the process restricts itself.
    pub fn engine(&self, threads: Threads) -> ringbar_engine::Options {
        ringbar_engine::Options {
            poll: self.poll,
            cpus: available_parallelism().map_or(1, usize::from),
            threads,
            ..ringbar_engine::Options::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::connection::tests::FUNCTION;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn options(args: &[&str]) -> Result<Options, String> {
        Program::try_parse_from([&["device"], args].concat())
            .map_err(|error| error.to_string())?
            .serve
            .options(&FUNCTION)
    }

    #[test]
    fn definition_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn a_socket_is_enough() {
        let options = options(&["--socket-path", "/tmp/s"]).unwrap();
        let (path, mode) = ("/tmp/s".into(), 0o600);
        assert_eq!(options.endpoint, Endpoint::Path { path, mode });
        assert_eq!(options.endpoint.to_string(), "/tmp/s");
        assert_eq!(options.transport, Transport::VhostUser);
        assert!(!options.keep_running);
        let options = self::options(&["--fd", "3"]).unwrap();
        assert_eq!(options.endpoint, Endpoint::Fd(3));
        assert_eq!(options.endpoint.to_string(), "descriptor 3");
    }

    #[test]
    fn socket_mode_is_octal() {
        for (text, mode) in [("0660", 0o660), ("600", 0o600), ("777", 0o777), ("0", 0)] {
            assert_eq!(parse_mode(text), Ok(mode));
        }
        for text in ["", "1000", "0o600", "888", "-1", "rw", "u=rw"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn there_is_one_socket() {
        for args in [&[][..], &["--socket-path", "s", "--fd", "3"]] {
            assert!(options(args).is_err(), "{args:?}");
        }
    }
}
