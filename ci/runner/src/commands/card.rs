// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci card`: one command in a fresh guest with a card that is not Ringbar, and without a
//! driver.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ringbar_agent_protocol::host::{Lie, LieQueue, UsedLie};
use ringbar_agent_protocol::machine::{Iommu, TRANSPORT_VARIABLE, Transport};
use ringbar_lying_proxy::Proxy;
use ringbar_vm::agent::GuestCommand;
use ringbar_vm::error::Error;
use ringbar_vm::kernel_log::{self, ExpectedProblem};
use ringbar_vm::process::{HostProcess, log_excerpt};
use ringbar_vm::qemu::{VhostUserDevice, vfio_user_device};
use ringbar_vm::setup::Setup;
use ringbar_vm::socket_watch::SocketWatch;
use ringbar_vm::temporary::TemporaryDir;
use ringbar_vm::vm::{Vm, VmOptions};

use super::exec::pass_through;
use super::{FAILURE, TIMED_OUT, parse_seconds};

/// What a driver says of a card that lies (`driver/simple`).
const CARD_HAS_FAILED: &str = "the device has failed, and is reset";

/// Maximum time for the card's program to end once QEMU has.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs one command in a fresh guest that has a card of your own
///
/// Starts the card's program with --socket-path and --transport, and then the guest. Passes the
/// command's output through and exits with its status, with 124 on a timeout, and with 125 if the
/// guest did not start or crashed, the kernel log has a warning, or the card's program failed.
#[derive(Debug, Args)]
pub struct Options {
    /// Command line for the guest's shell
    #[arg(value_name = "COMMAND")]
    command: String,

    /// The card's program
    #[arg(long, value_name = "FILE")]
    program: PathBuf,

    /// Protocol between the card and QEMU: `vhost-user` or `vfio-user`
    #[arg(long, env = TRANSPORT_VARIABLE, value_name = "NAME", default_value_t)]
    transport: Transport,

    /// Device type over vhost-user: 1 to 13, 16 to 41, or 45 with QEMU 11.1
    #[arg(long, value_name = "ID")]
    virtio_id: u16,

    /// Number of queues over vhost-user
    #[arg(long, value_name = "N")]
    queues: u16,

    /// Entries of each queue over vhost-user
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue_size: u16,

    /// Bytes of the configuration space over vhost-user
    #[arg(long, value_name = "BYTES")]
    config_size: usize,

    /// Number of cards, each with a process of its own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=8))]
    cards: u8,

    /// IOMMU of the guest: none, intel-iommu or virtio-iommu; a card is behind it over vfio-user
    #[arg(long, value_name = "NAME", default_value_t)]
    iommu: Iommu,

    /// Argument for the guest's kernel, for example swiotlb=force; may be given several times
    #[arg(long = "kernel-arg", value_name = "ARG")]
    kernel_args: Vec<String>,

    /// The command suspends the guest. Nothing may use /mnt from then on
    #[arg(long)]
    suspends: bool,

    /// False statements about the first used entries of queue 0, one for each, over vhost-user.
    /// Then the card is honest
    #[arg(long, value_name = "LIE", value_enum, value_delimiter = ',')]
    lies: Vec<CardLie>,

    /// Directory to mount at /mnt of the guest, readable and writable
    #[arg(long, value_name = "DIR")]
    share: PathBuf,

    /// Directory for the logs of kernel, QEMU and card [default: none are kept]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,

    /// Timeout of the command in seconds
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = parse_seconds)]
    timeout: Duration,
}

/// A false statement about a used entry.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CardLie {
    /// There is none: the request never ends
    Never,
    /// Its id is beyond the ring
    Id,
    /// It is that of a request that is not in flight
    NotInFlight,
    /// It appears twice
    Twice,
    /// The used index is ahead of the ring
    IndexAhead,
    /// Its length is more than the buffers have
    Length,
}

impl From<CardLie> for Lie {
    fn from(lie: CardLie) -> Self {
        let used = match lie {
            CardLie::Never => UsedLie::Never,
            CardLie::Id => UsedLie::Id(u32::from(u16::MAX)),
            CardLie::NotInFlight => UsedLie::NotInFlight,
            CardLie::Twice => UsedLie::Twice,
            CardLie::IndexAhead => UsedLie::IndexAhead(u16::MAX / 2),
            CardLie::Length => UsedLie::Length(u32::MAX),
        };
        // Queue 0 is the control queue of Ringbar.
        Self::Used(LieQueue::Control, used)
    }
}

/// Runs the command.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let directory = TemporaryDir::new()?;
    let log_dir = options.log_dir.as_deref().unwrap_or(directory.path());
    std::fs::create_dir_all(log_dir).with_context(|| format!("creating {}", log_dir.display()))?;
    if !options.lies.is_empty() && options.transport != Transport::VhostUser {
        bail!("--lies works over vhost-user only");
    }
    let mut qemu_args = Vec::new();
    // They end after the guest, which needs them.
    let (mut cards, mut proxies) = (Vec::new(), Vec::new());
    for number in 0..options.cards {
        let name = format!("card{number}");
        let mut socket = directory.path().join(format!("{name}.sock"));
        let log = log_dir.join(format!("{name}.log"));
        cards.push(start(options, &socket, &log)?);
        if !options.lies.is_empty() {
            let before = directory.path().join(format!("{name}-proxy.sock"));
            let proxy = Proxy::start(&before, &socket).context("starting the lying proxy")?;
            for &lie in &options.lies {
                (proxy.handle().lie(lie.into())).context("preparing a lie")?;
            }
            proxies.push(proxy);
            socket = before;
        }
        qemu_args.extend(qemu_arguments(options, &name, &socket));
    }
    let mut vm = Vm::start(
        setup,
        &VmOptions {
            devices: Vec::new(),
            iommu: options.iommu,
            suspends: options.suspends,
            kernel_args: options.kernel_args.clone(),
            qemu_args,
            share: Some(options.share.clone()),
            log_dir: options.log_dir.clone(),
            ..VmOptions::default()
        },
    )?;
    vm.mount_share()?;

    let result = pass_through(&vm, &GuestCommand::shell(&options.command), options.timeout);
    let status = match vm.with_logs(result) {
        Ok(status) => status,
        Err(error) if error.is_timeout() => {
            eprintln!("ringbar-ci: {error:#}");
            return Ok(ExitCode::from(TIMED_OUT));
        }
        Err(error) => return Err(error.into()),
    };
    let expected = match options.lies.is_empty() {
        true => Vec::new(),
        false => vec![ExpectedProblem::Provoked {
            test: None,
            text: CARD_HAS_FAILED.to_owned(),
            required: false,
        }],
    };
    if let Some(report) = kernel_log::report(&vm.agent().kernel_log()?, &expected) {
        bail!("{report}");
    }
    vm.power_off()?;
    for card in &mut cards {
        match card.wait(END_TIMEOUT) {
            Some(end) if end.success() => {}
            Some(end) => bail!(
                "the card's program ended with {end}{}",
                log_excerpt("card", card.log())
            ),
            None => bail!("the card's program did not end with the guest"),
        }
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(FAILURE)))
}

/// Starts the card's program, and waits until it listens.
fn start(options: &Options, socket: &Path, log: &Path) -> Result<HostProcess, Error> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    // Set up before the program can create its socket.
    let watch = SocketWatch::new(directory)?;
    let mut command = Command::new(&options.program);
    command
        .arg("--socket-path")
        .arg(socket)
        .args(["--transport", &options.transport.to_string()]);
    let mut card = HostProcess::spawn("the card's program", command, log, false)?;
    watch.wait(socket, &mut card)?;
    Ok(card)
}

/// QEMU's arguments for a card.
fn qemu_arguments(options: &Options, name: &str, socket: &Path) -> Vec<String> {
    match options.transport {
        Transport::VhostUser => {
            let device = VhostUserDevice {
                socket: socket.to_owned(),
                virtio_id: options.virtio_id,
                queues: options.queues,
                queue_size: options.queue_size,
            };
            vec![
                "-chardev".into(),
                device.chardev(name),
                "-device".into(),
                device.device(name, options.config_size),
            ]
        }
        Transport::VfioUser => {
            vec!["-device".into(), vfio_user_device(name, socket).to_string()]
        }
    }
}
