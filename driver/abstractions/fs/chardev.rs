// SPDX-License-Identifier: GPL-2.0

//! Character devices with the file operations that asynchronous direct I/O
//! needs.
//!
//! [`kernel::miscdevice`] has no `llseek`, `fsync` or way to set the file's mode,
//! hands out names at compile time only, and its `read_iter` cannot say "queued".
//!
//! # Files that can be polled
//!
//! A file either completes reads of io_uring later, or can be polled; `O_NONBLOCK` at
//! `open` decides which.
//!
//! io_uring takes a file with `f_op->poll` for one whose reads never answer
//! `EIOCBQUEUED`: they move what is there, or say `EAGAIN` and are asked again once
//! `poll` tells. So with a ring of provided buffers (`IOSQE_BUFFER_SELECT`) it counts
//! the buffer as used only when the read has returned its bytes. After `EIOCBQUEUED`
//! it takes the buffer back, gives it to the next read as well, and names none in the
//! completion (`io_should_commit` in `io_uring/kbuf.c`, `io_read` in `io_uring/rw.c`).
//! For a file without `poll`, as a block device is, it counts the buffer as used when
//! the read begins.
//!
//! | opened | `poll`, `epoll` | reads of io_uring | polled I/O |
//! |---|---|---|---|
//! | without `O_NONBLOCK` | as for a block device: always ready, `EPERM` | complete later | yes |
//! | with `O_NONBLOCK` | [`FileOperations::readiness`] | end within the call | `EOPNOTSUPP` |
//!
//! `fcntl` may change `O_NONBLOCK` afterwards, but not what the file is: the flag then
//! only says whether calls wait for their turn. Writes, and Linux AIO, complete later on
//! both.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    iov::IovIter,
    kiocb::{
        IoReturn,
        Kiocb, //
    },
    plug,
    poll::{
        Pollers,
        Readiness, //
    }, //
};
use crate::abstractions::{
    helpers::{
        FMODE_CAN_ODIRECT,
        FMODE_NOWAIT,
        FMODE_READ,
        FMODE_WRITE, //
    },
    io_uring::command::{
        UringCommand, //
        UringReturn,
    },
    mm::{
        address_space::AddressSpace,
        caching::Caching,
        vma::{
            Installed,
            Kind,
            Mapped,
            NewMap,
            PageFault, //
        }, //
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
    page::PAGE_SHIFT,
    prelude::*,
    str::CString,
    sync::{
        poll::PollTable, //
        Arc,
        ArcBorrow,
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::UserPtr, //
};

/// What a file was opened for.
#[derive(Clone, Copy)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// An `ioctl` call.
pub(crate) struct Ioctl {
    /// What its file was opened for.
    pub(crate) access: Access,
    /// The number of the request.
    pub(crate) number: u32,
    /// The argument, where it is a pointer.
    pub(crate) argument: UserPtr,
    /// Whether the caller is a 32-bit program on a 64-bit kernel: its `long` has 4 bytes.
    pub(crate) compat: bool,
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
    fn read<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call>;

    /// Writes. May sleep unless [`Kiocb::nowait`].
    fn write<'call>(
        this: ArcBorrow<'_, Self>,
        kiocb: Kiocb<'call>,
        iter: &mut IovIter<'_>,
    ) -> IoReturn<'call>;

    /// Completes what there is of polled operations ([`Kiocb::is_polled`]). Returns
    /// whether there was any. May sleep, but should not.
    fn poll_completions(this: ArcBorrow<'_, Self>) -> Result<bool>;

    /// Those who wait until [`Self::readiness`] changes.
    fn pollers(&self) -> &Pollers;

    /// Whether a read or write would go through. Does not sleep.
    fn readiness(&self) -> Readiness;

    /// Executes an `ioctl`. Sleeps. `ENOTTY` where there is none of its number.
    fn ioctl(&self, call: Ioctl) -> Result;

    /// Executes a command of io_uring. May sleep unless
    /// [`UringCommand::nonblocking`]. `ENOTTY` where there is none of its number.
    fn uring_command<'call>(
        this: ArcBorrow<'_, Self>,
        access: Access,
        command: UringCommand<'call>,
    ) -> UringReturn<'call>;

    /// Makes all that was written durable. Sleeps.
    fn fsync(&self) -> Result;

    /// Maps the device. Sleeps.
    fn mmap<'a>(&self, map: NewMap<'a>) -> Result<Mapped<'a>>;

    /// Puts a page where a map that was [`NewMap::faulted`] is first touched. An error
    /// raises `SIGBUS`, `ENOMEM` kills for lack of memory. Sleeps.
    fn fault(&self, fault: PageFault<'_>) -> Result<Installed>;

    /// Reads what a map of coherent memory shows, from byte `offset` of the file on,
    /// for a debugger. Returns how much. Sleeps.
    fn peek(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
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
                        parent: crate::abstractions::pci::device::as_raw_device(parent),
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: All fields are set; from now on `open` may run, and finds `data`.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }

    /// Of files that were opened without `O_NONBLOCK`.
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
        unlocked_ioctl: Some(Self::ioctl),
        compat_ioctl: Some(Self::compat_ioctl),
        uring_cmd: Some(Self::uring_cmd),
        fsync: Some(Self::fsync),
        mmap: Some(Self::mmap),
        ..pin_init::zeroed()
    };

    /// Of files that were opened with `O_NONBLOCK`. See [`crate::abstractions::fs::chardev`] for why these can
    /// be polled and the others not.
    const POLLABLE_OPERATIONS: bindings::file_operations = bindings::file_operations {
        read_iter: Some(Self::read_iter_pollable),
        // io_uring takes no buffer that it was provided with for used where a polled operation on
        // a pollable file ends (`io_do_iopoll`).
        iopoll: None,
        poll: Some(Self::poll),
        ..Self::OPERATIONS
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
            if (*file).f_flags & bindings::O_NONBLOCK != 0 {
                // As `replace_fops`. Both belong to the same module, so the file's reference to
                // it stays right.
                (*file).f_op = &Self::POLLABLE_OPERATIONS;
            }
            (*file).private_data = data.into_foreign().cast();
        }
        // SAFETY: `file` is in `open`. The address space is borrowed from `data`, for whatever time
        // that is shared, and it is until `release`.
        unsafe { Self::data(file).address_space().adopt(file) };
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
        // SAFETY: By the requirement of this function.
        unsafe { Self::transfer(kiocb, iter, false, T::read) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn read_iter_pollable(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The VFS hands over a valid control block.
        let flags = unsafe { (*kiocb).ki_flags };
        // io_uring expects that a pollable file never queues a read. Linux AIO does not.
        let within_call = flags & bindings::IOCB_AIO_RW as c_int == 0;
        // SAFETY: By the requirement of this function.
        unsafe { Self::transfer(kiocb, iter, within_call, T::read) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the requirement of this function.
        unsafe { Self::transfer(kiocb, iter, false, T::write) }
    }

    /// # Safety
    ///
    /// `kiocb` and `iter` must be what the VFS has passed to `read_iter` or `write_iter` of a
    /// file that [`Self::open`] has opened, during that call.
    unsafe fn transfer(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
        within_call: bool,
        operation: for<'call> fn(
            ArcBorrow<'_, T>,
            Kiocb<'call>,
            &mut IovIter<'_>,
        ) -> IoReturn<'call>,
    ) -> isize {
        // SAFETY: The VFS passes pointers to both.
        let (kiocb, iter) =
            unsafe { (NonNull::new_unchecked(kiocb), NonNull::new_unchecked(iter)) };
        // SAFETY: The VFS hands over a valid control block.
        let file = unsafe { kiocb.as_ref() }.ki_filp;
        // SAFETY: The caller of `read_iter` and `write_iter` holds a reference to the file during
        // the call, even where the operation completes within it.
        let data = unsafe { Self::data(file) };
        // SAFETY: As above; an open file holds a reference to the data.
        let batched = unsafe { Self::prepare_batch(file, data) };
        // SAFETY: The VFS hands both over for this call. `operation` works for any lifetime, and
        // gets this one control block for the one of this call.
        let (kiocb, mut iter) = unsafe {
            (
                Kiocb::from_raw(kiocb, within_call, batched),
                IovIter::from_raw(iter),
            )
        };
        operation(data, kiocb, &mut iter).into_raw()
    }

    /// Returns whether there is a batch.
    ///
    /// # Safety
    ///
    /// `file` must be a file that [`Self::open`] has opened, with this data.
    unsafe fn prepare_batch(file: *mut bindings::file, data: ArcBorrow<'_, T>) -> bool {
        NonNull::new(file).is_some_and(|file| {
            // SAFETY: By the requirement. The file is one of this module, as its operations say.
            unsafe { plug::prepare(file, data) }
        })
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
        // SAFETY: By the requirement of this function.
        unsafe { Self::any_ioctl(file, number, UserPtr::from_addr(argument), false) }
    }

    /// # Safety
    ///
    /// To be called by the VFS, on a file that [`Self::open`] has opened.
    unsafe extern "C" fn compat_ioctl(
        file: *mut bindings::file,
        number: c_uint,
        argument: c_ulong,
    ) -> c_long {
        // CAST: As `compat_ptr`: a pointer of the caller's has 32 bits.
        let argument = UserPtr::from_addr(argument as u32 as usize);
        // SAFETY: By the requirement of this function.
        unsafe { Self::any_ioctl(file, number, argument, true) }
    }

    /// # Safety
    ///
    /// `file` must be a file that [`Self::open`] has opened, and be open during the call.
    unsafe fn any_ioctl(
        file: *mut bindings::file,
        number: u32,
        argument: UserPtr,
        compat: bool,
    ) -> c_long {
        // SAFETY: The file is open during the call.
        let (data, access) = unsafe { (Self::data(file), Self::access(file)) };
        let call = Ioctl {
            access,
            number,
            argument,
            compat,
        };
        match data.ioctl(call) {
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
        // SAFETY: io_uring passes a pointer to a command.
        let command = unsafe { NonNull::new_unchecked(command) };
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
        let (data, space, area) = unsafe {
            (
                Self::data(file),
                AddressSpace::of(file),
                VmaNew::from_raw(vma),
            )
        };
        from_result(|| {
            space.add(area.mm())?;
            match data.mmap(NewMap::new(area, space)) {
                Ok(mapped) => {
                    let operations = match NewMap::finish(area, &mapped) {
                        Kind::Device => &Self::DEVICE_MAP,
                        Kind::Coherent => &Self::COHERENT_MAP,
                        Kind::Faulted => &Self::FAULTED_MAP,
                    };
                    // SAFETY: The area is being set up.
                    unsafe { (*vma).vm_ops = operations };
                    Ok(0)
                }
                Err(error) => {
                    space.remove(area.mm(), None);
                    Err(error)
                }
            }
        })
    }

    /// Of maps whose pages are there from the start. A page that was taken away raises
    /// `SIGBUS`, because there is no fault handler.
    const MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::vma_open),
        close: Some(Self::vma_close),
        ..pin_init::zeroed()
    };

    /// Debuggers see device memory with the caching of the map, and may write where
    /// the map may, as with the kernel's own maps of BARs (`drivers/pci/mmap.c`).
    const DEVICE_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        #[cfg(CONFIG_HAVE_IOREMAP_PROT)]
        access: Some(bindings::generic_access_phys),
        ..Self::MAP
    };

    const COHERENT_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        access: Some(Self::vma_peek),
        ..Self::MAP
    };

    /// Debuggers have the pages put there and read them, as any other RAM.
    const FAULTED_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::vma_fault),
        ..Self::MAP
    };

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement the area is valid, and holds a reference to its file.
        let (space, vma) = unsafe { (AddressSpace::of((*vma).vm_file), VmaRef::from_raw(vma)) };
        space.copy(vma.mm(), Caching::of(vma));
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement the area is valid, and holds a reference to its file.
        let (space, vma) = unsafe { (AddressSpace::of((*vma).vm_file), VmaRef::from_raw(vma)) };
        space.remove(vma.mm(), Caching::of(vma));
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the requirement the fault is valid, and its area holds a reference to its file.
        let (data, fault) = unsafe {
            let file = (*(*fault).__bindgen_anon_1.vma).vm_file;
            (
                Self::data(file),
                PageFault::from_raw(fault, AddressSpace::of(file)),
            )
        };
        match data.fault(fault) {
            Ok(Installed { .. }) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            Err(error) if error == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`], with an
    /// address within it and a buffer of `len` bytes.
    unsafe extern "C" fn vma_peek(
        vma: *mut bindings::vm_area_struct,
        address: c_ulong,
        buffer: *mut c_void,
        len: c_int,
        write: c_int,
    ) -> c_int {
        // These maps are read-only, for debuggers too.
        let (0, Ok(len)) = (write, usize::try_from(len)) else {
            return EACCES.to_errno();
        };
        // SAFETY: By the requirement the area is valid and holds a reference to its file, and the
        // buffer is the caller's own.
        let (data, area, first_page, buffer) = unsafe {
            (
                Self::data((*vma).vm_file),
                VmaRef::from_raw(vma),
                (*vma).vm_pgoff,
                core::slice::from_raw_parts_mut(buffer.cast::<u8>(), len),
            )
        };
        let offset = ((first_page << PAGE_SHIFT) + (address - area.start())) as u64;
        let within = len.min(area.end() - address);
        from_result(|| {
            let read = data.peek(offset, &mut buffer[..within])?;
            // CAST: At most `len`.
            Ok(read.min(within) as c_int)
        })
    }
}

#[pinned_drop]
impl<T: FileOperations> PinnedDrop for CharDevice<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}
