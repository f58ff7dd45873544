// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Raw system calls, as the tests need them: any address and length, and no check that
//! the kernel should make.
//!
//! All `unsafe` code of the tests is below this module.

mod aio;
mod command;
mod file;
mod kexec;
mod memory;
mod pipe;
mod poll;
mod process;
mod provided;
mod registers;
mod result;
mod task;
mod trace;
mod uring;
mod userfault;

pub use aio::{AioContext, AioOperation};
pub(crate) use command::{
    CommandEntry, CommandRing, Completed, execute, execute_in_short_entry, execute_without_value,
    info, reset,
};
pub use command::{compat_ioctl, ioctl};
pub use file::{
    Vectored, add_seals, fdatasync, fsync, lseek, memfd, open, pread, preadv, preadv2, punch_hole,
    pwrite, pwritev, pwritev2, read, readv, seals, write, writev,
};
pub use kexec::{kexec, kexec_file_load};
pub use memory::{IoVec, PAGE, Region, map_error};
pub use pipe::{pipe_of, sendfile, splice_from_pipe, splice_to_pipe};
pub use poll::{Epoll, file_flags, poll, set_file_flags};
pub use process::{
    Child, become_user, eventfd, eventfd_wait, exit_now, fork, interval_timer, kill,
    set_empty_handler,
};
pub use provided::{Provided, Provision, Selected};
pub use registers::Registers;
pub use task::{
    CpuAffinity, SleepState, Task, count_signal, cpus, pin_to_cpu, signals_counted, use_sched_fifo,
};
pub use trace::{ReadImpliesExec, Traced, process_memory, process_vm_read};
pub use uring::{Buffers, Delay, Kind, Ring, UringOperation};
pub use userfault::UserFaults;
