// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls that fail, as they do with a bad disk (`seccomp(2)`). Any user may do
//! that to a thread.

use std::io;
use std::thread;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP,
    SECCOMP_MODE_FILTER, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, c_long, sock_filter, sock_fprog,
};
use rustix::io::Errno;

/// Runs `run` in a thread in which each of `calls` fails with `errno`.
pub fn with_failing<T: Send>(calls: &[c_long], errno: Errno, run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                install(calls, errno).unwrap();
                run()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn install(calls: &[c_long], errno: Errno) -> io::Result<()> {
    // The number of the call is the first field.
    let mut filter = vec![statement(BPF_LD | BPF_W | BPF_ABS, 0)];
    for call in calls {
        filter.push(sock_filter {
            jf: 1,
            ..statement(BPF_JMP | BPF_JEQ | BPF_K, *call as u32)
        });
        let error = SECCOMP_RET_ERRNO | errno.raw_os_error() as u32;
        filter.push(statement(BPF_RET | BPF_K, error));
    }
    filter.push(statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: No memory is involved.
    let result = unsafe { libc::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel copies the program, which is as long as it says.
    let result = unsafe { libc::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
