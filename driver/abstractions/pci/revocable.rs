// SPDX-License-Identifier: GPL-2.0

//! Access to what exists only while a driver is bound, from code that outlives
//! the driver: open files, interrupt handlers, work items.
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

/// Holds a `T` that may be used only while the PCI device is bound.
///
/// [`Gate::enter`] gives access, and may be called in any context but NMI;
/// what holds the access may sleep. Closing the gate waits until everybody has
/// left, then retires the `T`. Only a [`Closer`] closes it: that of the driver, when it
/// is dropped, or that of the device core, which comes with the release of the device's
/// managed resources, that is before the device counts as unbound, whatever the driver does.
///
/// # Invariants
///
/// - While `open` is set, and until an SRCU grace period has passed after it was
///   cleared, `value` is `Some` and is not written.
/// - `device` is bound while `value` is `Some`.
#[pin_data]
pub(crate) struct Gate<T> {
    #[pin]
    srcu: Srcu,
    open: Atomic<bool>,
    /// Held by who closes it.
    #[pin]
    closing: Mutex<()>,
    value: UnsafeCell<Option<T>>,
    device: ARef<pci::Device>,
    maps: Arc<AddressSpace>,
}

// SAFETY: `T` is dropped by whichever thread closes the gate.
unsafe impl<T: Send> Send for Gate<T> {}
// SAFETY: `enter` shares `&T` among threads, and closing moves `T` to another one.
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

/// What can be behind a gate.
pub(crate) trait Retire: Send + Sync + 'static {
    /// Ends the value while its device is still there. Nobody else has it any more. Sleeps.
    fn retire(self, device: &pci::Device<Bound>);
}

/// The right to close a gate, which is done by dropping it; sleeps then. It belongs to who
/// unbinds the device, and cannot be got at by those who enter: they would wait for
/// themselves.
pub(crate) struct Closer<T: Retire>(Arc<Gate<T>>);

impl<T: Retire> Drop for Closer<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T: Retire> Gate<T> {
    /// Puts `value` behind a new, open gate for `device`, and returns it with the right to
    /// close it. `maps` are the user maps of what is in it. May sleep.
    pub(crate) fn new(
        device: &pci::Device<Bound>,
        value: T,
        maps: Arc<AddressSpace>,
    ) -> Result<(Arc<Self>, Closer<T>)> {
        let gate = Arc::pin_init(
            // INVARIANT: `device` is bound, and the `Closer` registered below empties the gate
            // before it stops to be.
            try_pin_init!(Self {
                srcu <- new_srcu!("ringbar_gate"),
                open: Atomic::new(true),
                closing <- new_mutex!((), "ringbar_gate_closing"),
                value: UnsafeCell::new(Some(value)),
                device: ARef::from(&**device),
                maps,
            }),
            GFP_KERNEL,
        )?;
        // On failure the `Closer` is dropped right here, which closes the gate.
        devres::register(device.as_ref(), Closer(gate.clone()), GFP_KERNEL)?;
        let closer = Closer(gate.clone());
        Ok((gate, closer))
    }

    /// Lets nobody enter any more, waits until everybody has left, takes the user
    /// maps away, and retires the value. Does nothing on a closed gate. Sleeps.
    fn close(&self) {
        // Who comes second waits for the end, too: the device stays bound for so long.
        let _closing = self.closing.lock();
        if !self.open.xchg(false, Full) {
            return;
        }
        self.srcu.synchronize();
        // Who makes a map has entered, so there will be no more.
        self.maps.unmap(0..usize::MAX);
        // SAFETY: `open` was cleared by this call and by no other, and after the grace period
        // nobody who has seen it set is left: this is the only access.
        let value = unsafe { &mut *self.value.get() };
        if let Some(value) = value.take() {
            // SAFETY: The value was there until just now, so the device was bound. It is so until the
            // `Closer` of the device core has been dropped, which waits for this call.
            value.retire(unsafe { raw_pci::assume_bound(&self.device) });
        }
    }
}

impl<T> Gate<T> {
    /// Access to the value, `None` once the gate is being closed.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_, T>> {
        let guard = self.srcu.read_lock();
        if !self.open.load(Acquire) {
            return None;
        }
        // SAFETY: By the type invariants, `value` is not written until a grace period has passed
        // after `open` was cleared; it was set within the read-side section of `guard`.
        let value = unsafe { &*self.value.get() }.as_ref()?;
        Some(Entered {
            value,
            gate: self,
            _guard: guard,
        })
    }

    /// Whether [`Self::enter`] would give access now. Any context.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Acquire)
    }
}

/// Access to the value behind a [`Gate`]. As long as it lives, the device is
/// bound.
pub(crate) struct Entered<'a, T> {
    value: &'a T,
    gate: &'a Gate<T>,
    _guard: srcu::Guard<'a>,
}

impl<T> Entered<'_, T> {
    /// The device, which is bound.
    #[inline]
    pub(crate) fn device(&self) -> &pci::Device<Bound> {
        // SAFETY: By the invariants of `Gate`, the device is bound while the value exists, and
        // that is until `self` is gone.
        unsafe { raw_pci::assume_bound(&self.gate.device) }
    }

    /// The user maps that closing the gate takes away.
    pub(in crate::abstractions) fn maps(&self) -> &AddressSpace {
        &self.gate.maps
    }
}

impl<T: 'static> Entered<'_, T> {
    /// A part of the value, of which user maps may be made. `None` where `select`
    /// finds none.
    pub(crate) fn part<U>(
        &self,
        select: impl for<'x> FnOnce(&'x T) -> Option<&'x U>,
    ) -> Option<Part<'_, U>> {
        // INVARIANT: `select` has to answer with what lives as long as the value is shared,
        // whatever time that is, and that is until the gate drops it. Before, the gate takes its
        // maps away.
        Some(Part {
            value: select(self.value)?,
            maps: &self.gate.maps,
            device: self.device(),
        })
    }
}

/// Part of the value behind a [`Gate`], as one who has entered sees it.
///
/// # Invariants
///
/// - `value` lives until the gate has taken away all maps of `maps`.
/// - The gate is the one of `device`.
pub(crate) struct Part<'a, U: ?Sized> {
    value: &'a U,
    maps: &'a AddressSpace,
    device: &'a pci::Device<Bound>,
}

impl<U: ?Sized> Part<'_, U> {
    /// The user maps that the gate takes away.
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

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
