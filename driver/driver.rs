// SPDX-License-Identifier: GPL-2.0

//! The PCI driver: ID table, probe, and unbind.

use crate::{
    abstractions::{
        fs::chardev::CharDevice,
        index::DeviceIndex,
        pci::{
            device::ClaimedBar,
            enable::Enabled,
            power::{
                Shutdown,
                SystemSleep, //
            },
            revocable::RevokeOnDrop,
            take_over::{
                self,
                TakesOver, //
            }, //
        },
        sysfs,
        task::work::Periodic, //
    },
    device::Device,
    event_log::EventLog,
    hardware::{
        Hardware,
        Negotiated, //
    },
    interrupts::{
        self,
        DeviceInterrupts, //
    },
    layout::{
        DeviceConfig,
        APERTURE_SHMID,
        PCI_DEVICE_ID,
        PCI_DEVICE_ID_VFIO_USER, //
    },
    module_parameters,
    recovery::Recovery,
    stats::{
        self,
        Stats, //
    },
    timeout::Timeout,
    virtio::transport::Transport, //
    NAME,
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    pci,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// Name of the file in the PCI device's directory in sysfs with the time limit of its requests.
const TIMEOUT_FILE: &CStr = c"timeout_s";

/// The driver.
pub(crate) struct RingbarDriver;

kernel::pci_device_table!(
    PCI_TABLE,
    <RingbarDriver as pci::Driver>::IdInfo,
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

impl pci::Driver for RingbarDriver {
    type IdInfo = ();
    type Data<'bound> = DriverData<'bound>;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        device: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pin_init::pin_init_scope(move || {
            let stats = Stats::new()?;
            let number = DeviceIndex::take()?;
            let running = StartedDevice::new(device, &stats, number.get())?;
            let name = CString::try_from_fmt(fmt!("ringbar{}", number.get()))?;
            let data = running.device.clone();
            stats::show(device, &stats, data.maps())?;
            Ok(try_pin_init!(DriverData {
                file <- CharDevice::new(device, name, data),
                running,
                number,
            }))
        })
    }
}

impl TakesOver for RingbarDriver {
    /// The kernel's VIRTIO transport, which matches every device of the vendor and is built into
    /// most kernels. It has no driver for this type of device. Of the ids in the table it binds
    /// [`PCI_DEVICE_ID`]; its `probe` refuses [`PCI_DEVICE_ID_VFIO_USER`], so such a device has no
    /// driver that could be in the way.
    const FROM: &'static CStr = c"virtio-pci";
}

impl SystemSleep for RingbarDriver {
    fn suspend<'bound>(
        _device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let running = &data.get_ref().running;
        running.device.suspend()?;
        running.interrupts.synchronize();
        Ok(())
    }

    fn resume<'bound>(
        _device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let running = &data.get_ref().running;
        // All CPUs but one were offline.
        running.interrupts.spread();
        running.device.resume()
    }
}

impl Shutdown for RingbarDriver {
    fn shutdown<'bound>(_device: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>) {
        let running = &data.get_ref().running;
        running.device.remove();
        running.interrupts.synchronize();
    }
}

/// The driver's data of a bound device. Dropped in the order of the fields.
#[pin_data]
pub(crate) struct DriverData<'bound> {
    #[pin]
    file: CharDevice<Device>,
    running: StartedDevice<'bound>,
    number: DeviceIndex,
}

/// A device that has been started. Dropping it stops the device for good; then the fields follow in
/// their order: the watchdog ends, no interrupt is handled any more, access to the hardware is
/// revoked and its resources are freed, and last the PCI device is disabled. The device core removes
/// the file of the time limit afterwards.
struct StartedDevice<'bound> {
    device: Arc<Device>,
    _watchdog: Pin<KBox<Periodic<Device>>>,
    interrupts: DeviceInterrupts<'bound>,
    _hardware: RevokeOnDrop<Hardware>,
    _enabled: Enabled<'bound>,
}

impl<'bound> StartedDevice<'bound> {
    /// `number` is that of its node.
    fn new(locked: &'bound pci::Device<Core<'_>>, stats: &Arc<Stats>, number: u32) -> Result<Self> {
        let device: &'bound pci::Device<Bound> = locked;
        let enabled = Enabled::new(locked)?;
        let max_segment_bytes = enabled.max_segment_bytes();

        let transport = Transport::new(device, APERTURE_SHMID)?;
        // Before any register is written: other devices have this type too.
        if transport.device_config(device)? != DeviceConfig::MAGIC {
            dev_info!(device, "another kind of device with the same id\n");
            take_over::reject(device);
            return Err(ENODEV);
        }
        let aperture = transport
            .shared_memory()
            .map(|region| ClaimedBar::new(device, region.bar(), NAME))
            .transpose()?;
        let negotiated = Negotiated::new(device, transport)?;
        let (vectors, plan) = interrupts::allocate(locked, &negotiated)?;

        let log = Arc::new(EventLog::new()?, GFP_KERNEL)?;
        let recovery = Recovery::new(log.clone())?;
        let hardware = Hardware::new(
            device,
            negotiated,
            plan,
            aperture,
            max_segment_bytes,
            stats,
            recovery,
        )?;
        let timeout = Arc::new(
            Timeout::new(module_parameters::timeout_s.value()),
            GFP_KERNEL,
        )?;
        let (data, revoke) = Device::new(device, hardware, stats.clone(), log, timeout.clone())?;
        let kind = vectors.kind();
        let interrupts = DeviceInterrupts::new(vectors, plan, number, &data)?;
        let watchdog = Periodic::new(data.clone())?;
        sysfs::show(device, TIMEOUT_FILE, timeout)?;
        let this = Self {
            device: data,
            _watchdog: watchdog,
            interrupts,
            _hardware: revoke,
            _enabled: enabled,
        };
        this.device.start()?;
        dev_info!(
            device,
            "{} bytes of device memory, interrupts by {} vectors ({:?})\n",
            this.device.capacity(),
            plan.vectors(),
            kind
        );
        Ok(this)
    }
}

impl Drop for StartedDevice<'_> {
    fn drop(&mut self) {
        self.device.remove();
    }
}
