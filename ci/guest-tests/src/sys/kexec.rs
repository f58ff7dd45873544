// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Execution of another kernel.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::result::check;

/// `kexec_file_load`: prepares another kernel with its initramfs and command line.
pub fn kexec_file_load(kernel: &File, initramfs: &File, command_line: &CStr) -> io::Result<()> {
    let bytes = command_line.to_bytes_with_nul();
    // SAFETY: The command line is valid for its length; the call changes no memory of the process.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs.as_raw_fd(),
            bytes.len(),
            bytes.as_ptr(),
            0,
        )
    };
    check(result as isize).map(drop)
}

/// `reboot`: shuts all devices down and executes the prepared kernel. Returns only after an error.
pub fn kexec() -> io::Error {
    // SAFETY: The call changes no memory of the process.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    io::Error::last_os_error()
}
