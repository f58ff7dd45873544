// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device daemon, `ringbar-device`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringbar_agent_protocol::machine::Transport;
use ringbar_lying_proxy::Proxy;

use crate::control::ControlSocket;
use crate::error::{Error, Result};
use crate::host_port::DeviceHandles;
use crate::process::{HostProcess, Pauser};
use crate::socket_watch::SocketWatch;
use crate::supervised::Supervised;

/// Name of the daemon.
pub const PROGRAM: &str = "ringbar-device";

/// Storage of the device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Anonymous memory.
    Memory,
    /// A file.
    File(PathBuf),
    /// A block device, or a file as if it were one.
    Block(PathBuf),
    /// An export of an NBD server, by its address.
    Nbd(String),
    /// A file that an NBD server has, which is started with the device.
    NbdFile(PathBuf),
}

/// Options of the device daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Protocol between the daemon and QEMU.
    pub transport: Transport,
    /// Size of the device memory in bytes.
    pub size: u64,
    /// Number of I/O queues.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
    /// Storage of the device memory.
    pub storage: Storage,
    /// Whether the lying proxy stands between QEMU and the device, over vhost-user.
    pub lies: bool,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            transport: Transport::default(),
            size: 256 << 20,
            queues: 4,
            queue_size: 256,
            storage: Storage::Memory,
            lies: false,
            extra: Vec::new(),
        }
    }
}

impl DeviceOptions {
    /// Arguments of `ringbar-device`.
    fn arguments(&self, socket: &Path, control: &Path, server: &Path) -> Vec<String> {
        let mut arguments = vec![
            "--socket-path".into(),
            socket.display().to_string(),
            "--control-socket".into(),
            control.display().to_string(),
            "--transport".into(),
            self.transport.to_string(),
            "--size".into(),
            ringbar_size::format(self.size),
            "--queues".into(),
            self.queues.to_string(),
            "--storage".into(),
            match &self.storage {
                Storage::Memory => "memory".into(),
                Storage::File(path) => format!("file:{}", path.display()),
                Storage::Block(path) => format!("block:{}", path.display()),
                Storage::Nbd(uri) => uri.clone(),
                Storage::NbdFile(_) => format!("nbd+unix:///?socket={}", server.display()),
            },
        ];
        // Over vhost-user QEMU decides.
        if self.transport == Transport::VfioUser {
            arguments.extend(["--queue-size".into(), self.queue_size.to_string()]);
        }
        arguments.extend_from_slice(&self.extra);
        arguments
    }
}

/// A running device daemon.
#[derive(Debug)]
pub struct Device {
    process: HostProcess,
    options: DeviceOptions,
    socket: PathBuf,
    control: ControlSocket,
    proxy: Option<Proxy>,
    server: Option<HostProcess>,
}

impl Device {
    /// Starts `program` with a socket named after `name` in `directory` and
    /// waits until it accepts connections.
    pub fn start(
        program: &Path,
        options: DeviceOptions,
        directory: &Path,
        name: &str,
        log: &Path,
    ) -> Result<Self> {
        let socket = directory.join(format!("{name}.sock"));
        let control = directory.join(format!("{name}-control.sock"));
        // Set up before the daemon can create its socket.
        let watch = SocketWatch::new(directory)?;

        let listener = directory.join(format!("{name}-nbd.sock"));
        let server = match &options.storage {
            Storage::NbdFile(file) => {
                let log = log.with_extension("nbd.log");
                Some(start_server(&listener, file, &log)?)
            }
            _ => None,
        };
        let mut command = Command::new(program);
        command.args(options.arguments(&socket, &control, &listener));
        let mut process = HostProcess::spawn(PROGRAM, command, log, false)?;
        watch.wait(&socket, &mut process)?;
        let (socket, proxy) = match options.lies {
            false => (socket, None),
            true => {
                let before = directory.join(format!("{name}-proxy.sock"));
                let proxy = Proxy::start(&before, &socket).map_err(Error::io(format!(
                    "starting a proxy at {}",
                    before.display()
                )))?;
                (before, Some(proxy))
            }
        };
        Ok(Self {
            process,
            options,
            socket,
            control: ControlSocket::new(control),
            proxy,
            server,
        })
    }

    /// The socket for the virtual machine monitor.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The options that the device was started with.
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// A handle for stopping and resuming the process from other threads.
    pub fn pauser(&self) -> Result<Pauser> {
        self.process.pauser()
    }

    /// A client of the device's control socket.
    pub fn control(&self) -> ControlSocket {
        self.control.clone()
    }

    /// Handles for the requests of test programs in the guest.
    pub fn handles(&self) -> Result<DeviceHandles> {
        Ok(DeviceHandles {
            pauser: self.pauser()?,
            supervised: Supervised::new(self.process.id()),
            control: self.control(),
            file: match &self.options.storage {
                Storage::Memory | Storage::Nbd(_) => None,
                Storage::File(path) | Storage::Block(path) | Storage::NbdFile(path) => {
                    Some(path.clone())
                }
            },
            server: self.server.as_ref().map(HostProcess::pauser).transpose()?,
            proxy: self.proxy.as_ref().map(Proxy::handle),
        })
    }

    /// The process.
    pub fn process(&mut self) -> &mut HostProcess {
        &mut self.process
    }

    /// Changes one byte of a device with file storage from outside, like a media error.
    pub fn corrupt_byte(&self, offset: u64) -> Result<()> {
        use std::os::unix::fs::FileExt;

        let Storage::File(path) = &self.options.storage else {
            return Err(Error::io("changing a byte of the device memory")(
                std::io::Error::new(
                    std::io::ErrorKind::Unsupported,
                    "only possible with file storage",
                ),
            ));
        };
        let change = || -> std::io::Result<()> {
            let file = fs::File::options().read(true).write(true).open(path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset)?;
            file.write_all_at(&[!byte[0]], offset)
        };
        change().map_err(Error::io(format!(
            "changing byte {offset} of {}",
            path.display()
        )))
    }
}

/// Starts an NBD server that exports `file` to one client, and waits until it listens at `socket`.
fn start_server(socket: &Path, file: &Path, log: &Path) -> Result<HostProcess> {
    let directory = socket.parent().unwrap_or(Path::new("."));
    let watch = SocketWatch::new(directory)?;
    let arguments: [&OsStr; 5] = [
        "--format=raw".as_ref(),
        "--discard=unmap".as_ref(),
        "--socket".as_ref(),
        socket.as_ref(),
        file.as_ref(),
    ];
    let command = ringbar_nbd_server::command(arguments).map_err(Error::io("starting qemu-nbd"))?;
    let mut server = HostProcess::spawn("qemu-nbd", command, log, false)?;
    watch.wait(socket, &mut server)?;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_the_daemon() {
        let options = DeviceOptions {
            transport: Transport::VfioUser,
            size: 3 << 19,
            queues: 2,
            storage: Storage::File("/tmp/a b".into()),
            extra: vec!["--poll-us=0".into()],
            ..DeviceOptions::default()
        };
        assert_eq!(
            options
                .arguments(
                    Path::new("/tmp/s"),
                    Path::new("/tmp/c"),
                    Path::new("/tmp/n")
                )
                .join("|"),
            "--socket-path|/tmp/s|--control-socket|/tmp/c|--transport|vfio-user|--size|1536K|--queues|2|--storage|file:/tmp/a b|--queue-size|256|--poll-us=0"
        );
    }

    #[test]
    fn a_daemon_that_ends_early_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = Device::start(
            Path::new("/bin/false"),
            DeviceOptions::default(),
            dir.path(),
            "d0",
            &dir.path().join("log"),
        )
        .unwrap_err();
        assert!(matches!(error, Error::Ended { .. }), "{error}");
    }

    #[test]
    fn one_byte_of_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        fs::write(&path, [1, 2, 3]).unwrap();
        let device = Device {
            process: HostProcess::spawn(
                "a test",
                Command::new("true"),
                &dir.path().join("log"),
                false,
            )
            .unwrap(),
            options: DeviceOptions {
                storage: Storage::File(path.clone()),
                ..DeviceOptions::default()
            },
            socket: PathBuf::new(),
            control: ControlSocket::new(PathBuf::new()),
            proxy: None,
            server: None,
        };
        device.corrupt_byte(1).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1, !2, 3]);
        assert!(device.corrupt_byte(3).is_err());
    }
}
