// SPDX-License-Identifier: GPL-2.0

//! The setup of a device up to its queues: reset, features, configuration, vectors.

use crate::{
    abstractions::pci::device::iommu_translates,
    layout::{
        ConfigError,
        DeviceConfig,
        CONTROL_QUEUE,
        EVENT_QUEUE,
        FIRST_IO_QUEUE, //
    },
    queues::Share,
    vectors::Plan,
    virtio::{
        reset::Quiesced,
        transport::{
            feature,
            Transport, //
        }, //
    }, //
};
use kernel::{
    device::Bound,
    pci,
    prelude::*, //
};

/// Features that the driver requires, and further ones that it uses.
pub(super) const REQUIRED: u64 = feature::VERSION_1 | feature::INDIRECT_DESC;
pub(super) const WANTED: u64 = feature::EVENT_IDX | feature::ACCESS_PLATFORM;

/// A device that has accepted the features and has a usable configuration, and whose queues are not
/// set up yet.
pub(crate) struct Negotiated {
    pub(super) transport: Transport,
    pub(super) quiesced: Quiesced,
    pub(super) features: u64,
    pub(super) config: DeviceConfig,
    pub(super) share: Share,
}

impl Negotiated {
    /// Resets the device, negotiates features with it, and reads its configuration. May sleep.
    pub(crate) fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Self> {
        let quiesced = transport.quiesce(device).map_err(|_| EIO)?;
        let features = transport.negotiate(device, &quiesced, REQUIRED, WANTED)?;
        if features & feature::ACCESS_PLATFORM == 0 && iommu_translates(device) {
            dev_err!(
                device,
                "an IOMMU translates this device's addresses, but the device bypasses it (no \
                 VIRTIO_F_ACCESS_PLATFORM): DMA would hit the wrong memory. Boot with iommu=pt, \
                 leave the IOMMU away, or use the vfio-user transport\n"
            );
            transport.fail(device);
            return Err(EOPNOTSUPP);
        }

        let config = DeviceConfig::parse(&transport.device_config(device)?).map_err(|error| {
            match error {
                ConfigError::NotRingbar => {
                    dev_info!(device, "another kind of device with the same id\n");
                }
                error => dev_err!(device, "unusable device configuration: {:?}\n", error),
            }
            transport.fail(device);
            ENODEV
        })?;

        let offered = transport
            .queue_count(device)?
            .saturating_sub(FIRST_IO_QUEUE);
        let offered = config.io_queues().min(offered);
        if offered == 0 {
            dev_err!(
                device,
                "the virtual machine gives the device no I/O queue: num_vqs must be at least {}\n",
                FIRST_IO_QUEUE + 1
            );
            transport.fail(device);
            return Err(ENODEV);
        }
        Ok(Self {
            transport,
            quiesced,
            features,
            config,
            share: Share::of_machine(offered),
        })
    }

    /// The division of the I/O queues.
    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// Whether the device can raise a line that the driver can handle.
    pub(crate) fn has_line(&self) -> bool {
        self.transport.has_interrupt_status()
    }

    /// Whether the device accepts the messages of `plan`, which are to be allocated. A later call
    /// replaces the earlier messages: no queue is enabled yet. An error if the registers cannot be
    /// accessed.
    pub(crate) fn accepts(&self, device: &pci::Device<Bound>, plan: &Plan) -> Result<bool> {
        let transport = &self.transport;
        let submit = self.share.submit().get();
        let polled = FIRST_IO_QUEUE + submit..FIRST_IO_QUEUE + self.share.io_count();
        let others = Iterator::chain([CONTROL_QUEUE, EVENT_QUEUE].into_iter(), polled)
            .map(|index| (index, plan.other_queues()));
        let io = (0..submit).map(|n| (FIRST_IO_QUEUE + n, plan.io_queue(n)));
        if !transport.set_config_vector(device, plan.configuration())? {
            return Ok(false);
        }
        for (index, message) in Iterator::chain(others, io) {
            if !transport.set_queue_vector(device, index, message)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reports to the device that the driver cannot use it.
    pub(crate) fn fail(&self, device: &pci::Device<Bound>) {
        self.transport.fail(device);
    }
}
