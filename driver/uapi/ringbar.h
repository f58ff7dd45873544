/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef _UAPI_RINGBAR_H
#define _UAPI_RINGBAR_H

/*
 * What user space relies on. Explained in src/ringbar.rs.
 */
#include <linux/ioctl.h>
#include <linux/types.h>

/* mmap offset: (selector << RINGBAR_MAP_SHIFT) | offset within */
#define RINGBAR_MAP_SHIFT		56
#define RINGBAR_MAP_MEMORY		0ULL
#define RINGBAR_MAP_MEMORY_UNCACHED	1ULL
#define RINGBAR_MAP_MEMORY_CACHED	2ULL
#define RINGBAR_MAP_STATISTICS		3ULL
#define RINGBAR_MAP_EVENTS		4ULL
#define RINGBAR_MAP_USED_RINGS		5ULL
#define RINGBAR_USED_RING_STRIDE	(1ULL << 20)

/* Places in the page of RINGBAR_MAP_STATISTICS, in __u64 */
#define RINGBAR_COUNTER_REQUESTS	0
#define RINGBAR_COUNTER_DOORBELLS	1
#define RINGBAR_COUNTER_INTERRUPTS	2
#define RINGBAR_COUNTER_SEGMENTS	3

/* The log of RINGBAR_MAP_EVENTS */
#define RINGBAR_EVENT_LOG_PAGES		4
#define RINGBAR_EVENT_RECORD_WORDS	4
#define RINGBAR_EVENT_STARTED		1ULL
#define RINGBAR_EVENT_CAPACITY		2ULL
#define RINGBAR_EVENT_QUEUE_BROKEN	3ULL
#define RINGBAR_EVENT_STOPPED		4ULL
#define RINGBAR_EVENT_SUSPENDED		5ULL
#define RINGBAR_EVENT_RESET		6ULL
#define RINGBAR_RESET_BY_TIMEOUT	0ULL
#define RINGBAR_RESET_BY_ADMINISTRATOR	1ULL

/* Opcodes of commands, and bits of the capabilities */
#define RINGBAR_OP_FLUSH		3
#define RINGBAR_OP_DISCARD		4
#define RINGBAR_OP_WRITE_ZEROES		5
#define RINGBAR_OP_COPY			6
#define RINGBAR_OP_FILL			7
#define RINGBAR_OP_COMPARE		8
#define RINGBAR_OP_CRC32C		9

#define RINGBAR_COMMAND_DURABLE		1

#define RINGBAR_CAP_MMAP		(1ULL << 32)
#define RINGBAR_CAP_IOPOLL		(1ULL << 33)

#define RINGBAR_STATE_IN_SERVICE	0
#define RINGBAR_STATE_OUT_OF_SERVICE	1

struct ringbar_info {
	__u64 capabilities;
	__u64 capacity;
	__u64 aperture;
	__u64 max_request;
	__u64 max_command;
	__u32 io_queues;
	__u32 max_segments;
	__u32 state;
	__u32 reserved[3];
};

struct ringbar_command {
	__u32 opcode;
	__u32 flags;
	__u64 offset;
	__u64 length;
	__u64 argument;
	__u64 result;
};

#define RINGBAR_IOC_TYPE		0xd7
#define RINGBAR_IOC_INFO		_IOR(RINGBAR_IOC_TYPE, 0, struct ringbar_info)
#define RINGBAR_IOC_COMMAND		_IOWR(RINGBAR_IOC_TYPE, 1, struct ringbar_command)
#define RINGBAR_IOC_RESET		_IO(RINGBAR_IOC_TYPE, 2)

#endif /* _UAPI_RINGBAR_H */
