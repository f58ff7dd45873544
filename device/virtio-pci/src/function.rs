// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The function: accesses in, actions out.

use thiserror::Error;

use crate::common::{self, Common, Effect};
use crate::config_space::{self, ConfigSpace};
use crate::device_config::DeviceConfig;
use crate::layout::{
    COMMON, DEVICE, INTERRUPT_STATUS, MSIX_BAR, NOTIFY, NOTIFY_MULTIPLIER, REGISTER_BAR,
    REGISTER_BAR_BYTES, SHARED_BAR, copy_overlap,
};
use crate::{Action, Actions, Description, DescriptionError, Interrupts, msix};

/// A space of the function that can be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The configuration space.
    Config,
    /// The memory of a BAR, by its index.
    Bar(u8),
}

/// The properties of the device that a read may need.
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
    #[error("the shared region is mapped, and not accessed through the function")]
    SharedRegion,
}

/// The states of the device behind the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No queue is started.
    Stopped,
    /// The queues are started; they are paused while bus mastering is disabled.
    Started,
    /// [`Action::Reset`] is being carried out.
    Resetting,
}

/// A VIRTIO function on the PCI bus.
///
/// # Invariants
///
/// - The state is `Started` only if the status has `DRIVER_OK`, and `Resetting` only if the
///   status is not 0.
/// - Queues are started only in the state `Started`.
#[derive(Debug)]
pub struct Function {
    config_space: ConfigSpace,
    msix: Option<msix::Table>,
    common: Common,
    device_config: DeviceConfig,
    shared_region: Option<u64>,
    state: State,
}

impl Function {
    /// A function after power-on.
    pub fn new(description: Description) -> Result<Self, DescriptionError> {
        description.check()?;
        let msix = match description.interrupts {
            Interrupts::MsiX { vectors } => Some(msix::Table::new(vectors)),
            Interrupts::Msi { .. } | Interrupts::IntxOnly => None,
        };
        Ok(Self {
            config_space: ConfigSpace::new(&description),
            msix,
            common: Common::new(&description),
            // CAST: At most 4096.
            device_config: DeviceConfig::new(description.config_bytes as usize),
            shared_region: description.shared_region,
            state: State::Stopped,
        })
    }

    /// Bytes of a space, `None` if the function has no such BAR. The upper half of a 64-bit BAR
    /// is not a BAR.
    pub fn size(&self, space: Space) -> Option<u64> {
        match space {
            Space::Config => Some(config_space::BYTES as u64),
            Space::Bar(MSIX_BAR) => self.msix.as_ref().map(msix::Table::bar_bytes),
            Space::Bar(REGISTER_BAR) => Some(REGISTER_BAR_BYTES),
            Space::Bar(SHARED_BAR) => self.shared_region,
            Space::Bar(_) => None,
        }
    }

    /// Reads `data.len()` bytes at `offset` of a space, of any number and alignment. Bytes without
    /// a register read 0. After an error, `data` is as before.
    ///
    /// A read of the interrupt status clears it, and a read of configuration space may be one of a
    /// register (VIRTIO 1.3, 4.1.4.9).
    pub fn read(
        &mut self,
        space: Space,
        offset: u64,
        data: &mut [u8],
        around: &dyn Surroundings,
    ) -> Result<(), AccessError> {
        self.check(space, offset, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        match space {
            Space::Config => {
                // CAST: The access lies within the space.
                let offset = offset as usize;
                if let Some(access) = self.config_space.window_access(offset, data.len()) {
                    let mut word = [0; 4];
                    let word = &mut word[..access.length];
                    // An access that is not possible leaves the data as they are.
                    if self
                        .read(Space::Bar(access.bar), access.offset.into(), word, around)
                        .is_ok()
                    {
                        self.config_space.window_data()[..access.length].copy_from_slice(word);
                    }
                }
                self.config_space.read(offset, data);
            }
            Space::Bar(REGISTER_BAR) => self.read_registers(offset, data, around),
            // Of the other BARs, `check` lets only that of the MSI-X table pass.
            Space::Bar(_) => {
                if let Some(table) = &self.msix {
                    table.read(offset, data);
                }
            }
        }
        Ok(())
    }

    /// Writes `data` at `offset` of a space, and returns the effects.
    ///
    /// A write to configuration space, of any number and alignment of bytes, sets the bits that
    /// can be written. A write to a BAR has no effect unless it is one of a whole register, or of a
    /// half of a register of 64 bits.
    pub fn write(
        &mut self,
        space: Space,
        offset: u64,
        data: &[u8],
    ) -> Result<Actions, AccessError> {
        self.check(space, offset, data.len())?;
        let mut actions = Actions::default();
        if data.is_empty() {
            return Ok(actions);
        }
        match space {
            // CAST: The access lies within the space.
            Space::Config => self.write_config(offset as usize, data, &mut actions),
            Space::Bar(bar) => self.write_bar(bar, offset, data, &mut actions),
        }
        Ok(actions)
    }

    /// Resets the whole function, as a function level reset does: configuration space, MSI-X table
    /// and registers.
    ///
    /// The reset is complete when [`Function::is_resetting`] is false: at once if the driver had not
    /// touched the device, and after [`Function::reset_done`] otherwise.
    pub fn reset(&mut self) -> Actions {
        let mut actions = Actions::default();
        self.reset_function(&mut actions);
        actions
    }

    /// Ends a reset: [`Action::Reset`] was carried out, and the device status reads 0 from now on.
    pub fn reset_done(&mut self) {
        if self.state == State::Resetting {
            self.common.clear_status();
            self.state = State::Stopped;
        }
    }

    /// Whether [`Action::Reset`] was returned and [`Function::reset_done`] not yet called.
    pub fn is_resetting(&self) -> bool {
        self.state == State::Resetting
    }

    /// Sets `DEVICE_NEEDS_RESET` in the device status (VIRTIO 1.3, 2.1), and returns whether the
    /// driver is to be told by a configuration interrupt.
    ///
    /// The call has no effect unless `DRIVER_OK` is set and no reset is under way, so that a failure
    /// reported late does not affect the next start.
    pub fn set_needs_reset(&mut self) -> bool {
        self.state != State::Resetting
            && self.common.is_driver_ok()
            && self.common.set_needs_reset()
    }

    /// Returns an error unless the access lies within a space that the function itself serves.
    fn check(&self, space: Space, offset: u64, length: usize) -> Result<(), AccessError> {
        let size = match (space, self.size(space)) {
            (Space::Bar(SHARED_BAR), Some(_)) => return Err(AccessError::SharedRegion),
            (Space::Bar(bar), None) => return Err(AccessError::NoBar(bar)),
            // A configuration space always exists.
            (_, size) => size.unwrap_or(0),
        };
        match offset.checked_add(length as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(AccessError::OutOfRange {
                space,
                offset,
                length,
                size,
            }),
        }
    }

    fn read_registers(&mut self, offset: u64, data: &mut [u8], around: &dyn Surroundings) {
        data.fill(0);
        let length = data.len();
        if COMMON.overlaps(offset, length) {
            let generation = common::GENERATION;
            if offset <= generation && generation - offset < length as u64 {
                self.device_config.update(around.device_config());
            }
            let image = self.common.image(self.device_config.generation());
            copy_overlap(offset, data, COMMON.offset, &image);
        }
        if INTERRUPT_STATUS.overlaps(offset, length) {
            let status = [around.take_interrupt_status()];
            copy_overlap(offset, data, INTERRUPT_STATUS.offset, &status);
        }
        if DEVICE.overlaps(offset, length) {
            self.device_config.update(around.device_config());
            copy_overlap(offset, data, DEVICE.offset, self.device_config.bytes());
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8], actions: &mut Actions) {
        let was_bus_master = self.config_space.is_bus_master();
        let was_intx_disabled = self.config_space.is_intx_disabled();
        let initiates_reset = self.config_space.write(offset, data);
        let is_intx_disabled = self.config_space.is_intx_disabled();
        if is_intx_disabled != was_intx_disabled {
            actions.push(Action::IntxDisable(is_intx_disabled));
        }
        match (was_bus_master, self.config_space.is_bus_master()) {
            (false, true) if self.state == State::Started => {
                actions.push(Action::Resume);
                self.start_queues(actions);
            }
            (false, true) => self.start(actions),
            (true, false) if self.state == State::Started => actions.push(Action::Pause),
            _ => {}
        }

        if let Some(access) = self.config_space.window_access(offset, data.len()) {
            let mut word = [0; 4];
            word.copy_from_slice(self.config_space.window_data());
            let word = &word[..access.length];
            // An access that is not possible has no effect.
            if self
                .check(Space::Bar(access.bar), access.offset.into(), word.len())
                .is_ok()
            {
                self.write_bar(access.bar, access.offset.into(), word, actions);
            }
        }
        if initiates_reset {
            // The driver waits for a time and has nothing to ask, so DMA ends before the write does.
            if self.state == State::Started && self.config_space.is_bus_master() {
                actions.push(Action::Pause);
            }
            self.reset_function(actions);
        }
    }

    /// Writes within a BAR that [`Function::check`] lets pass.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8], actions: &mut Actions) {
        if bar != REGISTER_BAR {
            if let Some(table) = &mut self.msix {
                table.write(offset, data);
            }
        } else if let Some(at) = NOTIFY.within(offset, data.len()) {
            self.notify(at, data.len(), actions);
        } else if let Some(at) = COMMON.within(offset, data.len()) {
            self.write_common(at, data, actions);
        }
    }

    /// A write at `at` of the notification area. The address determines the queue; the value, for
    /// which a driver takes the queue's index in 2 bytes, is ignored.
    fn notify(&mut self, at: u64, length: usize, actions: &mut Actions) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        if !matches!(length, 2 | 4) || !at.is_multiple_of(multiplier) {
            return;
        }
        // CAST: The area has 1024 addresses.
        let queue = (at / multiplier) as u16;
        if self.common.is_started(queue) {
            actions.push(Action::Notify { queue });
        }
    }

    fn write_common(&mut self, at: u64, data: &[u8], actions: &mut Actions) {
        if self.state == State::Resetting {
            return;
        }
        match self.common.write(at, data) {
            Effect::None => {}
            Effect::Reset => self.reset_device(actions),
            Effect::DriverOk => self.start(actions),
            Effect::QueueEnabled => {
                if self.state == State::Started && self.config_space.is_bus_master() {
                    self.start_queues(actions);
                }
            }
            Effect::QueueVector { queue, vector } => {
                actions.push(Action::QueueVector { queue, vector });
            }
            Effect::ConfigVector { vector } => actions.push(Action::ConfigVector { vector }),
        }
    }

    /// Starts the device if the driver wants it and it may access memory.
    fn start(&mut self, actions: &mut Actions) {
        if self.state == State::Stopped
            && self.common.is_driver_ok()
            && self.config_space.is_bus_master()
        {
            // INVARIANT: The status has `DRIVER_OK`.
            self.state = State::Started;
            actions.push(Action::Start {
                features: self.common.features(),
                queues: self.common.take_unstarted(),
            });
        }
    }

    /// Starts the queues that were enabled since the device was started.
    fn start_queues(&mut self, actions: &mut Actions) {
        for queue in self.common.take_unstarted() {
            actions.push(Action::StartQueue(queue));
        }
    }

    /// Resets the function.
    fn reset_function(&mut self, actions: &mut Actions) {
        self.reset_device(actions);
        let was_intx_disabled = self.config_space.is_intx_disabled();
        self.config_space.reset();
        if let Some(table) = &mut self.msix {
            table.reset();
        }
        if was_intx_disabled {
            actions.push(Action::IntxDisable(false));
        }
    }

    /// Resets the VIRTIO device. A driver recognises the end of a reset by the status 0 (VIRTIO
    /// 1.3, 4.1.4.3.2), so a device whose status is 0 already is reset at once: it has no started
    /// queue.
    fn reset_device(&mut self, actions: &mut Actions) {
        if self.state == State::Resetting {
            return;
        }
        if self.common.status() == 0 {
            if self.common.has_config_vector() {
                actions.push(Action::ConfigVector { vector: None });
            }
            for queue in self.common.queues_with_vector() {
                actions.push(Action::QueueVector {
                    queue,
                    vector: None,
                });
            }
        } else {
            // INVARIANT: The status is not 0.
            self.state = State::Resetting;
            actions.push(Action::Reset);
        }
        // INVARIANT: No queue is started.
        self.common.reset();
    }
}
