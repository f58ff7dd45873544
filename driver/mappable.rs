// SPDX-License-Identifier: GPL-2.0

//! The part of the device memory that may be mapped, and the removal of all other maps.
//!
//! A change that makes less of the memory mappable (a reset, the end of service, a smaller device)
//! is recorded here, followed by a call of [`Mappable::enforce`]. That call waits for no process,
//! so the caller may hold locks on which others depend. Removal has three parts:
//!
//! 1. From then on [`Mappable::check`] refuses maps of the rest, and the existing maps are zapped
//!    at once.
//! 2. A map that was allowed before may not be linked to the address space yet; then part 1 has
//!    missed it. The kernel makes a map under the memory lock of the process. A work item tries
//!    that lock of each process with maps. Once the lock was free, the map is linked, and the item
//!    zaps it.
//! 3. A process can have its memory lock for any time: it waits for a file system in user space, or
//!    is frozen in the middle of a call. For each process whose lock is taken there is a work item
//!    of its own, which waits for the lock and then zaps maps. So no item delays another one.
//!
//! # Why no map remains
//!
//! Assume that a part of the memory becomes forbidden and stays so. A process that makes a map
//! counts the map, checks it, fills it and links it, all while it holds its memory lock once. A map
//! of the forbidden part was checked before the part was forbidden, so it is counted when item 2
//! begins its walk ([`AddressSpace::walk`]), and item 2 reaches its process. If the lock is free
//! then, the map is linked, and is zapped when item 2 ends. If not, an item 3 waits for the
//! process: a new item, or an earlier one. An earlier item records that it no longer waits only
//! while it has the lock ([`AddressSpace::wait_for`]), so in both cases the item takes the lock
//! after the part was forbidden; then the map is linked, and is zapped.
//!
//! An item 2 runs after each change: an item that is already running when it is queued runs again.
//!
//! The items zap the part that is forbidden at the time of the zap, not when they were queued:
//! after a reset the memory may be mapped again, and a map that a process makes then must not be
//! lost. A map that was in progress during the reset may remain. It shows the memory after the
//! reset, like a map that is made a moment later. A map beyond the end of the memory is zapped: if
//! the memory is smaller after the reset, there is an item 2 for it.
//!
//! At unbind, revoking the hardware zaps all maps of the device, and waits for all processes,
//! before the memory is freed. During a suspend the maps stay: no process runs that could use them,
//! and the mappable part becomes no smaller meanwhile. If the device does not resume, its memory is
//! forbidden.

use crate::{
    abstractions::{
        mm::address_space::{
            AddressSpace,
            Busy, //
        },
        pci::revocable::SrcuRevocable, //
    },
    hardware::Hardware,
    map_layout::memory_from, //
};
use core::{
    convert::Infallible,
    mem::MaybeUninit, //
};
use kernel::{
    impl_has_work,
    new_mutex,
    new_work,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        }, //
        Arc,
        Mutex,
        UniqueArc,
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// The part of the memory of one device that may be mapped.
#[pin_data]
pub(crate) struct Mappable {
    hardware: Arc<SrcuRevocable<Hardware>>,
    maps: Arc<AddressSpace>,
    /// Number of pages that the aperture can show.
    aperture: usize,
    /// Size of the device memory in bytes.
    capacity: Atomic<i64>,
    /// Whether the device memory is behind the aperture.
    ready: Atomic<bool>,
    /// Held while forbidden maps are zapped, so that pages that become allowed meanwhile are mapped
    /// only afterwards. Locked within the memory lock of a process.
    #[pin]
    zapping: Mutex<()>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Mappable { self.work }
}

impl Mappable {
    /// For a device that has not been started yet: nothing may be mapped. `aperture` is the number
    /// of pages that the aperture can show. May sleep.
    pub(crate) fn new(
        hardware: Arc<SrcuRevocable<Hardware>>,
        maps: Arc<AddressSpace>,
        aperture: usize,
        capacity: i64,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                hardware,
                maps,
                aperture,
                capacity: Atomic::new(capacity),
                ready: Atomic::new(false),
                zapping <- new_mutex!((), "ringbar_zapping"),
                work <- new_work!("Mappable::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Size of the device memory in bytes. Any context.
    pub(crate) fn capacity(&self) -> i64 {
        self.capacity.load(Relaxed)
    }

    /// Sets the size, and returns the previous one. After a smaller size, [`Self::enforce`] is to
    /// be called. Any context.
    pub(crate) fn set_capacity(&self, capacity: i64) -> i64 {
        self.capacity.xchg(capacity, Relaxed)
    }

    /// Sets the size if it is still `before`. Returns whether it was. As [`Self::set_capacity`].
    pub(crate) fn replace_capacity(&self, before: i64, capacity: i64) -> bool {
        self.capacity.cmpxchg(before, capacity, Relaxed).is_ok()
    }

    /// Whether the device memory is behind the aperture.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    /// Sets whether the device memory is behind the aperture. If it no longer is, [`Self::enforce`]
    /// is to be called.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Release);
    }

    /// Number of pages from the start of the memory that may be mapped now; `None` if the memory is
    /// not behind the aperture.
    fn pages(&self) -> Option<usize> {
        // CAST: A capacity is never negative, and 64 bits both.
        self.is_ready()
            .then(|| ((self.capacity() as u64 >> PAGE_SHIFT) as usize).min(self.aperture))
    }

    /// Number of pages of the memory that may be mapped, for a caller that makes a map and has
    /// counted it. `ENODEV` if the memory is not behind the aperture. Sleeps.
    pub(crate) fn check(&self) -> Result<usize> {
        let _zapping = self.zapping.lock();
        self.pages().ok_or(ENODEV)
    }

    /// Zaps the existing maps of the part that may not be mapped now. Sleeps, but waits for no
    /// process.
    fn zap(&self) {
        let _zapping = self.zapping.lock();
        for pages in memory_from(self.pages().unwrap_or(0)) {
            self.maps.zap(pages);
        }
    }

    /// Zaps the maps of the part that may not be mapped now: an access gets `SIGBUS`. Maps that are
    /// in progress at this moment are zapped later; see [`super::mappable`]. Sleeps, but waits for
    /// no process.
    pub(crate) fn enforce(self: &Arc<Self>, hardware: &Hardware) {
        self.zap();
        // An item that is queued already has not begun, so it does the same.
        let _ = hardware.map_work().enqueue(self.clone());
    }
}

impl WorkItem for Mappable {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let Some(hardware) = this.hardware.try_access() else {
            return;
        };
        let mut walk = this.maps.walk();
        loop {
            // Allocated first, because the item must wait for each busy process that the walk
            // returns.
            let place = UniqueArc::<MmapLockWait>::new_uninit(GFP_KERNEL);
            let Some(busy) = this.maps.next_busy(&mut walk) else {
                break;
            };
            match place {
                Ok(place) => {
                    let _ =
                        hardware
                            .map_work()
                            .enqueue(MmapLockWait::new(place, this.clone(), busy));
                }
                Err(_) => {
                    this.maps.wait_for(&busy);
                    this.zap();
                }
            }
        }
        this.zap();
    }
}

/// The wait for the memory lock of one process.
#[pin_data]
struct MmapLockWait {
    mappable: Arc<Mappable>,
    busy: Busy,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for MmapLockWait { self.work }
}

impl MmapLockWait {
    fn new(place: UniqueArc<MaybeUninit<Self>>, mappable: Arc<Mappable>, busy: Busy) -> Arc<Self> {
        let Ok(this) = place.pin_init_with::<Infallible>(pin_init!(Self {
            mappable,
            busy,
            work <- new_work!("MmapLockWait::work"),
        }));
        this.into()
    }
}

impl WorkItem for MmapLockWait {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.mappable.maps.wait_for(&this.busy);
        this.mappable.zap();
    }
}
