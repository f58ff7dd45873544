// SPDX-License-Identifier: GPL-2.0

//! Character devices with the file operations that asynchronous direct I/O
//! needs.
//!
//! [`kernel::miscdevice`] has no `llseek`, `fsync` or way to set the file's mode,
//! hands out names at compile time only, and its `read_iter` cannot say "queued".
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    address_space::AddressSpace,
    iov::IovIter,
    kiocb::{
        Answer,
        Kiocb, //
    },
    plug,
    poll::{
        Pollers,
        Readiness, //
    },
    uring::{
        UringAnswer,
        UringCommand, //
    },
    vma::{
        NewMap,
        SharedPage, //
    }, //
};
use core::{
    marker::PhantomPinned,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    fs::File,
    mm::virt::{
        VmaNew,
        VmaRef, //
    },
    module::this_module,
    prelude::*,
    str::CString,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::UserPtr, //
};

/// `FMODE_NOWAIT` (`include/linux/fs.h`): `IOCB_NOWAIT` is understood, so that
/// io_uring submits inline and not from a worker.
const FMODE_NOWAIT: bindings::fmode_t = 1 << 27;

/// `FMODE_CAN_ODIRECT` (`include/linux/fs.h`): `O_DIRECT` is allowed at open.
const FMODE_CAN_ODIRECT: bindings::fmode_t = 1 << 22;

/// `FMODE_READ` and `FMODE_WRITE` (`include/linux/fs.h`).
const FMODE_READ: bindings::fmode_t = 1 << 0;
const FMODE_WRITE: bindings::fmode_t = 1 << 1;

/// What a file was opened for.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// What a character device does. Files keep a reference to it, so it outlives
/// the [`CharDevice`]; once the hardware is gone its answers are `ENODEV`.
#[vtable]
pub(crate) trait FileOperations: plug::Unplug + Sized {
    /// Where the maps of all files of this device belong.
    fn address_space(&self) -> &AddressSpace;

    /// Size in bytes, for `lseek`. May sleep.
    fn size(&self) -> Result<i64>;

    /// Reads. May sleep unless [`Kiocb::nowait`].
    fn read(this: ArcBorrow<'_, Self>, kiocb: Kiocb<'_>, iter: &mut IovIter<'_>) -> Answer;

    /// Writes. May sleep unless [`Kiocb::nowait`].
    fn write(this: ArcBorrow<'_, Self>, kiocb: Kiocb<'_>, iter: &mut IovIter<'_>) -> Answer;

    /// Completes what there is of polled operations ([`Kiocb::is_polled`]). Returns
    /// whether there was any. May sleep, but should not.
    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool>;

    /// Those who wait until [`Self::readiness`] changes.
    fn pollers(&self) -> &Pollers;

    /// Whether a read or write would go through. Does not sleep.
    fn readiness(&self) -> Readiness;

    /// Executes the `ioctl` of this number. Sleeps. `ENOTTY` where there is none.
    fn ioctl(&self, access: Access, number: u32, argument: UserPtr) -> Result;

    /// Executes a command of io_uring. May sleep unless
    /// [`UringCommand::nonblocking`]. `ENOTTY` where there is none of its number.
    fn uring_command(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'_>,
    ) -> UringAnswer;

    /// Makes all that was written durable. Sleeps.
    fn fsync(&self) -> Result;

    /// Maps the device. Sleeps.
    fn mmap(&self, map: NewMap<'_>) -> Result;

    /// The page to be put where a map that was [`NewMap::faulted`] is first
    /// touched, at `page` of the file. `None` raises `SIGBUS`. Sleeps.
    fn fault(&self, page: usize) -> Option<SharedPage>;
}

/// A registered character device, `/dev/<name>`. Unregistered when dropped:
/// then nobody can open it any more, but open files go on.
///
/// # Invariants
///
/// `misc` is registered, its name points into `name`.
#[pin_data(PinnedDrop)]
pub(crate) struct CharDevice<T: FileOperations> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    name: CString,
    data: Arc<T>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A misc device may be unregistered by any thread.
unsafe impl<T: FileOperations> Send for CharDevice<T> {}
// SAFETY: Nothing is written after registration.
unsafe impl<T: FileOperations> Sync for CharDevice<T> {}

impl<T: FileOperations> CharDevice<T> {
    /// Registers a device as a child of `parent`. Sleeps.
    pub(crate) fn new<'a>(
        parent: &'a kernel::pci::Device<kernel::device::Bound>,
        name: CString,
        data: Arc<T>,
    ) -> impl PinInit<Self, Error> + 'a {
        try_pin_init!(&this in Self {
            name,
            data,
            _pin: PhantomPinned,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: `name` is initialised; its buffer stays where it is.
                let name = unsafe { (*this.as_ptr()).name.as_char_ptr() };
                // SAFETY: `slot` is valid for writing.
                unsafe {
                    slot.write(bindings::miscdevice {
                        // CAST: A small constant.
                        minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                        name,
                        fops: &Self::OPERATIONS,
                        parent: super::pci::as_raw_device(parent),
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: All fields are set; from now on `open` may run, and finds `data`.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }

    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        llseek: Some(Self::llseek),
        read_iter: Some(Self::read_iter),
        write_iter: Some(Self::write_iter),
        splice_read: Some(bindings::copy_splice_read),
        splice_write: Some(bindings::iter_file_splice_write),
        iopoll: Some(Self::iopoll),
        poll: Some(Self::poll),
        unlocked_ioctl: Some(Self::ioctl),
        compat_ioctl: bindings::compat_ptr_ioctl,
        uring_cmd: Some(Self::uring_cmd),
        fsync: Some(Self::fsync),
        mmap: Some(Self::mmap),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// To be called by `misc_open`, for a device that was registered as a [`CharDevice<T>`].
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `misc_open` puts the misc device there, and holds `misc_mtx`, which
        // `misc_deregister` takes: the device is registered during this call.
        let misc = Opaque::cast_from(unsafe { (*file).private_data }.cast());
        // SAFETY: By the type invariant it is a field of `Self`.
        let this = unsafe { &*kernel::container_of!(misc, Self, misc) };
        let data = this.data.clone();
        // SAFETY: `file` is valid, and in `open` nobody else uses it.
        unsafe {
            (*file).f_mode |= FMODE_NOWAIT | FMODE_CAN_ODIRECT;
            data.address_space().adopt(File::from_raw_file(file));
            // The file's reference keeps the address space alive.
            (*file).private_data = data.into_foreign().cast();
        }
        0
    }

    /// # Safety
    ///
    /// To be called by the VFS, as the last operation on a file that [`Self::open`] has opened.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Set in `open`; `release` is the last call on the file.
        drop(unsafe { <Arc<T>>::from_foreign((*file).private_data.cast()) });
        0
    }

    /// # Safety
    ///
    /// `file` must be a file that [`Self::open`] has opened, and be open during `'a`.
    unsafe fn data<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: Set in `open`.
        unsafe { <Arc<T>>::borrow((*file).private_data.cast()) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn llseek(
        file: *mut bindings::file,
        offset: bindings::loff_t,
        whence: c_int,
    ) -> bindings::loff_t {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        match data.size() {
            // SAFETY: As above.
            Ok(size) => unsafe { bindings::fixed_size_llseek(file, offset, whence, size) },
            Err(error) => bindings::loff_t::from(error.to_errno()),
        }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: As required by `transfer`, which these come from the VFS for.
        unsafe { Self::transfer(kiocb, iter, T::read) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: As required by `transfer`, which these come from the VFS for.
        unsafe { Self::transfer(kiocb, iter, T::write) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, or with what it would pass.
    unsafe fn transfer(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
        operation: fn(ArcBorrow<'_, T>, Kiocb<'_>, &mut IovIter<'_>) -> Answer,
    ) -> isize {
        let (Some(kiocb), Some(iter)) = (NonNull::new(kiocb), NonNull::new(iter)) else {
            return EINVAL.to_errno() as isize;
        };
        // SAFETY: The VFS hands both over for this call.
        let (kiocb, mut iter) = unsafe { (Kiocb::from_raw(kiocb), IovIter::from_raw(iter)) };
        // SAFETY: The caller holds a reference to the file during the call, even where the
        // operation completes within it.
        let data = unsafe { Self::data(kiocb.file()) };
        // SAFETY: As above; an open file holds a reference to the data.
        unsafe { Self::prepare_batch(kiocb.file(), data) };
        operation(data, kiocb, &mut iter).into_raw()
    }

    /// # Safety
    ///
    /// `file` must be a file that [`Self::open`] has opened, with this data.
    unsafe fn prepare_batch(file: *mut bindings::file, data: ArcBorrow<'_, T>) {
        if let Some(file) = NonNull::new(file) {
            // SAFETY: By the requirement. The file is one of this module, as its operations say.
            unsafe { plug::prepare(file, data) };
        }
    }

    /// # Safety
    ///
    /// To be called by io_uring, with an operation on a file that [`Self::open`] has
    /// opened.
    unsafe extern "C" fn iopoll(
        kiocb: *mut bindings::kiocb,
        _batch: *mut bindings::io_comp_batch,
        _flags: c_uint,
    ) -> c_int {
        // SAFETY: The operation is not yet over for io_uring, which holds its file.
        let data = unsafe { Self::data((*kiocb).ki_filp) };
        from_result(|| T::poll_completions(data).map(c_int::from))
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The file is open during the call, the table null or valid.
        let (data, file, table) = unsafe {
            (
                Self::data(file),
                File::from_raw_file(file),
                PollTable::from_raw(table),
            )
        };
        // Before the look, so that no change is missed.
        table.register_wait(file, data.pollers().condvar());
        data.readiness().events()
    }

    /// # Safety
    ///
    /// `file` must be open.
    unsafe fn access(file: *mut bindings::file) -> Access {
        // SAFETY: Open, by the requirement; the mode does not change.
        let mode = unsafe { (*file).f_mode };
        Access {
            read: mode & FMODE_READ != 0,
            write: mode & FMODE_WRITE != 0,
        }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn ioctl(
        file: *mut bindings::file,
        number: c_uint,
        argument: c_ulong,
    ) -> c_long {
        // SAFETY: The file is open during the call.
        let (data, access) = unsafe { (Self::data(file), Self::access(file)) };
        match data.ioctl(access, number, UserPtr::from_addr(argument)) {
            Ok(()) => 0,
            Err(error) => error.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// To be called by io_uring, for a file that [`Self::open`] has opened.
    unsafe extern "C" fn uring_cmd(
        command: *mut bindings::io_uring_cmd,
        issue_flags: c_uint,
    ) -> c_int {
        let Some(command) = NonNull::new(command) else {
            return EINVAL.to_errno();
        };
        // SAFETY: io_uring hands the command over for this call, and holds its file during it. An
        // open file holds a reference to the data.
        let (command, data, access) = unsafe {
            let command = UringCommand::from_raw(command, issue_flags);
            let file = command.file();
            let data = Self::data(file);
            Self::prepare_batch(file, data);
            (command, data, Self::access(file))
        };
        T::uring_command(data, access, command).into_raw()
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn fsync(
        file: *mut bindings::file,
        _start: bindings::loff_t,
        _end: bindings::loff_t,
        _datasync: c_int,
    ) -> c_int {
        // SAFETY: The file is open during the call.
        let data = unsafe { Self::data(file) };
        from_result(|| data.fsync().map(|()| 0))
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The file is open during the call, the area is being set up.
        let (data, area) = unsafe { (Self::data(file), VmaNew::from_raw(vma)) };
        from_result(|| {
            let maps = data.address_space();
            maps.add(area.mm())?;
            if let Err(error) = data.mmap(NewMap::new(area)) {
                maps.remove(area.mm());
                return Err(error);
            }
            // SAFETY: The area is being set up.
            unsafe { (*vma).vm_ops = &Self::VM_OPERATIONS };
            Ok(0)
        })
    }

    const VM_OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::vma_open),
        close: Some(Self::vma_close),
        fault: Some(Self::vma_fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `vma` must be a map of a file that [`Self::open`] has opened, and be valid
    /// during `'a`.
    unsafe fn mapped<'a>(vma: *mut bindings::vm_area_struct) -> (ArcBorrow<'a, T>, &'a VmaRef) {
        // SAFETY: The area is valid, and holds a reference to its file.
        unsafe { (Self::data((*vma).vm_file), VmaRef::from_raw(vma)) }
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement.
        let (data, vma) = unsafe { Self::mapped(vma) };
        data.address_space().copy(vma.mm());
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement.
        let (data, vma) = unsafe { Self::mapped(vma) };
        data.address_space().remove(vma.mm());
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid, and its area a map of ours.
        let (data, page) = unsafe {
            let place = &(*fault).__bindgen_anon_1;
            (Self::mapped(place.vma).0, place.pgoff)
        };
        match data.fault(page) {
            Some(page) => {
                // SAFETY: The fault is ours to answer; the reference goes with the page.
                unsafe { (*fault).page = page.into_raw() };
                0
            }
            None => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}

#[pinned_drop]
impl<T: FileOperations> PinnedDrop for CharDevice<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}
