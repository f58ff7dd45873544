// SPDX-License-Identifier: GPL-2.0

//! A file in the directory of a device in sysfs, with a number that an administrator can change.
//!
//! C headers: [`include/linux/device.h`](srctree/include/linux/device.h),
//! [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use super::pci::device::as_raw_device;
use core::marker::PhantomPinned;
use kernel::{
    bindings,
    container_of,
    device::Bound,
    devres,
    error::{
        from_result,
        to_result, //
    },
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::Opaque, //
};

/// Permissions of the file: all may read, the owner (root) may write.
const MODE: bindings::umode_t = 0o644;

/// The number behind a file.
pub(crate) trait Number: Send + Sync + 'static {
    /// Its value. May sleep.
    fn get(&self) -> u32;

    /// Changes its value. May sleep. An error is the writer's.
    fn set(&self, value: u32) -> Result;
}

/// An attribute with its number, which stays in its place.
#[pin_data]
struct Attribute<T: Number> {
    #[pin]
    attribute: Opaque<bindings::device_attribute>,
    number: Arc<T>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Only sysfs uses the attribute, and does its own locking.
unsafe impl<T: Number> Send for Attribute<T> {}
// SAFETY: As above.
unsafe impl<T: Number> Sync for Attribute<T> {}

/// A file. Dropping it removes the file, and waits for calls in progress; sleeps then.
///
/// The value never leaves this module, so no other code can leak it (`mem::forget`): [`show`] passes
/// it to the device core, which drops it when the device is unbound. If it was leaked, the file would
/// call functions of a module that was unloaded.
///
/// # Invariants
///
/// The attribute is a file of `device`, whose directory exists.
struct NumberFile<T: Number> {
    attribute: Pin<KBox<Attribute<T>>>,
    device: ARef<pci::Device>,
}

/// Creates a file of this name for `device`. It is removed when the device is unbound, after the
/// driver's data was dropped. May sleep. `EEXIST` if the device has one of this name.
pub(crate) fn show<T: Number>(
    device: &pci::Device<Bound>,
    name: &'static CStr,
    number: Arc<T>,
) -> Result {
    let attribute = KBox::pin_init(Attribute::new(name, number), GFP_KERNEL)?;
    // SAFETY: The device is valid. Attribute and callbacks stay valid until the file is removed: the
    // `NumberFile` below owns the attribute, and removes the file before it frees that. This function
    // drops it, or else the device core, while it unbinds the device: before the module is unloaded.
    to_result(unsafe {
        bindings::device_create_file(as_raw_device(device), attribute.attribute.get())
    })?;
    // INVARIANT: Just created. The directory of a bound device exists, and the value is dropped at
    // the latest while the device is unbound.
    let file = NumberFile {
        attribute,
        device: ARef::from(&**device),
    };
    // On failure the file is dropped right here.
    devres::register(device.as_ref(), file, GFP_KERNEL)
}

impl<T: Number> Drop for NumberFile<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The function waits for calls in progress.
        unsafe {
            let attribute = self.attribute.attribute.get();
            bindings::device_remove_file(as_raw_device(&self.device), attribute);
        }
    }
}

impl<T: Number> Attribute<T> {
    fn new(name: &'static CStr, number: Arc<T>) -> impl PinInit<Self> {
        pin_init!(Self {
            attribute <- Opaque::ffi_init(|slot: *mut bindings::device_attribute| {
                let mut attribute: bindings::device_attribute = pin_init::zeroed();
                attribute.attr.name = name.as_char_ptr();
                attribute.attr.mode = MODE;
                #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
                {
                    attribute.attr.key = kernel::static_lock_class!().as_ptr();
                }
                attribute.__bindgen_anon_1.show = Some(Self::show);
                attribute.__bindgen_anon_2.store = Some(Self::store);
                // SAFETY: `slot` is valid for writing.
                unsafe { slot.write(attribute) };
            }),
            number,
            _pin: PhantomPinned,
        })
    }

    /// # Safety
    ///
    /// To be called by sysfs, for the attribute of a `Self`.
    unsafe fn of<'a>(attribute: *mut bindings::device_attribute) -> &'a Self {
        // SAFETY: By the requirement; the removal of the file waits for calls in progress.
        unsafe { &*container_of!(Opaque::cast_from(attribute.cast_const()), Self, attribute) }
    }

    /// # Safety
    ///
    /// To be called by sysfs, for the attribute of a `Self`, with a page for the text.
    unsafe extern "C" fn show(
        _device: *mut bindings::device,
        attribute: *mut bindings::device_attribute,
        text: *mut c_char,
    ) -> isize {
        // SAFETY: By the requirement.
        let number = unsafe { Self::of(attribute) }.number.get();
        // SAFETY: By the requirement, and the format is for an unsigned number.
        let length = unsafe { bindings::sysfs_emit(text, c"%u\n".as_char_ptr(), number) };
        length as isize
    }

    /// # Safety
    ///
    /// As for [`Self::show`]; the text is terminated.
    unsafe extern "C" fn store(
        _device: *mut bindings::device,
        attribute: *mut bindings::device_attribute,
        text: *const c_char,
        length: usize,
    ) -> isize {
        from_result(|| {
            let mut value = 0;
            // SAFETY: By the requirement.
            to_result(unsafe { bindings::kstrtouint(text, 0, &mut value) })?;
            // SAFETY: By the requirement.
            unsafe { Self::of(attribute) }.number.set(value)?;
            // CAST: At most a page.
            Ok(length as isize)
        })
    }
}
