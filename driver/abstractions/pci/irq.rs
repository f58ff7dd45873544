// SPDX-License-Identifier: GPL-2.0

//! The interrupts of a PCI device: an allocation of vectors, and handlers that belong to
//! reference-counted objects.
//!
//! [`kernel::irq::Registration`] requires a promise that it is never leaked. The registration here
//! has a reference of its own instead, and the device core ends it at the latest when the device is
//! unbound. So if it is leaked (`mem::forget`), its memory is lost, and the device's interrupt
//! vectors stay allocated, so that the device cannot be bound again; but the handler never runs on
//! freed memory or in a module that was unloaded.
//!
//! C header: [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use super::device::{
    as_raw,
    as_raw_device, //
};
use crate::abstractions::helpers::ringbar_irq_set_affinity;
use kernel::{
    bindings,
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    cpumask::CpumaskVar,
    device::{
        Bound,
        Core, //
    },
    error::to_result,
    irq::IrqRequest,
    pci::{
        self,
        IrqType,
        IrqTypes,
        IrqVectorRegistration, //
    },
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// The line may have handlers of other devices.
// CAST: A small constant.
const IRQF_SHARED: c_ulong = bindings::IRQF_SHARED as c_ulong;

/// A handler of an interrupt.
pub(crate) trait Handler: Send + Sync + Sized + 'static {
    /// Called in hard interrupt context: must not sleep.
    ///
    /// Returns whether the device had raised the interrupt.
    fn handle(&self) -> bool;
}

/// The interrupt vectors of a device: messages, or a line. Dropping this frees them.
///
/// The kernel does not manage their affinity ([`Interrupts::set_affinity`]).
pub(crate) struct Vectors<'bound> {
    device: &'bound pci::Device<Bound>,
    kind: Kind<'bound>,
}

/// The kinds of vectors.
enum Kind<'bound> {
    Messages(IrqVectorRegistration<'bound>),
    Line(Line<'bound>),
}

/// The line of a device that had no messages when this was created.
///
/// # Invariants
///
/// `irq` is the number of the line, and not that of a message.
struct Line<'bound> {
    device: &'bound pci::Device<Bound>,
    irq: u32,
}

impl<'bound> Vectors<'bound> {
    /// Allocates messages of type `kind`: `max` of them, or fewer if there are not as many. For the
    /// line, takes the one. May sleep. An error if the device or the platform has none of this
    /// type, or the device has messages already.
    pub(crate) fn allocate(
        device: &'bound pci::Device<Core<'_>>,
        kind: IrqType,
        max: u16,
    ) -> Result<Self> {
        let kind = match kind {
            IrqType::Intx => Kind::Line(Line::new(device)?),
            kind => {
                let types = IrqTypes::default().with(kind);
                let device: &'bound pci::Device<Bound> = device;
                Kind::Messages(device.alloc_irq_vectors(1, max.into(), types)?)
            }
        };
        Ok(Self { device, kind })
    }

    /// Number of vectors, at least one. The line counts as one.
    pub(crate) fn count(&self) -> u16 {
        match &self.kind {
            Kind::Messages(messages) => messages.len().try_into().unwrap_or(u16::MAX),
            Kind::Line(_) => 1,
        }
    }

    /// The type of the vectors.
    pub(crate) fn kind(&self) -> IrqType {
        match &self.kind {
            Kind::Messages(messages) => messages.irq_type(),
            Kind::Line(_) => IrqType::Intx,
        }
    }

    /// The number of vector `index` in the kernel, and the flags of its handler. `EINVAL` if there
    /// is no such vector.
    fn irq(&self, index: u16) -> Result<(u32, c_ulong)> {
        match &self.kind {
            Kind::Messages(messages) => {
                Ok((IrqRequest::from(messages.index(index.into())?).irq(), 0))
            }
            Kind::Line(line) if index == 0 => Ok((line.irq, IRQF_SHARED)),
            Kind::Line(_) => Err(EINVAL),
        }
    }
}

impl<'bound> Line<'bound> {
    /// Enables the line. `EBUSY` if the device has messages, `ENXIO` if it has no line.
    fn new(device: &'bound pci::Device<Core<'_>>) -> Result<Self> {
        // SAFETY: The device is valid and locked, so its driver allocates no messages meanwhile.
        let (kind, irq) = unsafe {
            (
                bindings::pci_irq_type(as_raw(device)),
                (*as_raw(device)).irq,
            )
        };
        if kind != bindings::PCI_IRQ_INTX {
            return Err(EBUSY);
        }
        if irq == 0 {
            return Err(ENXIO);
        }
        // SAFETY: The device is valid.
        unsafe { bindings::pci_intx(as_raw(device), 1) };
        // INVARIANT: Without messages `irq` is that of the line.
        Ok(Self { device, irq })
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // A device that could not be stopped would keep the line raised, which nobody handles any
        // more. When the device is enabled the next time, the line is as well.
        // SAFETY: The device is valid.
        unsafe { bindings::pci_intx(as_raw(self.device), 0) };
    }
}

/// The interrupts of a device: vectors, and handlers of some of them. Dropping this waits for
/// running handlers to return, unregisters them, and then frees the vectors; sleeps then.
pub(crate) struct Interrupts<'bound, H: Handler> {
    // Fields are dropped in this order: the kernel does not free a vector that has a handler.
    registered: KVec<Registered<'bound, H>>,
    vectors: Vectors<'bound>,
}

impl<'bound, H: Handler> Interrupts<'bound, H> {
    /// Without handlers.
    pub(crate) fn new(vectors: Vectors<'bound>) -> Self {
        Self {
            registered: KVec::new(),
            vectors,
        }
    }

    /// Registers `handler` for vector `index`, shown as `name` in `/proc/interrupts`. May sleep.
    /// `EINVAL` if there is no such vector.
    pub(crate) fn register(&mut self, index: u16, name: CString, handler: H) -> Result {
        // A line may have several handlers, which the kernel tells apart by their cookies. So each
        // has an address of its own.
        let handler = Arc::new(handler, GFP_KERNEL)?;
        let handler = Registered::new(&self.vectors, index, name, handler)?;
        // On failure the handler is unregistered right here.
        self.registered.push(handler, GFP_KERNEL)?;
        Ok(())
    }

    /// Waits for running handlers to return. Sleeps.
    pub(crate) fn synchronize(&self) {
        for handler in &self.registered {
            handler.synchronize();
        }
    }

    /// Delivers the interrupts of vector `index` to those of the CPUs that `selected` selects, by
    /// number. May sleep. An error if none of them is online, the platform cannot do that, or there
    /// is no such vector; then the interrupts are delivered as before.
    ///
    /// The kernel does not manage this affinity: if all these CPUs go offline, the interrupts are
    /// delivered to another CPU, and stay there when they come back.
    pub(crate) fn set_affinity(&self, index: u16, selected: impl Fn(u32) -> bool) -> Result {
        let (irq, _) = self.vectors.irq(index)?;
        let mut mask = CpumaskVar::new_zero(GFP_KERNEL)?;
        for cpu in (0..nr_cpu_ids()).filter(|&cpu| selected(cpu)) {
            mask.set(CpuId::from_u32(cpu).ok_or(EINVAL)?);
        }
        // SAFETY: The line is one of the allocation, the mask is valid, and the function copies it.
        to_result(unsafe { ringbar_irq_set_affinity(irq, mask.as_raw()) })
    }
}

/// A registered handler of one vector. Dropping this waits for a running handler to return, and
/// unregisters it; sleeps then.
///
/// # Invariants
///
/// `handler` is registered for line `irq` with its own address as cookie and the characters of
/// `name` as name, as a managed resource of `device`. No other registration has this cookie.
struct Registered<'bound, H: Handler> {
    device: &'bound pci::Device<Bound>,
    irq: u32,
    handler: Arc<H>,
    /// The kernel keeps a pointer to it.
    _name: CString,
}

impl<'bound, H: Handler> Registered<'bound, H> {
    /// Registers `handler`, which is registered nowhere else.
    fn new(vectors: &Vectors<'bound>, index: u16, name: CString, handler: Arc<H>) -> Result<Self> {
        let (irq, flags) = vectors.irq(index)?;
        // SAFETY: The callback interprets the cookie as an `H`, which it is; `handler` and `name`
        // are kept until `devm_free_irq` has returned, or for ever. The device is bound.
        to_result(unsafe {
            bindings::devm_request_threaded_irq(
                as_raw_device(vectors.device),
                irq,
                Some(callback::<H>),
                None,
                flags,
                name.as_char_ptr(),
                Arc::as_ptr(&handler).cast_mut().cast(),
            )
        })?;
        // INVARIANT: Just registered, and for the first time.
        Ok(Self {
            device: vectors.device,
            irq,
            handler,
            _name: name,
        })
    }

    /// Waits for a running handler to return. Sleeps.
    fn synchronize(&self) {
        // SAFETY: By the type invariant the line is ours.
        unsafe { bindings::synchronize_irq(self.irq) };
    }
}

impl<H: Handler> Drop for Registered<'_, H> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this handler, and no other one, is registered with this
        // cookie.
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
/// `cookie` must be the address of an `H` that exists during the call.
unsafe extern "C" fn callback<H: Handler>(
    _irq: c_int,
    cookie: *mut c_void,
) -> bindings::irqreturn_t {
    // SAFETY: By the requirement above.
    let handler = unsafe { &*cookie.cast_const().cast::<H>() };
    if handler.handle() {
        bindings::irqreturn::IRQ_HANDLED
    } else {
        bindings::irqreturn::IRQ_NONE
    }
}
