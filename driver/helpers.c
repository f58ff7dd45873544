// SPDX-License-Identifier: GPL-2.0
/*
 * Wrappers of inline functions and macros that Rust cannot call, one line each.
 * Declared and used only in abstractions/.
 */
#include <linux/device.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/io_uring/cmd.h>
#include <linux/mm.h>
#include <linux/ratelimit.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

/* The constants of helpers.rs, and of file/block.rs. */
static_assert((__force u32)FMODE_READ == 1 << 0);
static_assert((__force u32)FMODE_WRITE == 1 << 1);
static_assert((__force u32)FMODE_CAN_ODIRECT == 1 << 22);
static_assert((__force u32)FMODE_NOWAIT == 1 << 27);
static_assert(IOCB_HIPRI == 0x1);
static_assert(IOCB_NOWAIT == 0x8);
static_assert((u32)IO_URING_F_NONBLOCK == 1U << 31);
static_assert(IO_URING_F_SQE128 == 1 << 8);
static_assert(IO_URING_F_CQE32 == 1 << 9);
static_assert(IO_URING_CMD_TASK_WORK_ISSUE_FLAGS == 1);
static_assert(2 * sizeof(struct io_uring_sqe) - offsetof(struct io_uring_sqe, cmd) == 80);
static_assert(sizeof_field(struct io_uring_cmd, pdu) == 32);
static_assert(offsetof(struct io_uring_cmd, pdu) % 8 == 0);
static_assert(BLKROGET == _IO(0x12, 94) && BLKGETSIZE == _IO(0x12, 96));
static_assert(BLKFLSBUF == _IO(0x12, 97) && BLKRAGET == _IO(0x12, 99));
static_assert(BLKSSZGET == _IO(0x12, 104) && BLKBSZGET == _IOR(0x12, 112, size_t));
static_assert(BLKGETSIZE64 == _IOR(0x12, 114, size_t) && BLKDISCARD == _IO(0x12, 119));
static_assert(BLKIOMIN == _IO(0x12, 120) && BLKIOOPT == _IO(0x12, 121));
static_assert(BLKALIGNOFF == _IO(0x12, 122) && BLKPBSZGET == _IO(0x12, 123));
static_assert(BLKROTATIONAL == _IO(0x12, 126) && BLKZEROOUT == _IO(0x12, 127));
static_assert(sizeof(struct io_tw_req) == sizeof(void *));
static_assert(sizeof(struct io_tw_state) == sizeof(bool));

bool ringbar_iov_iter_extract_will_pin(const struct iov_iter *iter);
bool ringbar_iov_iter_extract_will_pin(const struct iov_iter *iter)
{
	return iov_iter_extract_will_pin(iter);
}

phys_addr_t ringbar_page_to_phys(struct page *page);
phys_addr_t ringbar_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

bool ringbar_page_folio_dirty(struct page *page);
bool ringbar_page_folio_dirty(struct page *page)
{
	return folio_test_dirty(page_folio(page));
}

unsigned long ringbar_pages_to_folio_end(struct page *page);
unsigned long ringbar_pages_to_folio_end(struct page *page)
{
	return folio_nr_pages(page_folio(page)) - folio_page_idx(page_folio(page), page);
}

void ringbar_folio_get(struct page *page);
void ringbar_folio_get(struct page *page)
{
	folio_get(page_folio(page));
}

bool ringbar_folio_try_get(struct page *page);
bool ringbar_folio_try_get(struct page *page)
{
	return folio_try_get(page_folio(page));
}

void ringbar_folio_put(struct page *page);
void ringbar_folio_put(struct page *page)
{
	folio_put(page_folio(page));
}

void ringbar_dma_set_seg_boundary(struct device *dev, unsigned long mask);
void ringbar_dma_set_seg_boundary(struct device *dev, unsigned long mask)
{
	dma_set_seg_boundary(dev, mask);
}

int ringbar_dma_mapping_error(struct device *dev, dma_addr_t address);
int ringbar_dma_mapping_error(struct device *dev, dma_addr_t address)
{
	return dma_mapping_error(dev, address);
}

void ringbar_dma_sync_single_for_cpu(struct device *dev, dma_addr_t address, size_t size,
				     enum dma_data_direction direction);
void ringbar_dma_sync_single_for_cpu(struct device *dev, dma_addr_t address, size_t size,
				     enum dma_data_direction direction)
{
	dma_sync_single_for_cpu(dev, address, size, direction);
}

void ringbar_dma_sync_single_for_device(struct device *dev, dma_addr_t address, size_t size,
					enum dma_data_direction direction);
void ringbar_dma_sync_single_for_device(struct device *dev, dma_addr_t address, size_t size,
					enum dma_data_direction direction)
{
	dma_sync_single_for_device(dev, address, size, direction);
}

void ringbar_dma_sync_sg_for_cpu(struct device *dev, struct scatterlist *list, int entries,
				 enum dma_data_direction direction);
void ringbar_dma_sync_sg_for_cpu(struct device *dev, struct scatterlist *list, int entries,
				 enum dma_data_direction direction)
{
	dma_sync_sg_for_cpu(dev, list, entries, direction);
}

void ringbar_dma_sync_sg_for_device(struct device *dev, struct scatterlist *list, int entries,
				    enum dma_data_direction direction);
void ringbar_dma_sync_sg_for_device(struct device *dev, struct scatterlist *list, int entries,
				    enum dma_data_direction direction)
{
	dma_sync_sg_for_device(dev, list, entries, direction);
}

int ringbar_irq_set_affinity(unsigned int irq, const struct cpumask *mask);
int ringbar_irq_set_affinity(unsigned int irq, const struct cpumask *mask)
{
	return irq_set_affinity(irq, mask);
}

void ringbar_device_lock(struct device *dev);
void ringbar_device_lock(struct device *dev)
{
	device_lock(dev);
}

void ringbar_device_unlock(struct device *dev);
void ringbar_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

int ringbar_device_match_driver_override(struct device *dev, const struct device_driver *drv);
int ringbar_device_match_driver_override(struct device *dev, const struct device_driver *drv)
{
	return device_match_driver_override(dev, drv);
}

bool ringbar_iocb_is_dsync(const struct kiocb *iocb);
bool ringbar_iocb_is_dsync(const struct kiocb *iocb)
{
	return iocb_is_dsync(iocb);
}

int ringbar_io_remap_pfn_range(struct vm_area_struct *vma, unsigned long addr,
			       unsigned long pfn, unsigned long size, pgprot_t prot);
int ringbar_io_remap_pfn_range(struct vm_area_struct *vma, unsigned long addr,
			       unsigned long pfn, unsigned long size, pgprot_t prot)
{
	return io_remap_pfn_range(vma, addr, pfn, size, prot);
}

void *ringbar_page_address(const struct page *page);
void *ringbar_page_address(const struct page *page)
{
	return page_address(page);
}

pgprot_t ringbar_pgprot_noncached(pgprot_t prot);
pgprot_t ringbar_pgprot_noncached(pgprot_t prot)
{
	return pgprot_noncached(prot);
}

pgprot_t ringbar_pgprot_writecombine(pgprot_t prot);
pgprot_t ringbar_pgprot_writecombine(pgprot_t prot)
{
	return pgprot_writecombine(prot);
}

struct file *ringbar_uring_cmd_file(struct io_uring_cmd *cmd);
struct file *ringbar_uring_cmd_file(struct io_uring_cmd *cmd)
{
	return cmd->file;
}

bool ringbar_killed(void);
bool ringbar_killed(void)
{
	return fatal_signal_pending(current);
}

void ringbar_list_del(struct list_head *entry);
void ringbar_list_del(struct list_head *entry)
{
	list_del(entry);
}

s64 ringbar_pinned_vm_add(struct mm_struct *mm, s64 pages);
s64 ringbar_pinned_vm_add(struct mm_struct *mm, s64 pages)
{
	return atomic64_add_return(pages, &mm->pinned_vm);
}

unsigned long ringbar_rlimit_memlock(void);
unsigned long ringbar_rlimit_memlock(void)
{
	return rlimit(RLIMIT_MEMLOCK);
}

void ringbar_preempt_disable(void);
void ringbar_preempt_disable(void)
{
	preempt_disable();
}

void ringbar_preempt_enable(void);
void ringbar_preempt_enable(void)
{
	preempt_enable();
}

bool ringbar_need_resched(void);
bool ringbar_need_resched(void)
{
	return need_resched() || tif_test_bit(TIF_NEED_RESCHED_LAZY);
}

bool ringbar_ratelimit(void);
bool ringbar_ratelimit(void)
{
	static DEFINE_RATELIMIT_STATE(limit, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&limit);
}

u32 ringbar_uring_cmd_op(struct io_uring_cmd *cmd);
u32 ringbar_uring_cmd_op(struct io_uring_cmd *cmd)
{
	return cmd->cmd_op;
}

const void *ringbar_uring_cmd_payload(struct io_uring_cmd *cmd);
const void *ringbar_uring_cmd_payload(struct io_uring_cmd *cmd)
{
	return cmd->sqe->cmd;
}

void *ringbar_uring_cmd_pdu(struct io_uring_cmd *cmd);
void *ringbar_uring_cmd_pdu(struct io_uring_cmd *cmd)
{
	return cmd->pdu;
}

struct io_uring_cmd *ringbar_uring_cmd_from_tw(struct io_tw_req tw_req);
struct io_uring_cmd *ringbar_uring_cmd_from_tw(struct io_tw_req tw_req)
{
	return io_uring_cmd_from_tw(tw_req);
}

void ringbar_uring_cmd_in_task(struct io_uring_cmd *cmd, io_req_tw_func_t callback);
void ringbar_uring_cmd_in_task(struct io_uring_cmd *cmd, io_req_tw_func_t callback)
{
	io_uring_cmd_complete_in_task(cmd, callback);
}

void ringbar_uring_cmd_done(struct io_uring_cmd *cmd, s32 ret, u64 res2, unsigned int issue_flags,
			    bool is_cqe32);
void ringbar_uring_cmd_done(struct io_uring_cmd *cmd, s32 ret, u64 res2, unsigned int issue_flags,
			    bool is_cqe32)
{
	__io_uring_cmd_done(cmd, ret, res2, issue_flags, is_cqe32);
}
