// SPDX-License-Identifier: GPL-2.0

//! Access to what exists only while a driver is bound, from code that outlives
//! the driver: open files, interrupt handlers, work items.
//!
//! C headers: [`include/linux/srcu.h`](srctree/include/linux/srcu.h),
//! [`include/linux/device/devres.h`](srctree/include/linux/device/devres.h)

use super::{
    address_space::AddressSpace,
    pci as raw_pci,
    vma::NewMap, //
};
use core::{
    cell::UnsafeCell,
    ops::Deref, //
};
use kernel::{
    device::Bound,
    devres,
    dma::Coherent,
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
        srcu,
        Arc,
        Mutex,
        Srcu, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
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

    /// Makes `map` one of coherent memory that is part of the value. Read-only,
    /// errors as of [`NewMap::faulted`]. Sleeps.
    pub(crate) fn map_coherent<U: AsBytes + FromBytes>(
        &self,
        map: &NewMap<'_>,
        memory: for<'x> fn(&'x T, usize) -> Option<&'x Coherent<[U]>>,
        index: usize,
    ) -> Result {
        let memory = memory(self.value, index).ok_or(EINVAL)?;
        // SAFETY: The allocation is part of the value (a function pointer has nothing else to take
        // it from), for this device, and lives until `close` has taken all maps away. Whole pages
        // are allocated, zeroed by the kernel.
        unsafe {
            map.coherent(
                raw_pci::as_raw_device(self.device()),
                memory.as_mut_ptr().cast(),
                memory.dma_address(),
                memory.size(),
            )
        }
    }
}

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}
