// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device daemon, `ringbar-device`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::process::{HostProcess, Pauser, wait_readable};
use crate::size;

/// How long the daemon may take until it accepts connections.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the device keeps its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In anonymous memory.
    Memory,
    /// In this file.
    File(PathBuf),
}

/// What device to present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Size of the device memory in bytes.
    pub size: u64,
    /// Number of I/O queues.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
    /// Where the memory is.
    pub storage: Storage,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            size: 256 << 20,
            queues: 4,
            queue_size: 256,
            storage: Storage::Memory,
        }
    }
}

impl DeviceOptions {
    /// Arguments of `ringbar-device`.
    fn arguments(&self, socket: &Path, control: &Path) -> Vec<String> {
        vec![
            "--socket-path".into(),
            socket.display().to_string(),
            "--control-socket".into(),
            control.display().to_string(),
            "--size".into(),
            size::format(self.size),
            "--queues".into(),
            self.queues.to_string(),
            "--storage".into(),
            match &self.storage {
                Storage::Memory => "memory".into(),
                Storage::File(path) => format!("file:{}", path.display()),
            },
        ]
    }
}

/// A running device daemon.
#[derive(Debug)]
pub struct Device {
    process: HostProcess,
    options: DeviceOptions,
    socket: PathBuf,
    control: Control,
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
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| Error::io("creating an inotify instance")(errno.into()))?;
        inotify::add_watch(&watch, directory, inotify::WatchFlags::CREATE).map_err(|errno| {
            Error::io(format!("watching {}", directory.display()))(errno.into())
        })?;

        let mut command = Command::new(program);
        command.args(options.arguments(&socket, &control));
        let process = HostProcess::spawn("ringbar-device", command, log, false)?;
        let mut device = Self {
            process,
            options,
            socket,
            control: Control::new(control),
        };
        device.wait_until_listening(&watch)?;
        Ok(device)
    }

    /// The socket is not tried by connecting to it: the daemon serves one
    /// connection and would take the attempt for it.
    fn wait_until_listening(&mut self, watch: &std::os::fd::OwnedFd) -> Result<()> {
        /// A socket that exists listens within microseconds, without any event
        /// that could be waited for.
        const GLANCE: Duration = Duration::from_millis(5);
        const DURING: &str = "it was expected to open its socket";

        let deadline = Instant::now() + PATIENCE;
        loop {
            if is_listening(&self.socket)? {
                return Ok(());
            }
            if let Some(error) = self.process.ended_error(DURING) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: format!("{} to listen", self.socket.display()),
                    after: PATIENCE,
                });
            }
            let next = if self.socket.exists() {
                Instant::now() + GLANCE
            } else {
                deadline
            };
            wait_readable(&[watch, self.process.ended()], next)
                .map_err(Error::io("waiting for the device"))?;
            let mut events = [0; 4096];
            // What happened does not matter, only that something did.
            while matches!(rustix::io::read(watch, &mut events), Ok(n) if n > 0) {}
        }
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What was started.
    pub fn options(&self) -> &DeviceOptions {
        &self.options
    }

    /// A handle by which other threads stop and resume the process.
    pub fn pauser(&self) -> Result<Pauser> {
        self.process.pauser()
    }

    /// What the running device can be asked for.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The process.
    pub fn process(&mut self) -> &mut HostProcess {
        &mut self.process
    }

    /// Changes one byte of a device with file storage behind everyone's back,
    /// as a fault of the medium would.
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

/// Whether some process listens on this Unix socket.
fn is_listening(socket: &Path) -> Result<bool> {
    let table = "/proc/net/unix";
    let text = fs::read(table).map_err(Error::io(format!("reading {table}")))?;
    Ok(lists_listener(
        &String::from_utf8_lossy(&text),
        &socket.display().to_string(),
    ))
}

/// Looks for a listening socket of this path in the text of `/proc/net/unix`.
fn lists_listener(table: &str, path: &str) -> bool {
    /// `__SO_ACCEPTCON` of the kernel.
    const ACCEPTS: u32 = 1 << 16;
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let flags = fields.next().and_then(|f| u32::from_str_radix(f, 16).ok());
        flags.is_some_and(|flags| flags & ACCEPTS != 0)
            && line
                .split_once(" /")
                .is_some_and(|(_, rest)| rest == &path[1..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn arguments_are_those_of_the_daemon() {
        let options = DeviceOptions {
            size: 3 << 19,
            queues: 2,
            storage: Storage::File("/tmp/a b".into()),
            ..DeviceOptions::default()
        };
        assert_eq!(
            options
                .arguments(Path::new("/tmp/s"), Path::new("/tmp/c"))
                .join("|"),
            "--socket-path|/tmp/s|--control-socket|/tmp/c|--size|1536K|--queues|2|--storage|file:/tmp/a b"
        );
    }

    #[test]
    fn a_listening_socket_is_told_from_a_bound_one() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 123 /tmp/x/listens\n\
            0000000000000000: 00000002 00000000 00000000 0001 01 124 /tmp/x/bound\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 125\n";
        assert!(lists_listener(table, "/tmp/x/listens"));
        assert!(!lists_listener(table, "/tmp/x/bound"));
        assert!(!lists_listener(table, "/x/listens"));
        assert!(!lists_listener(table, "/tmp/x/none"));
    }

    #[test]
    fn the_kernel_lists_our_own_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_listening(&path).unwrap());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path).unwrap());
        drop(listener);
        assert!(!is_listening(&path).unwrap());
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
            control: Control::new(PathBuf::new()),
        };
        device.corrupt_byte(1).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [1, !2, 3]);
        assert!(device.corrupt_byte(3).is_err());
    }
}
