// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The handler of SIGBUS.
//!
//! An access to a map that was removed raises SIGBUS: the device was reset, shrunk or removed, its
//! driver was unbound, or the file was truncated. The access cannot succeed, and the program
//! has no other task, so it exits with a message.

use std::io;
use std::path::Path;

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;

/// Installs the handler: SIGBUS ends the program with exit status 1 and a message that names
/// the mapped file, `path`.
pub fn install(path: &Path) -> io::Result<()> {
    // Formatted here, because the handler must not allocate.
    let message = format!(
        "ringbar: {}: the mapped memory went away (SIGBUS): the device was reset, became \
         smaller, failed or was removed (see `ringbar events`), or the file became shorter\n",
        path.display()
    );
    // SAFETY: the handler makes two system calls (`write`, `_exit`), and uses only
    // memory that it owns.
    unsafe {
        low_level::register(SIGBUS, move || {
            // A failure cannot be reported.
            let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
            low_level::exit(1)
        })
    }?;
    Ok(())
}
