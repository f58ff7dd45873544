// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The transports: the options of each, and a connection over one of them.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::available_parallelism;

use clap::ValueEnum;
use ringbar_engine::{Counters, DeviceModel};
use ringbar_vfio_user::FunctionOptions;
pub use ringbar_vfio_user::{Identity, Interrupts};

use crate::args::Options;

/// Greatest number of MSI-X vectors: the table has 2 KiB, and an entry 16 bytes.
pub const MAX_VECTORS: u16 = 128;

/// Greatest number of MSI vectors of a function (PCI 3.0, 6.8.1.3, Multiple Message Capable).
const MAX_MSI_VECTORS: u16 = 32;

/// The PCI function of a device, as far as the device decides it. Only vfio-user presents it: over
/// vhost-user the monitor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// The ids by which drivers find the function.
    pub identity: Identity,
    /// Number of interrupt vectors that the driver has a use for. The function has at least one and
    /// at most [`MAX_VECTORS`].
    pub vectors: u16,
}

/// Entries of a queue unless the user says otherwise, which is what the driver uses.
const QUEUE_SIZE: u16 = 256;

/// Greatest number of entries of a queue: that of QEMU's devices.
const MAX_QUEUE_SIZE: u16 = 1024;

/// Name of a transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TransportName {
    /// The monitor presents the PCI function; QEMU: vhost-user-test-device-pci
    #[default]
    VhostUser,
    /// This process presents the PCI function; QEMU: vfio-user-pci
    VfioUser,
}

/// Transport to the virtual machine monitor, with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// vhost-user.
    VhostUser,
    /// vfio-user.
    VfioUser(FunctionOptions),
}

impl Transport {
    /// Chooses the interrupts of a function and the size of its queues, as the options
    /// `--queue-size`, `--vectors` and `--msi-only` say. The error is a message for the user.
    pub fn new(
        name: TransportName,
        function: &Function,
        queue_size: Option<u16>,
        vectors: Option<u16>,
        msi_only: bool,
    ) -> Result<Self, String> {
        if name == TransportName::VhostUser && queue_size.is_some() {
            return Err("--queue-size needs --transport vfio-user: over vhost-user \
                 the monitor decides how large a queue is"
                .into());
        }
        let queue_size = queue_size.unwrap_or(QUEUE_SIZE);
        if !queue_size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&queue_size) {
            return Err(format!(
                "--queue-size must be a power of two from 2 to {MAX_QUEUE_SIZE}"
            ));
        }
        let wanted = function.vectors.clamp(1, MAX_VECTORS);
        let interrupts = match (name, vectors, msi_only) {
            (TransportName::VhostUser, None, false) => return Ok(Self::VhostUser),
            (TransportName::VhostUser, Some(_), _) => {
                return Err("--vectors needs --transport vfio-user: over vhost-user \
                     the monitor decides how many vectors there are"
                    .into());
            }
            (TransportName::VhostUser, None, true) => {
                return Err("--msi-only needs --transport vfio-user: over vhost-user \
                     the monitor offers MSI-X"
                    .into());
            }
            (TransportName::VfioUser, Some(0), false) => Interrupts::IntxOnly,
            (TransportName::VfioUser, vectors, false) => Interrupts::MsiX {
                vectors: vectors.unwrap_or(wanted),
            },
            (TransportName::VfioUser, None, true) => Interrupts::Msi {
                vectors: wanted.next_power_of_two().min(MAX_MSI_VECTORS),
            },
            (TransportName::VfioUser, Some(vectors), true) => {
                if !vectors.is_power_of_two() || vectors > MAX_MSI_VECTORS {
                    return Err(format!(
                        "with --msi-only, --vectors must be a power of two from 1 to \
                         {MAX_MSI_VECTORS}"
                    ));
                }
                Interrupts::Msi { vectors }
            }
        };
        Ok(Self::VfioUser(FunctionOptions {
            identity: function.identity,
            interrupts,
            queue_size,
        }))
    }
}

/// A connection to a virtual machine monitor.
pub enum Connection {
    /// Over vhost-user.
    VhostUser(ringbar_vhost_user::Connection),
    /// Over vfio-user.
    VfioUser(ringbar_vfio_user::Connection),
}

impl Connection {
    /// Accepts a connection and starts the engine of `device`, which counts in `counters`. Waits
    /// until a monitor connects.
    pub fn accept<D: DeviceModel>(
        device: Arc<D>,
        counters: Arc<Counters>,
        options: &Options,
        listener: &UnixListener,
    ) -> anyhow::Result<Self> {
        let engine = ringbar_engine::Options {
            poll: options.poll,
            cpus: available_parallelism().map_or(1, usize::from),
            record: options.record.clone(),
        };
        Ok(match options.transport {
            Transport::VhostUser => Self::VhostUser(ringbar_vhost_user::Connection::accept(
                device, counters, engine, listener,
            )?),
            Transport::VfioUser(function) => Self::VfioUser(ringbar_vfio_user::Connection::accept(
                device, counters, engine, function, listener,
            )?),
        })
    }

    /// A descriptor that becomes readable (end of file) when the connection has ended.
    pub fn finished(&self) -> BorrowedFd<'_> {
        match self {
            Self::VhostUser(connection) => connection.finished(),
            Self::VfioUser(connection) => connection.finished(),
        }
    }

    /// Closes the connection after the current step of each worker.
    pub fn shut_down(&self) {
        match self {
            Self::VhostUser(connection) => connection.shut_down(),
            Self::VfioUser(connection) => connection.shut_down(),
        }
    }

    /// Waits until the connection has ended and all its threads with it.
    pub fn join(self) -> anyhow::Result<()> {
        match self {
            Self::VhostUser(connection) => connection.join().map_err(Into::into),
            Self::VfioUser(connection) => connection.join().map_err(Into::into),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A function with six vectors.
    pub(crate) const FUNCTION: Function = Function {
        identity: Identity {
            vendor: 0x1af4,
            device: 0x10ff,
            subsystem_vendor: 0x1af4,
            subsystem: 0x10ff,
            revision: 1,
            class: 0xff_00_00,
        },
        vectors: 6,
    };

    fn interrupts(wanted: u16, vectors: Option<u16>, msi_only: bool) -> Interrupts {
        let function = Function {
            vectors: wanted,
            ..FUNCTION
        };
        match Transport::new(TransportName::VfioUser, &function, None, vectors, msi_only) {
            Ok(Transport::VfioUser(function)) => function.interrupts,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn there_are_as_many_vectors_as_the_driver_can_use() {
        assert_eq!(interrupts(6, None, false), Interrupts::MsiX { vectors: 6 });
        assert_eq!(
            interrupts(66, None, false),
            Interrupts::MsiX { vectors: 66 }
        );
        assert_eq!(
            interrupts(4, Some(2), false),
            Interrupts::MsiX { vectors: 2 }
        );
    }

    #[test]
    fn no_vector_leaves_intx() {
        assert_eq!(interrupts(4, Some(0), false), Interrupts::IntxOnly);
    }

    #[test]
    fn the_table_limits_what_a_driver_can_use() {
        for (wanted, vectors) in [(0, 1), (128, 128), (129, 128), (u16::MAX, 128)] {
            assert_eq!(
                interrupts(wanted, None, false),
                Interrupts::MsiX { vectors }
            );
        }
        assert_eq!(interrupts(0, None, true), Interrupts::Msi { vectors: 1 });
        assert_eq!(
            interrupts(u16::MAX, None, true),
            Interrupts::Msi { vectors: 32 }
        );
    }

    #[test]
    fn msi_vectors_are_a_power_of_two() {
        for (wanted, vectors) in [(3, 4), (4, 4), (5, 8), (32, 32), (33, 32), (66, 32)] {
            assert_eq!(interrupts(wanted, None, true), Interrupts::Msi { vectors });
        }
        for vectors in [1, 2, 4, 8, 16, 32] {
            assert_eq!(
                interrupts(64, Some(vectors), true),
                Interrupts::Msi { vectors }
            );
        }
        for vectors in [0, 3, 33, 64] {
            let error = Transport::new(
                TransportName::VfioUser,
                &FUNCTION,
                None,
                Some(vectors),
                true,
            );
            assert!(error.unwrap_err().contains("power of two"), "{vectors}");
        }
    }

    #[test]
    fn interrupts_are_not_chosen_over_vhost_user() {
        let transport = |vectors, msi_only| {
            Transport::new(TransportName::VhostUser, &FUNCTION, None, vectors, msi_only)
        };
        assert_eq!(transport(None, false), Ok(Transport::VhostUser));
        for (vectors, msi_only, option) in [
            (Some(1), false, "--vectors"),
            (None, true, "--msi-only"),
            (Some(1), true, "--vectors"),
        ] {
            let error = transport(vectors, msi_only).unwrap_err();
            assert!(error.starts_with(option), "{error}");
        }
    }
}
