// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Set-up of the guest before a program can run in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::reaper::Reaper;

/// File systems of the guest: type, mount point, data, and whether the guest requires it.
const FILE_SYSTEMS: &[(&str, &str, &str, bool)] = &[
    ("proc", "/proc", "", true),
    ("sysfs", "/sys", "", true),
    ("devtmpfs", "/dev", "mode=0755", true),
    ("devpts", "/dev/pts", "mode=0620,ptmxmode=0666", true),
    ("tmpfs", "/dev/shm", "mode=1777", true),
    ("tmpfs", "/run", "mode=0755", true),
    ("tmpfs", "/tmp", "mode=1777", true),
    ("debugfs", "/sys/kernel/debug", "", false),
    ("tracefs", "/sys/kernel/tracing", "", false),
    ("cgroup2", "/sys/fs/cgroup", "", false),
];

/// Mounts the file systems that programs expect.
pub fn mount_file_systems() -> anyhow::Result<()> {
    for &(kind, target, data, needed) in FILE_SYSTEMS {
        let result = mount_file_system(kind, target, data);
        if let Err(error) = result {
            if needed {
                return Err(error);
            }
            eprintln!("ringbar-init: {error:#}");
        }
    }
    Ok(())
}

fn mount_file_system(kind: &str, target: &str, data: &str) -> anyhow::Result<()> {
    // Within sysfs the mount points exist or the file system does not.
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
    }
    let flags = match target {
        "/dev" | "/dev/pts" => MountFlags::NOSUID,
        _ => MountFlags::NOSUID | MountFlags::NODEV,
    };
    let data = std::ffi::CString::new(data).context("mount data")?;
    match mount(kind, target, kind, flags, data.as_c_str()) {
        // The kernel has mounted it (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {kind} on {target}")),
    }
}

/// Sets the environment that all processes of the guest inherit.
pub fn set_environment() {
    const VARIABLES: [(&str, &str); 4] = [
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("USER", "root"),
    ];
    for (name, value) in VARIABLES {
        // SAFETY: PID 1 has no other thread yet.
        unsafe { env::set_var(name, value) };
    }
}

/// Type of a virtio-iommu as sysfs shows it (VIRTIO 1.3, 5).
const VIRTIO_IOMMU: &str = "0x0017";

/// Loads the driver of a virtio-iommu, if the machine has one. Until it is there, the kernel
/// probes no device behind it, among them the port to the host.
pub fn load_iommu(reaper: &Reaper) -> anyhow::Result<()> {
    // No directory without a virtio bus.
    let devices = fs::read_dir("/sys/bus/virtio/devices");
    let present = devices.into_iter().flatten().flatten().any(|device| {
        fs::read_to_string(device.path().join("device"))
            .is_ok_and(|kind| kind.trim() == VIRTIO_IOMMU)
    });
    if present {
        let loaded = reaper.run(Command::new("modprobe").arg("virtio_iommu"))?;
        if !loaded.success() {
            eprintln!("ringbar-init: modprobe virtio_iommu: {loaded}; see dmesg");
        }
    }
    Ok(())
}

/// Shows all kernel messages on the console, and so in the host's log of this guest. The
/// command line has `quiet`, which shortens the boot.
pub fn show_all_kernel_messages() -> anyhow::Result<()> {
    write(&PathBuf::from("/proc/sys/kernel/printk"), "7")
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {text:?} to {}", path.display()))
}
