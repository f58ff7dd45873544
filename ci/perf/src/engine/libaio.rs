// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Linux AIO, by its system calls.

use std::io;
use std::os::fd::AsRawFd;

use ringbar_uapi::linux_aio::{IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IoEvent, Iocb};

use super::{Engine, Target};
use crate::options::Options;

/// An AIO context, destroyed when dropped. The kernel waits for its requests.
#[derive(Debug)]
struct Context(libc::c_ulong);

impl Context {
    fn new(events: u32) -> io::Result<Self> {
        let mut context = 0;
        // SAFETY: The kernel writes the context, a long.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, events, &raw mut context) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(context))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: The context exists, and nobody uses it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// Linux AIO on one file.
// The context is dropped before the buffers.
#[derive(Debug)]
pub struct Libaio {
    context: Context,
    /// One for each buffer.
    iocbs: Vec<Iocb>,
    events: Vec<IoEvent>,
    prepared: Vec<*mut Iocb>,
    target: Target,
    system_calls: u64,
}

impl Libaio {
    /// For this file.
    pub fn new(target: Target, options: &Options) -> Result<Self, String> {
        let context = Context::new(options.depth)
            .map_err(|error| format!("io_setup for {} events: {error}", options.depth))?;
        let descriptor = target.file()?.as_raw_fd() as u32;
        let iocb = |buffer| Iocb {
            data: u64::from(buffer),
            opcode: if target.writes {
                IOCB_CMD_PWRITE
            } else {
                IOCB_CMD_PREAD
            },
            fildes: descriptor,
            buf: target.buffer(buffer) as u64,
            nbytes: target.block as u64,
            ..Iocb::default()
        };
        Ok(Self {
            context,
            iocbs: (0..options.depth).map(iocb).collect(),
            events: vec![IoEvent::default(); options.depth as usize],
            prepared: Vec::with_capacity(options.depth as usize),
            target,
            system_calls: 0,
        })
    }

    fn submit(&mut self) -> Result<(), String> {
        let mut first = 0;
        while first < self.prepared.len() {
            let rest = &mut self.prepared[first..];
            self.system_calls += 1;
            // SAFETY: The pointers are to elements of `iocbs`, which is never resized, and whose
            // buffers outlive the context.
            let submitted = unsafe {
                libc::syscall(
                    libc::SYS_io_submit,
                    self.context.0,
                    rest.len(),
                    rest.as_mut_ptr(),
                )
            };
            match usize::try_from(submitted) {
                Ok(submitted @ 1..) => first += submitted,
                Ok(0) => return Err("io_submit took nothing".into()),
                Err(_) => return Err(format!("io_submit: {}", io::Error::last_os_error())),
            }
        }
        self.prepared.clear();
        Ok(())
    }
}

#[cfg(test)]
impl Libaio {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}

impl Engine for Libaio {
    fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String> {
        let iocb = &mut self.iocbs[buffer as usize];
        iocb.offset = offset as i64;
        self.prepared.push(iocb);
        Ok(())
    }

    fn submit_and_wait(&mut self, min: u32, free: &mut Vec<u32>) -> Result<(), String> {
        self.submit()?;
        self.system_calls += 1;
        // SAFETY: The kernel writes at most as many events as the vector has elements. No time
        // limit.
        let got = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context.0,
                libc::c_long::from(min),
                self.events.len(),
                self.events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let got = usize::try_from(got)
            .map_err(|_| format!("io_getevents: {}", io::Error::last_os_error()))?;
        for event in &self.events[..got] {
            self.target.check(event.res)?;
            free.push(event.data as u32);
        }
        Ok(())
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }
}
