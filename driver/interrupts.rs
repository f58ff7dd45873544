// SPDX-License-Identifier: GPL-2.0

//! The interrupts of a device: its vectors, their handlers, and the CPUs that they are delivered to.
//!
//! The driver takes the best of these that platform and device have: MSI-X messages, MSI messages,
//! the line (INTx). Fewer messages than queues are shared, as [`Plan`] says.
//!
//! # CPUs
//!
//! The vector of an I/O queue is delivered to the CPUs that submit to this queue, so a request
//! completes where it was submitted. The kernel does not manage this affinity. It would shut a
//! managed vector down when the last CPU of the vector goes offline, and a driver then has to wait
//! until the queue is empty, as `blk-mq` does. Here a request may wait for the device for any time,
//! and tasks on other CPUs use the queue as well if theirs is full. So the kernel moves the
//! interrupts of an offline CPU to another one, the queue continues, and only locality is lost:
//! until the machine resumes from sleep, or an administrator or `irqbalance` moves the interrupts.

use crate::{
    abstractions::pci::irq::{
        self,
        Interrupts,
        Vectors, //
    },
    device::Device,
    hardware::Negotiated,
    layout::FIRST_IO_QUEUE,
    queue::reap::Budget,
    vectors::{
        Duties,
        Plan, //
    },
    NAME,
};
use kernel::{
    device::Core,
    pci::{
        self,
        IrqType, //
    },
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// Allocates vectors for a device, and plans their use: of the best type for which the device
/// accepts the messages, with fewer vectors if it does not accept all of them. May sleep.
///
/// `ENOSPC` if the device has no interrupt that works.
pub(crate) fn allocate<'bound>(
    device: &'bound pci::Device<Core<'_>>,
    negotiated: &Negotiated,
) -> Result<(Vectors<'bound>, Plan)> {
    let queues = negotiated.share().submit();
    for kind in [IrqType::MsiX, IrqType::Msi] {
        let vectors = match Vectors::allocate(device, kind, Plan::wanted(queues)) {
            Ok(vectors) => vectors,
            Err(error) if error == ENOMEM => return Err(error),
            // The device or the platform has none of this type.
            Err(_) => continue,
        };
        let mut next = Some(Plan::with_messages(queues, vectors.count()));
        while let Some(plan) = next {
            if negotiated.accepts(device, &plan)? {
                return Ok((vectors, plan));
            }
            next = plan.fewer();
        }
        dev_warn!(device, "the device refuses {:?} messages\n", kind);
    }
    let plan = Plan::with_line(queues);
    if negotiated.has_line() && negotiated.accepts(device, &plan)? {
        if let Ok(vectors) = Vectors::allocate(device, IrqType::Intx, 1) {
            return Ok((vectors, plan));
        }
    }
    dev_err!(device, "the device has no interrupt that works\n");
    negotiated.fail(device);
    Err(ENOSPC)
}

/// The interrupts of a device, with a handler for each vector in use. Dropping this waits for
/// running handlers; sleeps then.
pub(crate) struct DeviceInterrupts<'bound> {
    registered: Interrupts<'bound, VectorHandler>,
    plan: Plan,
}

impl<'bound> DeviceInterrupts<'bound> {
    /// Registers the handlers of `device`, which are named after its number. May sleep.
    pub(crate) fn new(
        vectors: Vectors<'bound>,
        plan: Plan,
        number: u32,
        device: &Arc<Device>,
    ) -> Result<Self> {
        let mut registered = Interrupts::new(vectors);
        for vector in 0..plan.vectors() {
            let handler = VectorHandler::new(device.clone(), &plan, vector);
            registered.register(vector, name(number, &plan, vector)?, handler)?;
        }
        let this = Self { registered, plan };
        this.spread();
        Ok(this)
    }

    /// Delivers the interrupts of I/O queues to the CPUs that use these queues. To be repeated after
    /// the machine has slept, when CPUs may have been offline; what an administrator has changed
    /// meanwhile is lost. May sleep.
    pub(crate) fn spread(&self) {
        for vector in 0..self.plan.vectors() {
            if self.plan.serves_cpu(vector, 0).is_some() {
                // If its CPUs are offline, any other one will do.
                let _ = self.registered.set_affinity(vector, |cpu| {
                    self.plan.serves_cpu(vector, cpu).unwrap_or(true)
                });
            }
        }
    }

    /// Waits for running handlers to return. Sleeps.
    pub(crate) fn synchronize(&self) {
        self.registered.synchronize();
    }
}

/// The name of a vector in `/proc/interrupts`. May sleep.
fn name(number: u32, plan: &Plan, vector: u16) -> Result<CString> {
    let Duties {
        configuration,
        other_queues,
        io_queues,
    } = plan.duties(vector);
    // The queues have these indices in the device.
    let first = FIRST_IO_QUEUE + io_queues.start;
    let last = FIRST_IO_QUEUE + io_queues.end.saturating_sub(1);
    Ok(if plan.is_single() {
        CString::try_from_fmt(fmt!("{}{}", NAME, number))?
    } else if configuration {
        CString::try_from_fmt(fmt!("{}{}-config", NAME, number))?
    } else if other_queues {
        CString::try_from_fmt(fmt!("{}{}-events", NAME, number))?
    } else if first == last {
        CString::try_from_fmt(fmt!("{}{}-queue{}", NAME, number, first))?
    } else {
        CString::try_from_fmt(fmt!("{}{}-queues{}-{}", NAME, number, first, last))?
    })
}

/// How a handler learns that the configuration has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConfigChange {
    /// Another vector has these interrupts.
    Elsewhere,
    /// Each interrupt is one.
    Always,
    /// The generation of the configuration tells. Interrupts of this vector are rare.
    Generation,
    /// As before, but interrupts are frequent, and a read of a register would slow down each: only
    /// after an interrupt without work. The watchdog finds changes that coincided with work.
    GenerationIfIdle,
    /// The interrupt status tells, which the handler has to read anyway, because other devices may
    /// share the line.
    Status,
}

/// The handler of one vector.
pub(crate) struct VectorHandler {
    device: Arc<Device>,
    duties: Duties,
    config_change: ConfigChange,
}

impl VectorHandler {
    /// The handler of `vector` of `device`.
    fn new(device: Arc<Device>, plan: &Plan, vector: u16) -> Self {
        let duties = plan.duties(vector);
        let config_change = match &duties {
            _ if plan.is_line() => ConfigChange::Status,
            _ if plan.is_single() => ConfigChange::GenerationIfIdle,
            Duties {
                configuration: true,
                other_queues: true,
                ..
            } => ConfigChange::Generation,
            Duties {
                configuration: true,
                ..
            } => ConfigChange::Always,
            _ => ConfigChange::Elsewhere,
        };
        Self {
            device,
            duties,
            config_change,
        }
    }
}

impl irq::Handler for VectorHandler {
    fn handle(&self) -> bool {
        let (device, duties) = (&self.device, &self.duties);
        let is_line = matches!(self.config_change, ConfigChange::Status);
        let Ok(hardware) = device.hardware() else {
            // The device is being unbound, and raises nothing any more. So if the line is raised, it
            // is another device's. No other device shares a message.
            return !is_line;
        };
        let mut config_has_changed = matches!(self.config_change, ConfigChange::Always);
        if is_line {
            match hardware.take_raised() {
                Some(raised) => config_has_changed = raised.configuration,
                None => return false,
            }
        }
        device.stats().interrupt();

        let mut any = false;
        let mut budget = Budget::for_interrupt();
        for queue in hardware.submit_queues(duties.io_queues.clone()) {
            any |= queue.reap_after_interrupt(&mut budget);
        }
        if duties.other_queues {
            for queue in hardware.other_queues() {
                any |= queue.reap_after_interrupt(&mut budget);
            }
            any |= device.handle_events(&hardware);
        }
        config_has_changed |= match self.config_change {
            ConfigChange::Generation => hardware.has_new_config(),
            ConfigChange::GenerationIfIdle => !any && hardware.has_new_config(),
            _ => false,
        };
        if config_has_changed {
            hardware.recovery().reconfigured();
        }
        true
    }
}
