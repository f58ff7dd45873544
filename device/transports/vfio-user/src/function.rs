// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The PCI function as the client sees it: regions and interrupts.
//!
//! | region | is |
//! |---|---|
//! | BAR 1 | MSI-X table, which the client emulates |
//! | BAR 2 | the VIRTIO registers |
//! | BAR 4 | the shared region of the device; the client maps its file |
//! | configuration | PCI configuration space |

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbar_engine::model::{DeviceModel, SharedFile};
use ringbar_engine::{Interrupt, QueueControl};
use ringbar_virtio_pci::{Action, Function, Space, Surroundings};
use rustix::io::Errno;
use tracing::warn;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_AUTOMASKED,
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};

use crate::control::{Change, Control};
use crate::dma::{DmaMap, DmaUnmap};
use crate::interrupts::{Interrupts, Source};
use crate::options::FunctionOptions;
use crate::server::{
    Area, Backend, DeviceInfo, InterruptAction, InterruptData, InterruptInfo, Mapping, Region,
    Reply, SetInterrupts,
};

/// Index of the BAR with the shared region.
const SHARED_BAR: u8 = 4;

/// The function.
pub(crate) struct PciFunction<D: DeviceModel> {
    device: Arc<D>,
    function: Arc<Mutex<Function>>,
    interrupts: Arc<Interrupts>,
    /// The interrupt type of messages, and their number.
    messages: Option<(u32, u16)>,
    /// Interrupt of each queue.
    sources: Vec<Source>,
    config_source: Source,
    queues: Vec<Arc<dyn QueueControl>>,
    /// The file behind the shared region, and the part of the region that is in it.
    shared: Option<(SharedFile, [Area; 1])>,
    control: Control,
}

/// What the registers ask of the device.
struct Around<'a, D> {
    device: &'a D,
    interrupts: &'a Interrupts,
}

impl<D: DeviceModel> Surroundings for Around<'_, D> {
    fn device_config(&self) -> Vec<u8> {
        self.device.config()
    }

    fn take_interrupt_status(&self) -> u8 {
        self.interrupts.take_status()
    }
}

impl<D: DeviceModel> PciFunction<D> {
    /// The function of a device whose queues `control` changes.
    pub(crate) fn new(
        device: Arc<D>,
        function: Arc<Mutex<Function>>,
        interrupts: Arc<Interrupts>,
        queues: Vec<Arc<dyn QueueControl>>,
        control: Control,
        shared: Option<SharedFile>,
        options: &FunctionOptions,
    ) -> Self {
        let sources: Vec<_> = queues.iter().map(|_| Source::queue(&interrupts)).collect();
        for (queue, source) in queues.iter().zip(&sources) {
            queue.set_interrupt(Some(Box::new(source.clone())));
        }
        let config_source = Source::config(&interrupts);
        let (announced, state) = (config_source.clone(), Arc::clone(&interrupts));
        device.set_config_listener(Box::new(move || {
            // A driver that starts the device later reads the configuration as it is then.
            if state.runs() {
                announce(&announced);
            }
        }));
        Self {
            shared: shared.map(|file| {
                let size = file.length;
                (file, [Area { offset: 0, size }])
            }),
            messages: options.messages(),
            device,
            function,
            interrupts,
            sources,
            config_source,
            queues,
            control,
        }
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        // An access that panicked has changed nothing but its register.
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn around(&self) -> Around<'_, D> {
        Around {
            device: &self.device,
            interrupts: &self.interrupts,
        }
    }

    /// Has the effects of an access take place. Waits for workers only where bus mastering is
    /// taken away.
    fn act(&self, action: Action) {
        match action {
            Action::Notify { queue } => {
                if let Some(queue) = self.queues.get(usize::from(queue)) {
                    queue.ring_doorbell();
                }
            }
            Action::QueueVector { queue, vector } => {
                if let Some(source) = self.sources.get(usize::from(queue)) {
                    source.set_vector(vector);
                }
            }
            Action::ConfigVector { vector } => self.config_source.set_vector(vector),
            Action::IntxDisable(disabled) => self.interrupts.disable_line(disabled),
            Action::Start { features, queues } => {
                self.interrupts.set_runs(true);
                self.control.post(Change::Start(features, queues));
            }
            Action::StartQueue(queue) => self.control.post(Change::StartQueue(queue)),
            Action::Pause => {
                self.interrupts.set_runs(false);
                self.control.pause();
            }
            Action::Resume => {
                self.interrupts.set_runs(true);
                self.control.post(Change::Resume);
                // A message that came while bus mastering was taken away may not have arrived.
                for source in self.sources.iter().chain([&self.config_source]) {
                    announce(source);
                }
            }
            Action::Reset => {
                self.interrupts.set_runs(false);
                for source in self.sources.iter().chain([&self.config_source]) {
                    source.set_vector(None);
                }
                self.control.post(Change::Reset);
            }
        }
    }

    /// Number of messages of the interrupt type `index`.
    fn messages_at(&self, index: u32) -> Option<u16> {
        let (own, count) = self.messages?;
        (own == index).then_some(count)
    }

    /// The part of the file behind `length` bytes of the shared region, as offset and length. The
    /// rest of the bytes is behind no file.
    fn in_file(&self, offset: u64, length: usize) -> Option<(&File, u64, usize)> {
        let (shared, _) = self.shared.as_ref()?;
        let left = shared.length.checked_sub(offset)?;
        let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        Some((&shared.file, shared.offset + offset, length))
    }

    /// Reads the shared region for a client that has not mapped it, or does not use the mapping
    /// while it waits for the driver to handle INTx.
    fn read_shared(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(0);
        let Some((file, at, length)) = self.in_file(offset, data.len()) else {
            return Ok(());
        };
        file.read_exact_at(&mut data[..length], at)
            .map_err(|error| {
                warn!(%error, "the shared region cannot be read");
                Errno::IO
            })
    }

    fn write_shared(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let Some((file, at, length)) = self.in_file(offset, data.len()) else {
            return Ok(());
        };
        file.write_all_at(&data[..length], at).map_err(|error| {
            warn!(%error, "the shared region cannot be written");
            Errno::IO
        })
    }

    fn set_line(
        &self,
        action: InterruptAction,
        count: u32,
        data: InterruptData,
    ) -> Result<(), Errno> {
        match (action, data) {
            (InterruptAction::Mask, InterruptData::None) => self.interrupts.mask_line(true),
            (InterruptAction::Unmask, InterruptData::None) => self.interrupts.mask_line(false),
            (InterruptAction::Mask | InterruptAction::Unmask, InterruptData::Bool(flags)) => {
                if flags.first().is_some_and(|flag| *flag != 0) {
                    self.interrupts
                        .mask_line(matches!(action, InterruptAction::Mask));
                }
            }
            (InterruptAction::Trigger, InterruptData::None) => match count {
                0 => self.interrupts.set_line(None),
                _ => self.interrupts.trigger_line(),
            },
            (InterruptAction::Trigger, InterruptData::Bool(flags)) => {
                if flags.first().is_some_and(|flag| *flag != 0) {
                    self.interrupts.trigger_line();
                }
            }
            (InterruptAction::Trigger, InterruptData::EventFds(targets)) => {
                self.interrupts.set_line(targets.into_iter().next());
            }
            // A mask that another process controls by itself.
            (_, InterruptData::EventFds(_)) => return Err(Errno::OPNOTSUPP),
        }
        Ok(())
    }

    fn set_messages(
        &self,
        action: InterruptAction,
        start: u32,
        count: u32,
        data: InterruptData,
    ) -> Result<(), Errno> {
        if action != InterruptAction::Trigger {
            // A message is masked in its capability or table, which belong to the client.
            return Err(Errno::OPNOTSUPP);
        }
        let (start, count) = (start as usize, count as usize);
        match data {
            InterruptData::None if count == 0 => self.interrupts.disable_messages(),
            InterruptData::None => {
                (start..start + count).for_each(|index| self.interrupts.trigger_message(index));
            }
            InterruptData::Bool(flags) => {
                for (index, _) in (start..).zip(flags).filter(|(_, flag)| *flag != 0) {
                    self.interrupts.trigger_message(index);
                }
            }
            InterruptData::EventFds(targets) => {
                let mut targets: Vec<Option<OwnedFd>> = targets.into_iter().map(Some).collect();
                targets.resize_with(count, || None);
                self.interrupts.set_messages(start, targets);
            }
        }
        Ok(())
    }
}

/// Interrupts the driver. A source logs what goes wrong.
fn announce(source: &Source) {
    let _ = source.raise();
}

/// The space behind the index of a region.
fn space(region: u32) -> Option<Space> {
    match region {
        VFIO_PCI_CONFIG_REGION_INDEX => Some(Space::Config),
        VFIO_PCI_BAR0_REGION_INDEX..=VFIO_PCI_BAR5_REGION_INDEX => {
            Some(Space::Bar((region - VFIO_PCI_BAR0_REGION_INDEX) as u8))
        }
        _ => None,
    }
}

impl<D: DeviceModel> Backend for PciFunction<D> {
    fn device(&self) -> DeviceInfo {
        DeviceInfo {
            regions: VFIO_PCI_NUM_REGIONS,
            irqs: VFIO_PCI_NUM_IRQS,
            flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
        }
    }

    fn region(&self, index: u32) -> Option<Region<'_>> {
        if index >= VFIO_PCI_NUM_REGIONS {
            return None;
        }
        let space = space(index);
        let size = space
            .and_then(|space| self.function().size(space))
            .unwrap_or(0);
        let shared = self.shared.as_ref();
        let shared = shared.filter(|_| space == Some(Space::Bar(SHARED_BAR)));
        Some(Region {
            size,
            flags: match size {
                0 => 0,
                _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            },
            mapping: shared.map(|(shared, areas)| Mapping {
                file: &shared.file,
                offset: shared.offset,
                areas,
            }),
        })
    }

    fn interrupt(&self, index: u32) -> Option<InterruptInfo> {
        let (count, flags) = match index {
            VFIO_PCI_INTX_IRQ_INDEX => (
                1,
                VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
            ),
            _ if index < VFIO_PCI_NUM_IRQS => (
                self.messages_at(index).unwrap_or(0).into(),
                VFIO_IRQ_INFO_EVENTFD,
            ),
            _ => return None,
        };
        Some(InterruptInfo { count, flags })
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match space(region).ok_or(Errno::INVAL)? {
            Space::Bar(SHARED_BAR) => self.read_shared(offset, data),
            space => self
                .function()
                .read(space, offset, data, &self.around())
                .map_err(|_| Errno::INVAL),
        }
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let space = match space(region).ok_or(Errno::INVAL)? {
            Space::Bar(SHARED_BAR) => return self.write_shared(offset, data),
            space => space,
        };
        let actions = self.function().write(space, offset, data);
        for action in actions.map_err(|_| Errno::INVAL)? {
            self.act(action);
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap, file: Option<OwnedFd>, reply: Reply) {
        self.control.post(Change::Map(map, file, reply));
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap, reply: Reply) {
        self.control.post(Change::Unmap(unmap, reply));
    }

    fn set_interrupts(&mut self, set: SetInterrupts) -> Result<(), Errno> {
        let SetInterrupts {
            index,
            start,
            count,
            action,
            data,
        } = set;
        match index {
            VFIO_PCI_INTX_IRQ_INDEX => self.set_line(action, count, data),
            _ if self.messages_at(index).is_some() => self.set_messages(action, start, count, data),
            _ => Err(Errno::INVAL),
        }
    }

    fn reset(&mut self, reply: Reply) {
        let actions = self.function().reset();
        for action in actions {
            self.act(action);
        }
        self.control.post(Change::Answer(reply));
    }
}
