// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Calls that every thread needs, whatever its task.
//!
//! The lists hold what Rust's standard library, the C library and the allocator need on any
//! supported kernel, and not only what they need on one machine. Sources: the sources of glibc
//! 2.36 to 2.41 (`nptl`, `malloc`, `sysdeps/unix/sysv/linux`) and of Rust's `library/std`.

use libc::{
    AT_FDCWD, CLONE_FILES, CLONE_FS, CLONE_SIGHAND, CLONE_THREAD, CLONE_VM, F_DUPFD_CLOEXEC,
    F_GETFD, F_GETFL, F_SETFD, O_ACCMODE, O_CREAT, O_RDONLY, O_TMPFILE, O_TRUNC, PR_GET_NAME,
    PR_SET_NAME, PR_SET_NO_NEW_PRIVS, PROT_EXEC, SECCOMP_SET_MODE_FILTER, TCGETS,
};
use syscalls::Sysno;

use crate::call::Call;

/// All bits of an argument of the C type `int`.
const INT: u64 = u32::MAX as u64;

/// All bits of a pointer.
const POINTER: u64 = u64::MAX;

/// `PR_SET_VMA` (prctl(2)): glibc and std name anonymous memory by it.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// The flags of open(2) by which a file is written or created.
const OPEN_WRITES: u64 = (O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE) as u64
    // `O_TMPFILE` includes this one, which alone only says that it is a directory.
    & !(libc::O_DIRECTORY as u64);

/// Flags of clone(2) that make a thread of this process and not a process.
const THREAD_FLAGS: u64 = (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD) as u64;

/// Calls of the run time, for each kind of thread.
///
/// Memory is never executable. Files are opened for reading only, which the list of files
/// ([`crate::Files`]) restricts further: a panic opens the executable to name the functions of a
/// back trace.
pub const RUNTIME: &[&[Call]] = &[
    // Memory: the allocator, stacks of threads, maps.
    &Call::all([
        Sysno::brk,
        Sysno::madvise,
        Sysno::mremap,
        Sysno::munmap,
        Sysno::membarrier,
    ]),
    &[
        Call::any(Sysno::mmap).when(2, PROT_EXEC as u64, 0),
        Call::any(Sysno::mprotect).when(2, PROT_EXEC as u64, 0),
    ],
    // Locks, time, random keys of hash maps.
    &Call::all([
        Sysno::futex,
        Sysno::sched_yield,
        Sysno::sched_getaffinity,
        Sysno::getcpu,
        Sysno::nanosleep,
        Sysno::clock_nanosleep,
        // Where the vDSO cannot read the clock.
        Sysno::clock_gettime,
        Sysno::clock_getres,
        Sysno::gettimeofday,
        Sysno::getrandom,
    ]),
    // Signals, and the end of a thread or the process. `tgkill` is limited in `Sandbox::new`,
    // which knows the process.
    &Call::all([
        Sysno::rt_sigaction,
        Sysno::rt_sigprocmask,
        Sysno::rt_sigreturn,
        Sysno::sigaltstack,
        Sysno::restart_syscall,
        Sysno::getpid,
        Sysno::gettid,
        Sysno::exit,
        Sysno::exit_group,
    ]),
    // The start of a thread.
    &Call::all([Sysno::set_robust_list, Sysno::rseq]),
    &[
        Call::any(Sysno::prctl).when(0, INT, PR_SET_NAME as u64),
        Call::any(Sysno::prctl).when(0, INT, PR_GET_NAME as u64),
        Call::any(Sysno::prctl).when(0, INT, PR_SET_VMA),
        // Limits are read, not set.
        Call::any(Sysno::prlimit64).when(2, POINTER, 0),
    ],
    // Open descriptors. `poll` waits in the handler of forbidden calls.
    &Call::all([
        Sysno::read,
        Sysno::write,
        Sysno::writev,
        Sysno::close,
        Sysno::lseek,
        #[cfg(target_arch = "x86_64")]
        Sysno::poll,
        Sysno::ppoll,
    ]),
    &[
        // At the current position: the handler of forbidden calls, which must not wait.
        Call::any(Sysno::pwritev2).when(3, POINTER, u64::MAX),
        Call::any(Sysno::fcntl).when(1, INT, F_GETFD as u64),
        Call::any(Sysno::fcntl).when(1, INT, F_SETFD as u64),
        Call::any(Sysno::fcntl).when(1, INT, F_GETFL as u64),
        Call::any(Sysno::fcntl).when(1, INT, F_DUPFD_CLOEXEC as u64),
        Call::any(Sysno::ioctl).when(1, INT, TCGETS),
    ],
    // A back trace: the executable and the current directory.
    &Call::all([
        Sysno::fstat,
        Sysno::statx,
        #[cfg(target_arch = "x86_64")]
        Sysno::newfstatat,
        #[cfg(target_arch = "aarch64")]
        Sysno::fstatat,
        Sysno::getcwd,
        #[cfg(target_arch = "x86_64")]
        Sysno::readlink,
        Sysno::readlinkat,
    ]),
    &[Call::any(Sysno::openat)
        .when(0, INT, AT_FDCWD as u32 as u64)
        .when(2, OPEN_WRITES, O_RDONLY as u64)],
];

/// Calls of a thread that starts threads and has them restricted. A thread begins with the rules
/// of the thread that starts it, so that one also has all calls of the other.
pub const SPAWN: &[Call] = &[
    Call::any(Sysno::clone).when(0, THREAD_FLAGS, THREAD_FLAGS),
    // Its flags are in memory, which no filter can read. See `CLONES`.
    Call::any(Sysno::clone3),
    Call::any(Sysno::seccomp).when(0, INT, SECCOMP_SET_MODE_FILTER as u64),
    Call::any(Sysno::prctl).when(0, INT, PR_SET_NO_NEW_PRIVS as u64),
];

/// Calls that start threads and processes. Where they are forbidden, they fail instead of sending a
/// signal: the C library blocks all signals before it makes them, and the kernel ends a process
/// that blocks SIGSYS at once, without a line. Whoever starts a thread expects that it may fail.
///
/// - `clone3` fails with ENOSYS in all threads, as on a kernel before 5.3. The C library then uses
///   `clone`.
/// - `clone` fails with EPERM where it would start a process, and in kinds without [`SPAWN`].
pub(crate) const CLONES: &[Call] = &Call::all([Sysno::clone, Sysno::clone3]);

/// The calls of `clone` that start no thread of this process.
pub(crate) fn process_clones() -> impl Iterator<Item = Call> {
    let flags = (0..u64::BITS).map(|bit| THREAD_FLAGS & 1 << bit);
    let flags = flags.filter(|flag| *flag != 0);
    // One that is missing is enough.
    flags.map(|flag| Call::any(Sysno::clone).when(0, flag, 0))
}
