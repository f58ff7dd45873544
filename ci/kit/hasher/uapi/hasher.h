/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_HASHER_H
#define _UAPI_HASHER_H

/* The calls of /dev/hasherN. hasher.rs has the same in Rust, and tests/header.rs compares them. */
#include <linux/ioctl.h>
#include <linux/types.h>

struct hasher_info {
	__u64 max_bytes;	/* greatest length of a message */
};

struct hasher_sha256 {
	__u64 address;		/* of the message */
	__u64 length;		/* bytes */
	__u8 digest[32];	/* filled in */
};

#define HASHER_IOC_TYPE		0xd8
#define HASHER_IOC_INFO		_IOR(HASHER_IOC_TYPE, 0, struct hasher_info)
#define HASHER_IOC_SHA256	_IOWR(HASHER_IOC_TYPE, 1, struct hasher_sha256)

#endif
