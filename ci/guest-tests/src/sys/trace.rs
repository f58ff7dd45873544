// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Access to another process's memory, as debuggers use it.

use std::fs::File;
use std::io;
use std::ptr;

use super::process::Child;
use super::result::check;

/// A traced and stopped child, resumed when dropped.
#[derive(Debug)]
pub struct Traced<'a>(&'a Child);

impl<'a> Traced<'a> {
    /// Attaches to a child and stops it (`PTRACE_ATTACH`).
    pub fn attach(child: &'a Child) -> io::Result<Self> {
        ptrace(libc::PTRACE_ATTACH, child, 0, 0)?;
        let traced = Self(child);
        let mut status = 0;
        // SAFETY: the kernel writes one word.
        let result = unsafe { libc::waitpid(child.id(), &raw mut status, libc::__WALL) };
        check(result as isize)?;
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other("the child has ended"));
        }
        Ok(traced)
    }

    /// Reads a word of its memory (`PTRACE_PEEKDATA`).
    pub fn peek(&self, address: usize) -> io::Result<u64> {
        let mut word = 0u64;
        let to = (&raw mut word).addr();
        // The system call itself, unlike the C library, stores the word.
        let number = libc::PTRACE_PEEKDATA;
        // SAFETY: the kernel writes one word of eight bytes to `word`.
        let result = unsafe { libc::syscall(libc::SYS_ptrace, number, self.0.id(), address, to) };
        check(result as isize)?;
        // SAFETY: initialised, and written by the kernel since.
        Ok(unsafe { ptr::read_volatile(&raw const word) })
    }

    /// Writes a word of its memory (`PTRACE_POKEDATA`).
    pub fn poke(&self, address: usize, word: u64) -> io::Result<()> {
        ptrace(libc::PTRACE_POKEDATA, self.0, address, word as usize)
    }
}

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        // A child that has ended is not traced any more.
        let _ = ptrace(libc::PTRACE_DETACH, self.0, 0, 0);
    }
}

/// A request that writes to no memory of this process.
fn ptrace(request: libc::c_uint, child: &Child, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: only the memory of the child is written, which is for it to bear.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, child.id(), address, data) };
    check(result as isize).map(drop)
}

/// The memory of a process as a file (`/proc/PID/mem`).
pub fn process_memory(child: &Child) -> io::Result<File> {
    let path = format!("/proc/{}/mem", child.id());
    File::options().read(true).write(true).open(path)
}

/// Reads from another process's memory (`process_vm_readv`).
pub fn process_vm_read(child: &Child, address: usize, to: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: to.len(),
    };
    // SAFETY: the kernel writes at most `to`, which nobody else refers to.
    check(unsafe {
        libc::process_vm_readv(child.id(), &raw const local, 1, &raw const remote, 1, 0)
    })
}

/// `READ_IMPLIES_EXEC` of the calling thread, until dropped.
#[derive(Debug)]
pub struct ReadImpliesExec {
    before: libc::c_ulong,
}

impl ReadImpliesExec {
    /// Makes later readable maps executable as well.
    pub fn new() -> io::Result<Self> {
        /// Only reads the personality (`personality(2)`).
        const ASK: libc::c_ulong = 0xffff_ffff;
        // SAFETY: the call touches no memory.
        let before = check(unsafe { libc::personality(ASK) } as isize)? as libc::c_ulong;
        // SAFETY: this changes what later maps may do, not those that there are.
        let result =
            unsafe { libc::personality(before | libc::READ_IMPLIES_EXEC as libc::c_ulong) };
        check(result as isize)?;
        Ok(Self { before })
    }
}

impl Drop for ReadImpliesExec {
    fn drop(&mut self) {
        // SAFETY: as above. What was in force before is valid.
        unsafe { libc::personality(self.before) };
    }
}
