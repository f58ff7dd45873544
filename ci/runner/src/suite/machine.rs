// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The virtual machine of a suite, as its needs say.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ringbar_agent_protocol::machine::Transport;
use ringbar_guest_tests::needs::{Daemon, DeviceKind, HostStorage};
use ringbar_vm::device::{DeviceOptions, Storage};
use ringbar_vm::error::{Error, Result};
use ringbar_vm::setup::Kernel;
use ringbar_vm::vm::VmOptions;
use serde_json::json;

use crate::suite::debug;
use crate::suite::plan::Plan;

/// File of the device memory, in the directory of the logs.
pub(super) fn image(plan: &Plan) -> PathBuf {
    plan.log_dir.join("device-memory")
}

/// File of the second disk, in the directory of the logs.
pub(super) fn disk(plan: &Plan) -> PathBuf {
    plan.log_dir.join("disk")
}

/// The options of the virtual machine. Creates the files that it needs.
pub(super) fn options(plan: &Plan) -> Result<VmOptions> {
    let needs = &plan.needs;
    let mut options = VmOptions {
        devices: Vec::new(),
        cpus: needs.cpus,
        iommu: needs.iommu,
        kernel_args: match plan.kernel {
            Kernel::Stock => Vec::new(),
            Kernel::Debug => debug::KERNEL_ARGS.map(str::to_owned).to_vec(),
        },
        suspends: needs.suspends,
        log_dir: Some(plan.log_dir.clone()),
        ..VmOptions::default()
    };
    options.kernel_args.extend_from_slice(&needs.kernel_args);
    match &needs.device {
        DeviceKind::PciFunction => options.pci_function = true,
        DeviceKind::Daemon(daemon) => {
            let device = device(daemon, plan.transport, &image(plan))?;
            options.devices = vec![device; 1 + usize::from(needs.second_device)];
        }
    }
    if let Some(size) = needs.disk {
        let file = disk(plan);
        create(&file, size)?;
        options.qemu_args = disk_arguments(&file);
    }
    Ok(options)
}

/// The options of the daemon, whose file, if it needs one, is `image`.
fn device(daemon: &Daemon, transport: Transport, image: &Path) -> Result<DeviceOptions> {
    let ordinary = DeviceOptions::default();
    let size = daemon.size.unwrap_or(ordinary.size);
    if daemon.storage != HostStorage::Memory {
        create(image, size)?;
    }
    let storage = match daemon.storage {
        HostStorage::Memory => Storage::Memory,
        HostStorage::File => Storage::File(image.to_owned()),
        HostStorage::Block => Storage::Block(image.to_owned()),
        HostStorage::Nbd => Storage::NbdFile(image.to_owned()),
    };
    Ok(DeviceOptions {
        transport,
        size,
        queues: daemon.queues.unwrap_or(ordinary.queues),
        queue_size: daemon.queue_size.unwrap_or(ordinary.queue_size),
        storage,
        lies: daemon.lies,
        extra: daemon.arguments.iter().copied().map(String::from).collect(),
    })
}

/// Creates a file of this size, and its directory.
fn create(path: &Path, size: u64) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .and_then(|()| File::create(path))
        .and_then(|file| file.set_len(size))
        .map_err(Error::io(format!("creating {}", path.display())))
}

/// QEMU's arguments for a disk in this file.
fn disk_arguments(file: &Path) -> Vec<String> {
    let drive = json!({
        "driver": "file",
        "filename": file.display().to_string(),
        "node-name": "disk",
    });
    let device = json!({"driver": "virtio-blk-pci", "drive": "disk"});
    vec![
        "-blockdev".into(),
        drive.to_string(),
        "-device".into(),
        device.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringbar_agent_protocol::machine::Iommu;
    use ringbar_guest_tests::needs::Needs;

    fn plan(kernel: Kernel, needs: Needs, log_dir: &Path) -> Plan {
        Plan {
            suite: "x",
            needs,
            kernel,
            transport: Transport::VfioUser,
            tests: Vec::new(),
            provoked: Vec::new(),
            log_dir: log_dir.join("logs"),
        }
    }

    #[test]
    fn a_suite_without_needs_has_the_ordinary_machine() {
        let options = options(&plan(Kernel::Stock, Needs::default(), Path::new("/x"))).unwrap();
        let device = DeviceOptions {
            transport: Transport::VfioUser,
            ..DeviceOptions::default()
        };
        assert_eq!(options.devices, [device]);
        assert_eq!((options.cpus, options.iommu), (2, Iommu::None));
        assert!(!options.pci_function && !options.suspends);
        assert!(options.kernel_args.is_empty() && options.qemu_args.is_empty());
    }

    #[test]
    fn needs_change_the_device() {
        let directory = tempfile::tempdir().unwrap();
        let needs = Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(3 << 20),
                queues: Some(1),
                queue_size: Some(8),
                storage: HostStorage::File,
                lies: true,
                arguments: &["--poll-us=0"],
                ..Daemon::default()
            }),
            ..Needs::default()
        };
        let plan = plan(Kernel::Stock, needs, directory.path());
        let expected = DeviceOptions {
            transport: Transport::VfioUser,
            size: 3 << 20,
            queues: 1,
            queue_size: 8,
            storage: Storage::File(image(&plan)),
            lies: true,
            extra: vec!["--poll-us=0".into()],
        };
        assert_eq!(options(&plan).unwrap().devices, [expected]);
        assert_eq!(fs::metadata(image(&plan)).unwrap().len(), 3 << 20);
    }

    #[test]
    fn needs_change_the_machine() {
        let directory = tempfile::tempdir().unwrap();
        let needs = Needs {
            device: DeviceKind::PciFunction,
            cpus: 3,
            iommu: Iommu::Virtio,
            kernel_args: vec!["a=b".into()],
            disk: Some(5 << 20),
            suspends: true,
            ..Needs::default()
        };
        let plan = plan(Kernel::Debug, needs, directory.path());
        let options = options(&plan).unwrap();
        assert!(options.devices.is_empty() && options.pci_function && options.suspends);
        assert_eq!((options.cpus, options.iommu), (3, Iommu::Virtio));
        assert_eq!(options.kernel_args.last().unwrap(), "a=b");
        assert!(
            options
                .kernel_args
                .starts_with(&debug::KERNEL_ARGS.map(str::to_owned))
        );
        assert_eq!(fs::metadata(disk(&plan)).unwrap().len(), 5 << 20);
        let drive = format!("\"filename\":\"{}\"", disk(&plan).display());
        assert!(
            options.qemu_args[1].contains(&drive),
            "{:?}",
            options.qemu_args
        );
    }
}
