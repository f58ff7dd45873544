// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What happens when mapped memory goes away.
//!
//! The next access then raises SIGBUS: the device was removed or its driver unbound,
//! or the file became shorter. Nothing can make the access succeed, and the program
//! has nothing else to do, so it ends there, with a message.

use std::io;
use std::path::Path;

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;

/// From now on SIGBUS ends the program with exit status 1 and a message that names
/// `path`, what is mapped.
pub fn install(path: &Path) -> io::Result<()> {
    // Made now: the handler must not allocate.
    let message = format!(
        "ringbar: {}: the mapped memory went away (SIGBUS): the device was reset, became \
         smaller, failed or was removed (see `ringbar events`), or the file became shorter\n",
        path.display()
    );
    // SAFETY: the handler makes two system calls (`write`, `_exit`), and uses only
    // memory that it owns.
    unsafe {
        low_level::register(SIGBUS, move || {
            // There is nobody to tell if this fails.
            let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
            low_level::exit(1)
        })
    }?;
    Ok(())
}
