// SPDX-License-Identifier: GPL-2.0

//! Access to values that exist only while a driver is bound, from code that outlives the binding:
//! open files, interrupt handlers, work items.
//!
//! C headers: [`include/linux/srcu.h`](srctree/include/linux/srcu.h),
//! [`include/linux/device/devres.h`](srctree/include/linux/device/devres.h)

use super::device as raw_pci;
use crate::abstractions::mm::address_space::AddressSpace;
use core::{
    cell::UnsafeCell,
    ops::Deref, //
};
use kernel::{
    bindings,
    device::Bound,
    devres,
    new_mutex,
    new_srcu,
    pci,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        srcu, //
        Arc,
        Mutex,
        Srcu,
    }, //
};

/// Contains a `T` that may be used only while the PCI device is bound.
///
/// [`SrcuRevocable::try_access`] gives access, and may be called in any context but NMI; the owner
/// of a [`Guard`] may sleep. Revoking waits until all guards are dropped, then calls
/// [`Revoked::revoked`]. Only a [`RevokeOnDrop`] revokes: that of the driver, when it is dropped,
/// or that of the device core, which drops it with the device's managed resources, that is before
/// the device counts as unbound, whatever the driver does.
///
/// Like [`kernel::revocable::Revocable`], but with SRCU, so that a guard may be held while its
/// owner sleeps.
///
/// # Invariants
///
/// - While `accessible` is set, and until an SRCU grace period has passed after it was cleared,
///   `value` is `Some` and is not written.
/// - `device` is bound while `value` is `Some`.
#[pin_data]
pub(crate) struct SrcuRevocable<T> {
    #[pin]
    srcu: Srcu,
    accessible: Atomic<bool>,
    /// Held by the thread that revokes.
    #[pin]
    revoking: Mutex<()>,
    value: UnsafeCell<Option<T>>,
    device: ARef<pci::Device>,
    maps: Arc<AddressSpace>,
}

// SAFETY: The thread that revokes `T` drops it, and may be any thread.
unsafe impl<T: Send> Send for SrcuRevocable<T> {}
// SAFETY: `try_access` shares `&T` among threads, and revoking moves `T` to another one.
unsafe impl<T: Send + Sync> Sync for SrcuRevocable<T> {}

/// A value that can be revoked.
pub(crate) trait Revoked: Send + Sync + 'static {
    /// Ends the value while its device is still bound. Nobody else has the value any more. Sleeps.
    fn revoked(self, device: &pci::Device<Bound>);
}

/// The right to revoke. Dropping it revokes the value; sleeps then. The code that unbinds the
/// device owns it, and code with a guard cannot reach it: that code would wait for itself.
pub(crate) struct RevokeOnDrop<T: Revoked>(Arc<SrcuRevocable<T>>);

impl<T: Revoked> Drop for RevokeOnDrop<T> {
    fn drop(&mut self) {
        self.0.revoke();
    }
}

impl<T: Revoked> SrcuRevocable<T> {
    /// Makes `value` accessible while `device` is bound, and returns it with the right to revoke
    /// it. `maps` are the user maps of the memory of `value`. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        value: T,
        maps: Arc<AddressSpace>,
    ) -> Result<(Arc<Self>, RevokeOnDrop<T>)> {
        let this = Arc::pin_init(
            // INVARIANT: `device` is bound, and the `RevokeOnDrop` registered below takes the value
            // before the device is unbound.
            try_pin_init!(Self {
                srcu <- new_srcu!("ringbar_revocable"),
                accessible: Atomic::new(true),
                revoking <- new_mutex!((), "ringbar_revoking"),
                value: UnsafeCell::new(Some(value)),
                device: ARef::from(&**device),
                maps,
            }),
            GFP_KERNEL,
        )?;
        // On failure the `RevokeOnDrop` is dropped right here, which revokes the value.
        devres::register(device.as_ref(), RevokeOnDrop(this.clone()), GFP_KERNEL)?;
        let revoke = RevokeOnDrop(this.clone());
        Ok((this, revoke))
    }

    /// Grants no more access, waits until all guards are dropped, zaps the user maps, and ends the
    /// value. Does nothing the second time. Sleeps.
    fn revoke(&self) {
        // A second caller waits for the end, too: the device stays bound for so long.
        let _revoking = self.revoking.lock();
        if !self.accessible.xchg(false, Full) {
            return;
        }
        self.srcu.synchronize();
        // A thread that makes a map has a guard, so there will be no more maps.
        self.maps.unmap(0..usize::MAX);
        // SAFETY: `accessible` was cleared by this call and by no other, and after the grace period
        // no thread that has seen it set has a guard any more: this is the only access.
        let value = unsafe { &mut *self.value.get() };
        if let Some(value) = value.take() {
            // SAFETY: The value existed until just now, so the device was bound. It stays bound
            // until the `RevokeOnDrop` of the device core has been dropped, which waits for this
            // call.
            value.revoked(unsafe { raw_pci::assume_bound(&self.device) });
        }
    }
}

impl<T> SrcuRevocable<T> {
    /// Access to the value; `None` once it is being revoked.
    #[inline]
    pub(crate) fn try_access(&self) -> Option<Guard<'_, T>> {
        let guard = self.srcu.read_lock();
        if !self.accessible.load(Acquire) {
            return None;
        }
        // SAFETY: By the type invariants, `value` is not written until a grace period has passed
        // after `accessible` was cleared; it was set within the read-side section of `guard`.
        let value = unsafe { &*self.value.get() }.as_ref()?;
        Some(Guard {
            value,
            revocable: self,
            _guard: guard,
        })
    }

    /// Whether [`Self::try_access`] would give access now. Any context.
    #[inline]
    pub(crate) fn is_accessible(&self) -> bool {
        self.accessible.load(Acquire)
    }
}

/// Access to the value of a [`SrcuRevocable`]. As long as it lives, the device is bound.
pub(crate) struct Guard<'a, T> {
    value: &'a T,
    revocable: &'a SrcuRevocable<T>,
    _guard: srcu::Guard<'a>,
}

impl<T> Guard<'_, T> {
    /// The device, which is bound.
    #[inline]
    pub(crate) fn device(&self) -> &pci::Device<Bound> {
        // SAFETY: By the invariants of `SrcuRevocable`, the device is bound while the value exists,
        // and the value exists until `self` is dropped.
        unsafe { raw_pci::assume_bound(&self.revocable.device) }
    }

    /// The user maps that are zapped when the value is revoked.
    pub(in crate::abstractions) fn maps(&self) -> &AddressSpace {
        &self.revocable.maps
    }
}

impl<T: 'static> Guard<'_, T> {
    /// A part of the value, of which user maps may be made. `None` if `select` returns `None`.
    pub(crate) fn part<U>(
        &self,
        select: impl for<'x> FnOnce(&'x T) -> Option<&'x U>,
    ) -> Option<Part<'_, U>> {
        // INVARIANT: The result of `select` has to live as long as the value is shared, for any
        // such time, and the value is shared until it is revoked. Before that, its maps are zapped.
        Some(Part {
            value: select(self.value)?,
            maps: &self.revocable.maps,
            device: self.device(),
        })
    }
}

/// Part of the value of a [`SrcuRevocable`], for the owner of a guard.
///
/// # Invariants
///
/// - `value` lives until all maps of `maps` were zapped.
/// - `device` is that of the [`SrcuRevocable`].
pub(crate) struct Part<'a, U: ?Sized> {
    value: &'a U,
    maps: &'a AddressSpace,
    device: &'a pci::Device<Bound>,
}

impl<U: ?Sized> Part<'_, U> {
    /// The user maps that are zapped before the value is dropped.
    pub(in crate::abstractions) fn maps(&self) -> &AddressSpace {
        self.maps
    }

    /// The device, which is bound.
    pub(in crate::abstractions) fn raw_device(&self) -> *mut bindings::device {
        raw_pci::as_raw_device(self.device)
    }
}

impl<U: ?Sized> Deref for Part<'_, U> {
    type Target = U;

    #[inline]
    fn deref(&self) -> &U {
        self.value
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
