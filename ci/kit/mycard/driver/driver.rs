// SPDX-License-Identifier: GPL-2.0

//! The PCI driver: ID table, probe, unbind, and system sleep.

use crate::{
    abstractions::{
        fs::chardev::CharDevice,
        index::DeviceIndex,
        mm::address_space::AddressSpace,
        pci::{
            enable::Enabled,
            irq::{
                Interrupts,
                Vectors, //
            },
            power::SystemSleep,
            revocable::{
                RevokeOnDrop,
                SrcuRevocable, //
            },
            take_over::{
                self,
                TakesOver, //
            }, //
        }, //
    },
    file::Card,
    hardware::{
        CompletionHandler,
        Hardware, //
    },
    protocol::{
        Config,
        PCI_DEVICE_ID,
        PCI_DEVICE_ID_VFIO_USER, //
    },
    virtio::transport::Transport, //
};
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
    sync::Arc, //
};

/// The driver.
pub(crate) struct MycardDriver;

kernel::pci_device_table!(
    PCI_TABLE,
    <MycardDriver as pci::Driver>::IdInfo,
    [
        (
            pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, PCI_DEVICE_ID as u32),
            ()
        ),
        (
            pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, PCI_DEVICE_ID_VFIO_USER as u32),
            ()
        ),
    ]
);

impl pci::Driver for MycardDriver {
    type IdInfo = ();
    type Data<'bound> = DriverData<'bound>;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        device: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            let started = StartedCard::new(device)?;
            let name = CString::try_from_fmt(fmt!("mycard{}", started.index.get()))?;
            let card = started.card.clone();
            Ok(try_pin_init!(DriverData {
                file <- CharDevice::new(device, name, card),
                started,
            }))
        })
    }
}

impl TakesOver for MycardDriver {
    /// The kernel's VIRTIO transport, which matches every device of the vendor.
    const FROM: &'static CStr = c"virtio-pci";
}

impl SystemSleep for MycardDriver {
    fn suspend<'bound>(
        _device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let hardware = data.started.card.hardware()?;
        hardware.stop(hardware.device())
    }

    fn resume<'bound>(
        _device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let hardware = data.started.card.hardware()?;
        hardware.start(hardware.device())
    }
}

/// The driver's data of a bound card. Dropped in the order of the fields: first there are no new
/// files.
#[pin_data]
pub(crate) struct DriverData<'bound> {
    #[pin]
    file: CharDevice<Card>,
    started: StartedCard<'bound>,
}

/// A card that has been started. Dropping it waits for the calls that use the hardware, and stops the
/// card; then no interrupt is handled any more, and last the PCI device is disabled.
struct StartedCard<'bound> {
    card: Arc<Card>,
    _hardware: RevokeOnDrop<Hardware>,
    _interrupts: Interrupts<'bound, CompletionHandler>,
    _enabled: Enabled<'bound>,
    index: DeviceIndex,
}

impl<'bound> StartedCard<'bound> {
    fn new(locked: &'bound pci::Device<Core<'_>>) -> Result<Self> {
        let device: &'bound pci::Device<Bound> = locked;
        let index = DeviceIndex::take()?;
        let enabled = Enabled::new(locked)?;
        // The card has no shared memory, so the id does not matter.
        let transport = Transport::new(device, 0)?;
        // Before any register is written: other devices have this type too.
        let Some(config) = Config::parse(&transport.device_config(device)?) else {
            dev_info!(device, "another kind of device with the same id\n");
            take_over::reject(device);
            return Err(ENODEV);
        };

        let vectors = Vectors::allocate(locked, IrqType::MsiX, 1)
            .or_else(|_| Vectors::allocate(locked, IrqType::Msi, 1))?;
        let hardware = Hardware::new(device, transport)?;
        let handler = hardware.handler();
        let maps = Arc::pin_init(AddressSpace::new(), GFP_KERNEL)?;
        let (hardware, revoke) = SrcuRevocable::new(device, hardware, maps.clone())?;
        let mut interrupts = Interrupts::new(vectors);
        let name = CString::try_from_fmt(fmt!("mycard{}", index.get()))?;
        interrupts.register(0, name, handler)?;
        let card = Card::new(hardware, maps, config, enabled.max_segment_bytes());
        let this = Self {
            card: Arc::new(card, GFP_KERNEL)?,
            _hardware: revoke,
            _interrupts: interrupts,
            _enabled: enabled,
            index,
        };
        this.card.hardware()?.start(device)?;
        dev_info!(device, "{} bytes for each request\n", config.max_bytes);
        Ok(this)
    }
}
