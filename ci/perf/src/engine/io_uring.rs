// SPDX-License-Identifier: Apache-2.0 OR MIT

//! io_uring with a registered file.

use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};

use super::{Engine, Target};
use crate::options::Options;

/// io_uring on one file.
///
/// # Invariants
///
/// The kernel uses the buffers for `in_flight` transfers, and for no other.
pub struct IoUringEngine {
    ring: IoUring,
    /// Dropped only if nothing is in flight, because the end of a ring does not wait for its
    /// transfers.
    target: ManuallyDrop<Target>,
    in_flight: usize,
    fixed: bool,
    system_calls: u64,
}

impl IoUringEngine {
    /// For this file.
    pub fn new(target: Target, options: &Options) -> Result<Self, String> {
        let mut builder = IoUring::builder();
        // One thread submits and waits: completions need no interrupt of the task.
        builder.setup_single_issuer().setup_defer_taskrun();
        if options.iopoll {
            builder.setup_iopoll();
        }
        let ring = builder
            .build(options.depth)
            .map_err(|error| format!("io_uring_setup: {error}"))?;
        let submitter = ring.submitter();
        submitter
            .register_files(&[target.file()?.as_raw_fd()])
            .map_err(|error| format!("registering the file: {error}"))?;
        if options.fixed {
            let buffers: Vec<_> = (0..options.depth)
                .map(|buffer| libc::iovec {
                    iov_base: target.buffer(buffer).cast(),
                    iov_len: target.block,
                })
                .collect();
            // SAFETY: The buffers stay mapped while a transfer is in flight.
            unsafe { submitter.register_buffers(&buffers) }
                .map_err(|error| format!("registering the buffers: {error}"))?;
        }
        Ok(Self {
            ring,
            target: ManuallyDrop::new(target),
            in_flight: 0,
            fixed: options.fixed,
            system_calls: 0,
        })
    }

    fn entry(&self, buffer: u32, offset: u64) -> Entry {
        let (file, address) = (Fixed(0), self.target.buffer(buffer));
        let (block, index) = (self.target.block as u32, buffer as u16);
        let entry = match (self.target.writes, self.fixed) {
            (false, false) => opcode::Read::new(file, address, block)
                .offset(offset)
                .build(),
            (true, false) => opcode::Write::new(file, address, block)
                .offset(offset)
                .build(),
            (false, true) => opcode::ReadFixed::new(file, address, block, index)
                .offset(offset)
                .build(),
            (true, true) => opcode::WriteFixed::new(file, address, block, index)
                .offset(offset)
                .build(),
        };
        entry.user_data(buffer.into())
    }
}

impl Drop for IoUringEngine {
    fn drop(&mut self) {
        if self.in_flight == 0 {
            // SAFETY: Dropped once, and not used after this.
            unsafe { ManuallyDrop::drop(&mut self.target) };
        }
    }
}

#[cfg(test)]
impl IoUringEngine {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

impl Engine for IoUringEngine {
    fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String> {
        let entry = self.entry(buffer, offset);
        // SAFETY: The buffer has `block` bytes, is used by no other transfer, and stays mapped
        // while the transfer is in flight.
        unsafe { self.ring.submission().push(&entry) }.map_err(|error| error.to_string())?;
        // INVARIANT: One more.
        self.in_flight += 1;
        Ok(())
    }

    fn submit_and_wait(&mut self, min: u32, free: &mut Vec<u32>) -> Result<(), String> {
        self.system_calls += 1;
        self.ring
            .submit_and_wait(min as usize)
            .map_err(|error| format!("io_uring_enter: {error}"))?;
        for completion in self.ring.completion() {
            // INVARIANT: The kernel has ended one.
            self.in_flight -= 1;
            self.target.check(completion.result().into())?;
            free.push(completion.user_data() as u32);
        }
        Ok(())
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }
}
