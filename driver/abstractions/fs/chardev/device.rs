// SPDX-License-Identifier: GPL-2.0

//! Registration of a character device, and its files.

use super::{
    maps::MapOperations,
    open_file::{
        file_access,
        file_data, //
    },
    operations::{
        FileOperations,
        Ioctl, //
    }, //
};
use crate::abstractions::{
    fs::{
        iov::IovIter,
        kiocb::{
            IoReturn,
            Kiocb, //
        },
        plug, //
    },
    helpers::{
        FMODE_CAN_ODIRECT,
        FMODE_NOWAIT, //
    },
    io_uring::command::UringCommand, //
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
    module::this_module,
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

/// A registered character device, `/dev/<name>`. Dropping it unregisters the device: then it cannot
/// be opened any more, but open files stay usable.
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

// SAFETY: Any thread may unregister a misc device.
unsafe impl<T: FileOperations> Send for CharDevice<T> {}
// SAFETY: No field is written after registration.
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
                // SAFETY: `name` is initialised; its buffer does not move.
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

    /// Operations of files that were opened without `O_NONBLOCK`.
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: this_module::<T::OwnerModule>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        llseek: if T::HAS_SIZE {
            Some(Self::llseek)
        } else {
            None
        },
        read_iter: if T::HAS_READ {
            Some(Self::read_iter)
        } else {
            None
        },
        write_iter: if T::HAS_WRITE {
            Some(Self::write_iter)
        } else {
            None
        },
        splice_read: if T::HAS_READ {
            Some(bindings::copy_splice_read)
        } else {
            None
        },
        splice_write: if T::HAS_WRITE {
            Some(bindings::iter_file_splice_write)
        } else {
            None
        },
        iopoll: if T::HAS_POLL_COMPLETIONS {
            Some(Self::iopoll)
        } else {
            None
        },
        unlocked_ioctl: if T::HAS_IOCTL {
            Some(Self::ioctl)
        } else {
            None
        },
        compat_ioctl: if T::HAS_IOCTL {
            Some(Self::compat_ioctl)
        } else {
            None
        },
        uring_cmd: if T::HAS_URING_COMMAND {
            Some(Self::uring_cmd)
        } else {
            None
        },
        fsync: if T::HAS_FSYNC {
            Some(Self::fsync)
        } else {
            None
        },
        mmap: if T::HAS_MMAP {
            Some(MapOperations::<T>::mmap)
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    /// Operations of files that were opened with `O_NONBLOCK`. [`crate::abstractions::fs::chardev`]
    /// explains why these files can be polled and the others cannot.
    const POLLABLE_OPERATIONS: bindings::file_operations = bindings::file_operations {
        read_iter: if T::HAS_READ {
            Some(Self::read_iter_pollable)
        } else {
            None
        },
        // If a polled operation on a pollable file completes, io_uring does not count its provided
        // buffer as used (`io_do_iopoll`).
        iopoll: None,
        poll: if T::HAS_READINESS {
            Some(Self::poll)
        } else {
            None
        },
        ..Self::OPERATIONS
    };

    /// # Safety
    ///
    /// To be called by `misc_open`, for a device that was registered as a [`CharDevice<T>`].
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `misc_open` stores the misc device there, and holds `misc_mtx`, which
        // `misc_deregister` takes: the device is registered during this call.
        let misc = Opaque::cast_from(unsafe { (*file).private_data }.cast());
        // SAFETY: By the type invariant it is a field of `Self`.
        let this = unsafe { &*kernel::container_of!(misc, Self, misc) };
        let data = this.data.clone();
        if T::HAS_OPEN {
            // SAFETY: `file` is in `open`, so its mode is set.
            if let Err(error) = data.open(unsafe { file_access(file) }) {
                return error.to_errno();
            }
        }
        // SAFETY: `file` is valid, and in `open` nobody else uses it.
        unsafe {
            (*file).f_mode |= FMODE_NOWAIT | FMODE_CAN_ODIRECT;
            if T::HAS_READINESS && (*file).f_flags & bindings::O_NONBLOCK != 0 {
                // Like `replace_fops`. Both operations belong to the same module, so the file's
                // reference to the module stays right.
                (*file).f_op = &Self::POLLABLE_OPERATIONS;
            }
            (*file).private_data = data.into_foreign().cast();
        }
        // SAFETY: `file` is in `open`. The address space is borrowed from `data` for any time
        // during which `data` is shared, and the file shares it until `release`.
        unsafe { file_data::<T>(file).address_space().adopt(file) };
        0
    }

    /// # Safety
    ///
    /// To be called by the VFS, as the last operation on a file that [`Self::open`] has opened.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: Set in `open`; `release` is the last call on the file.
        let data = unsafe { <Arc<T>>::from_foreign((*file).private_data.cast()) };
        if T::HAS_RELEASE {
            data.release();
        }
        0
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
        let data = unsafe { file_data::<T>(file) };
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
        // SAFETY: The VFS passes a valid control block.
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
    /// `kiocb` and `iter` must be the arguments of `read_iter` or `write_iter`, which the VFS has
    /// called for a file that [`Self::open`] has opened, during that call.
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
        // SAFETY: The VFS passes a valid control block.
        let file = unsafe { kiocb.as_ref() }.ki_filp;
        // SAFETY: The caller of `read_iter` and `write_iter` has a reference to the file during the
        // call, even if the operation completes within it.
        let data = unsafe { file_data::<T>(file) };
        // SAFETY: As above; an open file has a reference to the data.
        let batched = unsafe { Self::prepare_batch(file, data) };
        // SAFETY: The VFS passes both for this call. `operation` works for any lifetime, and gets
        // this one control block for the lifetime of this call.
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
        // SAFETY: For io_uring the operation is not complete yet, so io_uring has a reference to
        // its file.
        let data = unsafe { file_data::<T>((*kiocb).ki_filp) };
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
                file_data::<T>(file),
                File::from_raw_file(file),
                PollTable::from_raw(table),
            )
        };
        // Before the check of readiness, so that no change is missed.
        table.register_wait(file, data.pollers().condvar());
        data.readiness().events()
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
        // CAST: As `compat_ptr`: a pointer of the caller has 32 bits.
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
        let (data, access) = unsafe { (file_data::<T>(file), file_access(file)) };
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
        // SAFETY: io_uring passes the command for this call, and has a reference to its file during
        // it. An open file has a reference to the data.
        let (command, data, access) = unsafe {
            let command = UringCommand::from_raw(command, issue_flags);
            let file = command.file();
            let data = file_data::<T>(file);
            Self::prepare_batch(file, data);
            (command, data, file_access(file))
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
        let data = unsafe { file_data::<T>(file) };
        from_result(|| data.fsync().map(|()| 0))
    }
}

#[pinned_drop]
impl<T: FileOperations> PinnedDrop for CharDevice<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}
