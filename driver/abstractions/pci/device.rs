// SPDX-License-Identifier: GPL-2.0

//! Functions that [`kernel::pci`] does not offer yet.
//!
//! C header: [`include/linux/pci.h`](srctree/include/linux/pci.h)

use core::ops::Range;
use kernel::{
    bindings,
    device::{
        self,
        Bound, //
    },
    error::to_result,
    pci,
    prelude::*,
    str::CString,
    sync::aref::ARef, //
};

/// The C object behind `device`.
#[inline]
pub(super) fn as_raw<Ctx: device::DeviceContext>(
    device: &pci::Device<Ctx>,
) -> *mut bindings::pci_dev {
    // `pci::Device` is a transparent wrapper of an `Opaque<pci_dev>`.
    core::ptr::from_ref(device).cast_mut().cast()
}

/// The `struct device` of `device`.
#[inline]
pub(in crate::abstractions) fn as_raw_device<Ctx: device::DeviceContext>(
    device: &pci::Device<Ctx>,
) -> *mut bindings::device {
    // SAFETY: `as_raw` is a valid `struct pci_dev`; no reference is made.
    unsafe { &raw mut (*as_raw(device)).dev }
}

/// Marks `device` as bound.
///
/// # Safety
///
/// The device must stay bound to this driver for the life of the returned reference.
#[inline]
pub(in crate::abstractions) unsafe fn assume_bound(device: &pci::Device) -> &pci::Device<Bound> {
    // SAFETY: The context is a zero-sized marker, so the layout is the same; the caller guarantees
    // that the device is bound.
    unsafe { &*core::ptr::from_ref(device).cast() }
}

/// A BAR claimed in `/proc/iomem` but not mapped into the kernel.
///
/// # Invariants
///
/// The BAR of `device` is requested by this driver; it is a memory BAR, with the bytes of `range`.
pub(crate) struct ClaimedBar {
    device: ARef<pci::Device>,
    bar: c_int,
    range: Range<u64>,
}

impl ClaimedBar {
    /// Claims `bar` under `name`. May sleep.
    ///
    /// `EINVAL` if there is no such BAR or it consists of I/O ports, `EBUSY` if another driver has
    /// requested it.
    pub(crate) fn new(device: &pci::Device<Bound>, bar: u8, name: &'static CStr) -> Result<Self> {
        let start = device.resource_start(u32::from(bar))?;
        let len = device.resource_len(u32::from(bar))?;
        let range = start..start.checked_add(len).ok_or(EINVAL)?;
        // SAFETY: The device is valid, `bar` is a BAR (checked by `resource_start`); its flags do
        // not change while the device is bound.
        let flags = unsafe { (*as_raw(device)).resource[usize::from(bar)].flags };
        if flags & bindings::IORESOURCE_MEM as c_ulong == 0 {
            dev_err!(device, "BAR {} has I/O ports and no memory\n", bar);
            return Err(EINVAL);
        }
        let bar = c_int::from(bar);
        // SAFETY: The device is valid, `bar` is a BAR (checked by `resource_start`), the name is
        // static.
        to_result(unsafe {
            bindings::pci_request_region(as_raw(device), bar, name.as_char_ptr())
        })?;
        // INVARIANT: Just requested, and checked.
        Ok(Self {
            device: ARef::from(&**device),
            bar,
            range,
        })
    }

    /// The device with the BAR.
    pub(in crate::abstractions) fn raw_device(&self) -> *mut bindings::device {
        as_raw_device(&self.device)
    }

    /// The physical addresses of the BAR.
    pub(in crate::abstractions) fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Drop for ClaimedBar {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the BAR is ours.
        unsafe { bindings::pci_release_region(as_raw(&self.device), self.bar) };
    }
}

/// Whether an IOMMU translates the addresses that `device` uses.
///
/// Without `VIRTIO_F_ACCESS_PLATFORM` a device bypasses such an IOMMU and takes the addresses that
/// it gets for physical ones (VIRTIO 1.3, 6.1).
#[cfg(CONFIG_IOMMU_API)]
pub(crate) fn iommu_translates(device: &pci::Device<Bound>) -> bool {
    // SAFETY: The device is valid and bound, so its domain stays valid during the call.
    let domain = unsafe { bindings::iommu_get_domain_for_dev(as_raw_device(device)) };
    if domain.is_null() {
        return false;
    }
    // SAFETY: The domain of a bound device is valid; its type is set once, before it is attached.
    unsafe { (*domain).type_ != bindings::IOMMU_DOMAIN_IDENTITY }
}

/// A kernel without support for IOMMUs uses none.
#[cfg(not(CONFIG_IOMMU_API))]
pub(crate) fn iommu_translates(_device: &pci::Device<Bound>) -> bool {
    false
}

/// The address of the device on its bus, such as `0000:00:04.0`. May sleep.
pub(crate) fn address(device: &pci::Device<Bound>) -> Result<CString> {
    // SAFETY: The device is valid; its name does not change while it is bound.
    let name = unsafe { CStr::from_char_ptr(bindings::dev_name(as_raw_device(device))) };
    Ok(CString::try_from(name)?)
}
