// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Checks of `VFIO_USER_DEVICE_SET_IRQS`.

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE, VFIO_IRQ_SET_ACTION_MASK,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_BOOL, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_IRQ_SET_DATA_TYPE_MASK,
};

use super::receive::Descriptors;
use super::refusal::Refusal;
use super::version::MAX_MSG_FDS;
use super::wire::{Fields, IRQ_SET_BYTES};
use super::{Backend, InterruptAction, InterruptData, InterruptInfo, SetInterrupts};

/// Reads the body of a `VFIO_USER_DEVICE_SET_IRQS` command and checks it against `backend`.
pub(super) fn parse(
    backend: &impl Backend,
    body: &[u8],
    files: Descriptors,
) -> Result<SetInterrupts, Refusal> {
    let Some((fixed, data)) = body.split_at_checked(IRQ_SET_BYTES) else {
        return Err(Refusal::Length {
            expected: IRQ_SET_BYTES,
            got: body.len(),
        });
    };
    let mut fields = Fields(fixed);
    let (argsz, flags) = (fields.u32(), fields.u32());
    let (index, start, count) = (fields.u32(), fields.u32(), fields.u32());
    if argsz as usize != body.len() {
        return Err(Refusal::ArgumentSize {
            expected: body.len(),
            got: argsz,
        });
    }
    let info = (index < backend.device().irqs)
        .then(|| backend.interrupt(index))
        .flatten()
        .ok_or(Refusal::Interrupt(index))?;
    let action = action(flags, index, info)?;
    let within = start
        .checked_add(count)
        .is_some_and(|end| end <= info.count);
    // INVARIANT: a count of 0 comes only where it disables the whole type.
    let disables =
        (start, count) == (0, 0) && flags == VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    if !within || (count == 0 && !disables) {
        return Err(Refusal::InterruptRange {
            index,
            start,
            count,
        });
    }
    let data = self::data(flags, index, info, count, data, files)?;
    Ok(SetInterrupts {
        index,
        start,
        count,
        action,
        data,
    })
}

/// The action among `flags`, which have no unknown bit then.
fn action(flags: u32, index: u32, info: InterruptInfo) -> Result<InterruptAction, Refusal> {
    if flags & !(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK) != 0 {
        return Err(Refusal::Flags(flags));
    }
    let action = match flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
        VFIO_IRQ_SET_ACTION_MASK => InterruptAction::Mask,
        VFIO_IRQ_SET_ACTION_UNMASK => InterruptAction::Unmask,
        VFIO_IRQ_SET_ACTION_TRIGGER => InterruptAction::Trigger,
        _ => return Err(Refusal::Flags(flags)),
    };
    if action != InterruptAction::Trigger && info.flags & VFIO_IRQ_INFO_MASKABLE == 0 {
        return Err(Refusal::InterruptFlags { index, flags });
    }
    Ok(action)
}

/// The data that `flags` announce.
fn data(
    flags: u32,
    index: u32,
    info: InterruptInfo,
    count: u32,
    data: &[u8],
    files: Descriptors,
) -> Result<InterruptData, Refusal> {
    let kind = flags & VFIO_IRQ_SET_DATA_TYPE_MASK;
    let (data_bytes, max_files) = match kind {
        VFIO_IRQ_SET_DATA_NONE => (0, 0),
        VFIO_IRQ_SET_DATA_BOOL => (count as usize, 0),
        VFIO_IRQ_SET_DATA_EVENTFD => (0, MAX_MSG_FDS),
        _ => return Err(Refusal::Flags(flags)),
    };
    if data.len() != data_bytes {
        return Err(Refusal::Length {
            expected: IRQ_SET_BYTES + data_bytes,
            got: IRQ_SET_BYTES + data.len(),
        });
    }
    let files = files.at_most(max_files)?;
    match kind {
        VFIO_IRQ_SET_DATA_NONE => Ok(InterruptData::None),
        VFIO_IRQ_SET_DATA_BOOL => Ok(InterruptData::Bool(data.to_vec())),
        _ if info.flags & VFIO_IRQ_INFO_EVENTFD == 0 => {
            Err(Refusal::InterruptFlags { index, flags })
        }
        _ if !files.is_empty() && files.len() != count as usize => Err(Refusal::Descriptors {
            expected: count as usize,
            got: files.len(),
        }),
        _ => Ok(InterruptData::EventFds(files)),
    }
}
