// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtual machine with Ringbar devices.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::machine::Iommu;
use ringbar_pci_function::PciFunction;
use serde_json::json;

use crate::agent::{Agent, GuestCommand};
use crate::device::{Device, DeviceOptions};
use crate::error::{Error, Result};
use crate::host_port::{self, HostPort};
use crate::kernel_log;
use crate::process::{HostProcess, log_excerpt, wait_readable};
use crate::qemu::{self, CommandLine, Console, GuestDevice, SHARE_TAG};
use crate::qmp::Monitor;
use crate::setup::Setup;
use crate::temporary::TemporaryDir;
use crate::waker;

/// Maximum time for QEMU to connect its sockets.
const QEMU_START_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum time for the guest to boot. On an idle machine with TCG it takes some 8 s,
/// with the debug kernel one minute.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);

/// Maximum time for the guest to power off before QEMU is killed.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for loading the driver.
const DRIVER_LOAD_TIMEOUT: Duration = Duration::from_secs(180);

/// Kernel parameters that turn a fault into a panic, and keep all messages of the kernel
/// and the test programs in the log.
const STRICT_KERNEL_ARGS: [&str; 4] = [
    "oops=panic",
    "sysctl.kernel.hung_task_timeout_secs=60",
    "log_buf_len=1M",
    "printk.devkmsg=on",
];

/// First device node of the driver.
pub const DEVICE_NODE: &str = "/dev/ringbar0";

/// Options of a virtual machine.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Memory in bytes.
    pub memory: u64,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// IOMMU, with the kernel parameters that make the guest use it.
    pub iommu: Iommu,
    /// Arguments added to the kernel command line.
    pub kernel_args: Vec<String>,
    /// Ringbar devices.
    pub devices: Vec<DeviceOptions>,
    /// Whether the machine has the PCI function whose registers tests control.
    pub pci_function: bool,
    /// Directory of the host to mount at [`SHARE_TARGET`].
    pub share: Option<PathBuf>,
    /// Arguments added to QEMU's command line.
    pub qemu_args: Vec<String>,
    /// Serial console.
    pub console: Console,
    /// Whether tests suspend the machine: the harness then wakes it up, and the agent's
    /// connection survives.
    pub suspends: bool,
    /// Directory of the logs; without it they are removed with the machine.
    pub log_dir: Option<PathBuf>,
}

/// Mount point of the share in the guest.
pub const SHARE_TARGET: &str = "/mnt";

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            cpus: 2,
            iommu: Iommu::None,
            kernel_args: Vec::new(),
            devices: vec![DeviceOptions::default()],
            pci_function: false,
            share: None,
            qemu_args: Vec::new(),
            console: Console::Log,
            suspends: false,
            log_dir: None,
        }
    }
}

/// A running virtual machine. Dropping it ends everything that belongs to it.
// Fields are dropped in this order: the host port resumes the devices, QEMU ends before
// the daemons, which then see the client disconnect, and the directory of sockets and
// logs goes last.
#[derive(Debug)]
pub struct Vm {
    host_port: HostPort,
    agent: Arc<Agent>,
    monitor: Monitor,
    qemu: HostProcess,
    devices: Vec<Device>,
    suspends: bool,
    console_log: PathBuf,
    _directory: TemporaryDir,
}

impl Vm {
    /// Starts the devices and QEMU, and waits until the guest is up.
    pub fn start(setup: &Setup, options: &VmOptions) -> Result<Self> {
        let directory = TemporaryDir::new()?;
        let log_dir = options
            .log_dir
            .clone()
            .unwrap_or_else(|| directory.path().to_owned());
        fs::create_dir_all(&log_dir)
            .map_err(Error::io(format!("creating {}", log_dir.display())))?;
        let console_log = log_dir.join("kernel.log");
        // QEMU appends to a log that belongs to a terminal.
        File::create(&console_log)
            .map_err(Error::io(format!("creating {}", console_log.display())))?;

        let mut devices = Vec::new();
        for (i, device) in options.devices.iter().enumerate() {
            let name = format!("device{i}");
            let log = log_dir.join(format!("{name}.log"));
            devices.push(Device::start(
                &setup.device,
                device.clone(),
                directory.path(),
                &name,
                &log,
            )?);
        }
        let mut functions = Vec::new();
        let mut extra = options.qemu_args.clone();
        if options.pci_function {
            let socket = directory.path().join("function.sock");
            functions.push(
                PciFunction::start(&socket)
                    .map_err(Error::io(format!("starting {}", socket.display())))?,
            );
            let device = qemu::vfio_user_device("function", &socket);
            extra.extend(["-device".to_owned(), device.to_string()]);
        }
        let share = options.share.as_deref().map(open_share).transpose()?;

        let agent_socket = directory.path().join("agent.sock");
        let monitor_socket = directory.path().join("monitor.sock");
        let host_socket = directory.path().join("host.sock");
        let agent_listener = listen(&agent_socket)?;
        let host_listener = listen(&host_socket)?;
        let monitor_listener = listen(&monitor_socket)?;
        let mut further_monitor = |id: &str| {
            let socket = directory.path().join(format!("{id}.sock"));
            extra.extend(qemu::further_monitor(id, &socket));
            listen(&socket)
        };
        let wakers = match options.suspends {
            true => Some((further_monitor("waker")?, further_monitor("idle-waker")?)),
            false => None,
        };

        let guest_devices: Vec<_> = devices.iter().map(GuestDevice::from).collect();
        let mut kernel_args = options.kernel_args.clone();
        if options.console == Console::Log {
            kernel_args.splice(0..0, STRICT_KERNEL_ARGS.map(str::to_owned));
        }
        let arguments = CommandLine {
            accel: setup.accel,
            memory: options.memory,
            cpus: options.cpus,
            iommu: options.iommu,
            kernel: &setup.kernel_image,
            initramfs: &setup.initramfs,
            kernel_args: &kernel_args,
            console: &options.console,
            console_log: &console_log,
            agent_socket: &agent_socket,
            serial_agent: options.suspends,
            host_socket: &host_socket,
            monitor_socket: &monitor_socket,
            devices: &guest_devices,
            share: share.as_ref().map(|share| share.path.as_path()),
            extra: &extra,
        }
        .arguments();

        let [program, prefix @ ..] = setup.qemu.as_slice() else {
            return Err(Error::Setup {
                path: PathBuf::new(),
                problem: "the command for QEMU is empty".into(),
            });
        };
        let mut command = Command::new(program);
        command.args(prefix).args(arguments);
        if let Some(share) = &share {
            share.inherit(&mut command);
        }
        let uses_terminal = matches!(options.console, Console::Terminal { .. });
        let mut qemu =
            HostProcess::spawn("QEMU", command, &log_dir.join("qemu.log"), uses_terminal)?;

        let connect = |qemu: &mut HostProcess| {
            let monitor = accept(&monitor_listener, qemu, "its monitor")?;
            let agent = accept(&agent_listener, qemu, "its agent port")?;
            let host = accept(&host_listener, qemu, "its host port")?;
            let handles = devices.iter().map(Device::handles).collect::<Result<_>>()?;
            if let Some((ram, idle)) = &wakers {
                waker::wake_from_s3(accept(ram, qemu, "its second monitor")?)?;
                let monitor = accept(idle, qemu, "its third monitor")?;
                let ended = qemu
                    .ended()
                    .try_clone()
                    .map_err(Error::io("watching QEMU"))?;
                waker::wake_from_s2idle(monitor, &console_log, ended)?;
            }
            Ok((
                HostPort::serve(host, handles, functions.clone(), host_port::STALL_TIMEOUT)?,
                Monitor::connect(monitor)?,
                Agent::connect(agent, BOOT_TIMEOUT)?,
            ))
        };
        match connect(&mut qemu) {
            Ok((host_port, monitor, agent)) => Ok(Self {
                host_port,
                agent: Arc::new(agent),
                monitor,
                qemu,
                devices,
                suspends: options.suspends,
                console_log,
                _directory: directory,
            }),
            Err(error) => Err(add_logs(error, &mut qemu, &mut devices, &console_log)),
        }
    }

    /// Loads the driver and checks that its device node exists.
    pub fn load_driver(&mut self) -> Result<()> {
        let load = GuestCommand::new("modprobe").args(["ringbar"]);
        let check = GuestCommand::new("test").args(["-c", DEVICE_NODE]);
        let result = self
            .agent
            .check(&load, DRIVER_LOAD_TIMEOUT)
            .and_then(|_| self.agent.check(&check, DRIVER_LOAD_TIMEOUT));
        self.with_logs(result).map(drop)
    }

    /// Mounts the share of the options at [`SHARE_TARGET`].
    pub fn mount_share(&mut self) -> Result<()> {
        let result = self.agent.mount_share(SHARE_TAG, SHARE_TARGET);
        self.with_logs(result)
    }

    /// PID 1 of the guest.
    pub fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// QEMU's monitor.
    pub fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// Process id of QEMU.
    pub fn qemu_id(&self) -> u32 {
        self.qemu.id()
    }

    /// The devices, in the order of the options.
    pub fn devices(&mut self) -> &mut [Device] {
        &mut self.devices
    }

    /// Resumes all stalled devices; returns their numbers.
    pub fn resume_devices(&self) -> Vec<u32> {
        self.host_port.resume_all()
    }

    /// An error if a device has ended while the guest still needs it.
    pub fn check_devices(&mut self, during: &str) -> Result<()> {
        let ended = self
            .devices
            .iter_mut()
            .find_map(|device| device.process().exit_error(during));
        match ended {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The log of the guest's serial console.
    pub fn console_log(&self) -> &Path {
        &self.console_log
    }

    /// Adds the state of the processes and the ends of their logs to an error.
    pub fn with_logs<T>(&mut self, result: Result<T>) -> Result<T> {
        result
            .map_err(|error| add_logs(error, &mut self.qemu, &mut self.devices, &self.console_log))
    }

    /// Waits until QEMU ends by itself, for example because the guest powers off.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        self.qemu.wait(Duration::from_secs(u64::from(u32::MAX)))
    }

    /// Powers the guest off and returns how QEMU and the devices exited. The devices get
    /// `timeout` after QEMU has ended.
    pub fn shut_down(mut self, timeout: Duration) -> Result<Vec<ProcessExit>> {
        // QEMU waits for the devices when the guest shuts down, so they must run.
        self.host_port.close();
        if self.suspends {
            // After a suspend to S3, QEMU 11.1.3 ignores the guest's power-off, with any
            // guest and without our device as well.
            self.monitor.execute("quit", json!({}))?;
        } else {
            self.agent.power_off()?;
        }
        let mut ends = vec![wait_for_exit(&mut self.qemu, POWER_OFF_TIMEOUT)];
        for device in &mut self.devices {
            ends.push(wait_for_exit(device.process(), timeout));
        }
        Ok(ends)
    }

    /// Powers the guest off. If QEMU does not end in time, it is killed and an error is
    /// returned.
    pub fn power_off(mut self) -> Result<()> {
        // QEMU waits for the devices when the guest shuts down, so they must run.
        self.host_port.close();
        self.agent.power_off()?;
        if self.qemu.wait(POWER_OFF_TIMEOUT).is_some() {
            return Ok(());
        }
        let error = Error::Timeout {
            what: "the guest to power off".into(),
            after: POWER_OFF_TIMEOUT,
        };
        self.with_logs(Err(error))
    }
}

/// Exit of a process of the virtual machine.
#[derive(Clone, Debug)]
pub struct ProcessExit {
    /// Name of the process.
    pub name: &'static str,
    /// Exit status; `None` if the process did not end in time and was killed.
    pub status: Option<ExitStatus>,
    /// The end of its log, as an excerpt.
    pub tail: String,
}

fn wait_for_exit(process: &mut HostProcess, timeout: Duration) -> ProcessExit {
    ProcessExit {
        name: process.name(),
        status: process.wait(timeout),
        tail: log_excerpt(process.name(), process.log()),
    }
}

/// A directory whose descriptor QEMU inherits.
///
/// QEMU opens it through `/proc/self/fd`, so the directory need not exist in
/// the root file system that QEMU runs in.
struct Share {
    directory: OwnedFd,
    path: PathBuf,
}

fn open_share(path: &Path) -> Result<Share> {
    let directory = fs::metadata(path)
        .and_then(|metadata| {
            if metadata.is_dir() {
                File::open(path)
            } else {
                Err(std::io::ErrorKind::NotADirectory.into())
            }
        })
        .map_err(Error::io(format!("opening the share {}", path.display())))?;
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd()).into();
    Ok(Share {
        directory: directory.into(),
        path,
    })
}

impl Share {
    fn inherit(&self, command: &mut Command) {
        let fd = self.directory.as_raw_fd();
        let keep_open = move || {
            // SAFETY: the descriptor was open when the process was forked, and
            // nothing in the child closes it before this runs.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
            Ok(())
        };
        // SAFETY: `keep_open` makes one system call and neither allocates nor
        // locks.
        unsafe { command.pre_exec(keep_open) };
    }
}

fn listen(path: &Path) -> Result<OwnedFd> {
    UnixListener::bind(path)
        .map(OwnedFd::from)
        .map_err(Error::io(format!("listening on {}", path.display())))
}

/// Waits for QEMU to connect.
fn accept(listener: &OwnedFd, qemu: &mut HostProcess, what: &str) -> Result<UnixStream> {
    let deadline = Instant::now() + QEMU_START_TIMEOUT;
    let ready = wait_readable(&[listener, qemu.ended()], deadline)
        .map_err(Error::io(format!("waiting for QEMU to connect {what}")))?;
    if let Some(error) = qemu.exit_error(&format!("it was expected to connect {what}")) {
        return Err(error);
    }
    if !ready {
        return Err(Error::Timeout {
            what: format!("QEMU to connect {what}"),
            after: QEMU_START_TIMEOUT,
        });
    }
    rustix::net::accept(listener)
        .map(UnixStream::from)
        .map_err(|errno| Error::io(format!("accepting {what} of QEMU"))(errno.into()))
}

/// Adds the state of the processes and the ends of their logs to an error.
fn add_logs(
    error: Error,
    qemu: &mut HostProcess,
    devices: &mut [Device],
    console_log: &Path,
) -> Error {
    // If the guest is gone, QEMU is about to end, and its status belongs to the error.
    if matches!(error, Error::GuestGone(_) | Error::Frame(_)) {
        qemu.wait(Duration::from_secs(5));
    }
    let mut context = String::new();
    let mut describe = |process: &mut HostProcess| {
        if let Some(status) = process.status() {
            let (name, log) = (process.name(), process.log());
            context += &format!("\n{name} ended with {status}{}", log_excerpt(name, log));
        }
    };
    if !matches!(error, Error::Ended { name: "QEMU", .. }) {
        describe(qemu);
    }
    for device in devices {
        describe(device.process());
    }
    // The end of a log is often only the last part of a long report.
    let log = fs::read(console_log).unwrap_or_default();
    if let Some(problem) = kernel_log::problems(&String::from_utf8_lossy(&log), &[]).first() {
        context += &format!("\nfirst problem in the kernel log: {problem}");
    }
    context += &log_excerpt("the guest's console", console_log);
    Error::WithContext {
        error: Box::new(error),
        context,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_must_be_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open_share(dir.path()).is_ok());
        assert!(open_share(&dir.path().join("none")).is_err());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = open_share(&file).err().unwrap().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }

    #[test]
    fn a_share_is_reached_through_the_inherited_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("here"), "").unwrap();
        let share = open_share(dir.path()).unwrap();
        let mut command = Command::new("ls");
        command.arg(format!("{}/", share.path.display()));
        share.inherit(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.stdout, b"here\n");
    }

    #[test]
    fn waiting_for_qemu_ends_when_qemu_does() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(&dir.path().join("s")).unwrap();
        let mut qemu = HostProcess::spawn(
            "QEMU",
            Command::new("false"),
            &dir.path().join("log"),
            false,
        )
        .unwrap();
        let error = accept(&listener, &mut qemu, "its monitor").unwrap_err();
        assert!(
            matches!(error, Error::Ended { name: "QEMU", .. }),
            "{error}"
        );
    }
}
