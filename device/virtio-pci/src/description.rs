// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The constant properties of a function.

use thiserror::Error;

/// Greatest number of queues: the notification area is 4 KiB with 4 bytes for each queue.
const MAX_QUEUES: u16 = 1024;

/// Greatest size of a queue of the split layout (VIRTIO 1.3, 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// Greatest number of vectors of MSI-X and MSI (PCI Express 6.0, 7.7.2.2 and 7.7.1.2).
const MAX_MSIX_VECTORS: u16 = 2048;
const MAX_MSI_VECTORS: u16 = 32;

/// Bytes of the register BAR's part for the device configuration.
const MAX_CONFIG_BYTES: u32 = 0x1000;

/// Smallest shared memory region, in bytes: a page of the host.
const MIN_SHARED_REGION: u64 = 0x1000;

/// `VIRTIO_F_VERSION_1` (VIRTIO 1.3, 6).
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Features that change registers or the layout of queues in a way the function does not
/// implement (VIRTIO 1.3, 6): `RING_PACKED`, `SR_IOV`, `NOTIFICATION_DATA`, `NOTIF_CONFIG_DATA`,
/// `RING_RESET`, `ADMIN_VQ`.
const NOT_IMPLEMENTED: u64 = 1 << 34 | 1 << 37 | 1 << 38 | 1 << 39 | 1 << 40 | 1 << 41;

/// The identity of the function in configuration space (PCI Express 6.0, 7.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code, 24 bits: base class, sub-class, programming interface.
    pub class: u32,
}

/// The kinds of interrupts of the function. All have INTx on pin A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// MSI-X.
    MsiX {
        /// Number of vectors, 1 to 2048.
        vectors: u16,
    },
    /// MSI with 64-bit addresses.
    Msi {
        /// Number of vectors, a power of two up to 32.
        vectors: u16,
    },
    /// INTx and nothing else.
    IntxOnly,
}

impl Interrupts {
    /// Number of message vectors; 0 with INTx only.
    pub(crate) fn vectors(self) -> u16 {
        match self {
            Self::MsiX { vectors } | Self::Msi { vectors } => vectors,
            Self::IntxOnly => 0,
        }
    }
}

/// The constant properties of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Identity on the bus.
    pub identity: Identity,
    /// Kinds of interrupts.
    pub interrupts: Interrupts,
    /// Offered features (VIRTIO 1.3, 2.2), with `VIRTIO_F_VERSION_1`.
    pub features: u64,
    /// Number of queues, 1 to 1024.
    pub queues: u16,
    /// Greatest number of descriptors of a queue, a power of two up to 32768.
    pub queue_size: u16,
    /// Size of the device configuration in bytes, up to 4096. Without any the function has no
    /// capability for it.
    pub config_bytes: u32,
    /// Size of the shared memory region with id 0 in bytes, a power of two of at least 4096.
    pub shared_region: Option<u64>,
}

/// A description that no function can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DescriptionError {
    /// The class code has more than 24 bits.
    #[error("class code {0:#x} has more than 24 bits")]
    Class(u32),
    /// The number of vectors is not possible for the kind of interrupts.
    #[error(
        "{0:?}: MSI-X has 1 to {MAX_MSIX_VECTORS} vectors, MSI a power of two up to \
         {MAX_MSI_VECTORS}"
    )]
    Vectors(Interrupts),
    /// `VIRTIO_F_VERSION_1` is not offered.
    #[error("features {0:#x} lack VIRTIO_F_VERSION_1")]
    NoVersion1(u64),
    /// Features that the function does not implement.
    #[error("the function does not implement the features {0:#x}")]
    NotImplemented(u64),
    /// The number of queues is 0 or too great.
    #[error("{0} queues: a function has 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// The size of queues is not a power of two or too great.
    #[error("queue size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    QueueSize(u16),
    /// The device configuration is too large.
    #[error("{0} bytes of device configuration: there is space for {MAX_CONFIG_BYTES}")]
    ConfigBytes(u32),
    /// The size of the shared memory region is not a power of two or too small.
    #[error("shared region of {0} bytes is not a power of two of at least {MIN_SHARED_REGION}")]
    SharedRegion(u64),
}

impl Description {
    /// Whether a function can have these properties.
    pub(crate) fn check(&self) -> Result<(), DescriptionError> {
        if self.identity.class >= 1 << 24 {
            return Err(DescriptionError::Class(self.identity.class));
        }
        let has_vectors = match self.interrupts {
            Interrupts::MsiX { vectors } => (1..=MAX_MSIX_VECTORS).contains(&vectors),
            Interrupts::Msi { vectors } => vectors.is_power_of_two() && vectors <= MAX_MSI_VECTORS,
            Interrupts::IntxOnly => true,
        };
        if !has_vectors {
            return Err(DescriptionError::Vectors(self.interrupts));
        }
        if self.features & VERSION_1 == 0 {
            return Err(DescriptionError::NoVersion1(self.features));
        }
        if self.features & NOT_IMPLEMENTED != 0 {
            return Err(DescriptionError::NotImplemented(
                self.features & NOT_IMPLEMENTED,
            ));
        }
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(DescriptionError::Queues(self.queues));
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > MAX_QUEUE_SIZE {
            return Err(DescriptionError::QueueSize(self.queue_size));
        }
        if self.config_bytes > MAX_CONFIG_BYTES {
            return Err(DescriptionError::ConfigBytes(self.config_bytes));
        }
        match self.shared_region {
            Some(size) if !size.is_power_of_two() || size < MIN_SHARED_REGION => {
                Err(DescriptionError::SharedRegion(size))
            }
            _ => Ok(()),
        }
    }
}
