// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a suite needs, as data: its machine and device, the kernels, the time, and what
//! the harness checks at the end.
//!
//! The harness reads all of it from [`Needs`] and knows no suite by name. The default is an
//! ordinary device in an ordinary machine, on both kernels. It costs least time: on the
//! debug kernel all such suites share one machine.

use std::time::Duration;

use ringbar_agent_protocol::machine::{Iommu, Transport};

/// Virtual CPUs of a machine without another number.
const CPUS: u32 = 2;

/// Maximum time for a suite without another limit.
const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// What a suite needs.
#[derive(Clone, Debug)]
pub struct Needs {
    /// The device under test.
    pub device: DeviceKind,
    /// Whether there is a second device, `/dev/ringbar1`, which is like the first.
    pub second_device: bool,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// IOMMU of the machine, which the guest uses for the device. Over vhost-user there is
    /// none.
    pub iommu: Iommu,
    /// Arguments added to the kernel command line.
    pub kernel_args: Vec<String>,
    /// Size in bytes of an empty second disk, `/dev/vda`.
    pub disk: Option<u64>,
    /// Whether tests suspend the machine, which the harness then wakes up.
    pub suspends: bool,
    /// Environment variables of the test program, with their values.
    pub environment: &'static [(&'static str, &'static str)],
    /// The kernels on which the suite runs.
    pub kernels: Kernels,
    /// Maximum time for the suite.
    pub time_limit: Duration,
    /// Warnings of the kernel that are no problem: texts that the stack trace contains.
    pub expected_traces: &'static [&'static [&'static str]],
    /// The end of the suite.
    pub end: End,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            device: DeviceKind::Daemon(Daemon::default()),
            second_device: false,
            cpus: CPUS,
            iommu: Iommu::None,
            kernel_args: Vec::new(),
            disk: None,
            suspends: false,
            environment: &[],
            kernels: Kernels::Shared,
            time_limit: TIME_LIMIT,
            expected_traces: &[],
            end: End::PowerOff(&[]),
        }
    }
}

impl Needs {
    /// An ordinary device in an ordinary machine, over each transport.
    pub fn each_transport() -> Self {
        Self {
            device: DeviceKind::Daemon(Daemon {
                transports: Transports::Each,
                ..Daemon::default()
            }),
            ..Self::default()
        }
    }

    /// The transports over which the suite runs.
    pub fn transports(&self) -> Transports {
        match &self.device {
            DeviceKind::Daemon(daemon) => daemon.transports,
            DeviceKind::PciFunction => Transports::Only(
                Transport::default(),
                "the function is no device of the daemon",
            ),
        }
    }
}

/// The transports over which a suite or a test runs.
///
/// | | over vhost-user | over vfio-user |
/// |---|---|---|
/// | `make test` | all that can | on Debian's kernel [`Self::Each`]; on both what cannot run over vhost-user |
/// | `make test TRANSPORT=...` | all that can | all that can |
/// | `make test-all` | all that can | all that can |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transports {
    /// Any of them. What the suite or test tests depends on the driver more than on the transport.
    #[default]
    Any,
    /// Each of them. What it tests depends on the transport.
    Each,
    /// This one, for this reason.
    Only(Transport, &'static str),
}

impl Transports {
    /// Whether this transport is among them.
    pub fn include(self, transport: Transport) -> bool {
        match self {
            Self::Any | Self::Each => true,
            Self::Only(only, _) => only == transport,
        }
    }
}

/// The device under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// `ringbar-device`.
    Daemon(Daemon),
    /// A PCI function whose registers tests control.
    PciFunction,
}

/// Options of `ringbar-device`; `None` stands for the ordinary value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Protocol between daemon and QEMU.
    pub transports: Transports,
    /// Size of the device memory in bytes.
    pub size: Option<u64>,
    /// Number of I/O queues.
    pub queues: Option<u16>,
    /// Entries of each queue.
    pub queue_size: Option<u16>,
    /// Where the host stores the device memory.
    pub storage: HostStorage,
    /// Whether a proxy falsifies the device's output.
    pub lies: bool,
    /// Further arguments.
    pub arguments: &'static [&'static str],
}

/// Where the host stores the device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostStorage {
    /// In memory.
    #[default]
    Memory,
    /// In a file that the daemon maps.
    File,
    /// In a file that the daemon uses as a block device.
    Block,
    /// In a file of an NBD server.
    Nbd,
}

/// The kernels on which a suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Both. On the debug kernel, which boots slowly, the tests run on the ordinary device,
    /// in the machine that all these suites share.
    Shared,
    /// Both, in a machine of its own on each. Only `make test-all` runs the suite on the debug
    /// kernel: there the start of a machine alone takes a minute.
    OwnInTestAll,
    /// As [`Self::OwnInTestAll`], but only `make test-all` runs the suite, on either kernel.
    TestAllOnly,
    /// The debug kernel.
    DebugOnly,
}

/// The end of a suite.
#[derive(Clone, Debug)]
pub enum End {
    /// The guest powers off, and the device exits with status 0. The device's counters are
    /// then compared with these.
    PowerOff(&'static [DeviceCount]),
    /// The guest powers off. The device exits with status 1, because this test has made its
    /// storage fail.
    StorageFailed(&'static str),
    /// A reading fio job must find a byte that the host changes. Then the daemon is killed,
    /// and its file must hold these data.
    Killed(Vec<StoredRange>),
}

impl End {
    /// The data that the daemon's file must hold at the end.
    pub fn stored(&self) -> &[StoredRange] {
        match self {
            Self::PowerOff(_) | Self::StorageFailed(_) => &[],
            Self::Killed(ranges) => ranges,
        }
    }
}

/// A counter in the device's last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCount {
    /// Name of the check.
    pub check: &'static str,
    /// Name of the counter in the report.
    pub counter: &'static str,
    /// The only test of the suite that makes the device count.
    pub test: &'static str,
    /// The value after this test.
    pub value: u64,
}

/// Data that a test leaves in the device memory.
#[derive(Clone, Copy, Debug)]
pub struct StoredRange {
    /// Name of the test.
    pub test: &'static str,
    /// Offset in the device memory.
    pub offset: u64,
    /// Length in bytes.
    pub length: usize,
    /// Seed of the data ([`crate::pattern::bytes`]).
    pub seed: u64,
}
