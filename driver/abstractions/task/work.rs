// SPDX-License-Identifier: GPL-2.0

//! Work items: functions that run later, in a thread of the kernel.
//!
//! A work item on one of the kernel's own queues outlives the code that has queued it, and so
//! perhaps the module with the item's function. Here the queue is a value. Dropping it ends the
//! queue with all its items: after that no item runs, and none can be queued. The owner has to
//! ensure that the queue is dropped before the module is unloaded: a queue that is leaked
//! (`mem::forget`) continues to run, and so does a [`Periodic`].
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{
    marker::PhantomPinned,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    container_of,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    time::Jiffies,
    types::Opaque,
    workqueue::{
        self,
        RawWorkItem, //
    },
    ModuleMetadata, //
};

/// A queue for work items. Not bound to a CPU.
///
/// Dropping it waits until all queued items have run and returned; sleeps then. It must not be
/// dropped by one of its own items.
///
/// # Invariants
///
/// A valid work queue that belongs to this value.
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread may use a work queue.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// An empty queue, which runs while the system goes to sleep and resumes: devices may be
    /// unbound then, and a thread that waits for an item that does not run would wait for ever. May
    /// sleep.
    pub(crate) fn new() -> Result<Self> {
        Self::with_flags(0, 0)
    }

    /// An empty queue, which is frozen together with user space. May sleep.
    pub(crate) fn freezable() -> Result<Self> {
        Self::with_flags(bindings::wq_flags_WQ_FREEZABLE, 0)
    }

    /// An empty queue for items that wait for processes, at most `count` at a time. The system does
    /// not wait for them when it goes to sleep. May sleep.
    pub(crate) fn for_waiting(count: u16) -> Result<Self> {
        Self::with_flags(0, count.into())
    }

    fn with_flags(flags: bindings::wq_flags, count: c_int) -> Result<Self> {
        // SAFETY: The format has one conversion, for which there is a string; both are copied.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | flags,
                count,
                <crate::LocalModule as ModuleMetadata>::NAME.as_char_ptr(),
            )
        };
        // INVARIANT: Just allocated.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Queues an item, as [`workqueue::Queue::enqueue`]. Any context.
    pub(crate) fn enqueue<W, const ID: u64>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type invariant, the queue is valid for as long as it is borrowed.
        unsafe { workqueue::Queue::from_raw(self.0.as_ptr()) }.enqueue(item)
    }

    /// Waits until no item is queued any more, even if items queue themselves again. Sleeps. Must
    /// not be called by one of the queue's own items.
    pub(crate) fn drain(&self) {
        // SAFETY: By the type invariant, the queue is valid.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is ours.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

/// An object with a periodic call.
pub(crate) trait Tick: Send + Sync + 'static {
    /// Called at intervals of [`Self::period`]. May sleep, but should be short.
    fn tick(this: ArcBorrow<'_, Self>);

    /// The time until the next call. Any context.
    fn period(&self) -> Jiffies;
}

/// Calls `T::tick` at regular intervals, not while the system sleeps. Dropping it ends the calls,
/// and waits for a call in progress; sleeps then.
///
/// # Invariants
///
/// `work` is initialised with [`Self::run`].
#[pin_data(PinnedDrop)]
pub(crate) struct Periodic<T: Tick> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    target: Arc<T>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Any thread may cancel a delayed work item.
unsafe impl<T: Tick> Send for Periodic<T> {}
// SAFETY: A shared reference allows no operation.
unsafe impl<T: Tick> Sync for Periodic<T> {}

impl<T: Tick> Periodic<T> {
    /// Starts the calls; the first one follows after a period. May sleep.
    pub(crate) fn new(target: Arc<T>) -> Result<Pin<KBox<Self>>> {
        let this = KBox::pin_init(
            pin_init!(Self {
                // INVARIANT: Initialised with `run`.
                work <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                    // SAFETY: `slot` is valid for writing, and does not move. The class of the lock
                    // is static.
                    unsafe {
                        bindings::init_work_with_key(
                            &raw mut (*slot).work,
                            Some(Self::run),
                            false,
                            c"ringbar_periodic".as_char_ptr(),
                            kernel::static_lock_class!().as_ptr(),
                        );
                        bindings::timer_init_key(
                            &raw mut (*slot).timer,
                            Some(bindings::delayed_work_timer_fn),
                            bindings::TIMER_IRQSAFE,
                            c"ringbar_periodic".as_char_ptr(),
                            kernel::static_lock_class!().as_ptr(),
                        );
                    }
                }),
                target,
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;
        this.queue();
        Ok(this)
    }

    fn queue(&self) {
        // SAFETY: By the type invariant the item is initialised; it is cancelled before it is
        // freed. The queue is one of the kernel's own.
        unsafe {
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_freezable_wq,
                self.work.get(),
                self.target.period(),
            );
        }
    }

    /// # Safety
    ///
    /// To be called by the work queue, for the item of a `Self`.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: By the requirement; `drop` waits for this function before memory is freed.
        let this: &Self = unsafe {
            let delayed = container_of!(work, bindings::delayed_work, work);
            &*container_of!(Opaque::cast_from(delayed.cast_const()), Self, work)
        };
        T::tick(this.target.as_arc_borrow());
        this.queue();
    }
}

#[pinned_drop]
impl<T: Tick> PinnedDrop for Periodic<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the item is initialised. A disabled item cannot queue
        // itself any more.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }
}
