/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_GRABBER_H
#define _UAPI_GRABBER_H

/*
 * The calls of /dev/grabberN. grabber.rs has the same in Rust, and tests/header.rs compares them.
 * read() returns a struct grabber_frame; poll() waits for one, if the file was opened with
 * O_NONBLOCK.
 */
#include <linux/ioctl.h>
#include <linux/types.h>

struct grabber_info {
	__u32 frame_bytes;	/* number of bytes of a frame */
	__u32 dropped;		/* frames without a buffer since the start, modulo 2^32 */
};

struct grabber_buffers {
	__u64 address;		/* of the first buffer */
	__u32 bytes;		/* of each buffer, one behind the other */
	__u32 count;
};

struct grabber_frame {
	__u32 buffer;		/* number of the buffer, which is idle now */
	__u32 bytes;		/* number of bytes of the frame */
	__u64 sequence;		/* frames since the start before this one */
	__u64 dropped;		/* of these, frames without a buffer */
	__u32 checksum;		/* CRC-32C of the frame */
	__u32 reserved;
};

#define GRABBER_IOC_TYPE	0xd8
#define GRABBER_IOC_INFO	_IOR(GRABBER_IOC_TYPE, 0, struct grabber_info)
#define GRABBER_IOC_REGISTER	_IOW(GRABBER_IOC_TYPE, 1, struct grabber_buffers)
#define GRABBER_IOC_UNREGISTER	_IO(GRABBER_IOC_TYPE, 2)
#define GRABBER_IOC_POST	_IOW(GRABBER_IOC_TYPE, 3, __u32)

#endif
