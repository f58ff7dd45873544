// SPDX-License-Identifier: GPL-2.0

//! Pages of user memory that stay pinned for as long as the driver likes, and not only during a
//! request.
//!
//! Such a pin (`FOLL_LONGTERM`, `Documentation/core-api/pin_user_pages.rst`) first moves the pages
//! out of memory that the kernel wants to free or move, and is refused for files that are written
//! back. It counts as pinned memory, which `RLIMIT_MEMLOCK` limits.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    extracted::Extracted,
    folios::mark_dirty,
    list::SegmentLimits,
    ownership::{
        Owned,
        Ownership, //
    }, //
};
use crate::abstractions::helpers::{
    ringbar_pinned_vm_add,
    ringbar_rlimit_memlock, //
};
use core::mem::MaybeUninit;
use kernel::{
    bindings,
    current,
    dma::DataDirection,
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    uaccess::UserPtr, //
};

/// Number of pages that are pinned at a time. The array of their pointers is on the stack.
const BATCH: usize = 32;

/// Pages that count as pinned memory of a process (`mm->pinned_vm`, as for RDMA). Dropping this ends
/// that, without any lock of the process.
///
/// # Invariants
///
/// `pages` of the pinned pages of `mm` are counted for this value.
pub(crate) struct LockedPages {
    mm: ARef<Mm>,
    pages: i64,
}

impl LockedPages {
    /// Counts `pages` for the current task's memory. `ENOMEM` if a task without `CAP_IPC_LOCK` then
    /// had more than `RLIMIT_MEMLOCK` allows, `EFAULT` for a task without memory, as a kernel thread.
    fn new(pages: usize) -> Result<Self> {
        let task = current!();
        let mm: &Mm = task.mm().ok_or(EFAULT)?;
        let pages = i64::try_from(pages)?;
        // SAFETY: The memory of the current task is valid.
        let all = unsafe { ringbar_pinned_vm_add(mm.as_raw(), pages) };
        // INVARIANT: Just counted.
        let this = Self {
            mm: ARef::from(mm),
            pages,
        };
        // SAFETY: May be called in any task.
        let limit = unsafe { ringbar_rlimit_memlock() } / PAGE_SIZE;
        let within = usize::try_from(all).is_ok_and(|all| all <= limit);
        // SAFETY: As above. CAST: A small constant.
        if within || unsafe { bindings::capable(bindings::CAP_IPC_LOCK as c_int) } {
            Ok(this)
        } else {
            Err(ENOMEM)
        }
    }
}

impl Drop for LockedPages {
    fn drop(&mut self) {
        // SAFETY: The reference keeps the structure valid, if not the memory. By the type invariant
        // the number in it has our pages.
        unsafe { ringbar_pinned_vm_add(self.mm.as_raw(), -self.pages) };
    }
}

/// Pins the `length` bytes of the current task's memory from `start` on, for a device to write to,
/// for any time. Sleeps for any time too, because pages may have to be faulted in or moved.
///
/// `EINVAL` for no bytes, or more than `limits` allow; `EFAULT` if they are not all memory of the
/// caller that may be written, or are a shared map of an ordinary file; `ENOMEM` beyond
/// `RLIMIT_MEMLOCK`; `EOPNOTSUPP` for a map of a DAX file. See `check_vma_flags` in `mm/gup.c`.
pub(crate) fn pin_long_term(
    start: UserPtr,
    length: usize,
    limits: SegmentLimits,
) -> Result<(Extracted<'static, impl Ownership>, LockedPages)> {
    let mut address = start.as_const_ptr().addr();
    let mut offset = address % PAGE_SIZE;
    if length == 0 || length > limits.total() {
        return Err(EINVAL);
    }
    address.checked_add(length).ok_or(EFAULT)?;
    let locked = LockedPages::new((offset + length).div_ceil(PAGE_SIZE))?;
    let mut extracted = Extracted::<Owned>::new(None, DataDirection::FromDevice, limits)?;
    let mut end = None;
    let mut left = length;
    while left > 0 {
        let room = extracted.room_for(left, limits);
        let count = (offset + left).div_ceil(PAGE_SIZE).min(BATCH).min(room);
        if count == 0 {
            return Err(EINVAL);
        }
        let mut pages = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
        // SAFETY: `pages` has room for `count` pointers. The current task has memory, as
        // `LockedPages::new` has checked.
        let pinned = unsafe {
            bindings::pin_user_pages_fast(
                address - offset,
                // CAST: At most `BATCH`.
                count as c_int,
                bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                pages.as_mut_ptr().cast(),
            )
        };
        if pinned < 0 {
            return Err(Error::from_errno(pinned));
        }
        if pinned == 0 {
            return Err(EFAULT);
        }
        // CAST: Positive, and at most `count`.
        for page in &pages[..(pinned as usize).min(count)] {
            // SAFETY: The function has stored this number of pointers.
            let page = unsafe { page.assume_init() };
            let length = left.min(PAGE_SIZE - offset);
            // SAFETY:
            // - The page was just pinned, as an iterator of user memory pins it.
            // - `end` is `None` at first, and only `append` changes it.
            // - No more pages were pinned than the list has room for.
            unsafe { extracted.append(page, offset, length, &mut end, limits) };
            address += length;
            left -= length;
            offset = 0;
        }
    }
    // SAFETY: These pages are pinned.
    unsafe { mark_dirty(extracted.list.filled()) };
    Ok((extracted, locked))
}
