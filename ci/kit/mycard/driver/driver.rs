// SPDX-License-Identifier: GPL-2.0

//! The PCI driver: ID table, probe, unbind, system sleep and shutdown.

use crate::{
    abstractions::{
        fs::chardev::CharDevice,
        pci::{
            power::{
                Shutdown,
                SystemSleep, //
            },
            take_over::TakesOver, //
        }, //
    },
    file::Card,
    protocol::{
        Config,
        PCI_DEVICE_ID,
        PCI_DEVICE_ID_VFIO_USER, //
    },
    simple::StartedDevice, //
};
use kernel::{
    device::Core,
    pci,
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
            let (started, config) = StartedDevice::new(device, Config::parse)?;
            let name = CString::try_from_fmt(fmt!("mycard{}", started.number()))?;
            let card = Arc::new(Card::new(started.device().clone(), config), GFP_KERNEL)?;
            dev_info!(device, "{} bytes for each request\n", config.max_bytes);
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
        data.started.device().suspend()
    }

    fn resume<'bound>(
        _device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result {
        data.started.device().resume()
    }
}

impl Shutdown for MycardDriver {
    fn shutdown<'bound>(_device: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        data.started.device().shut_down();
    }
}

/// The driver's data of a bound card. Dropped in the order of the fields: first there are no new
/// files.
#[pin_data]
pub(crate) struct DriverData<'bound> {
    #[pin]
    file: CharDevice<Card>,
    started: StartedDevice<'bound>,
}
