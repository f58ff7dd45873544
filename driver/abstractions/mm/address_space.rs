// SPDX-License-Identifier: GPL-2.0

//! All user maps of one device in one place, so that they can be counted and
//! taken away.
//!
//! The maps of a file hang off `file->f_mapping`. For a character device that is
//! by default the address space of whichever device node was opened, and there
//! may be several. So each device has an address space of its own, that of an
//! inode without a name, and every opened file is made to use it.
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

/// A process (its memory, that is) with maps of the device.
struct User {
    mm: ARef<Mm>,
    maps: usize,
    /// Greater than that of all before it.
    number: u64,
    /// Whether there is a [`Busy`] of it.
    awaited: bool,
}

/// Processes with maps, in the order of their numbers, and what their maps are.
struct Users {
    list: KVec<User>,
    /// Of the next one.
    number: u64,
    /// How all maps of device memory treat it, and how many there are.
    caching: Option<(Caching, usize)>,
}

/// A process with maps that is within a call that changes its memory, and so may be making
/// another. To be given to [`AddressSpace::wait_for`]: until then [`AddressSpace::next_busy`]
/// leaves this process out.
pub(crate) struct Busy {
    mm: ARef<Mm>,
    number: u64,
}

/// What is left of a walk through the processes with maps.
pub(crate) struct Walk(Range<u64>);

/// The memory of a process for as long as this is there, `None` where it has none any more:
/// then it makes no maps. Where this is the last user, a thread of the kernel's takes the
/// memory apart, and not who drops this: that may take any time, and release any file.
fn user_of(mm: &Mm) -> Option<ARef<MmWithUserAsync>> {
    mm.mmget_not_zero().map(MmWithUser::into_mmput_async)
}

/// The address space that holds all user maps of a device.
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
    /// A new, empty one. Sleeps, as dropping it does.
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
                // INVARIANT: From here on.
                // SAFETY: The inode is valid, and nobody else has it yet.
                unsafe { (*inode.as_ptr()).i_private = this.as_ptr().cast() };
            },
        })
    }

    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid, and its mapping is set once, when it is made.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }

    /// How many maps (areas of a process's memory) there are now.
    pub(crate) fn maps(&self) -> i64 {
        self.maps.load(Relaxed)
    }

    /// Makes the maps of `file` belong here.
    ///
    /// # Safety
    ///
    /// - `file` must be in its `open` callback, so that nobody else uses it.
    /// - `self` must stay valid until the file's `release` callback.
    pub(in crate::abstractions) unsafe fn adopt(&self, file: *mut bindings::file) {
        // SAFETY: Nobody else uses the file, by the first requirement; by the second the mapping
        // stays valid as long as the file uses it: what follows `release` does not.
        unsafe { (*file).f_mapping = self.mapping() };
    }

    /// Where the maps of `file` belong.
    ///
    /// # Safety
    ///
    /// `file` must have been [adopted](Self::adopt), and not be released during `'a`.
    pub(in crate::abstractions) unsafe fn of<'a>(file: *const bindings::file) -> &'a Self {
        // SAFETY: By the requirement `f_mapping` is that of an `AddressSpace` that is valid during
        // `'a`, whose inode by the type invariants points to it.
        unsafe { &*(*(*(*file).f_mapping).host).i_private.cast_const().cast() }
    }

    /// Counts a map in `mm` that is about to be made. `ENOMEM` where it cannot be
    /// kept in mind; then it must not be made. Sleeps.
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
            // This map stays unknown to `unmap`. That does no harm, because it is not in the
            // course of being made: copies of page tables are made in an order that suits
            // `unmap_mapping_range`.
            self.maps.add(1, Relaxed);
        }
        if caching.is_some() {
            if let Some((_, maps)) = &mut self.users.lock().caching {
                *maps += 1;
            }
        }
    }

    /// Counts a map less. Sleeps.
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

    /// Counts a map of device memory that treats it like this. `EBUSY` while there are
    /// others that treat it otherwise. Sleeps.
    pub(in crate::abstractions) fn add_caching(&self, caching: Caching) -> Result {
        let mut users = self.users.lock();
        users.caching = match users.caching {
            None => Some((caching, 1)),
            Some((now, maps)) if now == caching => Some((now, maps + 1)),
            Some(_) => return Err(EBUSY),
        };
        Ok(())
    }

    /// Takes [`Self::add_caching`] back. Sleeps.
    pub(in crate::abstractions) fn remove_caching(&self) {
        let mut users = self.users.lock();
        users.caching = match users.caching {
            Some((caching, maps)) if maps > 1 => Some((caching, maps - 1)),
            _ => None,
        };
    }

    /// Takes away what maps show of these pages of the file, but for maps that are
    /// being made. Who touches it afterwards gets `SIGBUS`, unless a fault handler puts
    /// something back. Sleeps, but waits for nobody who runs in user space or waits for
    /// a page.
    pub(crate) fn zap(&self, pages: Range<usize>) {
        // For C, no pages are all that follow.
        if pages.is_empty() {
            return;
        }
        // SAFETY: The address space is valid.
        unsafe { bindings::unmap_mapping_pages(self.mapping(), pages.start, pages.len(), true) };
    }

    /// Begins a walk through the processes with maps, for who has forbidden maps and waits
    /// for those that are being made. Sleeps.
    ///
    /// A map is made, and then linked to the address space; before that [`Self::zap`] misses it.
    /// Both happens under the lock of the process's memory, so after that lock was free it is
    /// either linked, or was begun later.
    ///
    /// The walk goes as far as the processes that there are now, so it has an end whatever they do.
    /// None that comes later need be visited:
    ///
    /// - One that makes its first map counts it after this call, and finds it forbidden then.
    /// - A child gets its maps by `fork`. It is linked to the address space right behind its parent
    ///   before what its parent's map shows is copied (`dup_mmap`), and `zap` goes through them in
    ///   that order: what is copied before it comes to the parent, it finds in the child; what
    ///   is copied afterwards is nothing.
    pub(crate) fn walk(&self) -> Walk {
        Walk(0..self.users.lock().number)
    }

    fn next(&self, walk: &mut Walk) -> Option<(u64, ARef<Mm>)> {
        let users = self.users.lock();
        let user = users.list.iter().find(|u| walk.0.contains(&u.number))?;
        walk.0.start = user.number + 1;
        Some((user.number, user.mm.clone()))
    }

    /// The next process of the walk that may be making a map now, and that nobody waits for
    /// yet. Sleeps, but waits for none of them.
    pub(crate) fn next_busy(&self, walk: &mut Walk) -> Option<Busy> {
        loop {
            let (number, mm) = self.next(walk)?;
            let free = user_of(&mm).is_none_or(|mm| mm.mmap_read_trylock().is_some());
            if free {
                continue;
            }
            let mut users = self.users.lock();
            // Who has no maps any more is not making one: that would have been counted.
            let user = users.list.iter_mut().find(|u| u.number == number);
            if user.is_some_and(|user| !replace(&mut user.awaited, true)) {
                return Some(Busy { mm, number });
            }
        }
    }

    /// Waits until the process is not within a call that changes its memory. Sleeps, for as
    /// long as it is.
    pub(crate) fn wait_for(&self, busy: &Busy) {
        let Some(mm) = user_of(&busy.mm) else {
            return;
        };
        let locked = mm.mmap_read_lock();
        // With the lock held: no map is being made now. Whoever was refused a `Busy`, because there
        // was this one, had forbidden maps before: those that were allowed are linked.
        let mut users = self.users.lock();
        if let Some(user) = users.list.iter_mut().find(|u| u.number == busy.number) {
            user.awaited = false;
        }
        drop(users);
        drop(locked);
    }

    /// As [`Self::zap`], but waits for maps that are being made, and takes them away
    /// too. No new maps of the pages may be made: whatever forbids it must be in place
    /// before the call, and be looked at after the map was counted.
    ///
    /// Sleeps, for as long as a process with maps is within a call that changes its
    /// memory.
    pub(in crate::abstractions) fn unmap(&self, pages: Range<usize>) {
        let mut walk = self.walk();
        // The lock must not be taken with `users` held: the order is the other way round.
        while let Some((_, mm)) = self.next(&mut walk) {
            if let Some(mm) = user_of(&mm) {
                drop(mm.mmap_read_lock());
            }
        }
        self.zap(pages);
    }
}
