// SPDX-License-Identifier: GPL-2.0

//! The C side of what the generated bindings lack: `helpers.c`, and functions of
//! headers that the bindings do not include.

use kernel::{
    bindings,
    ffi::{
        c_char,
        c_int,
        c_uint,
        c_ulong,
        c_void, //
    }, //
};

/// `struct io_tw_req` of `include/linux/io_uring_types.h`.
#[repr(C)]
pub(super) struct IoTwReq {
    request: *mut c_void,
}

/// `struct io_tw_state` of `include/linux/io_uring_types.h`.
#[repr(C)]
pub(super) struct IoTwState {
    cancel: bool,
}

#[allow(
    improper_ctypes,
    reason = "empty debugging structs within the kernel's own types"
)]
extern "C" {
    pub(super) fn ringbar_iov_iter_extract_will_pin(iter: *const bindings::iov_iter) -> bool;
    pub(super) fn ringbar_page_to_phys(page: *mut bindings::page) -> bindings::phys_addr_t;
    pub(super) fn ringbar_page_folio_dirty(page: *mut bindings::page) -> bool;
    pub(super) fn ringbar_pages_to_folio_end(page: *mut bindings::page) -> c_ulong;
    pub(super) fn ringbar_dma_set_seg_boundary(dev: *mut bindings::device, mask: c_ulong);
    pub(super) fn ringbar_iocb_is_dsync(iocb: *const bindings::kiocb) -> bool;
    pub(super) fn ringbar_io_remap_pfn_range(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        pfn: c_ulong,
        size: c_ulong,
        prot: bindings::pgprot_t,
    ) -> c_int;
    pub(super) fn ringbar_get_page(page: *mut bindings::page);
    pub(super) fn ringbar_page_address(page: *const bindings::page) -> *mut c_void;
    pub(super) fn ringbar_pgprot_noncached(prot: bindings::pgprot_t) -> bindings::pgprot_t;
    pub(super) fn ringbar_pgprot_writecombine(prot: bindings::pgprot_t) -> bindings::pgprot_t;

    pub(super) fn ringbar_preempt_disable();
    pub(super) fn ringbar_preempt_enable();
    pub(super) fn ringbar_need_resched() -> bool;
    pub(super) fn ringbar_ratelimit() -> bool;

    pub(super) fn ringbar_uring_cmd_file(cmd: *mut bindings::io_uring_cmd) -> *mut bindings::file;
    pub(super) fn ringbar_uring_cmd_op(cmd: *mut bindings::io_uring_cmd) -> u32;
    pub(super) fn ringbar_uring_cmd_payload(cmd: *mut bindings::io_uring_cmd) -> *const c_void;
    pub(super) fn ringbar_uring_cmd_pdu(cmd: *mut bindings::io_uring_cmd) -> *mut c_void;
    pub(super) fn ringbar_uring_cmd_from_tw(request: IoTwReq) -> *mut bindings::io_uring_cmd;
    pub(super) fn ringbar_uring_cmd_in_task(
        cmd: *mut bindings::io_uring_cmd,
        callback: unsafe extern "C" fn(IoTwReq, IoTwState),
    );
    pub(super) fn ringbar_uring_cmd_done(
        cmd: *mut bindings::io_uring_cmd,
        ret: c_int,
        res2: u64,
        issue_flags: c_uint,
        is_cqe32: bool,
    );

    /// `include/linux/shmem_fs.h`
    pub(super) fn shmem_file_setup(
        name: *const c_char,
        size: bindings::loff_t,
        flags: bindings::vma_flags_t,
    ) -> *mut bindings::file;
}
