// SPDX-License-Identifier: GPL-2.0

//! Interrupt handlers that belong to reference-counted objects.
//!
//! [`kernel::irq::Registration`] requires a promise that it is never leaked. The registration here
//! has a reference of its own instead, and the device core ends it at the latest when the device is
//! unbound. So if it is leaked (`mem::forget`), its memory is lost, and the device's interrupt
//! vectors stay allocated, so that the device cannot be bound again; but the handler never runs on
//! freed memory or in a module that was unloaded.
//!
//! C header: [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use super::device::as_raw_device;
use kernel::{
    bindings,
    device::Bound,
    error::to_result,
    irq::IrqRequest,
    pci::{
        self,
        IrqVectorRegistration, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// A handler of an interrupt.
pub(crate) trait Handler: Send + Sync + Sized + 'static {
    /// Called in hard interrupt context: must not sleep.
    ///
    /// Returns whether the device had raised the interrupt.
    fn handle(this: ArcBorrow<'_, Self>) -> bool;
}

/// A registered handler of one interrupt vector, with the allocation that the vector is part of.
/// Dropping this waits for a running handler to return, unregisters it, and frees the vectors;
/// sleeps then.
///
/// # Invariants
///
/// `handler` is registered for line `irq` with its own address as cookie, as a managed resource of
/// `device`. The line is one of `vectors`.
pub(crate) struct Interrupt<'bound, H: Handler> {
    device: &'bound pci::Device<Bound>,
    irq: u32,
    handler: Arc<H>,
    _vectors: IrqVectorRegistration<'bound>,
}

impl<'bound, H: Handler> Interrupt<'bound, H> {
    /// Registers `handler` for vector `index` of those of `device`, shown as `name` in
    /// `/proc/interrupts`. May sleep. `EINVAL` if there is no such vector.
    pub(crate) fn new(
        device: &'bound pci::Device<Bound>,
        vectors: IrqVectorRegistration<'bound>,
        index: usize,
        name: &'static CStr,
        handler: Arc<H>,
    ) -> Result<Self> {
        let irq = IrqRequest::from(vectors.index(index)?).irq();
        // SAFETY: The callback interprets the cookie as an `H`, which it is; `handler` is kept
        // until `devm_free_irq` has returned, or for ever. The device is bound.
        to_result(unsafe {
            bindings::devm_request_threaded_irq(
                as_raw_device(device),
                irq,
                Some(callback::<H>),
                None,
                0,
                name.as_char_ptr(),
                Arc::as_ptr(&handler).cast_mut().cast(),
            )
        })?;
        // INVARIANT: Just registered, for a line of `vectors`.
        Ok(Self {
            device,
            irq,
            handler,
            _vectors: vectors,
        })
    }

    /// Waits for a running handler to return. Sleeps.
    pub(crate) fn synchronize(&self) {
        // SAFETY: By the type invariant the line is ours.
        unsafe { bindings::synchronize_irq(self.irq) };
    }
}

impl<H: Handler> Drop for Interrupt<'_, H> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this handler is registered with this cookie. The vectors
        // are freed after this, as fields are dropped later.
        unsafe {
            bindings::devm_free_irq(
                as_raw_device(self.device),
                self.irq,
                Arc::as_ptr(&self.handler).cast_mut().cast(),
            );
        }
    }
}

/// # Safety
///
/// `cookie` must be the address within an [`Arc<H>`] that exists during the call.
unsafe extern "C" fn callback<H: Handler>(
    _irq: c_int,
    cookie: *mut c_void,
) -> bindings::irqreturn_t {
    // SAFETY: By the requirement above.
    let handler = unsafe { ArcBorrow::from_raw(cookie.cast_const().cast::<H>()) };
    if H::handle(handler) {
        bindings::irqreturn::IRQ_HANDLED
    } else {
        bindings::irqreturn::IRQ_NONE
    }
}
