// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `pread` and `pwrite`.

use std::os::fd::AsRawFd;

use super::{Engine, Target};

/// One transfer at a time.
#[derive(Debug)]
pub struct Psync {
    target: Target,
    prepared: Vec<(u32, u64)>,
    system_calls: u64,
}

impl Psync {
    /// For this file.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            prepared: Vec::new(),
            system_calls: 0,
        }
    }
}

#[cfg(test)]
impl Psync {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

impl Engine for Psync {
    fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String> {
        self.prepared.push((buffer, offset));
        Ok(())
    }

    fn submit_and_wait(&mut self, _: u32, free: &mut Vec<u32>) -> Result<(), String> {
        let (target, block) = (&self.target, self.target.block);
        let descriptor = target.file()?.as_raw_fd();
        for (buffer, offset) in self.prepared.drain(..) {
            let address = target.buffer(buffer);
            let offset = offset as libc::off_t;
            self.system_calls += 1;
            let result = if target.writes {
                // SAFETY: The buffer has `block` bytes, and nobody writes to it meanwhile.
                unsafe { libc::pwrite(descriptor, address.cast(), block, offset) }
            } else {
                // SAFETY: The buffer has `block` bytes, and there is no reference to them.
                unsafe { libc::pread(descriptor, address.cast(), block, offset) }
            };
            if result < 0 {
                let error = std::io::Error::last_os_error();
                return Err(format!("a transfer failed: {error}"));
            }
            target.check(result as i64)?;
            free.push(buffer);
        }
        Ok(())
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }
}
