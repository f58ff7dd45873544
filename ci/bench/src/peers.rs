// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The host's side of the devices that Ringbar is compared with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use ringbar_vm::error::{Error, Result};
use ringbar_vm::process::HostProcess;
use ringbar_vm::setup::Setup;
use ringbar_vm::socket_watch::SocketWatch;
use ringbar_vm::temporary::TemporaryDir;
use rustix::fs::{Mode, OFlags};

use crate::column::Column;

/// Directory of the files that hold the peers' data, on tmpfs.
const BACKING_DIR: &str = "/dev/shm";

/// Largest transfer of the NVMe controller as a power of two of 4 KiB: 2 MiB, QEMU's
/// maximum. QEMU's default would split transfers of 1 MiB.
const NVME_MDTS: u32 = 9;

/// Slot of a column's device on the PCI bus, above the slots that QEMU assigns itself.
const fn slot(column: Column) -> Option<u8> {
    match column {
        Column::VirtioBlk => Some(0x10),
        Column::VirtioBlkPoll => Some(0x11),
        Column::VhostUserBlk => Some(0x12),
        // One controller has both kinds of queues.
        Column::Nvme | Column::NvmePoll => Some(0x13),
        _ => None,
    }
}

/// PCI address of a peer's device in the guest.
pub fn pci_address(column: Column) -> Option<String> {
    slot(column).map(|slot| format!("0000:00:{slot:02x}.0"))
}

/// The peers' files, and the daemon for one of them.
// Field order: the daemon ends before its socket and file are removed.
#[derive(Debug)]
pub struct Peers {
    daemon: HostProcess,
    arguments: Vec<String>,
    access: &'static str,
    _sockets: TemporaryDir,
    _files: TemporaryDir,
}

impl Peers {
    /// Creates the files and starts the daemon, for devices of `size` bytes in a guest
    /// with `cpus` CPUs.
    pub fn start(setup: &Setup, size: u64, cpus: u32, log_dir: &Path) -> Result<Self> {
        let files = TemporaryDir::new_in(BACKING_DIR)?;
        let sockets = TemporaryDir::new()?;
        let mut paths = Vec::new();
        for name in ["virtio-blk", "virtio-blk-poll", "vhost-user-blk", "nvme"] {
            let path = files.path().join(name);
            File::create(&path)
                .and_then(|file| file.set_len(size))
                .map_err(Error::io(format!("creating {}", path.display())))?;
            paths.push(path);
        }
        let [virtio, virtio_poll, vhost_user, nvme] = &paths[..] else {
            unreachable!("as many as names")
        };
        let access = access(virtio);
        let socket = sockets.path().join("storage.sock");
        let watch = SocketWatch::new(sockets.path())?;
        let mut command = storage_daemon(&setup.qemu);
        command.args(storage_daemon_arguments(vhost_user, access, &socket, cpus));
        fs::create_dir_all(log_dir)
            .map_err(Error::io(format!("creating {}", log_dir.display())))?;
        let log = log_dir.join("qemu-storage-daemon.log");
        let mut daemon = HostProcess::spawn("qemu-storage-daemon", command, &log, false)?;
        watch.wait(&socket, &mut daemon)?;
        Ok(Self {
            daemon,
            arguments: qemu_arguments(virtio, virtio_poll, nvme, access, &socket, cpus),
            access,
            _sockets: sockets,
            _files: files,
        })
    }

    /// Arguments to add to QEMU's command line.
    pub fn qemu_arguments(&self) -> &[String] {
        &self.arguments
    }

    /// QEMU's options for access to the files.
    pub fn access(&self) -> &'static str {
        self.access
    }

    /// qemu-storage-daemon.
    pub fn daemon(&mut self) -> &mut HostProcess {
        &mut self.daemon
    }
}

/// The fastest access to files on tmpfs that this kernel supports. With O_DIRECT, which
/// tmpfs supports since Linux 6.6, Linux AIO copies the data during submission, without a
/// thread or a further event. Otherwise io_uring is the next best.
fn access(file: &Path) -> &'static str {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    match rustix::fs::open(file, flags, Mode::empty()) {
        Ok(_) => "cache.direct=on,aio=native",
        Err(_) => "cache.direct=off,aio=io_uring",
    }
}

/// qemu-storage-daemon from the same place as QEMU.
fn storage_daemon(qemu: &[String]) -> Command {
    let mut words: Vec<_> = qemu.iter().map(PathBuf::from).collect();
    if let Some(program) = words.last_mut() {
        program.set_file_name("qemu-storage-daemon");
    }
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// `file` as a node of QEMU's block layer.
fn node(name: &str, file: &Path, access: &str) -> String {
    format!(
        "driver=file,node-name={name},filename={},{access},discard=unmap",
        file.display()
    )
}

fn storage_daemon_arguments(file: &Path, access: &str, socket: &Path, cpus: u32) -> Vec<String> {
    let words = [
        "--blockdev",
        &node("node", file, access),
        "--object",
        "iothread,id=iothread",
        "--export",
        &format!(
            "type=vhost-user-blk,id=export,node-name=node,addr.type=unix,addr.path={},\
             writable=on,num-queues={cpus},iothread=iothread",
            socket.display()
        ),
    ];
    words.map(str::to_owned).to_vec()
}

fn qemu_arguments(
    virtio: &Path,
    virtio_poll: &Path,
    nvme: &Path,
    access: &str,
    socket: &Path,
    cpus: u32,
) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| {
        arguments.push(option.to_owned());
        arguments.push(value);
    };
    let addr = |column| slot(column).map_or_else(String::new, |slot| format!("addr={slot:#x}"));
    for (column, file) in [
        (Column::VirtioBlk, virtio),
        (Column::VirtioBlkPoll, virtio_poll),
    ] {
        add("-object", format!("iothread,id={column}-thread"));
        add("-blockdev", node(column.name(), file, access));
        add(
            "-device",
            format!(
                "virtio-blk-pci,drive={column},iothread={column}-thread,num-queues={cpus},\
                 queue-size=256,{}",
                addr(column)
            ),
        );
    }
    add(
        "-chardev",
        format!("socket,id=storage,path={}", socket.display()),
    );
    add(
        "-device",
        format!(
            "vhost-user-blk-pci,chardev=storage,num-queues={cpus},queue-size=256,{}",
            addr(Column::VhostUserBlk)
        ),
    );
    add("-blockdev", node("nvme", nvme, access));
    add(
        "-device",
        format!(
            "nvme,serial=bench,drive=nvme,ioeventfd=on,mdts={NVME_MDTS},{}",
            addr(Column::Nvme)
        ),
    );
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_storage_daemon_is_beside_qemu() {
        let command = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let command = storage_daemon(&words);
            let mut line = command.get_program().to_string_lossy().into_owned();
            for argument in command.get_args() {
                line += " ";
                line += &argument.to_string_lossy();
            }
            line
        };
        assert_eq!(
            command(&["/x/enter.sh", "/root", "--", "qemu-system-x86_64"]),
            "/x/enter.sh /root -- qemu-storage-daemon"
        );
        assert_eq!(
            command(&["/opt/bin/qemu-system-x86_64"]),
            "/opt/bin/qemu-storage-daemon"
        );
    }

    #[test]
    fn peers_have_iothreads_queues_and_addresses() {
        let (a, b, c) = (Path::new("/a"), Path::new("/b"), Path::new("/c"));
        let line = qemu_arguments(a, b, c, "aio=x", Path::new("/s"), 2).join(" ");
        for part in [
            "-blockdev driver=file,node-name=virtio-blk,filename=/a,aio=x",
            "virtio-blk-pci,drive=virtio-blk,iothread=virtio-blk-thread,num-queues=2",
            "virtio-blk-pci,drive=virtio-blk-poll,iothread=virtio-blk-poll-thread,num-queues=2",
            "vhost-user-blk-pci,chardev=storage,num-queues=2,queue-size=256,addr=0x12",
            "nvme,serial=bench,drive=nvme,ioeventfd=on,mdts=9,addr=0x13",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        let line = storage_daemon_arguments(a, "aio=x", Path::new("/s"), 2).join(" ");
        assert!(line.contains("addr.path=/s,writable=on,num-queues=2,iothread=iothread"));
        assert_eq!(
            pci_address(Column::VirtioBlk).as_deref(),
            Some("0000:00:10.0")
        );
        assert_eq!(pci_address(Column::Floor), None);
        assert_eq!(pci_address(Column::Nvme), pci_address(Column::NvmePoll));
    }

    #[test]
    fn some_access_is_found() {
        let file = tempfile::NamedTempFile::new_in(BACKING_DIR).unwrap();
        assert!(access(file.path()).contains("aio="));
        // A file that cannot be opened is not an error.
        assert!(access(Path::new("/nowhere")).contains("direct=off"));
    }
}
