// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The subcommands.

pub mod bench;
pub mod card;
pub mod exec;
pub mod new;
pub mod run;
pub mod shell;
pub mod test;

use std::time::Duration;

use clap::Args;
use ringbar_agent_protocol::machine::{Iommu, TRANSPORT_VARIABLE, Transport};
use ringbar_vm::device::{DeviceOptions, Storage};

/// Exit status for a failure of the harness, as `timeout` and container tools use it, to
/// distinguish it from the command's status.
pub const FAILURE: u8 = 125;

/// Exit status for a timeout, as `timeout` uses it.
pub const TIMED_OUT: u8 = 124;

/// Options of all commands that start a virtual machine with one device.
#[derive(Debug, Args)]
pub struct MachineOptions {
    /// Protocol between the device and QEMU: `vhost-user` or `vfio-user`
    #[arg(long, env = TRANSPORT_VARIABLE, value_name = "NAME", default_value_t)]
    pub transport: Transport,

    /// Argument for ringbar-device, for example --vectors=1; may be given several times
    #[arg(long = "device-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub device_args: Vec<String>,

    /// IOMMU of the virtual machine; the driver refuses a vhost-user device behind one
    #[arg(long, value_name = "NAME", default_value_t)]
    pub iommu: Iommu,

    /// Size of the device memory
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = ringbar_size::parse)]
    pub device_size: u64,

    /// Number of I/O queues
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub queues: u16,

    /// Storage of the device memory: `memory`, `file:PATH`, `block:PATH` or the address of an
    /// NBD export
    #[arg(long, value_name = "WHERE", default_value = "memory", value_parser = parse_storage)]
    pub storage: Storage,

    /// Memory of the virtual machine
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = ringbar_size::parse)]
    pub memory: u64,

    /// Number of virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub cpus: u32,

    /// Argument for the guest's kernel; may be given several times
    #[arg(long = "kernel-arg", value_name = "ARG")]
    pub kernel_args: Vec<String>,

    /// Argument for QEMU; may be given several times
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_args: Vec<String>,
}

impl MachineOptions {
    /// The options for the virtual machine.
    pub fn vm(&self) -> ringbar_vm::vm::VmOptions {
        ringbar_vm::vm::VmOptions {
            memory: self.memory,
            cpus: self.cpus,
            iommu: self.iommu,
            kernel_args: self.kernel_args.clone(),
            devices: vec![DeviceOptions {
                transport: self.transport,
                size: self.device_size,
                queues: self.queues,
                storage: self.storage.clone(),
                extra: self.device_args.clone(),
                ..DeviceOptions::default()
            }],
            qemu_args: self.qemu_args.clone(),
            ..ringbar_vm::vm::VmOptions::default()
        }
    }
}

fn parse_storage(text: &str) -> Result<Storage, String> {
    match text.split_once(':') {
        None if text == "memory" => Ok(Storage::Memory),
        Some(("file", path)) if !path.is_empty() => Ok(Storage::File(path.into())),
        Some(("block", path)) if !path.is_empty() => Ok(Storage::Block(path.into())),
        // The daemon says what is wrong with an address.
        Some((scheme, rest)) if scheme.starts_with("nbd") && rest.starts_with("//") => {
            Ok(Storage::Nbd(text.into()))
        }
        _ => Err("neither `memory`, `file:PATH`, `block:PATH` nor `nbd://...`".into()),
    }
}

/// Reads a whole number of seconds above 0.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("a whole number of seconds above 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_memory_a_file_or_a_disk() {
        assert_eq!(parse_storage("memory"), Ok(Storage::Memory));
        assert_eq!(parse_storage("file:/a:b"), Ok(Storage::File("/a:b".into())));
        let nbd = "nbd+unix:///?socket=a";
        assert_eq!(parse_storage(nbd), Ok(Storage::Nbd(nbd.into())));
        let block = Storage::Block("/dev/a".into());
        assert_eq!(parse_storage("block:/dev/a"), Ok(block));
        for text in ["", "file", "file:", "block", "block:", "/a", "nbd:x"] {
            assert!(parse_storage(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn seconds_are_positive_and_whole() {
        assert_eq!(parse_seconds("600"), Ok(Duration::from_secs(600)));
        for text in ["0", "-1", "1.5", "10m", ""] {
            assert!(parse_seconds(text).is_err(), "{text:?}");
        }
    }
}
