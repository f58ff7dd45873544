// SPDX-License-Identifier: GPL-2.0

//! The kernels for which the driver can be built. The compiler refuses others, so that they do not
//! fail at run time.

#[cfg(CONFIG_PREEMPT_RT)]
compile_error!(
    "ringbar does not support PREEMPT_RT: busy-polling takes spinlocks with preemption off \
     (abstractions/task/spin.rs), and there a spinlock sleeps"
);

#[cfg(not(CONFIG_64BIT))]
compile_error!(
    "ringbar needs a 64-bit kernel: the offsets of mmap carry a selector in their upper bits, and \
     device memory may be larger than 4 GiB"
);
