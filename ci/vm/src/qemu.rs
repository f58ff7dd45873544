// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU's command line.

use std::path::{Path, PathBuf};

use ringbar_agent_protocol::machine::{Iommu, Transport};
use ringbar_agent_protocol::{
    LINE_PARAMETER, MODE_PARAMETER, MODE_SHELL, PORT_NAME, TERM_PARAMETER, host,
};
use ringbar_spec::{DeviceConfig, FIRST_IO_QUEUE, VIRTIO_DEVICE_ID};
use serde_json::json;

use crate::device::Device;
use crate::setup::Accelerator;

/// Tag of the 9p share.
pub const SHARE_TAG: &str = "share";

/// The guest's name of the serial line that can replace the agent port.
const AGENT_SERIAL_LINE: &str = "/dev/ttyS1";

/// Connection of the guest's serial console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// The log file only.
    Log,
    /// The terminal, and the log file; PID 1 runs a shell on it.
    Terminal {
        /// Value of `TERM`.
        kind: Option<String>,
    },
}

/// A vhost-user device of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserDevice {
    /// Socket of the daemon.
    pub socket: PathBuf,
    /// VIRTIO device type.
    pub virtio_id: u16,
    /// Number of queues.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

impl From<&Device> for VhostUserDevice {
    fn from(device: &Device) -> Self {
        Self {
            socket: device.socket().to_owned(),
            virtio_id: VIRTIO_DEVICE_ID,
            queues: FIRST_IO_QUEUE + device.options().queues,
            queue_size: device.options().queue_size,
        }
    }
}

impl VhostUserDevice {
    /// Value of `-chardev` for the connection called `id`.
    pub fn chardev(&self, id: &str) -> String {
        format!("socket,id={id},path={}", escape(&self.socket))
    }

    /// Value of `-device` for the device on that connection, with `config_size` bytes of
    /// device configuration.
    pub fn device(&self, chardev: &str, config_size: usize) -> String {
        format!(
            "vhost-user-test-device-pci,id={chardev}-device,chardev={chardev},\
             virtio-id={},num_vqs={},vq_size={},config_size={config_size}",
            self.virtio_id, self.queues, self.queue_size,
        )
    }
}

/// Value of `-device`, and arguments of `device_add`, for the vfio-user device called `id`
/// whose server listens on this socket.
pub fn vfio_user_device(id: &str, socket: &Path) -> serde_json::Value {
    json!({
        "driver": "vfio-user-pci",
        "id": id,
        "socket": {"type": "unix", "path": socket.display().to_string()},
    })
}

/// A Ringbar device of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestDevice {
    /// Over vhost-user.
    VhostUser(VhostUserDevice),
    /// Over vfio-user.
    VfioUser {
        /// Socket of the daemon.
        socket: PathBuf,
    },
}

impl From<&Device> for GuestDevice {
    fn from(device: &Device) -> Self {
        match device.options().transport {
            Transport::VhostUser => Self::VhostUser(device.into()),
            Transport::VfioUser => Self::VfioUser {
                socket: device.socket().to_owned(),
            },
        }
    }
}

/// Contents of QEMU's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine<'a> {
    /// QEMU's accelerator.
    pub accel: Accelerator,
    /// The guest's memory in bytes.
    pub memory: u64,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// IOMMU.
    pub iommu: Iommu,
    /// Kernel image.
    pub kernel: &'a Path,
    /// Root file system.
    pub initramfs: &'a Path,
    /// Arguments added to the kernel command line.
    pub kernel_args: &'a [String],
    /// Serial console.
    pub console: &'a Console,
    /// File for a copy of the console output.
    pub console_log: &'a Path,
    /// Socket of the agent port, to which QEMU connects.
    pub agent_socket: &'a Path,
    /// Whether the agent port is a serial line, which survives a suspend.
    pub serial_agent: bool,
    /// Socket of the host port, to which QEMU connects.
    pub host_socket: &'a Path,
    /// Socket of the monitor, to which QEMU connects.
    pub monitor_socket: &'a Path,
    /// Devices.
    pub devices: &'a [GuestDevice],
    /// Directory shared by 9p.
    pub share: Option<&'a Path>,
    /// Arguments added at the end.
    pub extra: &'a [String],
}

impl CommandLine<'_> {
    /// The arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| {
            arguments.push(option.to_owned());
            arguments.push(value);
        };

        let memory_mib = self.memory.div_ceil(1 << 20);
        add("-accel", self.accel.to_string());
        add("-cpu", "max".into());
        add("-smp", self.cpus.to_string());
        add("-m", format!("{memory_mib}M"));
        add("-machine", self.machine());
        // A device has the IOMMU that was there before it.
        match self.iommu {
            Iommu::None => {}
            // QEMU needs `caching-mode` for devices outside its process: the guest then
            // announces each new mapping.
            Iommu::Intel => add("-device", "intel-iommu,intremap=on,caching-mode=on".into()),
            Iommu::Virtio => add("-device", "virtio-iommu-pci".into()),
        }
        // Shared, so that the back end can map it.
        add(
            "-object",
            format!("memory-backend-memfd,id=m0,size={memory_mib}M,share=on"),
        );

        add("-kernel", self.kernel.display().to_string());
        add("-initrd", self.initramfs.display().to_string());
        add("-append", self.kernel_command_line());

        let console_log = escape(self.console_log);
        match self.console {
            Console::Log => add("-chardev", format!("file,id=console,path={console_log}")),
            Console::Terminal { .. } => {
                add(
                    "-chardev",
                    format!("stdio,id=console,mux=on,signal=off,logfile={console_log}"),
                );
                add("-monitor", "chardev:console".into());
            }
        }
        add("-serial", "chardev:console".into());

        let monitor = escape(self.monitor_socket);
        add("-chardev", format!("socket,id=monitor,path={monitor}"));
        add("-qmp", "chardev:monitor".into());

        add("-device", "virtio-serial-pci".into());
        for (id, socket, name) in [
            ("agent", self.agent_socket, PORT_NAME),
            ("host", self.host_socket, host::PORT_NAME),
        ] {
            let socket = escape(socket);
            add("-chardev", format!("socket,id={id},path={socket}"));
            if id == "agent" && self.serial_agent {
                // The second serial port, after the console.
                add("-serial", "chardev:agent".into());
            } else {
                add(
                    "-device",
                    format!("virtserialport,chardev={id},name={name}"),
                );
            }
        }

        for (i, device) in self.devices.iter().enumerate() {
            let id = format!("ringbar{i}");
            match device {
                GuestDevice::VhostUser(device) => {
                    add("-chardev", device.chardev(&id));
                    add("-device", device.device(&id, DeviceConfig::SIZE));
                }
                GuestDevice::VfioUser { socket } => {
                    let id = format!("{id}-device");
                    add("-device", vfio_user_device(&id, socket).to_string());
                }
            }
        }
        if let Some(share) = self.share {
            let share = escape(share);
            add(
                "-virtfs",
                format!(
                    "local,path={share},mount_tag={SHARE_TAG},security_model=none,multidevs=remap"
                ),
            );
        }
        add("-display", "none".into());
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        arguments.extend_from_slice(self.extra);
        arguments
    }

    fn machine(&self) -> String {
        let mut machine = String::from("q35,memory-backend=m0");
        // KVM's interrupt controller in the kernel cannot remap interrupts.
        if self.iommu == Iommu::Intel && self.accel == Accelerator::Kvm {
            machine += ",kernel-irqchip=split";
        }
        machine
    }

    fn kernel_command_line(&self) -> String {
        // Without `tsc=reliable`, a guest under TCG reads the time from the HPET, and
        // each time stamp costs an exit. Without `no_timer_check`, the kernel waits a few
        // milliseconds for the timer, and panics if the host is busy meanwhile.
        let mut line = String::from("console=ttyS0 tsc=reliable no_timer_check quiet panic=-1");
        if let Console::Terminal { kind } = self.console {
            line += &format!(" {MODE_PARAMETER}={MODE_SHELL}");
            if let Some(kind) = kind {
                line += &format!(" {TERM_PARAMETER}={kind}");
            }
        }
        if self.serial_agent {
            line += &format!(" {LINE_PARAMETER}={AGENT_SERIAL_LINE}");
        }
        line += match self.iommu {
            Iommu::None => "",
            Iommu::Intel => " intel_iommu=on iommu=nopt iommu.strict=1",
            Iommu::Virtio => " iommu=nopt iommu.strict=0",
        };
        for argument in self.kernel_args {
            line.push(' ');
            line += argument;
        }
        line
    }
}

/// Arguments for an additional monitor on this socket.
pub fn further_monitor(id: &str, socket: &Path) -> [String; 4] {
    let socket = escape(socket);
    [
        "-chardev".into(),
        format!("socket,id={id},path={socket}"),
        "-qmp".into(),
        format!("chardev:{id}"),
    ]
}

/// Arguments for a TCG plugin that listens on this socket.
pub fn plugin(plugin: &Path, socket: &Path) -> [String; 2] {
    let (file, socket) = (escape(plugin), escape(socket));
    ["-plugin".into(), format!("file={file},socket={socket}")]
}

/// A path as the value of a QEMU option, where a comma is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(console: &'a Console, devices: &'a [GuestDevice]) -> CommandLine<'a> {
        CommandLine {
            accel: Accelerator::Tcg,
            memory: 2 << 30,
            cpus: 2,
            iommu: Iommu::None,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            kernel_args: &[],
            console,
            console_log: Path::new("/a,b/console"),
            agent_socket: Path::new("/a"),
            serial_agent: false,
            host_socket: Path::new("/h"),
            monitor_socket: Path::new("/m"),
            devices,
            share: None,
            extra: &[],
        }
    }

    fn value<'a>(arguments: &'a [String], option: &str, start: &str) -> &'a str {
        arguments
            .windows(2)
            .find(|pair| pair[0] == option && pair[1].starts_with(start))
            .map_or("", |pair| &pair[1])
    }

    #[test]
    fn the_memory_is_shared_and_as_large_as_the_machine() {
        let arguments = line(&Console::Log, &[]).arguments();
        assert_eq!(value(&arguments, "-m", ""), "2048M");
        assert_eq!(
            value(&arguments, "-object", "memory"),
            "memory-backend-memfd,id=m0,size=2048M,share=on"
        );
    }

    #[test]
    fn a_device_has_two_queues_more_than_it_has_for_io() {
        let devices = [GuestDevice::VhostUser(VhostUserDevice {
            socket: "/s".into(),
            virtio_id: VIRTIO_DEVICE_ID,
            queues: FIRST_IO_QUEUE + 4,
            queue_size: 128,
        })];
        let arguments = line(&Console::Log, &devices).arguments();
        assert_eq!(
            value(&arguments, "-device", "vhost-user"),
            "vhost-user-test-device-pci,id=ringbar0-device,chardev=ringbar0,virtio-id=21,\
             num_vqs=6,vq_size=128,config_size=64"
        );
        assert_eq!(
            value(&arguments, "-chardev", "socket,id=ringbar0"),
            "socket,id=ringbar0,path=/s"
        );
    }

    #[test]
    fn a_vfio_user_device_is_its_socket() {
        let devices = [GuestDevice::VfioUser {
            socket: "/a,b".into(),
        }];
        let arguments = line(&Console::Log, &devices).arguments();
        let device: serde_json::Value =
            serde_json::from_str(value(&arguments, "-device", "{")).unwrap();
        assert_eq!(
            device,
            json!({
                "driver": "vfio-user-pci",
                "id": "ringbar0-device",
                "socket": {"type": "unix", "path": "/a,b"},
            })
        );
        assert_eq!(value(&arguments, "-chardev", "socket,id=ringbar0"), "");
    }

    #[test]
    fn an_iommu_comes_before_all_devices() {
        for (iommu, device, parameter) in [
            (Iommu::Intel, "intel-iommu,", " intel_iommu=on "),
            (Iommu::Virtio, "virtio-iommu-pci", " iommu.strict=0"),
        ] {
            let mut line = line(&Console::Log, &[]);
            line.iommu = iommu;
            let arguments = line.arguments();
            let first = value(&arguments, "-device", "");
            assert!(first.starts_with(device), "{first}");
            assert!(value(&arguments, "-append", "").contains(parameter));
        }
        let arguments = line(&Console::Log, &[]).arguments();
        assert_eq!(value(&arguments, "-device", ""), "virtio-serial-pci");
        assert!(!value(&arguments, "-append", "").contains("iommu"));
    }

    #[test]
    fn interrupt_remapping_needs_an_interrupt_controller_in_qemu() {
        let machine = |iommu, accel| {
            let mut line = line(&Console::Log, &[]);
            (line.iommu, line.accel) = (iommu, accel);
            value(&line.arguments(), "-machine", "").contains("kernel-irqchip=split")
        };
        assert!(machine(Iommu::Intel, Accelerator::Kvm));
        assert!(!machine(Iommu::Intel, Accelerator::Tcg));
        assert!(!machine(Iommu::None, Accelerator::Kvm));
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        let arguments = line(&Console::Log, &[]).arguments();
        assert_eq!(
            value(&arguments, "-chardev", "file"),
            "file,id=console,path=/a,,b/console"
        );
    }

    #[test]
    fn the_agent_can_be_on_a_serial_line() {
        let mut line = line(&Console::Log, &[]);
        assert_eq!(value(&line.arguments(), "-serial", "chardev:agent"), "");
        line.serial_agent = true;
        let arguments = line.arguments();
        assert_eq!(value(&arguments, "-serial", "chardev:a"), "chardev:agent");
        assert_eq!(value(&arguments, "-device", "virtserialport,chardev=a"), "");
        assert!(value(&arguments, "-append", "").ends_with(" agent.line=/dev/ttyS1"));
    }

    #[test]
    fn a_terminal_gets_a_shell() {
        let console = Console::Terminal {
            kind: Some("xterm".into()),
        };
        let mut line = line(&console, &[]);
        let extra = ["a=b".to_owned()];
        line.kernel_args = &extra;
        let arguments = line.arguments();
        assert_eq!(
            value(&arguments, "-append", ""),
            "console=ttyS0 tsc=reliable no_timer_check quiet panic=-1 ringbar.mode=shell agent.term=xterm a=b"
        );
        assert!(value(&arguments, "-chardev", "stdio").contains("mux=on"));
    }

    #[test]
    fn the_share_and_extra_arguments_come_when_asked_for() {
        let mut line = line(&Console::Log, &[]);
        assert_eq!(value(&line.arguments(), "-virtfs", ""), "");
        line.share = Some(Path::new("/dir"));
        let extra = ["-S".to_owned()];
        line.extra = &extra;
        let arguments = line.arguments();
        assert!(value(&arguments, "-virtfs", "").starts_with("local,path=/dir,"));
        assert_eq!(arguments.last().map(String::as_str), Some("-S"));
    }
}
