// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lies at the start: the configuration space, and the answer to the first command.

use std::fs;
use std::path::Path;

use ringbar_agent_protocol::host::{Lie, LieQueue, UsedLie};
use ringbar_uapi as uapi;

use super::device::{BLOCK, LyingDevice};
use crate::case::{Case, Context, During, Verdict, eventually, expect_errno};
use crate::fixtures::device::info;
use crate::fixtures::driver::{appears, bind, unbind};
use crate::fixtures::requests::expect_round_trip;
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// Offsets in the configuration space (`DeviceConfig`).
const MAGIC: u16 = 0;
const VERSION: u16 = 8;
const IO_QUEUES: u16 = 10;
const MAX_SEGMENTS: u16 = 12;
const CAPACITY: u16 = 16;
const APERTURE: u16 = 24;
const MAX_REQUEST: u16 = 32;
const OPERATIONS: u16 = 36;
const MAX_COMMAND: u16 = 40;

/// Status code of a device without an aperture.
const APERTURE_UNAVAILABLE: u32 = 6;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("c7_impossible_configuration", refused)
            .provokes("unusable device configuration: ")
            .may_provoke("another kind of device"),
        Case::new("c7_configuration_at_the_limits", limits),
        Case::new("c7_capacity_that_the_device_does_not_have", capacity),
        Case::new("c7_missing_aperture", aperture).provokes("there will be no mmap"),
        Case::new("c7_control_queue_that_breaks_at_the_start", control)
            .provokes("the device broke queue 0: ")
            .may_provoke("there will be no mmap")
            .may_provoke("does not answer on its control queue")
            .may_provoke("probe with driver ringbar failed"),
    ]
}

/// A lie about the configuration space.
fn config(offset: u16, length: u8, value: u64) -> Lie {
    Lie::Config {
        offset,
        length,
        bytes: value.to_le_bytes(),
    }
}

/// Binds the driver; returns whether it succeeded.
fn try_bind(liar: &LyingDevice<'_>) -> bool {
    fs::write("/sys/bus/pci/drivers/ringbar/bind", &liar.address).is_ok()
}

fn refused(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    const UNUSABLE: &str = "unusable device configuration: ";
    let rows = [
        (config(VERSION, 2, 0), "Version"),
        (config(VERSION, 2, 0xffff), "Version"),
        (config(IO_QUEUES, 2, 0), "IoQueues"),
        (config(IO_QUEUES, 2, 65), "IoQueues"),
        (config(IO_QUEUES, 2, 0xffff), "IoQueues"),
        (config(MAX_SEGMENTS, 2, 0), "MaxSegments"),
        (config(CAPACITY, 8, 0), "Capacity"),
        (config(CAPACITY, 8, 1 << 63), "Capacity"),
        (config(CAPACITY, 8, u64::MAX), "Capacity"),
        (config(APERTURE, 8, context.size() - 1), "Aperture"),
        (config(APERTURE, 8, context.size() + 4096), "Aperture"),
        (config(APERTURE, 8, u64::MAX), "Aperture"),
        (config(MAX_REQUEST, 4, 0), "MaxRequest"),
        (config(OPERATIONS, 4, 0), "Operations"),
        (config(OPERATIONS, 4, 1 << 1), "Operations"),
        (config(OPERATIONS, 4, 0b110), "MaxCommand"),
        (config(MAX_COMMAND, 8, 0), "MaxCommand"),
    ];
    unbind(&liar.address)?;
    for (lie, why) in rows {
        liar.log.of_driver()?;
        liar.tell(lie)?;
        let bound = try_bind(&liar);
        liar.host.end_lies()?;
        check!(!bound, "bound with {lie:?}");
        let mut lines = liar.log.of_driver()?;
        // The bus reports the failed probe.
        lines.retain(|line| !line.contains("probe with driver"));
        check_eq!(lines.len(), 1, "lines with {lie:?}, which are {lines:?}");
        check!(lines[0].contains(why), "{lines:?} with {lie:?}");
        check!(lines[0].contains(UNUSABLE), "{lines:?} with {lie:?}");
    }
    for (lie, is_given_back) in [
        (config(MAGIC, 8, 0), true),
        // `driver_override` names the driver by now.
        (config(MAGIC, 1, u64::from(b'r')), false),
    ] {
        liar.log.of_driver()?;
        liar.tell(lie)?;
        let bound = try_bind(&liar);
        liar.host.end_lies()?;
        check!(!bound, "bound with {lie:?}");
        if is_given_back {
            take_back(&liar.address)?;
        }
        let lines = liar.log.of_driver()?;
        check!(
            lines
                .iter()
                .any(|line| line.contains("another kind of device")),
            "{lines:?} with {lie:?}"
        );
    }
    bind(context, &liar.address)?;
    liar.expect_in_order()
}

/// Waits until virtio-pci has a device that the driver does not recognise, and takes it
/// back as an administrator would.
fn take_back(address: &str) -> Verdict {
    let device = Path::new("/sys/bus/pci/devices").join(address);
    eventually("virtio-pci to have the device", || {
        let driver = fs::read_link(device.join("driver"));
        Ok(driver.is_ok_and(|driver| driver.ends_with("virtio-pci")))
    })?;
    fs::write(device.join("driver_override"), "ringbar")?;
    fs::write("/sys/bus/pci/drivers/virtio-pci/unbind", address)?;
    Ok(())
}

/// Unusual but valid values.
fn limits(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    for lie in [
        config(IO_QUEUES, 2, 64),
        config(IO_QUEUES, 2, 1),
        config(MAX_SEGMENTS, 2, 0xffff),
        config(MAX_SEGMENTS, 2, 1),
        config(MAX_REQUEST, 4, 4096),
        config(APERTURE, 8, context.size() - 4096),
    ] {
        unbind(&liar.address)?;
        liar.tell(lie)?;
        bind(context, &liar.address).during(|| format!("with {lie:?}"))?;
        liar.host.end_lies()?;
        transfer(context).during(|| format!("with {lie:?}"))?;
    }
    liar.bring_back()
}

/// Writes and reads back, by DMA only.
fn transfer(context: &Context) -> Verdict {
    expect_round_trip(&context.open()?, 999, BLOCK, 61)
}

fn capacity(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    unbind(&liar.address)?;
    liar.tell(config(CAPACITY, 8, i64::MAX as u64))?;
    bind(context, &liar.address)?;
    liar.host.end_lies()?;
    let file = context.open()?;
    check_eq!(
        info(&file)?.capacity,
        i64::MAX as u64,
        "bytes of the device"
    );
    let memory = Region::anonymous(BLOCK)?;
    // The device checks the offset against its own capacity.
    for at in [context.size(), i64::MAX as u64 - BLOCK as u64] {
        let read = sys::pread(&file, memory.buffer(0, BLOCK), at);
        expect_errno(read, &[libc::ENXIO], &format!("a read at {at}"))?;
    }
    transfer(context)?;
    liar.bring_back()
}

fn aperture(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    let size = context.size();
    for lie in [
        UsedLie::Status {
            code: APERTURE_UNAVAILABLE,
            result: 0,
        },
        UsedLie::Status {
            code: 0,
            result: size - 1,
        },
        UsedLie::Status { code: 0, result: 0 },
        UsedLie::StatusUnwritten,
    ] {
        unbind(&liar.address)?;
        liar.log.of_driver()?;
        liar.tell(Lie::Used(LieQueue::Control, lie))?;
        bind(context, &liar.address).during(|| format!("with {lie:?}"))?;
        let lines = liar.log.of_driver()?;
        let warnings = lines
            .iter()
            .filter(|line| line.contains("there will be no mmap"));
        check_eq!(warnings.count(), 1, "warnings in {lines:?}");
        let file = context.open()?;
        let map = Region::shared(&file, 0, sys::PAGE).map(drop);
        expect_errno(
            map,
            &[libc::ENODEV, libc::EOPNOTSUPP],
            "a map without aperture",
        )?;
        let info = info(&file)?;
        check_eq!(
            info.capabilities & uapi::CAP_MMAP,
            0,
            "the capability to map"
        );
        transfer(context).during(|| format!("with {lie:?}"))?;
    }
    liar.bring_back()
}

fn control(context: &Context) -> Verdict {
    let mut liar = LyingDevice::new(context)?;
    for lie in [UsedLie::Id(9), UsedLie::Twice, UsedLie::IndexAhead(100)] {
        unbind(&liar.address)?;
        liar.log.of_driver()?;
        liar.tell(Lie::Used(LieQueue::Control, lie))?;
        // The device is either not bound or out of service.
        if try_bind(&liar) {
            appears(context)?;
            liar.wait_out_of_service()?;
            unbind(&liar.address)?;
        }
        let lines = liar.log.of_driver()?;
        let broken = lines
            .iter()
            .filter(|line| line.contains("the device broke queue 0: "))
            .count();
        check_eq!(broken, 1, "lines about the control queue in {lines:?}");
        bind(context, &liar.address)?;
        liar.expect_in_order()?;
    }
    Ok(())
}
