// SPDX-License-Identifier: GPL-2.0

//! The C functions that the generated bindings lack: those of `helpers.c`, and those of headers
//! that the bindings do not include.

use kernel::{
    bindings,
    ffi::{
        c_int,
        c_uint,
        c_ulong,
        c_void, //
    }, //
};

// The C constants that the generated bindings lack: macros with a cast, and constants of headers
// that the bindings do not include. `helpers.c` asserts each value.

/// `FMODE_READ`: the file is open for reading.
pub(super) const FMODE_READ: bindings::fmode_t = 1 << 0;
/// `FMODE_WRITE`: the file is open for writing.
pub(super) const FMODE_WRITE: bindings::fmode_t = 1 << 1;
/// `FMODE_CAN_ODIRECT`: `O_DIRECT` is allowed.
pub(super) const FMODE_CAN_ODIRECT: bindings::fmode_t = 1 << 22;
/// `FMODE_NOWAIT`: the file supports `IOCB_NOWAIT`, so that io_uring submits inline and not from a
/// worker.
pub(super) const FMODE_NOWAIT: bindings::fmode_t = 1 << 27;

/// `IOCB_HIPRI`, which is also `RWF_HIPRI`.
pub(super) const IOCB_HIPRI: c_int = 0x1;
/// `IOCB_NOWAIT`, which is also `RWF_NOWAIT`.
pub(super) const IOCB_NOWAIT: c_int = 0x8;

/// `enum io_uring_cmd_flags`: must not block.
pub(super) const IO_URING_F_NONBLOCK: c_uint = 1 << 31;
/// Submission entries have 128 bytes.
pub(super) const IO_URING_F_SQE128: c_uint = 1 << 8;
/// Completion entries have 32 bytes.
pub(super) const IO_URING_F_CQE32: c_uint = 1 << 9;
/// The flags with which a command is completed in task work.
pub(super) const IO_URING_CMD_TASK_WORK_ISSUE_FLAGS: c_uint = 1;
/// Number of bytes of a command in a 128-byte submission entry, from `io_uring_sqe.cmd` on.
pub(super) const URING_PAYLOAD_BYTES: usize = 80;
/// Number of bytes for the driver in a command, `io_uring_cmd.pdu`.
pub(super) const URING_PDU_BYTES: usize = 32;

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
    pub(super) fn ringbar_folio_get(page: *mut bindings::page);
    pub(super) fn ringbar_folio_try_get(page: *mut bindings::page) -> bool;
    pub(super) fn ringbar_folio_put(page: *mut bindings::page);
    pub(super) fn ringbar_dma_set_seg_boundary(dev: *mut bindings::device, mask: c_ulong);
    pub(super) fn ringbar_dma_mapping_error(
        dev: *mut bindings::device,
        address: bindings::dma_addr_t,
    ) -> c_int;
    pub(super) fn ringbar_dma_sync_single_for_cpu(
        dev: *mut bindings::device,
        address: bindings::dma_addr_t,
        size: usize,
        direction: bindings::dma_data_direction,
    );
    pub(super) fn ringbar_dma_sync_single_for_device(
        dev: *mut bindings::device,
        address: bindings::dma_addr_t,
        size: usize,
        direction: bindings::dma_data_direction,
    );
    pub(super) fn ringbar_dma_sync_sg_for_cpu(
        dev: *mut bindings::device,
        list: *mut bindings::scatterlist,
        entries: c_int,
        direction: bindings::dma_data_direction,
    );
    pub(super) fn ringbar_dma_sync_sg_for_device(
        dev: *mut bindings::device,
        list: *mut bindings::scatterlist,
        entries: c_int,
        direction: bindings::dma_data_direction,
    );
    pub(super) fn ringbar_irq_set_affinity(irq: c_uint, mask: *const bindings::cpumask) -> c_int;
    pub(super) fn ringbar_device_lock(dev: *mut bindings::device);
    pub(super) fn ringbar_device_unlock(dev: *mut bindings::device);
    pub(super) fn ringbar_device_match_driver_override(
        dev: *mut bindings::device,
        drv: *const bindings::device_driver,
    ) -> c_int;
    pub(super) fn ringbar_iocb_is_dsync(iocb: *const bindings::kiocb) -> bool;
    pub(super) fn ringbar_io_remap_pfn_range(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        pfn: c_ulong,
        size: c_ulong,
        prot: bindings::pgprot_t,
    ) -> c_int;
    pub(super) fn ringbar_page_address(page: *const bindings::page) -> *mut c_void;
    pub(super) fn ringbar_pgprot_noncached(prot: bindings::pgprot_t) -> bindings::pgprot_t;
    pub(super) fn ringbar_pgprot_writecombine(prot: bindings::pgprot_t) -> bindings::pgprot_t;

    pub(super) fn ringbar_pinned_vm_add(mm: *mut bindings::mm_struct, pages: i64) -> i64;
    pub(super) fn ringbar_rlimit_memlock() -> c_ulong;

    pub(super) fn ringbar_preempt_disable();
    pub(super) fn ringbar_preempt_enable();
    pub(super) fn ringbar_need_resched() -> bool;
    pub(super) fn ringbar_killed() -> bool;
    pub(super) fn ringbar_list_del(entry: *mut bindings::list_head);
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

    /// `include/linux/pseudo_fs.h`
    pub(super) fn init_pseudo(fc: *mut bindings::fs_context, magic: c_ulong) -> *mut c_void;
}
