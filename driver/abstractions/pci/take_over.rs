// SPDX-License-Identifier: GPL-2.0

//! Taking devices over from another driver that matches every device of their vendor, and returning
//! them.
//!
//! The kernel offers a new device to the drivers of its bus in the order in which they were
//! registered, so a driver in a module never gets a device that a built-in driver matches as well.
//! `driver_override` names the only driver that may bind a device. The module sets it
//!
//! - for each device of the ID table that exists when the module is loaded; the other driver is
//!   unbound from it unless the device is in use,
//! - for each device that appears later, before the kernel matches it with drivers
//!   (`BUS_NOTIFY_ADD_DEVICE`).
//!
//! The module offers a device that the driver [`reject`]s to the other drivers again, and all
//! devices when it is unloaded. It does not change a `driver_override` that somebody else has set.
//!
//! A udev rule, `modprobe.d` or an initramfs hook could do the same, but only in a prepared system;
//! and they run after the device was bound.
//!
//! C headers: [`include/linux/device/bus.h`](srctree/include/linux/device/bus.h),
//! [`include/linux/device.h`](srctree/include/linux/device.h)

use crate::abstractions::{
    helpers::{
        ringbar_device_lock,
        ringbar_device_match_driver_override,
        ringbar_device_unlock, //
    },
    task::work::WorkQueue, //
};
use core::{
    marker::{
        PhantomData,
        PhantomPinned, //
    },
    ptr::null_mut, //
};
use kernel::{
    bindings,
    device::{
        self,
        Bound, //
    },
    error::to_result,
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        global_lock, //
        Arc,
        GlobalGuard,
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
    workqueue::{
        impl_has_work,
        new_work, //
        Work,
        WorkItem,
    }, //
    ModuleMetadata,
};

/// The value of `driver_override`: the name of the module, and of its driver.
const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

/// A driver whose devices another driver matches as well. A device that the other driver matches
/// but refuses has no driver when the module is loaded; it is claimed like the others.
pub(crate) trait TakesOver: pci::Driver + 'static {
    /// Name of the other driver.
    const FROM: &'static CStr;
}

/// A device whose `driver_override` this module has set.
struct Claim {
    device: ARef<device::Device>,
    /// Whether the driver has found that it is another kind of device ([`reject`]).
    rejected: bool,
}

global_lock! {
    // SAFETY: Used through `claims` only, which checks that it is initialised.
    unsafe(uninit) static CLAIMS: Mutex<KVec<Claim>> = KVec::new();
}

/// Whether [`CLAIMS`] has been or is being initialised.
static CLAIMS_STARTED: Atomic<bool> = Atomic::new(false);

/// Whether [`CLAIMS`] is initialised.
static CLAIMS_READY: Atomic<bool> = Atomic::new(false);

/// The claimed devices; `None` before the first [`TakeOver`].
fn claims() -> Option<GlobalGuard<CLAIMS>> {
    CLAIMS_READY.load(Acquire).then(|| CLAIMS.lock())
}

/// The C object behind `device`.
fn as_raw(device: &device::Device) -> *mut bindings::device {
    // `device::Device` is a transparent wrapper of an `Opaque<device>`.
    core::ptr::from_ref(device).cast_mut().cast()
}

/// Sets `driver_override`, or clears it if `name` is empty, which needs no memory. May sleep.
fn set_override(device: &device::Device, name: &CStr) -> Result {
    // SAFETY: The device is valid, and so is the string with its length.
    to_result(unsafe {
        bindings::__device_set_driver_override(
            as_raw(device),
            name.as_char_ptr(),
            name.count_bytes(),
        )
    })
}

/// The value of a device's `driver_override`.
#[derive(PartialEq)]
enum Override {
    /// It is not set.
    None,
    /// It names this module's driver.
    Us,
    /// It names another driver.
    Other,
}

fn override_of(device: &device::Device) -> Override {
    let driver = bindings::device_driver {
        name: NAME.as_char_ptr(),
        ..pin_init::zeroed()
    };
    // SAFETY: The device is valid; of the driver only the name is read.
    match unsafe { ringbar_device_match_driver_override(as_raw(device), &driver) } {
        0 => Override::Other,
        1.. => Override::Us,
        _ => Override::None,
    }
}

/// Sets `driver_override` of a device that has none, and records that. May sleep.
///
/// A value that somebody else sets between the check and this is lost.
fn claim(device: &device::Device) -> Result {
    let mut claims = claims().ok_or(EINVAL)?;
    // First, because this may fail, and then nothing has to be undone.
    claims.reserve(1, GFP_KERNEL)?;
    set_override(device, NAME)?;
    claims.push(
        Claim {
            device: device.into(),
            rejected: false,
        },
        GFP_KERNEL,
    )?;
    Ok(())
}

/// Removes the first claim that `wanted` selects from the list.
fn take_claim(mut wanted: impl FnMut(&Claim) -> bool) -> Option<Claim> {
    let mut claims = claims()?;
    let at = claims.iter().position(&mut wanted)?;
    claims.remove(at).ok()
}

/// Records that `device` is of another kind. To be called by a `probe` that then fails: the device
/// is returned to the other drivers after that. May sleep.
///
/// An error of `probe` is not sufficient: parts of the kernel return `ENODEV` for other reasons
/// too.
pub(crate) fn reject(device: &pci::Device<Bound>) {
    let raw = crate::abstractions::pci::device::as_raw_device(device);
    if let Some(mut claims) = claims() {
        for claim in &mut *claims {
            claim.rejected |= as_raw(&claim.device) == raw;
        }
    }
}

/// Undoes [`claim`] and offers the device to the drivers of its bus, unless somebody has set
/// `driver_override` since. A device that is being removed, has a driver already, or matches no
/// driver stays as it is. Sleeps. Must not be called with the lock of the device or of [`CLAIMS`]
/// held.
fn offer_again(device: &device::Device) {
    if override_of(device) != Override::Us {
        return;
    }
    // Cannot fail: the name is empty.
    let _ = set_override(device, c"");
    // SAFETY: The device is valid; its lock is not held.
    let _ = unsafe { bindings::device_attach(as_raw(device)) };
}

/// The driver of a device in our ID table.
enum Holder {
    /// No driver.
    None,
    /// The other driver, and no driver uses a child of the device.
    Idle,
    /// A driver or a user that must not be interrupted.
    Busy,
}

/// The lock of a device, under which its driver does not change. Dropping this unlocks it.
struct DeviceLock<'a>(&'a device::Device, NotThreadSafe);

impl<'a> DeviceLock<'a> {
    fn new(device: &'a device::Device) -> Self {
        // SAFETY: The device is valid.
        unsafe { ringbar_device_lock(as_raw(device)) };
        Self(device, NotThreadSafe)
    }
}

impl Drop for DeviceLock<'_> {
    fn drop(&mut self) {
        // SAFETY: Locked in `new`, by this task.
        unsafe { ringbar_device_unlock(as_raw(self.0)) };
    }
}

/// The driver of `device`, where `from` is the other driver.
fn holder(device: &device::Device, from: &CStr) -> Holder {
    let _lock = DeviceLock::new(device);
    // SAFETY: Under the lock of the device its driver neither changes nor is freed.
    let name = unsafe {
        let driver = (*as_raw(device)).driver;
        if driver.is_null() {
            return Holder::None;
        }
        CStr::from_char_ptr((*driver).name)
    };
    // SAFETY: The device is registered, and the callback has the right type.
    let used =
        unsafe { bindings::device_for_each_child(as_raw(device), null_mut(), Some(has_driver)) };
    if name == from && used == 0 {
        Holder::Idle
    } else {
        Holder::Busy
    }
}

/// Whether a device has a driver; for `device_for_each_child`.
///
/// # Safety
///
/// `device` must be valid.
unsafe extern "C" fn has_driver(device: *mut bindings::device, _data: *mut c_void) -> c_int {
    // SAFETY: Valid by the requirement. The pointer may change at any time; it is only compared.
    let driver = unsafe { (&raw const (*device).driver).read_volatile() };
    c_int::from(!driver.is_null())
}

/// Logs that a device keeps its driver, and the commands that bind it to this one.
fn log_not_taken(device: &device::Device, why: &str) {
    dev_warn!(
        device,
        "{}: not taken over, {}; to have it: A={}; echo {} > /sys/bus/pci/devices/$A/driver_override; \
         echo $A > /sys/bus/pci/devices/$A/driver/unbind; echo $A > /sys/bus/pci/drivers_probe\n",
        NAME,
        why,
        device.name(),
        NAME
    );
}

/// Returns, from a work item, the devices that the driver has rejected: `probe` rejects a device
/// with a lock held that returning it needs.
#[pin_data]
struct Rejects {
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Rejects { self.work }
}

impl WorkItem for Rejects {
    type Pointer = Arc<Self>;

    fn run(_this: Arc<Self>) {
        while let Some(claim) = take_claim(|claim| claim.rejected) {
            dev_info!(
                claim.device,
                "{}: another kind of device, given back\n",
                NAME
            );
            offer_again(&claim.device);
        }
    }
}

/// Takes over the devices of `T`'s ID table for the driver `T`. Dropping this returns them, and
/// must follow the end of the driver's registration.
///
/// # Invariants
///
/// `block` is registered with the PCI bus.
#[pin_data(PinnedDrop)]
pub(crate) struct TakeOver<T: TakesOver> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    rejects: Arc<Rejects>,
    queue: WorkQueue,
    _driver: PhantomData<fn() -> T>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Any thread may drop it.
unsafe impl<T: TakesOver> Send for TakeOver<T> {}
// SAFETY: A shared reference allows no operation.
unsafe impl<T: TakesOver> Sync for TakeOver<T> {}

impl<T: TakesOver> TakeOver<T> {
    /// Takes the existing devices over; the driver is to be registered after this, and gets them
    /// then. Sleeps.
    ///
    /// At most once in the life of the module, `EBUSY` otherwise.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            if CLAIMS_STARTED.xchg(true, Full) {
                return Err(EBUSY);
            }
            // SAFETY: Only one caller ever reaches this.
            unsafe { CLAIMS.init() };
            CLAIMS_READY.store(true, Release);
            Ok(try_pin_init!(Self {
                rejects: Arc::pin_init(
                    pin_init!(Rejects { work <- new_work!("Rejects::work") }),
                    GFP_KERNEL
                )?,
                queue: WorkQueue::freezable()?,
                _driver: PhantomData,
                _pin: PhantomPinned,
                // The last of the fields: from then on the callback uses the others.
                block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: `slot` is valid for writing.
                    unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(Self::notified),
                            ..pin_init::zeroed()
                        })
                    };
                    // INVARIANT: Registered.
                    // SAFETY: The block is complete, and does not move until it is unregistered in
                    // `drop`.
                    to_result(unsafe {
                        bindings::bus_register_notifier(&raw const bindings::pci_bus_type, slot)
                    })
                }),
                // From now on the callback is notified of each new device, so none is missed.
                _: {
                    // SAFETY: The callback has the right type, and takes no data.
                    unsafe {
                        bindings::bus_for_each_dev(
                            &raw const bindings::pci_bus_type,
                            null_mut(),
                            null_mut(),
                            Some(Self::found),
                        )
                    };
                },
            }))
        })
    }

    /// Whether the ID table has this device.
    ///
    /// # Safety
    ///
    /// It must be a device of the PCI bus.
    unsafe fn matches(device: &device::Device) -> bool {
        let device = as_raw(device);
        // SAFETY: By the requirement the device is part of a `struct pci_dev`; the table has an
        // end.
        unsafe {
            let device = kernel::container_of!(device, bindings::pci_dev, dev);
            !bindings::pci_match_id(T::ID_TABLE.as_ptr(), device).is_null()
        }
    }

    /// # Safety
    ///
    /// To be called by `bus_for_each_dev` of the PCI bus.
    unsafe extern "C" fn found(device: *mut bindings::device, _data: *mut c_void) -> c_int {
        // SAFETY: The device is valid during the call.
        let device = unsafe { device::Device::from_raw(device) };
        // SAFETY: It is on the PCI bus.
        if unsafe { Self::matches(device) } {
            Self::take(device);
        }
        0
    }

    /// Takes an existing device over.
    fn take(device: &device::Device) {
        match (override_of(device), holder(device, T::FROM)) {
            (Override::Us, Holder::None) => {}
            (Override::Us, _) => log_not_taken(device, "another driver has it"),
            (Override::Other, _) => {
                log_not_taken(device, "its driver_override names another driver")
            }
            (Override::None, Holder::Busy) => log_not_taken(device, "it is in use"),
            (Override::None, held) => match claim(device) {
                Err(_) => log_not_taken(device, "there was no memory"),
                Ok(()) if matches!(held, Holder::Idle) => {
                    // If it came into use meanwhile, the driver is unbound in the ordinary way.
                    // SAFETY: The device is valid, its lock is not held.
                    unsafe { bindings::device_release_driver(as_raw(device)) };
                    dev_info!(device, "{}: taken over from {}\n", NAME, T::FROM);
                }
                Ok(()) => {}
            },
        }
    }

    /// # Safety
    ///
    /// To be called by the notifier chain of the PCI bus, with the block of a
    /// [`TakeOver<T>`].
    unsafe extern "C" fn notified(
        block: *mut bindings::notifier_block,
        event: c_ulong,
        device: *mut c_void,
    ) -> c_int {
        // SAFETY: The chain passes a device that is valid during the call.
        let device = unsafe { device::Device::from_raw(device.cast()) };
        let this = |claim: &Claim| core::ptr::eq(&*claim.device, device);
        // CAST: The kernel's `enum bus_notifier_event`.
        match event as bindings::bus_notifier_event {
            bindings::bus_notifier_event_BUS_NOTIFY_ADD_DEVICE => {
                // SAFETY: The device is on the PCI bus.
                let ours = unsafe { Self::matches(device) };
                if ours && override_of(device) == Override::None && claim(device).is_err() {
                    log_not_taken(device, "there was no memory");
                }
            }
            bindings::bus_notifier_event_BUS_NOTIFY_REMOVED_DEVICE => {
                drop(take_claim(this));
            }
            bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND => {
                let rejected =
                    claims().is_some_and(|claims| claims.iter().any(|c| this(c) && c.rejected));
                if rejected {
                    // SAFETY: By the requirement; all fields were set before it was registered.
                    let this: &Self = unsafe {
                        let block = Opaque::cast_from(block.cast_const());
                        &*kernel::container_of!(block, Self, block)
                    };
                    // An item that is queued already handles this device too.
                    let _ = this.queue.enqueue(this.rejects.clone());
                }
            }
            _ => {}
        }
        // CAST: A small constant.
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<T: TakesOver> PinnedDrop for TakeOver<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered. This waits until no thread is in
        // `notified`.
        unsafe {
            bindings::bus_unregister_notifier(&raw const bindings::pci_bus_type, self.block.get())
        };
        // No code queues it any more.
        self.queue.drain();
        // With its memory: statics are not dropped when the module is unloaded.
        let all = claims().map(|mut claims| core::mem::replace(&mut *claims, KVec::new()));
        for claim in all.iter().flatten() {
            offer_again(&claim.device);
        }
    }
}
