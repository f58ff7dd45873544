// SPDX-License-Identifier: GPL-2.0

//! How much of the device memory may be mapped, and what takes the maps of the rest away.
//!
//! Who makes less of it mappable (a reset, the end of service, a smaller device) says so here and
//! then calls [`Mappable::enforce`]. That waits for no process, so it may be called with locks
//! held on which others depend. It has three parts:
//!
//! 1. From then on [`Mappable::check`] refuses maps of the rest, and the maps that there are go at
//!    once.
//! 2. A map that was allowed before may not be linked to the address space yet; then part 1 has
//!    missed it. It is made under the lock of its process's memory. A work item tries that lock of
//!    each process with maps. Once it was free, the map is linked, and the item takes it away.
//! 3. A process can have its lock for any time: it waits for a file system in user space, or is
//!    frozen in the middle of a call. For each process whose lock is not free there is a work item
//!    of its own, which waits for the lock and then takes maps away. So none holds up another one.
//!
//! # Why no map remains
//!
//! Let something be forbidden and stay so. Who makes a map counts it, checks, fills it and links
//! it, all under one hold of the lock of the process's memory. A map of what is forbidden was
//! checked before it was forbidden, so it is counted when item 2 begins its walk
//! ([`AddressSpace::walk`]), and item 2 comes to its process. If the lock is free then, the map is
//! linked, and goes when item 2 ends. If not, an item 3 waits for the process: one made now, or
//! one that was there. The latter says that it does not wait any more only while it has the lock
//! ([`AddressSpace::wait_for`]), so in both cases the lock is had after the map was forbidden; then
//! the map is linked, and goes.
//!
//! There is an item 2 after each change: one that is running already when it is queued runs again.
//!
//! The items take away what is forbidden when they do so, not when they were queued: after a reset
//! the memory may be mapped again, and who maps it then is not to lose it. A map that was being
//! made during the reset may remain. It shows the memory as it is now, like a map that is made a
//! moment later. What is beyond the end of the memory goes: if that is smaller after the reset,
//! there is an item 2 for it.
//!
//! At unbind revoking the hardware takes all maps of the device away, and waits for all processes,
//! before the memory is given back. The device sleeps with its maps: nobody runs who could use them, and no
//! less may be mapped meanwhile. If it does not come back, its memory is forbidden.

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

/// How much of the memory of one device may be mapped.
#[pin_data]
pub(crate) struct Mappable {
    hardware: Arc<SrcuRevocable<Hardware>>,
    maps: Arc<AddressSpace>,
    /// Pages that there is room for behind the aperture.
    aperture: usize,
    /// Size of the device memory in bytes.
    capacity: Atomic<i64>,
    /// Whether the device memory is behind the aperture.
    ready: Atomic<bool>,
    /// Held while maps of what is forbidden are taken away, so that what becomes allowed
    /// meanwhile is mapped afterwards only. Locked within the lock of a process's memory.
    #[pin]
    zapping: Mutex<()>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Mappable { self.work }
}

impl Mappable {
    /// Of a device that has not been started yet: nothing may be mapped. `aperture` is how many
    /// pages there is room for. May sleep.
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

    /// Sets the size, and returns the one before. After a smaller one [`Self::enforce`] is to
    /// be called. Any context.
    pub(crate) fn set_capacity(&self, capacity: i64) -> i64 {
        self.capacity.xchg(capacity, Relaxed)
    }

    /// Whether the device memory is behind the aperture.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Acquire)
    }

    /// Says whether the device memory is behind the aperture. Where it is no more,
    /// [`Self::enforce`] is to be called.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Release);
    }

    /// Pages from the start of the memory that may be mapped now; `None` where the memory is
    /// not behind the aperture.
    fn pages(&self) -> Option<usize> {
        // CAST: A capacity is never negative, and 64 bits both.
        self.is_ready()
            .then(|| ((self.capacity() as u64 >> PAGE_SHIFT) as usize).min(self.aperture))
    }

    /// How many pages of the memory may be mapped, for who makes a map and has counted it.
    /// `ENODEV` where the memory is not behind the aperture. Sleeps.
    pub(crate) fn check(&self) -> Result<usize> {
        let _zapping = self.zapping.lock();
        self.pages().ok_or(ENODEV)
    }

    /// Takes away the maps that there are of what may not be mapped now. Sleeps, but waits
    /// for nobody.
    fn zap(&self) {
        let _zapping = self.zapping.lock();
        for pages in memory_from(self.pages().unwrap_or(0)) {
            self.maps.zap(pages);
        }
    }

    /// Takes away the maps of what may not be mapped now: who touches one gets `SIGBUS`. Those
    /// that are being made at this moment go later; see [`super::mappable`]. Sleeps, but waits for
    /// nobody.
    pub(crate) fn enforce(self: &Arc<Self>, hardware: &Hardware) {
        self.zap();
        // Already queued is as good: it has not begun.
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
            // First, because a process that is busy must be waited for.
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

/// The wait for the mmap lock of one process.
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
