// SPDX-License-Identifier: GPL-2.0

//! All user maps of one device in one place, so that they can be counted and zapped.
//!
//! The maps of a file belong to `file->f_mapping`. For a character device that is by default the
//! address space of the opened device node, and there may be several device nodes. So each device
//! has an address space of its own, that of an inode without a name, and every opened file uses it.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::caching::Caching;
use crate::abstractions::fs::anon_inode::AnonInode;
use core::{
    mem::replace,
    ops::Range,
    ptr, //
};
use kernel::{
    bindings,
    mm::{
        Mm,
        MmWithUser,
        MmWithUserAsync, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        }, //
        Mutex,
    }, //
};

/// A process (that is, its memory) with maps of the device.
struct User {
    mm: ARef<Mm>,
    maps: usize,
    /// Greater than the number of each earlier process.
    number: u64,
    /// Whether there is a [`Busy`] for it.
    awaited: bool,
}

/// Processes with maps, in the order of their numbers, and the caching of their maps.
struct Users {
    list: KVec<User>,
    /// Number of the next process.
    number: u64,
    /// The caching of all maps of device memory, and the number of these maps.
    caching: Option<(Caching, usize)>,
}

/// A process with maps that is within a call that changes its memory, and so may be making another
/// map. To be passed to [`AddressSpace::wait_for`]: until then [`AddressSpace::next_busy`] skips
/// this process.
pub(crate) struct Busy {
    mm: ARef<Mm>,
    number: u64,
}

/// The rest of a walk through the processes with maps.
pub(crate) struct Walk(Range<u64>);

/// Keeps the memory of a process while the result exists; `None` if the process has no memory any
/// more, so that it makes no maps. If the result is the last user of the memory, a kernel thread
/// frees it, and not the thread that drops the result: that may take any time, and release any
/// file.
fn user_of(mm: &Mm) -> Option<ARef<MmWithUserAsync>> {
    mm.mmget_not_zero().map(MmWithUser::into_mmput_async)
}

/// The address space that contains all user maps of a device.
///
/// # Invariants
///
/// The inode's `i_private` points to this value. Nobody else uses the inode.
#[pin_data]
pub(crate) struct AddressSpace {
    inode: AnonInode,
    maps: Atomic<i64>,
    #[pin]
    users: Mutex<Users>,
}

impl AddressSpace {
    /// A new, empty address space. Sleeps, as dropping it does.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            inode: AnonInode::new()?,
            maps: Atomic::new(0),
            users <- new_mutex!(Users {
                list: KVec::new(),
                number: 0,
                caching: None,
            }),
            _: {
                // INVARIANT: Holds from here on.
                // SAFETY: The inode is valid, and nobody else has it yet.
                unsafe { (*inode.as_ptr()).i_private = this.as_ptr().cast() };
            },
        })
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid, and its mapping is set once, at its creation.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }

    /// Number of maps (areas of a process's memory) now.
    pub(crate) fn maps(&self) -> i64 {
        self.maps.load(Relaxed)
    }

    /// Makes this the address space of the maps of `file`.
    ///
    /// # Safety
    ///
    /// - `file` must be in its `open` callback, so that nobody else uses it.
    /// - `self` must stay valid until the file's `release` callback.
    pub(in crate::abstractions) unsafe fn adopt(&self, file: *mut bindings::file) {
        // SAFETY: Nobody else uses the file, by the first requirement; by the second the mapping
        // stays valid as long as the file uses it: after `release` the kernel no longer does.
        unsafe { (*file).f_mapping = self.mapping() };
    }

    /// The address space of the maps of `file`.
    ///
    /// # Safety
    ///
    /// `file` must have been [adopted](Self::adopt), and not be released during `'a`.
    pub(in crate::abstractions) unsafe fn of<'a>(file: *const bindings::file) -> &'a Self {
        // SAFETY: By the requirement `f_mapping` is that of an `AddressSpace` that is valid during
        // `'a`, whose inode by the type invariants points to it.
        unsafe { &*(*(*(*file).f_mapping).host).i_private.cast_const().cast() }
    }

    /// Counts a map in `mm` that is about to be made. `ENOMEM` without memory to record it; then it
    /// must not be made. Sleeps.
    pub(in crate::abstractions) fn add(&self, mm: &Mm) -> Result {
        let mut users = self.users.lock();
        let known = users.list.iter_mut().find(|user| ptr::eq(&*user.mm, mm));
        if let Some(user) = known {
            user.maps += 1;
        } else {
            let number = users.number;
            users.list.push(
                User {
                    mm: ARef::from(mm),
                    maps: 1,
                    number,
                    awaited: false,
                },
                GFP_KERNEL,
            )?;
            users.number += 1;
        }
        self.maps.add(1, Relaxed);
        Ok(())
    }

    /// Counts a map that came from another one, by `fork` or by a split. Sleeps.
    pub(in crate::abstractions) fn copy(&self, mm: &Mm, caching: Option<Caching>) {
        if self.add(mm).is_err() {
            // This map stays unknown to `unmap`. That does no harm, because the map is not in
            // progress: copies of page tables are made in an order that suits
            // `unmap_mapping_range`.
            self.maps.add(1, Relaxed);
        }
        if caching.is_some() {
            if let Some((_, maps)) = &mut self.users.lock().caching {
                *maps += 1;
            }
        }
    }

    /// Subtracts a map from the count. Sleeps.
    pub(in crate::abstractions) fn remove(&self, mm: &Mm, caching: Option<Caching>) {
        if caching.is_some() {
            self.remove_caching();
        }
        self.maps.add(-1, Relaxed);
        let mut users = self.users.lock();
        let list = &mut users.list;
        let at = list.iter().position(|user| ptr::eq(&*user.mm, mm));
        if let Some(at) = at {
            list[at].maps -= 1;
            if list[at].maps == 0 {
                let user = list.remove(at);
                drop(users);
                drop(user);
            }
        }
    }

    /// Counts a map of device memory with this caching. `EBUSY` while there are maps with another
    /// caching. Sleeps.
    pub(in crate::abstractions) fn add_caching(&self, caching: Caching) -> Result {
        let mut users = self.users.lock();
        users.caching = match users.caching {
            None => Some((caching, 1)),
            Some((now, maps)) if now == caching => Some((now, maps + 1)),
            Some(_) => return Err(EBUSY),
        };
        Ok(())
    }

    /// Reverts [`Self::add_caching`]. Sleeps.
    pub(in crate::abstractions) fn remove_caching(&self) {
        let mut users = self.users.lock();
        users.caching = match users.caching {
            Some((caching, maps)) if maps > 1 => Some((caching, maps - 1)),
            _ => None,
        };
    }

    /// Zaps these pages of the file in all maps, except for maps in progress. A later access gets
    /// `SIGBUS`, unless a fault handler inserts a page. Sleeps, but waits for no thread that runs
    /// in user space or waits for a page.
    pub(crate) fn zap(&self, pages: Range<usize>) {
        // For the C function, an empty range means all pages that follow.
        if pages.is_empty() {
            return;
        }
        // SAFETY: The address space is valid.
        unsafe { bindings::unmap_mapping_pages(self.mapping(), pages.start, pages.len(), true) };
    }

    /// Begins a walk through the processes with maps, for a caller that has forbidden maps and
    /// waits for those in progress. Sleeps.
    ///
    /// The kernel fills a map, and then links it to the address space; before that [`Self::zap`]
    /// misses it. The kernel does both under the memory lock of the process, so once that lock was
    /// free the map is linked, or was begun later.
    ///
    /// The walk covers the processes that exist now, so it has an end whatever the processes do.
    /// Processes that come later need no visit:
    ///
    /// - A process that makes its first map counts it after this call, and then finds it forbidden.
    /// - A child gets its maps by `fork`. The kernel links the child's map to the address space
    ///   right behind its parent's before it copies the page table entries (`dup_mmap`), and `zap`
    ///   processes the maps in that order. Entries that are copied before `zap` reaches the parent
    ///   are zapped in the child; afterwards there is nothing to copy.
    pub(crate) fn walk(&self) -> Walk {
        Walk(0..self.users.lock().number)
    }

    fn next(&self, walk: &mut Walk) -> Option<(u64, ARef<Mm>)> {
        let users = self.users.lock();
        let user = users.list.iter().find(|u| walk.0.contains(&u.number))?;
        walk.0.start = user.number + 1;
        Some((user.number, user.mm.clone()))
    }

    /// The next process of the walk that may be making a map now, and for which nothing waits yet.
    /// Sleeps, but waits for no process.
    pub(crate) fn next_busy(&self, walk: &mut Walk) -> Option<Busy> {
        loop {
            let (number, mm) = self.next(walk)?;
            let free = user_of(&mm).is_none_or(|mm| mm.mmap_read_trylock().is_some());
            if free {
                continue;
            }
            let mut users = self.users.lock();
            // A process without maps makes none at present: that map would have been counted.
            let user = users.list.iter_mut().find(|u| u.number == number);
            if user.is_some_and(|user| !replace(&mut user.awaited, true)) {
                return Some(Busy { mm, number });
            }
        }
    }

    /// Waits until the process is not within a call that changes its memory. Sleeps, for any time.
    pub(crate) fn wait_for(&self, busy: &Busy) {
        let Some(mm) = user_of(&busy.mm) else {
            return;
        };
        let locked = mm.mmap_read_lock();
        // With the lock held: no map is in progress now. A thread that got no `Busy`, because of
        // this one, had forbidden maps before: the maps that were allowed until then are linked.
        let mut users = self.users.lock();
        if let Some(user) = users.list.iter_mut().find(|u| u.number == busy.number) {
            user.awaited = false;
        }
        drop(users);
        drop(locked);
    }

    /// As [`Self::zap`], but waits for maps in progress, and zaps them too. No new maps of the
    /// pages may be made: the caller must have forbidden them before this call, and the check must
    /// come after the map was counted.
    ///
    /// Sleeps, for as long as a process with maps is within a call that changes its memory.
    pub(in crate::abstractions) fn unmap(&self, pages: Range<usize>) {
        let mut walk = self.walk();
        // The lock must not be taken with `users` held: the lock order is the opposite.
        while let Some((_, mm)) = self.next(&mut walk) {
            if let Some(mm) = user_of(&mm) {
                drop(mm.mmap_read_lock());
            }
        }
        self.zap(pages);
    }
}
