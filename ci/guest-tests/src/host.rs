// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Client of the harness on the host, which stalls, resumes and resizes the device, makes
//! it lie, injects faults, and counts its unwritten pages.

use std::fs::File;

use ringbar_agent_protocol::host::{
    ByteRange, FunctionCommand, HostReply, HostRequest, Lie, ListedFault, PORT_NAME,
};
use ringbar_agent_protocol::{find_port, read_frame, write_frame};

use crate::case::{During, Stop, Verdict};

/// Number of the device under test in the order of QEMU's command line.
const DEVICE_NUMBER: u32 = 0;

/// Connection to the harness. A process has at most one connection.
#[derive(Debug)]
pub struct Host(File);

impl Host {
    /// Opens the connection; skips the test if the machine has no host port.
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

    /// Stalls the device until the result is dropped. Earlier requests may have ended;
    /// requests submitted from now on stay in flight.
    pub fn stall(&self) -> Verdict<Stall<'_>> {
        self.call(HostRequest::StallDevice(DEVICE_NUMBER))?;
        Ok(Stall(Some(self)))
    }

    /// Resizes the device memory to a number of bytes. The driver was notified, but may
    /// not have handled the event yet.
    pub fn resize(&self, bytes: u64) -> Verdict {
        self.call(HostRequest::ResizeDevice(DEVICE_NUMBER, bytes))
    }

    /// Number of pages behind a range of the device memory that are not on the host's
    /// disk; durable data has none. The device must have file storage.
    pub fn unwritten(&self, offset: u64, length: u64) -> Verdict<u64> {
        let range = ByteRange { offset, length };
        let request = HostRequest::CountUnwritten(DEVICE_NUMBER, range);
        match self.exchange(&request)? {
            HostReply::Unwritten(pages) => Ok(pages),
            other => Err(Stop::Failed(format!("{request:?}: {other:?}"))),
        }
    }

    /// Kills the NBD server that holds the device memory. It is gone on return.
    pub fn kill_server(&self) -> Verdict {
        self.call(HostRequest::KillServer(DEVICE_NUMBER))
    }

    /// Prepares a lie of the device.
    pub fn lie(&self, lie: Lie) -> Verdict {
        self.call(HostRequest::Lie(DEVICE_NUMBER, lie))
    }

    /// Cancels the pending lies and ends the lasting ones.
    pub fn end_lies(&self) -> Verdict {
        self.call(HostRequest::EndLies(DEVICE_NUMBER))
    }

    /// Number of lies that the device has told since it was started.
    pub fn lies_told(&self) -> Verdict<u64> {
        match self.exchange(&HostRequest::CountLies(DEVICE_NUMBER))? {
            HostReply::Count(count) => Ok(count),
            other => Err(Stop::Failed(format!("the host answered {other:?}"))),
        }
    }

    /// Injects faults by these rules until the result is dropped, in place of any others.
    pub fn inject(&self, rules: &[&str]) -> Verdict<Injected<'_>> {
        self.call(HostRequest::ClearFaults(DEVICE_NUMBER))?;
        let injected = Injected(self);
        for rule in rules {
            self.call(HostRequest::AddFault(DEVICE_NUMBER, (*rule).to_owned()))?;
        }
        Ok(injected)
    }

    /// Kills the process of the device that executes the requests. Returns when another one has
    /// been started.
    pub fn kill_worker(&self) -> Verdict {
        self.call(HostRequest::KillWorker(DEVICE_NUMBER))
    }

    /// Has the device replaced by the installed program. Returns when its process has been
    /// started.
    pub fn upgrade(&self) -> Verdict {
        self.call(HostRequest::UpgradeDevice(DEVICE_NUMBER))
    }

    /// Sends a command to the PCI function.
    pub fn function_command(&self, command: FunctionCommand) -> Verdict {
        self.call(HostRequest::Function(DEVICE_NUMBER, command))
    }

    fn call(&self, request: HostRequest) -> Verdict {
        match self.exchange(&request)? {
            HostReply::Done => Ok(()),
            other => Err(Stop::Failed(format!("{request:?}: {other:?}"))),
        }
    }

    /// The host's reply. A failure fails the test, and a missing feature of the host
    /// skips it.
    fn exchange(&self, request: &HostRequest) -> Verdict<HostReply> {
        let answer = write_frame(&self.0, request).and_then(|()| read_frame(&self.0));
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

/// Faults of the device, which end when this is dropped.
#[derive(Debug)]
pub struct Injected<'a>(&'a Host);

impl Injected<'_> {
    /// The rules with their counters.
    pub fn listed(&self) -> Verdict<Vec<ListedFault>> {
        match self.0.exchange(&HostRequest::ListFaults(DEVICE_NUMBER))? {
            HostReply::Faults(listed) => Ok(listed),
            other => Err(Stop::Failed(format!("the host answered {other:?}"))),
        }
    }

    /// Numbers of matches and firings of each rule.
    pub fn counts(&self) -> Verdict<Vec<(u64, u64)>> {
        let listed = self.listed()?.into_iter();
        Ok(listed.map(|rule| (rule.matches, rule.firings)).collect())
    }

    /// Ends the faults.
    pub fn clear(&self) -> Verdict {
        self.0.call(HostRequest::ClearFaults(DEVICE_NUMBER))
    }
}

impl Drop for Injected<'_> {
    fn drop(&mut self) {
        if let Err(stop) = self.clear() {
            eprintln!("ending the faults: {stop:?}");
        }
    }
}

/// A stalled device, resumed when dropped.
///
/// Until then, only doorbells may be accessed: any other access to the device's registers
/// would stop the whole guest.
#[derive(Debug)]
pub struct Stall<'a>(Option<&'a Host>);

impl Stall<'_> {
    /// Resumes the device.
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
