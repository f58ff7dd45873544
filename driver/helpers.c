// SPDX-License-Identifier: GPL-2.0
/*
 * Wrappers of inline functions and macros that Rust cannot call, one line each.
 * Declared and used only in abstractions/.
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/uio.h>

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

void ringbar_dma_set_seg_boundary(struct device *dev, unsigned long mask);
void ringbar_dma_set_seg_boundary(struct device *dev, unsigned long mask)
{
	dma_set_seg_boundary(dev, mask);
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

void ringbar_get_page(struct page *page);
void ringbar_get_page(struct page *page)
{
	get_page(page);
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
