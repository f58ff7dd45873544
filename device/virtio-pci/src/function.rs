// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The function: accesses in, actions out.

use thiserror::Error;

use crate::{Actions, Description, DescriptionError};

/// A space of the function that can be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The configuration space.
    Config,
    /// The memory of a BAR, by its index.
    Bar(u8),
}

/// The properties of the device that an access may need.
pub trait Surroundings {
    /// The device configuration as it is now. The function cuts it to
    /// [`Description::config_bytes`] or extends it with zeros.
    fn device_config(&self) -> Vec<u8>;

    /// Reads and clears the interrupt status (VIRTIO 1.3, 4.1.4.5), and lowers INTx.
    fn take_interrupt_status(&self) -> u8;
}

/// An access that the function does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessError {
    /// The function has no such BAR.
    #[error("the function has no BAR {0}")]
    NoBar(u8),
    /// The access is not within its space.
    #[error("{length} bytes at {offset:#x} of {space:?}, which has {size} bytes")]
    OutOfRange {
        /// The space.
        space: Space,
        /// First byte of the access.
        offset: u64,
        /// Bytes of the access.
        length: usize,
        /// Bytes of the space.
        size: u64,
    },
    /// The memory of the shared region is not the function's.
    #[error("an access to the shared region is not the function's")]
    SharedRegion,
}

/// A VIRTIO function on the PCI bus.
#[derive(Debug)]
pub struct Function {
    description: Description,
}

impl Function {
    /// A function after power-on.
    pub fn new(description: Description) -> Result<Self, DescriptionError> {
        description.check()?;
        Ok(Self { description })
    }

    /// Bytes of a space, `None` if the function has no such BAR.
    pub fn size(&self, _space: Space) -> Option<u64> {
        let _ = &self.description;
        todo!()
    }

    /// Reads `data.len()` bytes at `offset` of a space.
    pub fn read(
        &mut self,
        _space: Space,
        _offset: u64,
        _data: &mut [u8],
        _around: &dyn Surroundings,
    ) -> Result<(), AccessError> {
        todo!()
    }

    /// Writes `data` at `offset` of a space.
    pub fn write(
        &mut self,
        _space: Space,
        _offset: u64,
        _data: &[u8],
        _around: &dyn Surroundings,
    ) -> Result<Actions, AccessError> {
        todo!()
    }

    /// Resets the whole function, the configuration space too.
    pub fn reset(&mut self) -> Actions {
        todo!()
    }

    /// Ends a reset: [`Action::Reset`](crate::Action::Reset) was carried out.
    pub fn reset_done(&mut self) {
        todo!()
    }

    /// Whether a reset has begun and not ended.
    pub fn is_resetting(&self) -> bool {
        todo!()
    }

    /// Sets `DEVICE_NEEDS_RESET` in the device status (VIRTIO 1.3, 2.1). Returns whether the driver
    /// is to be told by a configuration interrupt.
    pub fn set_needs_reset(&mut self) -> bool {
        todo!()
    }
}
