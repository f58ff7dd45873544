// SPDX-License-Identifier: GPL-2.0

//! Getting a driver's devices from another driver that matches every device of
//! their vendor, and giving them back.
//!
//! The kernel offers a new device to the drivers of its bus in the order in which
//! they were registered, so a driver in a module never gets a device that one
//! built into the kernel matches as well. `driver_override` names the one driver
//! that a device is for. It is set here
//!
//! - for each device of the ID table that is there when the module is loaded; the
//!   other driver is unbound from it unless it is in use,
//! - for each one that appears later, before any driver sees it
//!   (`BUS_NOTIFY_ADD_DEVICE`).
//!
//! A device that the driver [`reject`]s and, when the module goes, all devices are
//! offered to the other drivers again. Where somebody else has set
//! `driver_override`, nothing is done.
//!
//! A udev rule, `modprobe.d` or an initramfs hook could do the same, but only in
//! a system that was prepared for it; and they come after the device was bound.
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

/// What `driver_override` is set to: the name of the module, and of its driver.
const NAME: &CStr = <crate::LocalModule as ModuleMetadata>::NAME;

/// A driver whose devices another driver matches as well.
pub(crate) trait TakesOver: pci::Driver + 'static {
    /// Name of the other driver.
    const FROM: &'static CStr;
}

/// A device whose `driver_override` was set here.
struct Claim {
    device: ARef<device::Device>,
    /// Whether the driver has found that it is another kind of device ([`reject`]).
    rejected: bool,
}

global_lock! {
    // SAFETY: Reached through `claims` only, which looks whether it is initialised.
    unsafe(uninit) static CLAIMS: Mutex<KVec<Claim>> = KVec::new();
}

/// Whether [`CLAIMS`] has been or is being initialised.
static CLAIMS_STARTED: Atomic<bool> = Atomic::new(false);

/// Whether [`CLAIMS`] is initialised.
static CLAIMS_READY: Atomic<bool> = Atomic::new(false);

/// The devices claimed, `None` before the first [`TakeOver`].
fn claims() -> Option<GlobalGuard<CLAIMS>> {
    CLAIMS_READY.load(Acquire).then(|| CLAIMS.lock())
}

/// The C object behind `device`.
fn as_raw(device: &device::Device) -> *mut bindings::device {
    // `device::Device` is a transparent wrapper of an `Opaque<device>`.
    core::ptr::from_ref(device).cast_mut().cast()
}

/// Sets `driver_override`, or clears it where `name` is empty, which needs no
/// memory. May sleep.
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

/// What a device's `driver_override` says.
#[derive(PartialEq)]
enum Override {
    /// It is not set.
    None,
    /// It names this module's driver.
    Us,
    /// It names another one.
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

/// Sets `driver_override` of a device that has none, and notes that. May sleep.
///
/// What somebody else sets between the look and this is lost.
fn claim(device: &device::Device) -> Result {
    let mut claims = claims().ok_or(EINVAL)?;
    // Before anything has to be undone.
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

/// Takes the first claim that `wanted` picks off the list.
fn take_claim(mut wanted: impl FnMut(&Claim) -> bool) -> Option<Claim> {
    let mut claims = claims()?;
    let at = claims.iter().position(&mut wanted)?;
    claims.remove(at).ok()
}

/// Says that `device` is none of the driver's. To be called by a `probe` that then
/// fails: the device is given back after that. May sleep.
///
/// That is more than an error says: parts of the kernel return `ENODEV` for other
/// reasons too.
pub(crate) fn reject(device: &pci::Device<Bound>) {
    let raw = crate::abstractions::pci::device::as_raw_device(device);
    if let Some(mut claims) = claims() {
        for claim in &mut *claims {
            claim.rejected |= as_raw(&claim.device) == raw;
        }
    }
}

/// Undoes [`claim`] and offers the device to the drivers of its bus, unless
/// somebody has set `driver_override` since. One that is being removed, has a
/// driver already, or is wanted by none stays as it is. Sleeps. Must not be called with the
/// lock of the device or of [`CLAIMS`] held.
fn give_back(device: &device::Device) {
    if override_of(device) != Override::Us {
        return;
    }
    // Cannot fail: the name is empty.
    let _ = set_override(device, c"");
    // SAFETY: The device is valid; its lock is not held.
    let _ = unsafe { bindings::device_attach(as_raw(device)) };
}

/// Who has a device that is in our ID table.
enum Holder {
    /// No driver.
    Nobody,
    /// The driver to take it from, with nobody on top.
    Idle,
    /// Somebody who is not to be disturbed.
    Busy,
}

/// The lock that keeps a device's driver from changing. Released when dropped.
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

/// Who has `device`, where `from` is the driver to take it from.
fn holder(device: &device::Device, from: &CStr) -> Holder {
    let _lock = DeviceLock::new(device);
    // SAFETY: Under the lock of the device its driver neither changes nor goes.
    let name = unsafe {
        let driver = (*as_raw(device)).driver;
        if driver.is_null() {
            return Holder::Nobody;
        }
        CStr::from_char_ptr((*driver).name)
    };
    // SAFETY: The device is registered, the callback fits.
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

/// Says that a device stays where it is, and what to type to have it.
fn tell_left(device: &device::Device, why: &str) {
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

/// Gives back, from a work item, the devices that the driver has rejected: that
/// happens in `probe`, with the lock held that is needed to do so.
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
            give_back(&claim.device);
        }
    }
}

/// Keeps getting the devices of `T`'s ID table for the driver `T`. Gives them back
/// when dropped, which is to happen after the driver was unregistered.
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

// SAFETY: May be dropped by any thread.
unsafe impl<T: TakesOver> Send for TakeOver<T> {}
// SAFETY: There is nothing to do with a shared reference.
unsafe impl<T: TakesOver> Sync for TakeOver<T> {}

impl<T: TakesOver> TakeOver<T> {
    /// Takes the devices that are there; the driver is to be registered after this,
    /// and gets them then. Sleeps.
    ///
    /// At most once in the life of the module, `EBUSY` otherwise.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            if CLAIMS_STARTED.xchg(true, Full) {
                return Err(EBUSY);
            }
            // SAFETY: Only one caller ever comes here.
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
                // Last of the fields: from then on they are used.
                block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: `slot` is valid for writing.
                    unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(Self::notified),
                            ..pin_init::zeroed()
                        })
                    };
                    // INVARIANT: Registered.
                    // SAFETY: The block is complete, and stays where it is until it is
                    // unregistered in `drop`.
                    to_result(unsafe {
                        bindings::bus_register_notifier(&raw const bindings::pci_bus_type, slot)
                    })
                }),
                // Whatever comes from now on is noticed, so none is missed.
                _: {
                    // SAFETY: The callback fits, and takes no data.
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

    /// Takes a device that is there already.
    fn take(device: &device::Device) {
        match (override_of(device), holder(device, T::FROM)) {
            (Override::Us, Holder::Nobody) => {}
            (Override::Us, _) => tell_left(device, "another driver has it"),
            (Override::Other, _) => tell_left(device, "its driver_override names another driver"),
            (Override::None, Holder::Busy) => tell_left(device, "it is in use"),
            (Override::None, held) => match claim(device) {
                Err(_) => tell_left(device, "there was no memory"),
                Ok(()) if matches!(held, Holder::Idle) => {
                    // Somebody may have begun to use it just now; it is taken away in order.
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
                // SAFETY: It is on the PCI bus.
                let ours = unsafe { Self::matches(device) };
                if ours && override_of(device) == Override::None && claim(device).is_err() {
                    tell_left(device, "there was no memory");
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
                    // Queued already: then it finds this one too.
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
        // SAFETY: By the type invariant it is registered. This waits until nobody is in `notified`.
        unsafe {
            bindings::bus_unregister_notifier(&raw const bindings::pci_bus_type, self.block.get())
        };
        // Nobody queues it any more.
        self.queue.drain();
        // With its memory: statics are not dropped when the module goes.
        let all = claims().map(|mut claims| core::mem::replace(&mut *claims, KVec::new()));
        for claim in all.iter().flatten() {
            give_back(&claim.device);
        }
    }
}
