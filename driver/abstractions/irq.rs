// SPDX-License-Identifier: GPL-2.0

//! Interrupt handlers that belong to reference-counted objects.
//!
//! [`kernel::irq::Registration`] wants a promise that it is never leaked. Here
//! the registration holds a reference of its own instead, so a leak would cost
//! memory but never let the handler run on freed memory.
//!
//! C header: [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use kernel::{
    bindings,
    error::to_result,
    irq::IrqRequest,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// What handles an interrupt.
pub(crate) trait Handler: Send + Sync + Sized + 'static {
    /// Called in hard interrupt context: must not sleep.
    ///
    /// Returns whether the device had raised it.
    fn handle(this: ArcBorrow<'_, Self>) -> bool;
}

/// A registered interrupt handler. When dropped, waits for a running handler to
/// return, and unregisters it; sleeps then.
///
/// # Invariants
///
/// `handler` is registered for line `irq` with its own address as cookie.
pub(crate) struct Interrupt<H: Handler> {
    irq: u32,
    handler: Arc<H>,
}

impl<H: Handler> Interrupt<H> {
    /// Registers `handler`, shown as `name` in `/proc/interrupts`. May sleep.
    pub(crate) fn new(
        request: IrqRequest<'_>,
        name: &'static CStr,
        handler: Arc<H>,
    ) -> Result<Self> {
        let irq = request.irq();
        // SAFETY: The callback takes the cookie for an `H`, which it is; `handler` is kept until
        // `free_irq` has returned.
        to_result(unsafe {
            bindings::request_irq(
                irq,
                Some(callback::<H>),
                0,
                name.as_char_ptr(),
                Arc::as_ptr(&handler).cast_mut().cast(),
            )
        })?;
        // INVARIANT: Just registered.
        Ok(Self { irq, handler })
    }
}

impl<H: Handler> Drop for Interrupt<H> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this handler is registered with this cookie.
        unsafe {
            bindings::free_irq(self.irq, Arc::as_ptr(&self.handler).cast_mut().cast());
        }
    }
}

/// # Safety
///
/// `cookie` must be the address within an [`Arc<H>`] that is held during the call.
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
