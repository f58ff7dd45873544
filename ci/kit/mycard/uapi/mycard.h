/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_MYCARD_H
#define _UAPI_MYCARD_H

/* The calls of /dev/mycardN. mycard.rs has the same in Rust, and tests/header.rs compares them. */
#include <linux/ioctl.h>
#include <linux/types.h>

#define MYCARD_OP_CRC32C	1
#define MYCARD_OP_XOR		2

struct mycard_info {
	__u32 max_bytes;	/* greatest length of a run */
	__u32 reserved;
};

struct mycard_run {
	__u32 opcode;
	__u32 reserved;		/* 0 */
	__u64 source;		/* address */
	__u64 destination;	/* address, as long as the source; 0 for CRC32C */
	__u64 length;		/* bytes */
	__u64 key;		/* XOR: 8 bytes, repeated; otherwise 0 */
	__u64 result;		/* CRC32C: the sum; XOR: the number of bytes */
};

#define MYCARD_IOC_TYPE		0xd8
#define MYCARD_IOC_INFO		_IOR(MYCARD_IOC_TYPE, 0, struct mycard_info)
#define MYCARD_IOC_RUN		_IOWR(MYCARD_IOC_TYPE, 1, struct mycard_run)

#endif
