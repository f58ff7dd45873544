// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Asks the harness on the host to stall, resume and resize the device, to have it lie,
//! and what of its memory is on the disk.

use std::fs::File;

use ringbar_agent_protocol::host::{
    ByteRange, FunctionCommand, HostReply, HostRequest, Lie, PORT_NAME,
};
use ringbar_agent_protocol::{find_port, read_frame, write_frame};

use crate::case::{During, Stop, Verdict};

/// Number of the tested device in the order of QEMU's command line.
const DEVICE_NUMBER: u32 = 0;

/// Connection to the harness. A process has at most one.
#[derive(Debug)]
pub struct Host(File);

impl Host {
    /// Opens the connection; skips the test where nobody serves one.
    pub fn connect() -> Verdict<Self> {
        let port = find_port(PORT_NAME)
            .ok_or_else(|| Stop::Skipped(format!("there is no port {PORT_NAME} to the host")))?;
        File::options()
            .read(true)
            .write(true)
            .open(&port)
            .map(Self)
            .during(|| format!("opening {}", port.display()))
    }

    /// Stops the device until the result is dropped. What it had begun may have
    /// ended; what is submitted from now on stays in flight.
    pub fn stall(&self) -> Verdict<Stall<'_>> {
        self.call(HostRequest::StallDevice(DEVICE_NUMBER))?;
        Ok(Stall(Some(self)))
    }

    /// Gives the device memory another size in bytes. The driver has been told, but
    /// may not have looked yet.
    pub fn resize(&self, bytes: u64) -> Verdict {
        self.call(HostRequest::ResizeDevice(DEVICE_NUMBER, bytes))
    }

    /// Number of pages behind a range of the device memory that are in the host's memory
    /// only: what was made durable has none. The device must keep its memory in a file.
    pub fn unwritten(&self, offset: u64, length: u64) -> Verdict<u64> {
        let range = ByteRange { offset, length };
        let request = HostRequest::CountUnwritten(DEVICE_NUMBER, range);
        match self.exchange(request)? {
            HostReply::Unwritten(pages) => Ok(pages),
            other => Err(Stop::Failed(format!("{request:?}: {other:?}"))),
        }
    }

    /// Has the device lie, once it comes to it.
    pub fn lie(&self, lie: Lie) -> Verdict {
        self.call(HostRequest::Lie(DEVICE_NUMBER, lie))
    }

    /// Has the device be honest.
    pub fn end_lies(&self) -> Verdict {
        self.call(HostRequest::EndLies(DEVICE_NUMBER))
    }

    /// How many lies the device has told since it was started.
    pub fn lies_told(&self) -> Verdict<u64> {
        match self.exchange(HostRequest::CountLies(DEVICE_NUMBER))? {
            HostReply::Count(count) => Ok(count),
            other => Err(Stop::Failed(format!("the host answered {other:?}"))),
        }
    }

    /// Has the PCI function do what its driver does not expect.
    pub fn function_command(&self, command: FunctionCommand) -> Verdict {
        self.call(HostRequest::Function(DEVICE_NUMBER, command))
    }

    fn call(&self, request: HostRequest) -> Verdict {
        match self.exchange(request)? {
            HostReply::Done => Ok(()),
            other => Err(Stop::Failed(format!("{request:?}: {other:?}"))),
        }
    }

    /// The host's answer, unless it says that it failed or lacks something.
    fn exchange(&self, request: HostRequest) -> Verdict<HostReply> {
        let answer = write_frame(&self.0, &request).and_then(|()| read_frame(&self.0));
        match answer {
            Ok(HostReply::Failed(message)) => {
                Err(Stop::Failed(format!("{request:?} on the host: {message}")))
            }
            Ok(HostReply::Unsupported(message)) => {
                Err(Stop::Skipped(format!("on the host, {message}")))
            }
            Ok(reply) => Ok(reply),
            Err(error) => Err(Stop::Failed(format!("{request:?}: {error}"))),
        }
    }
}

/// A device that is stalled. It goes on when this is dropped.
///
/// As long as there is one, nothing may touch the device's registers but for
/// doorbells: the whole guest would stop.
#[derive(Debug)]
pub struct Stall<'a>(Option<&'a Host>);

impl Stall<'_> {
    /// Lets the device go on.
    pub fn resume(mut self) -> Verdict {
        self.0.take().map_or(Ok(()), |host| {
            host.call(HostRequest::ResumeDevice(DEVICE_NUMBER))
        })
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.0.take()
            && let Err(stop) = host.call(HostRequest::ResumeDevice(DEVICE_NUMBER))
        {
            eprintln!("resuming the device: {stop:?}");
        }
    }
}
