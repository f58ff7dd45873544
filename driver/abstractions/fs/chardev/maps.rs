// SPDX-License-Identifier: GPL-2.0

//! Maps of a character device: the callbacks of the memory manager.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    open_file::file_data,
    operations::FileOperations, //
};
use crate::abstractions::mm::{
    address_space::AddressSpace,
    caching::Caching,
    vma::{
        Installed,
        Kind,
        NewMap,
        PageFault, //
    }, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::from_result,
    mm::virt::{
        VmaNew,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

/// The callbacks for maps of the files of a [`CharDevice`](super::CharDevice) of `T`.
pub(super) struct MapOperations<T>(PhantomData<T>);

impl<T: FileOperations> MapOperations<T> {
    /// # Safety
    ///
    /// To be called by the VFS, on an open file of a [`CharDevice`](super::CharDevice) of `T`.
    pub(super) unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The file is open during the call, the area is being set up.
        let (data, space, area) = unsafe {
            (
                file_data::<T>(file),
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

    /// For maps whose pages are all inserted by `mmap`. An access to a page that was zapped raises
    /// `SIGBUS`, because there is no fault handler.
    const MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        open: Some(Self::vma_open),
        close: Some(Self::vma_close),
        ..pin_init::zeroed()
    };

    /// Debuggers access device memory with the caching of the map, and may write if the map may be
    /// written, as with the kernel's own maps of BARs (`drivers/pci/mmap.c`).
    const DEVICE_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        #[cfg(CONFIG_HAVE_IOREMAP_PROT)]
        access: Some(bindings::generic_access_phys),
        ..Self::MAP
    };

    const COHERENT_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        access: if T::HAS_PEEK {
            Some(Self::vma_peek)
        } else {
            None
        },
        ..Self::MAP
    };

    /// Debuggers cause a fault for each page and read it, like any other RAM.
    const FAULTED_MAP: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: if T::HAS_FAULT {
            Some(Self::vma_fault)
        } else {
            None
        },
        ..Self::MAP
    };

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement the area is valid, and has a reference to its file.
        let (space, vma) = unsafe { (AddressSpace::of((*vma).vm_file), VmaRef::from_raw(vma)) };
        space.copy(vma.mm(), Caching::of(vma));
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: By the requirement the area is valid, and has a reference to its file.
        let (space, vma) = unsafe { (AddressSpace::of((*vma).vm_file), VmaRef::from_raw(vma)) };
        space.remove(vma.mm(), Caching::of(vma));
    }

    /// # Safety
    ///
    /// To be called by the memory manager, on a map made by [`Self::mmap`].
    unsafe extern "C" fn vma_fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the requirement the fault is valid, and its area has a reference to its file.
        let (data, fault) = unsafe {
            let file = (*(*fault).__bindgen_anon_1.vma).vm_file;
            (
                file_data::<T>(file),
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
        // These maps are read-only, also for debuggers.
        let (0, Ok(len)) = (write, usize::try_from(len)) else {
            return EACCES.to_errno();
        };
        // SAFETY: By the requirement the area is valid and has a reference to its file, and the
        // buffer belongs to the caller.
        let (data, area, first_page, buffer) = unsafe {
            (
                file_data::<T>((*vma).vm_file),
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
