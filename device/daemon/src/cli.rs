// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Arguments, and their validation.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use ringbar_model::DeviceOptions;
use ringbar_serve::connection::Transport;
use ringbar_serve::{Function, Identity, ServeArgs};
use ringbar_spec::{MAX_IO_QUEUES, MIN_COMMAND_BYTES, PCI_DEVICE_ID_VFIO_USER, PCI_VENDOR_ID};
use ringbar_storage::NbdUri;

/// The PCI function, as drivers find it. Its class says nothing of what it does (0xff).
const IDENTITY: Identity = Identity {
    vendor: PCI_VENDOR_ID,
    device: PCI_DEVICE_ID_VFIO_USER,
    subsystem_vendor: PCI_VENDOR_ID,
    subsystem: PCI_DEVICE_ID_VFIO_USER,
    revision: 1,
    class: 0xff_00_00,
};

/// Vectors of the driver beside those of the I/O queues: one for configuration changes, and one for
/// control, events and polled requests.
const FURTHER_VECTORS: u16 = 2;

const AFTER_HELP: &str = "\
Sizes are bytes, or have a unit: K, M, G, T (powers of 1024).

Examples:
  A device of 256 MiB in memory, whose contents are lost at exit:
    ringbar-device --socket-path /tmp/ringbar.sock --size 256M

  A device in a file (created with 1 GiB if it does not exist), 8 I/O queues:
    ringbar-device --socket-path /tmp/ringbar.sock --storage file:disk.img --size 1G --queues 8

  A device on a disk, or on a part of one:
    ringbar-device --socket-path /tmp/ringbar.sock --storage block:/dev/nvme0n1p3

  A device on an export of an NBD server (docs/storage.md), over TCP or a Unix socket:
    ringbar-device --socket-path /tmp/ringbar.sock --storage nbd://server.example/disk
    ringbar-device --socket-path /tmp/ringbar.sock --storage nbd+unix:///disk?socket=/run/nbd.sock

  QEMU (11.1 or newer) with the device over vhost-user. Guest memory must be shared, and
  num_vqs is the number of I/O queues plus 2:
    qemu-system-x86_64 -machine q35,memory-backend=m0 -m 2G \\
      -object memory-backend-memfd,id=m0,size=2G,share=on \\
      -chardev socket,id=c0,path=/tmp/ringbar.sock \\
      -device vhost-user-test-device-pci,chardev=c0,virtio-id=21,num_vqs=6,\\
vq_size=256,config_size=64 ...

  The same device over vfio-user, with an interrupt vector for each queue:
    ringbar-device --transport vfio-user --socket-path /tmp/ringbar.sock --size 256M
    qemu-system-x86_64 -machine q35,memory-backend=m0 -m 2G \\
      -object memory-backend-memfd,id=m0,size=2G,share=on \\
      -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/ringbar.sock\"}}' ...

  Resize a device that was started with --control-socket ctl.sock:
    ringbarctl --socket ctl.sock resize 512M

  A device on which the third read of the first mebibyte fails (docs/faults.md). A rule of requests
  has an operation (read, write, flush, discard, write-zeroes, copy, fill, compare, crc32c),
  conditions (queue=N, offset=START..END, nth=N, times=N) and an effect (error=ERRNO, latency=TIME,
  short, corrupt):
    ringbar-device --socket-path /tmp/ringbar.sock --size 256M \\
      --fault read:offset=0..1M:nth=3:error=EIO

Start the device first: QEMU connects to the socket when it starts.

Exit status:
  0  the virtual machine monitor disconnected, or the process got SIGTERM or SIGINT
  1  an operation failed; the last message says which
  2  wrong arguments
  3  the sandbox prevented a system call; the last line says which";

/// A Ringbar device for a virtual machine, over vhost-user or vfio-user.
///
/// The device is a byte-addressable memory with a DMA engine. A guest transfers data by
/// requests in virtqueues, and accesses the same memory through a PCI BAR. The program
/// serves one virtual machine and exits when its monitor disconnects.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    serve: ServeArgs,

    /// Size of the device memory. Optional with an existing file, a block device or an NBD
    /// export: the default is its size
    #[arg(long, value_name = "SIZE", value_parser = ringbar_size::parse)]
    size: Option<u64>,

    /// Number of I/O queues, 1 to 64. The driver uses at most one for each CPU, and one more for
    /// polled requests
    #[arg(
        long,
        value_name = "N",
        default_value_t = DeviceOptions::default().io_queues,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_IO_QUEUES)),
    )]
    queues: u16,

    /// What holds the device memory: "memory", "file:PATH" for a regular file, which is
    /// locked, created or extended to --size with all its blocks allocated, and never made
    /// shorter; what the driver discards loses its blocks. "block:PATH" for a block device
    /// that nothing else uses, or a regular file treated the same way, by direct I/O
    /// (O_DIRECT) and io_uring: requests wait for the disk beside each other, nothing is
    /// cached on this host, and the memory cannot be mapped (the BAR shows nothing). Its size
    /// is a multiple of the blocks of the disk. "nbd://HOST[:PORT]/EXPORT" or
    /// "nbd+unix:///EXPORT?socket=PATH" for an export of an NBD server, which is used as a block
    /// device is; if the connection ends, all requests fail until the device is started again
    #[arg(
        long,
        value_name = "memory|file:PATH|block:PATH|nbd://...",
        default_value = "memory"
    )]
    storage: StorageKind,

    /// Hold the memory of memory storage in huge pages of this size that the host has set aside,
    /// for example 2M (docs/storage.md). --size is a multiple of it
    #[arg(long, value_name = "SIZE", value_parser = ringbar_size::parse)]
    memory_huge_pages: Option<u64>,

    /// Greatest number of data bytes in one request; the driver splits larger transfers
    #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = ringbar_size::parse)]
    max_request_size: u64,

    /// Greatest length of one command (discard, write zeroes, copy, fill, compare, CRC-32C).
    /// A command occupies its queue until it is completed; the driver splits longer ones
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = ringbar_size::parse)]
    max_command_size: u64,

    /// Unix socket to create for control of the running device by ringbarctl; only its owner can
    /// connect. Each request is a line of JSON, and each reply too (docs/control.md)
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,

    /// Run the device in a child process, and start another one when it crashes. Requests in
    /// progress are executed again, and the guest notices a short delay only. After SIGHUP the
    /// installed program takes over in the same way (docs/survival.md). Only over vhost-user, and
    /// not with NBD
    #[arg(long, value_name = "on|off", value_enum, default_value_t)]
    supervise: Supervise,

    /// Take over from the supervisor that has started this process
    #[arg(long, hide = true)]
    worker: bool,

    /// Print the capabilities of this program as JSON, and exit
    #[arg(long, exclusive = true)]
    print_capabilities: bool,

    /// Print the manual page of this program, and exit
    #[arg(long, exclusive = true, hide = true)]
    print_man_page: bool,
}

/// Whether the device runs in a child process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Supervise {
    /// In a child process
    On,
    /// In this process
    #[default]
    Off,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs the device.
    Alone,
    /// It holds the connection, and has the device run in a child.
    Supervisor,
    /// It is that child.
    Worker,
}

/// What holds the device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// Anonymous memory.
    Memory,
    /// A regular file.
    File(PathBuf),
    /// A block device, or a regular file as if it were one.
    Block(PathBuf),
    /// An export of an NBD server.
    Nbd(NbdUri),
}

impl fmt::Display for StorageKind {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Block(path) => write!(f, "block:{}", path.display()),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

impl FromStr for StorageKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("file" | "block", "")) => Err("a path must follow the colon".into()),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("block", path)) => Ok(Self::Block(path.into())),
            // All schemes of NBD, also those that are not supported, which have their own error.
            Some((scheme, _)) if scheme.starts_with("nbd") => {
                let uri = text.parse::<NbdUri>();
                uri.map(Self::Nbd).map_err(|error| error.to_string())
            }
            _ => Err(
                "expected \"memory\", \"file:PATH\", \"block:PATH\" or the address of an NBD \
                 export, for example nbd://localhost/disk"
                    .into(),
            ),
        }
    }
}

/// Validated arguments of a run.
#[derive(Debug)]
pub struct Options {
    /// Socket, transport and log.
    pub serve: ringbar_serve::Options,
    /// What the process does.
    pub role: Role,
    /// What holds the device memory.
    pub storage: StorageKind,
    /// Size of the device memory in bytes; always present for memory storage.
    pub size: Option<u64>,
    /// Bytes of the huge pages of memory storage.
    pub memory_huge_pages: Option<u64>,
    /// The device's own options.
    pub device: DeviceOptions,
    /// Path of the control socket.
    pub control_socket: Option<PathBuf>,
}

/// Task of the program.
#[derive(Debug)]
pub enum Command {
    /// Print the capabilities.
    PrintCapabilities,
    /// Print the manual page.
    PrintManPage,
    /// Run a device.
    Run(Box<Options>),
}

impl TryFrom<Args> for Command {
    type Error = clap::Error;

    fn try_from(args: Args) -> Result<Self, clap::Error> {
        let wrong = |message: &str| Args::command().error(ErrorKind::ValueValidation, message);
        if args.print_capabilities {
            return Ok(Self::PrintCapabilities);
        }
        if args.print_man_page {
            return Ok(Self::PrintManPage);
        }
        let function = Function {
            identity: IDENTITY,
            vectors: args.queues + FURTHER_VECTORS,
        };
        let role = match (args.worker, args.supervise) {
            (true, _) => Role::Worker,
            (false, Supervise::On) => Role::Supervisor,
            (false, Supervise::Off) => Role::Alone,
        };
        let serve = match role {
            Role::Worker => args.serve.options_of_worker(&function),
            Role::Alone | Role::Supervisor => args.serve.options(&function),
        };
        let serve = serve.map_err(|message| wrong(&message))?;
        if role != Role::Alone && serve.transport != Transport::VhostUser {
            return Err(wrong(
                "--supervise needs --transport vhost-user: over vfio-user the state of the PCI \
                 function would be lost with its process",
            ));
        }
        if role != Role::Alone && matches!(args.storage, StorageKind::Nbd(_)) {
            return Err(wrong(
                "--supervise does not go with NBD: the server may still execute requests of the \
                 former connection when a new process has begun",
            ));
        }
        match args.size {
            Some(0) => return Err(wrong("--size must be at least 1")),
            Some(size) if size > i64::MAX as u64 => {
                return Err(wrong("--size must be less than 2^63"));
            }
            None if args.storage == StorageKind::Memory => {
                return Err(wrong(
                    "memory storage needs --size, for example --size 256M",
                ));
            }
            _ => {}
        }
        if args.memory_huge_pages.is_some() && args.storage != StorageKind::Memory {
            return Err(wrong("--memory-huge-pages is for memory storage"));
        }
        let max_request_bytes = match u32::try_from(args.max_request_size) {
            Ok(bytes @ 1..) => bytes,
            _ => return Err(wrong("--max-request-size must be at least 1 and below 4G")),
        };
        if args.max_command_size < MIN_COMMAND_BYTES {
            return Err(wrong(&format!(
                "--max-command-size must be at least {MIN_COMMAND_BYTES}"
            )));
        }
        Ok(Self::Run(Box::new(Options {
            serve,
            role,
            storage: args.storage,
            size: args.size,
            memory_huge_pages: args.memory_huge_pages,
            device: DeviceOptions {
                io_queues: args.queues,
                max_request_bytes,
                max_command_bytes: args.max_command_size,
            },
            control_socket: args.control_socket,
        })))
    }
}

#[cfg(test)]
mod tests {
    use ringbar_serve::args::Endpoint;
    use ringbar_serve::connection::Interrupts;

    use super::*;

    fn parse(args: &[&str]) -> Result<Command, clap::Error> {
        Args::try_parse_from([&["ringbar-device"], args].concat()).and_then(Command::try_from)
    }

    fn options(args: &[&str]) -> Options {
        match parse(args) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_usual_command_line() {
        let options = options(&["--socket-path", "/tmp/s", "--size", "256M"]);
        let (path, mode) = ("/tmp/s".into(), 0o600);
        assert_eq!(options.serve.endpoint, Endpoint::Path { path, mode });
        assert_eq!(options.size, Some(256 << 20));
        assert_eq!(options.storage, StorageKind::Memory);
        assert_eq!(options.serve.transport, Transport::VhostUser);
        assert_eq!(options.device.io_queues, 4);
        assert_eq!(options.device.max_request_bytes, 4 << 20);
        assert_eq!(options.device.max_command_bytes, 64 << 20);
        assert!(!options.serve.keep_running);
    }

    #[test]
    fn vfio_user_has_interrupts_to_choose() {
        let interrupts = |args: &[&str]| {
            let usual = ["--fd", "3", "--size", "1M", "--transport", "vfio-user"];
            match options(&[&usual, args].concat()).serve.transport {
                Transport::VfioUser(function) => function.interrupts,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(interrupts(&[]), Interrupts::MsiX { vectors: 6 });
        assert_eq!(
            interrupts(&["--queues", "1", "--vectors", "128"]),
            Interrupts::MsiX { vectors: 128 }
        );
        assert_eq!(interrupts(&["--vectors", "0"]), Interrupts::IntxOnly);
        assert_eq!(interrupts(&["--msi-only"]), Interrupts::Msi { vectors: 8 });
    }

    #[test]
    fn faults_are_rules() {
        let rules = ["read:offset=0..1M:nth=3:error=EIO", "latency=2ms"];
        let args = ["--fd", "3", "--size", "1M", "--fault", rules[0]];
        let found = options(&[&args[..], &["--fault", rules[1]]].concat())
            .serve
            .faults;
        assert_eq!(found, rules.map(|rule| rule.parse().unwrap()));
        let error = parse(&["--fd", "3", "--size", "1M", "--fault", "reed:short"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        assert!(
            message.contains("\"reed\" is no part of a rule"),
            "{message}"
        );
    }

    #[test]
    fn a_file_needs_no_size() {
        let options = options(&["--fd", "3", "--storage", "file:a:b"]);
        assert_eq!(options.serve.endpoint, Endpoint::Fd(3));
        assert_eq!(options.storage, StorageKind::File("a:b".into()));
        assert_eq!(options.size, None);
        let options = self::options(&["--fd", "3", "--storage", "block:/dev/a"]);
        assert_eq!(options.storage, StorageKind::Block("/dev/a".into()));
        let uri = "nbd+unix:///disk?socket=/run/nbd.sock";
        let options = self::options(&["--fd", "3", "--storage", uri]);
        assert_eq!(options.storage, StorageKind::Nbd(uri.parse().unwrap()));
    }

    #[test]
    fn a_worker_needs_no_socket() {
        let args = ["--size", "1M", "--supervise", "on"];
        assert!(parse(&args).is_err());
        let options = options(&[&args[..], &["--worker"]].concat());
        assert_eq!(options.role, Role::Worker);
        assert_eq!(options.serve.endpoint, Endpoint::Handover);
    }

    #[test]
    fn memory_may_be_in_huge_pages() {
        let options = options(&["--fd", "3", "--size", "4M", "--memory-huge-pages", "2M"]);
        assert_eq!(options.memory_huge_pages, Some(2 << 20));
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for args in [
            &[][..],
            &["--size", "1M"],
            &["--socket-path", "s"],
            &["--socket-path", "s", "--fd", "3", "--size", "1M"],
            &["--socket-path", "s", "--size", "0"],
            &["--socket-path", "s", "--size", "8388608T"],
            &["--socket-path", "s", "--size", "lots"],
            &["--socket-path", "s", "--size", "1M", "--queues", "0"],
            &["--socket-path", "s", "--size", "1M", "--queues", "65"],
            &["--socket-path", "s", "--size", "1M", "--storage", "tape"],
            &["--socket-path", "s", "--size", "1M", "--storage", "file:"],
            &["--socket-path", "s", "--size", "1M", "--storage", "block:"],
            &["--socket-path", "s", "--size", "1M", "--storage", "block"],
            &["--socket-path", "s", "--size", "1M", "--storage", "nbd:"],
            &[
                "--socket-path",
                "s",
                "--size",
                "1M",
                "--storage",
                "nbd:///a",
            ],
            &[
                "--socket-path",
                "s",
                "--size",
                "1M",
                "--storage",
                "nbdx://h",
            ],
            &["--socket-path", "s", "--size", "1M", "--socket-mode", "9"],
            &[
                "--fd",
                "3",
                "--storage",
                "file:a",
                "--memory-huge-pages",
                "2M",
            ],
            &[
                "--socket-path",
                "s",
                "--size",
                "1M",
                "--max-request-size",
                "0",
            ],
            &[
                "--socket-path",
                "s",
                "--size",
                "1M",
                "--max-request-size",
                "4G",
            ],
            &[
                "--socket-path",
                "s",
                "--size",
                "1M",
                "--max-command-size",
                "7",
            ],
            &["--fd", "3", "--size", "1M", "--transport", "vfio"],
            &["--fd", "3", "--size", "1M", "--vectors", "1"],
            &["--fd", "3", "--size", "1M", "--queue-size", "256"],
            &[
                "--fd",
                "3",
                "--size",
                "1M",
                "--transport",
                "vfio-user",
                "--queue-size",
                "100",
            ],
            &[
                "--fd",
                "3",
                "--size",
                "1M",
                "--transport",
                "vfio-user",
                "--queue-size",
                "2048",
            ],
            &["--fd", "3", "--size", "1M", "--msi-only"],
            &[
                "--fd",
                "3",
                "--size",
                "1M",
                "--transport",
                "vfio-user",
                "--vectors",
                "129",
            ],
            &[
                "--fd",
                "3",
                "--size",
                "1M",
                "--transport",
                "vfio-user",
                "--msi-only",
                "--vectors",
                "6",
            ],
            &["--print-capabilities", "--size", "1M"],
        ] {
            let error = parse(args).expect_err(&format!("{args:?}"));
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn capabilities_stand_alone() {
        assert!(matches!(
            parse(&["--print-capabilities"]),
            Ok(Command::PrintCapabilities)
        ));
    }
}
