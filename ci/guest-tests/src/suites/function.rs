// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device with registers of its own, not the virtual machine monitor's: its reset need
//! not complete.
//!
//! Such a device continues DMA until it is reset or the driver disables bus mastering.
//! Its writes show whether memory was released too early.

use std::thread;
use std::time::{Duration, Instant};

use ringbar_agent_protocol::host::FunctionCommand::{
    self, BreakQueue, ChangeCapacityOnRead, DelayReset, KeepRequestsPending, OverrideRegister,
    RestoreRegisters,
};

use crate::case::{Case, Context, Stop, Suite, TIMEOUT, Verdict, eventually, expect_errno};
use crate::fixtures::device::all_released;
use crate::fixtures::driver::{bind, unbind};
use crate::fixtures::requests::expect_round_trip;
use crate::host::Host;
use crate::kernel_log::KernelLog;
use crate::needs::{DeviceKind, Kernels, Needs};
use crate::pins::Pins;
use crate::sys::{self, AioContext, AioOperation, PAGE, Region};
use crate::{check, check_eq};

/// Bytes of a request.
const BLOCK: usize = 16 << 10;

/// Number of requests in flight: enough that a request which ends before the device's DMA
/// does is noticed.
const REQUESTS: usize = 128;

/// Byte that the device writes, and byte that the caller stores afterwards.
const DEVICE_BYTE: u8 = 0x5c;
const CALLER_BYTE: u8 = 0xcc;

/// Time for which released memory is watched. The device writes to it continuously.
const WATCH_TIME: Duration = Duration::from_millis(200);

/// Messages of the driver and of the bus.
const RESET_DELAYED: &str = "the device does not come out of reset";
const BROKEN: &str = "the device broke queue 2: ";
const FAILED: &str = "probe with driver ringbar failed";

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "function",
        about: "a PCI function that holds its reset back, and whose registers lie",
        needs: Needs {
            device: DeviceKind::PciFunction,
            kernels: Kernels::OwnInTestAll,
            ..Needs::default()
        },
        cases: vec![
            Case::new("dr3_function_with_registers_of_its_own_works", works),
            Case::new("dr3_no_dma_after_service_has_ended", out_of_service)
                .provokes(RESET_DELAYED)
                .provokes(BROKEN),
            Case::new("dr3_no_dma_after_unbind", unbound).provokes(RESET_DELAYED),
            Case::new("dr3_unbind_after_service_has_ended", unbound_later)
                .provokes(RESET_DELAYED)
                .provokes(BROKEN)
                .may_provoke(FAILED),
            Case::new("c7_impossible_registers", registers)
                .provokes(FAILED)
                .provokes(RESET_DELAYED)
                .provokes("the device lacks needed VIRTIO features")
                .provokes("the device rejects the features")
                .provokes("the device refuses MsiX messages")
                .provokes("the device has no interrupt that works")
                .provokes("gives the device no I/O queue")
                .provokes("entries, but a request takes"),
            Case::new("c7_configuration_that_changes_while_it_is_read", torn),
        ],
    }
}

/// The function of a test, restored and bound when dropped.
struct Function<'a> {
    context: &'a Context,
    host: Host,
    address: String,
    log: KernelLog,
}

impl<'a> Function<'a> {
    fn new(context: &'a Context) -> Verdict<Self> {
        let function = Self {
            context,
            host: Host::connect()?,
            address: context.pci_address()?,
            log: KernelLog::from_now()?,
        };
        expect_transfer(context)?;
        Ok(function)
    }

    fn command(&self, command: FunctionCommand) -> Verdict {
        self.host.function_command(command)
    }

    /// Restores the function and binds its driver.
    fn restore(&self) -> Verdict {
        self.command(KeepRequestsPending(false))?;
        self.command(DelayReset(false))?;
        self.command(RestoreRegisters)?;
        if self.context.pci_address().is_ok() {
            unbind(&self.address)?;
        }
        bind(self.context, &self.address)?;
        expect_transfer(self.context)
    }

    /// Binds the driver; returns whether it succeeded.
    fn try_bind(&self) -> bool {
        std::fs::write("/sys/bus/pci/drivers/ringbar/bind", &self.address).is_ok()
    }

    /// Checks that the driver logged one line about the reset, and `others` further
    /// lines.
    fn expect_lines(&mut self, others: usize) -> Verdict {
        let lines = self.log.of_driver()?;
        let delayed = lines.iter().filter(|line| line.contains("reset")).count();
        check_eq!(delayed, 1, "lines about the reset in {lines:?}");
        check_eq!(lines.len(), 1 + others, "lines, which are {lines:?}");
        Ok(())
    }
}

impl Drop for Function<'_> {
    fn drop(&mut self) {
        if let Err(stop) = self.restore() {
            eprintln!("restoring the function: {stop:?}");
        }
    }
}

/// Writes and reads back, by DMA: this device has no aperture.
fn expect_transfer(context: &Context) -> Verdict {
    expect_round_trip(&context.open()?, 777, 3 << 20, 80)
}

fn works(context: &Context) -> Verdict {
    expect_transfer(context)?;
    let file = context.open()?;
    sys::fsync(&file)?;
    Ok(())
}

/// Requests that the device keeps pending, and whose memory it writes to.
struct PendingRequests {
    aio: AioContext,
    memory: Region,
}

impl PendingRequests {
    fn new(function: &Function<'_>) -> Verdict<Self> {
        let file = function.context.open()?;
        let aio = AioContext::new(REQUESTS as u32)?;
        let memory = Region::anonymous(REQUESTS * BLOCK)?;
        let buffer = |i: usize| memory.buffer(i * BLOCK, BLOCK);
        let reads: Vec<_> = (0..REQUESTS)
            .map(|i| AioOperation::pread(&file, buffer(i), 0).tag(i as u64))
            .collect();
        function.command(KeepRequestsPending(true))?;
        check_eq!(aio.submit(&reads)?, REQUESTS, "requests taken");
        eventually("DMA into all requests", || {
            Ok((0..REQUESTS).all(|i| memory.load(i * BLOCK, 1) == [DEVICE_BYTE]))
        })?;
        let pages = (REQUESTS * BLOCK / PAGE) as u64;
        check_eq!(Pins::read()?.pinned(), pages, "pinned pages");
        Ok(Self { aio, memory })
    }

    /// Overwrites each buffer as soon as its request has ended with `errno`. From then on
    /// the device must not write to it.
    fn expect_ended(&self, errno: i32) -> Verdict {
        let mut left = REQUESTS;
        let deadline = Instant::now() + TIMEOUT;
        while left > 0 {
            check!(Instant::now() < deadline, "{left} requests do not end");
            for (tag, result) in self.aio.reap()? {
                expect_errno(result, &[errno], &format!("request {tag}"))?;
                self.memory.fill(tag as usize * BLOCK, BLOCK, CALLER_BYTE);
                left -= 1;
            }
        }
        thread::sleep(WATCH_TIME);
        let stray = (0..REQUESTS)
            .filter(|i| {
                let block = self.memory.load(i * BLOCK, BLOCK);
                block.iter().any(|byte| *byte != CALLER_BYTE)
            })
            .count();
        check_eq!(stray, 0, "buffers written to after their request had ended");
        all_released()
    }
}

fn out_of_service(context: &Context) -> Verdict {
    let mut function = Function::new(context)?;
    let pending = PendingRequests::new(&function)?;
    function.command(DelayReset(true))?;
    function.command(BreakQueue)?;
    pending.expect_ended(libc::EIO)?;
    let memory = Region::anonymous(PAGE)?;
    let read = sys::pread(&context.open()?, memory.buffer(0, PAGE), 0);
    expect_errno(read, &[libc::EIO], "a read afterwards")?;
    function.expect_lines(1)?;
    function.restore()
}

fn unbound(context: &Context) -> Verdict {
    let mut function = Function::new(context)?;
    let pending = PendingRequests::new(&function)?;
    function.command(DelayReset(true))?;
    let address = function.address.clone();
    let unbinding = thread::spawn(move || unbind(&address));
    let ended = pending.expect_ended(libc::ENODEV);
    unbinding
        .join()
        .map_err(|_| Stop::Failed("unbinding panicked".into()))??;
    ended?;
    expect_no_bus_master(&function.address)?;
    function.expect_lines(0)?;
    function.restore()
}

/// A device that did not reset when it was taken out of service is still treated so at
/// unbind.
fn unbound_later(context: &Context) -> Verdict {
    let mut function = Function::new(context)?;
    let pending = PendingRequests::new(&function)?;
    function.command(DelayReset(true))?;
    function.command(BreakQueue)?;
    let ended = pending.expect_ended(libc::EIO);
    unbind(&function.address)?;
    ended?;
    expect_no_bus_master(&function.address)?;
    function.expect_lines(1)?;
    // A device whose reset has not completed cannot be used.
    check!(
        !function.try_bind(),
        "a device that does not come out of reset was bound"
    );
    function.restore()
}

/// Checks that bus mastering is disabled.
fn expect_no_bus_master(address: &str) -> Verdict {
    const COMMAND: usize = 4;
    const BUS_MASTER: u8 = 4;
    let config = std::fs::read(format!("/sys/bus/pci/devices/{address}/config"))?;
    let command = config.get(COMMAND).copied().unwrap_or(BUS_MASTER);
    check!(command & BUS_MASTER == 0, "bus mastering is on");
    Ok(())
}

/// Probe detects each invalid register, and the device is not bound.
fn registers(context: &Context) -> Verdict {
    const DEVICE_FEATURE: u8 = 4;
    const CONFIG_VECTOR: u8 = 16;
    const NUM_QUEUES: u8 = 18;
    const STATUS: u8 = 20;
    const QUEUE_SIZE: u8 = 24;
    const QUEUE_VECTOR: u8 = 26;
    const NOTIFY_OFFSET: u8 = 30;
    const NO_VECTOR: u32 = 0xffff;

    let function = Function::new(context)?;
    unbind(&function.address)?;
    for (at, value, what) in [
        (DEVICE_FEATURE, 0, "no features"),
        (DEVICE_FEATURE, 1 << 28, "no VIRTIO 1"),
        (DEVICE_FEATURE, 1, "no indirect descriptors"),
        (STATUS, 0, "a status that stays 0"),
        (STATUS, 0x40, "a status that is never 0"),
        (CONFIG_VECTOR, NO_VECTOR, "no vector for the configuration"),
        (QUEUE_VECTOR, NO_VECTOR, "no vector for queues"),
        (NUM_QUEUES, 0, "no queues"),
        (NUM_QUEUES, 2, "no I/O queues"),
        (QUEUE_SIZE, 0, "queues that are not there"),
        (QUEUE_SIZE, 1, "queues of 1 entry"),
        (QUEUE_SIZE, 2, "queues of 2 entries"),
        (QUEUE_SIZE, 100, "queues whose size is no power of two"),
        (NOTIFY_OFFSET, 0x40, "a doorbell just beyond its region"),
        (NOTIFY_OFFSET, 0xffff, "a doorbell far beyond its region"),
    ] {
        function.command(OverrideRegister(at, value))?;
        let bound = function.try_bind();
        function.command(RestoreRegisters)?;
        check!(!bound, "bound with {what}");
    }
    function.restore()
}

fn torn(context: &Context) -> Verdict {
    // Both halves differ from the old value.
    let changed = (1 << 32) + (8 << 20);
    let function = Function::new(context)?;
    unbind(&function.address)?;
    function.command(ChangeCapacityOnRead(changed))?;
    bind(context, &function.address)?;
    let info = ringbar_uapi::Info::from_bytes(&sys::info(&context.open()?)?);
    check_eq!(info.capacity, changed, "bytes of the device");
    function.restore()
}
