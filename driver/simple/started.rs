// SPDX-License-Identifier: GPL-2.0

//! A device from probe to unbind.

use crate::abstractions::{
    index::DeviceIndex,
    mm::address_space::AddressSpace,
    pci::{
        enable::Enabled,
        irq::{
            Handler,
            Interrupts,
            Vectors, //
        },
        revocable::{
            Guard,
            RevokeOnDrop,
            Revoked,
            SrcuRevocable, //
        },
        take_over, //
    }, //
};
use crate::virtio::transport::Transport;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    pci::{
        self,
        IrqType, //
    },
    prelude::*,
    str::CString,
    sync::Arc,
    ModuleMetadata, //
};

/// The registers and the queue of a device, which exist while it is bound.
pub(crate) trait Hardware: Revoked + Sized {
    /// The handler of the device's interrupt.
    type Handler: Handler;

    /// Sets the device up, which does not run yet. Sleeps.
    fn new(device: &pci::Device<Bound>, transport: Transport) -> Result<Self>;

    /// The handler of the queue's interrupt.
    fn handler(&self) -> Self::Handler;

    /// Starts the device, whatever its state is. Sleeps.
    fn start(&self, device: &pci::Device<Bound>) -> Result;

    /// Stops the device, which accesses no memory then, until it is started. Sleeps.
    fn stop(&self, device: &pci::Device<Bound>) -> Result;

    /// Stops the device for good: a later start fails. Sleeps.
    fn shut_down(&self, device: &pci::Device<Bound>);
}

/// A device, as its files see it. It outlives the hardware, which is revoked at unbind.
pub(crate) struct Device<H> {
    hardware: Arc<SrcuRevocable<H>>,
    maps: Arc<AddressSpace>,
    max_segment_bytes: usize,
}

impl<H: Hardware> Device<H> {
    /// The hardware; `ENODEV` once the driver is being unbound. The caller must not access memory of
    /// user space while it has the result: unbind waits for it. Any context.
    pub(crate) fn hardware(&self) -> Result<Guard<'_, H>> {
        self.hardware.try_access().ok_or(ENODEV)
    }

    /// The address space of maps, of which such a device has none.
    pub(crate) fn address_space(&self) -> &AddressSpace {
        &self.maps
    }

    /// Greatest size of a single segment in bytes.
    pub(crate) fn max_segment_bytes(&self) -> usize {
        self.max_segment_bytes
    }

    /// Stops the device for the sleep of the system. Sleeps. After an error the system stays awake,
    /// and the device runs if it can.
    pub(crate) fn suspend(&self) -> Result {
        let hardware = self.hardware()?;
        hardware.stop(hardware.device()).inspect_err(|_| {
            let _ = hardware.start(hardware.device());
        })
    }

    /// Starts the device after the sleep of the system. Sleeps.
    pub(crate) fn resume(&self) -> Result {
        let hardware = self.hardware()?;
        hardware.start(hardware.device())
    }

    /// Stops the device for good, before the system reboots. Sleeps.
    pub(crate) fn shut_down(&self) {
        if let Ok(hardware) = self.hardware() {
            hardware.shut_down(hardware.device());
        }
    }
}

/// A device that has been started. Dropping it waits for the calls that use the hardware, and stops
/// the device; then no interrupt is handled any more, and last the PCI device is disabled.
pub(crate) struct StartedDevice<'bound, H: Hardware> {
    device: Arc<Device<H>>,
    _hardware: RevokeOnDrop<H>,
    _interrupts: Interrupts<'bound, H::Handler>,
    _enabled: Enabled<'bound>,
    index: DeviceIndex,
}

impl<'bound, H: Hardware> StartedDevice<'bound, H> {
    /// Starts a device, in `probe`. `parse` gets the first `N` bytes of its configuration, a multiple
    /// of 4, and returns `None` if it is another kind of device with the same id, which is then left
    /// to other drivers. May sleep.
    pub(crate) fn new<const N: usize, C>(
        locked: &'bound pci::Device<Core<'_>>,
        parse: impl FnOnce(&[u8; N]) -> Option<C>,
    ) -> Result<(Self, C)> {
        let device: &'bound pci::Device<Bound> = locked;
        let index = DeviceIndex::take()?;
        let enabled = Enabled::new(locked)?;
        // There is no shared memory, so its id does not matter.
        let transport = Transport::new(device, 0)?;
        // Before any register is written: other devices have this type too.
        let Some(config) = parse(&transport.device_config(device)?) else {
            dev_info!(device, "another kind of device with the same id\n");
            take_over::reject(device);
            return Err(ENODEV);
        };

        let vectors = Vectors::allocate(locked, IrqType::MsiX, 1)
            .or_else(|_| Vectors::allocate(locked, IrqType::Msi, 1))?;
        let hardware = H::new(device, transport)?;
        let handler = hardware.handler();
        let maps = Arc::pin_init(AddressSpace::new(), GFP_KERNEL)?;
        let (hardware, revoke) = SrcuRevocable::new(device, hardware, maps.clone())?;
        let mut interrupts = Interrupts::new(vectors);
        let name = <crate::LocalModule as ModuleMetadata>::NAME;
        let name = CString::try_from_fmt(fmt!("{}{}", name, index.get()))?;
        interrupts.register(0, name, handler)?;
        let this = Self {
            device: Arc::new(
                Device {
                    hardware,
                    maps,
                    max_segment_bytes: enabled.max_segment_bytes(),
                },
                GFP_KERNEL,
            )?,
            _hardware: revoke,
            _interrupts: interrupts,
            _enabled: enabled,
            index,
        };
        this.device.resume()?;
        Ok((this, config))
    }

    /// The device, for files.
    pub(crate) fn device(&self) -> &Arc<Device<H>> {
        &self.device
    }

    /// The number for the name of its node, the lowest that is free.
    pub(crate) fn number(&self) -> u32 {
        self.index.get()
    }
}
