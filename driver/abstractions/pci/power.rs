// SPDX-License-Identifier: GPL-2.0

//! PCI drivers with support for system sleep and shutdown.
//!
//! [`kernel::pci::Adapter`] registers a driver without power management: the bus then only saves
//! the configuration space. [`Adapter`] here registers the same driver with `dev_pm_ops` and
//! `shutdown` in addition.
//!
//! Suspend to idle, suspend to RAM and the steps of hibernation have the same requirements: the
//! device does no DMA and sends no interrupts, and is set up from its initial state afterwards. So
//! there are two callbacks, each for several steps.
//!
//! C headers: [`include/linux/pm.h`](srctree/include/linux/pm.h),
//! [`include/linux/pci.h`](srctree/include/linux/pci.h)

use core::marker::PhantomData;
use kernel::{
    bindings,
    device::{
        self,
        Core,
        CoreInternal, //
    },
    driver::{
        DriverLayout,
        RegistrationOps, //
    },
    error::from_result,
    pci,
    prelude::*,
    types::Opaque,
    ThisModule, //
};

/// A PCI driver whose devices can be suspended.
///
/// The bus calls both callbacks with the device lock held, user space frozen, and interrupts on.
/// They may sleep.
pub(crate) trait SystemSleep: pci::Driver {
    /// Suspends the device: no DMA and no interrupts afterwards (`suspend`, `freeze`, `poweroff`).
    /// An error aborts the transition; the device must work then.
    fn suspend<'bound>(
        device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result;

    /// Sets the device up again, which may have lost all state but its configuration space
    /// (`resume`, `thaw`, `restore`). The caller logs an error.
    fn resume<'bound>(
        device: &'bound pci::Device<Core<'_>>,
        data: Pin<&Self::Data<'bound>>,
    ) -> Result;
}

/// A PCI driver whose devices can be shut down.
pub(crate) trait Shutdown: pci::Driver {
    /// Stops the device for good, before the kernel reboots, powers off or executes another kernel
    /// (kexec): no DMA and no interrupts afterwards. Without this, a device that runs writes into the
    /// memory of the kernel that is executed: the bus only disables bus mastering, which the driver
    /// of that kernel enables again.
    ///
    /// The bus calls this with the device lock held and interrupts on; it may sleep. User space is not
    /// frozen: calls of programs go on, and must not start the device again.
    fn shutdown<'bound>(device: &'bound pci::Device<Core<'_>>, data: Pin<&Self::Data<'bound>>);
}

/// Registers `T` as [`pci::Adapter`] does, with callbacks for system sleep and shutdown.
pub(crate) struct Adapter<T: SystemSleep + Shutdown>(PhantomData<T>);

// SAFETY: All three types are those of `pci::Adapter<T>`.
unsafe impl<T: SystemSleep + Shutdown> DriverLayout for Adapter<T> {
    type DriverType = <pci::Adapter<T> as DriverLayout>::DriverType;
    type DriverData<'bound> = <pci::Adapter<T> as DriverLayout>::DriverData<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = <pci::Adapter<T> as DriverLayout>::DEVICE_DRIVER_OFFSET;
}

// SAFETY: `unregister` undoes what `register` did, which is what `pci::Adapter<T>` does.
unsafe impl<T: SystemSleep + Shutdown> RegistrationOps for Adapter<T> {
    unsafe fn register(
        driver: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: The structure is initialised and not registered yet, so nobody else uses it; the
        // operations are a constant.
        unsafe {
            (*driver.get()).driver.pm = &Self::OPERATIONS;
            (*driver.get()).shutdown = Some(Self::shutdown);
        }
        // SAFETY: By the requirements of this function.
        unsafe { <pci::Adapter<T>>::register(driver, name, module) }
    }

    unsafe fn unregister(driver: &Opaque<Self::DriverType>) {
        // SAFETY: By the requirements of this function.
        unsafe { <pci::Adapter<T>>::unregister(driver) };
    }
}

impl<T: SystemSleep + Shutdown> Adapter<T> {
    const OPERATIONS: bindings::dev_pm_ops = bindings::dev_pm_ops {
        suspend: Some(Self::suspend),
        resume: Some(Self::resume),
        freeze: Some(Self::suspend),
        thaw: Some(Self::resume),
        poweroff: Some(Self::suspend),
        restore: Some(Self::resume),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// To be called by the bus, for a device that is bound to `T`, with the device lock held.
    unsafe extern "C" fn suspend(device: *mut bindings::device) -> c_int {
        from_result(|| {
            // SAFETY: By the requirement, the device is valid and bound during the call.
            let device = unsafe { <&pci::Device<CoreInternal<'_>>>::try_from(raw(device))? };
            // SAFETY: The bus takes the callback from the driver that the device is bound to. The
            // device lock, which probe and removal hold throughout, proves that the device is fully
            // bound: the data has been set and is not taken away before the lock is released.
            let data = unsafe { device.as_ref().drvdata_borrow::<T::Data<'_>>() };
            T::suspend(device, data)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::suspend`].
    unsafe extern "C" fn resume(device: *mut bindings::device) -> c_int {
        from_result(|| {
            // SAFETY: As in `suspend`.
            let device = unsafe { <&pci::Device<CoreInternal<'_>>>::try_from(raw(device))? };
            // SAFETY: As in `suspend`.
            let data = unsafe { device.as_ref().drvdata_borrow::<T::Data<'_>>() };
            T::resume(device, data)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for [`Self::suspend`].
    unsafe extern "C" fn shutdown(device: *mut bindings::pci_dev) {
        // SAFETY: By the requirement, the device is valid and bound during the call; `pci::Device`
        // is a transparent wrapper of `struct pci_dev`.
        let device = unsafe { &*device.cast::<pci::Device<CoreInternal<'_>>>() };
        // SAFETY: As in `suspend`.
        let data = unsafe { device.as_ref().drvdata_borrow::<T::Data<'_>>() };
        T::shutdown(device, data);
    }
}

/// # Safety
///
/// `device` must be valid during `'a`, which must be within a callback of its bus.
unsafe fn raw<'a>(device: *mut bindings::device) -> &'a device::Device<CoreInternal<'a>> {
    // SAFETY: By the requirement.
    unsafe { device::Device::from_raw(device) }
}
