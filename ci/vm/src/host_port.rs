// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Executes requests of test programs in the guest: stops, resumes and resizes devices,
//! makes them lie, injects faults into them, kills their servers, and counts their unwritten pages.
//!
//! A device that stays stopped blocks the guest: QEMU waits for the device when the guest
//! is shut down and when the driver accesses certain registers. So a stall always ends:
//! [`HostPort`] resumes all devices after [`STALL_TIMEOUT`], on request, and when it is
//! dropped.

use std::fs::File;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringbar_agent_protocol::host::{ByteRange, HostReply, HostRequest};
use ringbar_agent_protocol::{FrameError, read_frame, write_frame};
use ringbar_lying_proxy::ProxyHandle;
use ringbar_page_cache::Unwritten;
use ringbar_pci_function::PciFunction;

use crate::control::ControlSocket;
use crate::error::{Error, Result};
use crate::process::{Pauser, wait_readable};
use crate::supervised::Supervised;

/// Maximum time for which a device stays stalled without a further request.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Handles of a device.
#[derive(Debug)]
pub struct DeviceHandles {
    /// Stops and resumes the process.
    pub pauser: Pauser,
    /// The process with its child.
    pub supervised: Supervised,
    /// Client of the control socket.
    pub control: ControlSocket,
    /// File of the device memory, with file storage.
    pub file: Option<PathBuf>,
    /// Kills the NBD server of the device memory, if the device has one.
    pub server: Option<Pauser>,
    /// Control of the lying proxy, if the device has one.
    pub proxy: Option<ProxyHandle>,
}

/// The host's end of the port for requests of test programs.
#[derive(Debug)]
pub struct HostPort {
    port: UnixStream,
    devices: Arc<Mutex<Devices>>,
    thread: Option<JoinHandle<()>>,
}

impl HostPort {
    /// Serves the requests of a guest for these devices and PCI functions, which requests
    /// name by their position.
    pub fn serve(
        port: UnixStream,
        devices: Vec<DeviceHandles>,
        functions: Vec<PciFunction>,
        limit: Duration,
    ) -> Result<Self> {
        let duplicate = || {
            port.try_clone()
                .map_err(Error::io("duplicating the host port"))
        };
        let (stream, port_fd) = (duplicate()?, OwnedFd::from(duplicate()?));
        let devices = Arc::new(Mutex::new(Devices {
            all: devices
                .into_iter()
                .map(|handles| Device {
                    handles,
                    stalled: false,
                    timed_out: false,
                })
                .collect(),
            functions,
            closed: false,
        }));
        let shared = Arc::clone(&devices);
        let thread = thread::Builder::new()
            .name("host-port".into())
            .spawn(move || serve_requests(&stream, &port_fd, &shared, limit))
            .map_err(Error::io("starting the thread of the host port"))?;
        Ok(Self {
            port,
            devices,
            thread: Some(thread),
        })
    }

    /// Resumes all devices; returns the numbers of those that were stalled.
    pub fn resume_all(&self) -> Vec<u32> {
        lock(&self.devices).resume_all()
    }

    /// Resumes all devices and refuses to stall them again.
    pub fn close(&self) {
        let mut devices = lock(&self.devices);
        devices.closed = true;
        devices.resume_all();
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        self.close();
        // The shutdown ends the thread. An error means that the connection has already
        // ended.
        let _ = self.port.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Devices {
    all: Vec<Device>,
    functions: Vec<PciFunction>,
    /// The machine is being shut down.
    closed: bool,
}

#[derive(Debug)]
struct Device {
    handles: DeviceHandles,
    stalled: bool,
    /// The device was resumed by the timeout.
    timed_out: bool,
}

impl DeviceHandles {
    fn unwritten(&self, range: ByteRange) -> std::result::Result<HostReply, String> {
        let path = self.file.as_ref().ok_or("the device has no file")?;
        let pages =
            File::open(path).and_then(|file| Unwritten::of(&file, range.offset, range.length));
        match pages {
            Ok(pages) => Ok(HostReply::Unwritten(pages.dirty + pages.writeback)),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Ok(HostReply::Unsupported(error.to_string()))
            }
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}

fn lock(devices: &Mutex<Devices>) -> MutexGuard<'_, Devices> {
    // A panic cannot leave a flag half changed.
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    fn execute(&mut self, request: HostRequest) -> std::result::Result<HostReply, String> {
        if let HostRequest::Function(number, command) = request {
            let function = self.functions.get(number as usize);
            return function
                .ok_or_else(|| format!("there is no PCI function {number}"))?
                .execute(command)
                .map(|()| HostReply::Done)
                .map_err(|error| error.to_string());
        }
        let (HostRequest::StallDevice(number)
        | HostRequest::ResumeDevice(number)
        | HostRequest::ResizeDevice(number, _)
        | HostRequest::CountUnwritten(number, _)
        | HostRequest::Lie(number, _)
        | HostRequest::EndLies(number)
        | HostRequest::CountLies(number)
        | HostRequest::KillServer(number)
        | HostRequest::AddFault(number, _)
        | HostRequest::ListFaults(number)
        | HostRequest::ClearFaults(number)
        | HostRequest::KillWorker(number)
        | HostRequest::UpgradeDevice(number)
        | HostRequest::Function(number, _)) = request;
        let device = self
            .all
            .get_mut(number as usize)
            .ok_or_else(|| format!("there is no device {number}"))?;
        let proxy = || {
            let proxy = device.handles.proxy.as_ref();
            proxy.ok_or_else(|| format!("device {number} cannot lie"))
        };
        let done = match request {
            HostRequest::StallDevice(_) if self.closed => {
                Err("the machine is being shut down".into())
            }
            HostRequest::CountUnwritten(_, range) => {
                return device.handles.unwritten(range);
            }
            HostRequest::StallDevice(_) => {
                // Set first: a process that is only partly stopped must be resumed as
                // well.
                device.stalled = true;
                device.timed_out = false;
                device
                    .handles
                    .pauser
                    .pause()
                    .map_err(|error| error.to_string())
            }
            HostRequest::ResizeDevice(..)
            | HostRequest::AddFault(..)
            | HostRequest::ListFaults(_)
            | HostRequest::ClearFaults(_)
                if device.stalled =>
            {
                Err(format!("device {number} is stalled and cannot reply"))
            }
            HostRequest::ResizeDevice(_, bytes) => device
                .handles
                .control
                .resize(bytes)
                .map_err(|error| error.to_string()),
            HostRequest::AddFault(_, rule) => device
                .handles
                .control
                .add_fault(rule)
                .map_err(|error| error.to_string()),
            HostRequest::ListFaults(_) => {
                let listed = device.handles.control.faults();
                return listed
                    .map(HostReply::Faults)
                    .map_err(|error| error.to_string());
            }
            HostRequest::ClearFaults(_) => device
                .handles
                .control
                .clear_faults()
                .map_err(|error| error.to_string()),
            HostRequest::ResumeDevice(_) => {
                if std::mem::take(&mut device.timed_out) {
                    return Err(format!(
                        "device {number} was resumed earlier, because its stall timed out"
                    ));
                }
                match std::mem::take(&mut device.stalled) {
                    true => device
                        .handles
                        .pauser
                        .resume()
                        .map_err(|error| error.to_string()),
                    // The kernel reports a process as continued only if it was stopped,
                    // and `resume` waits for the report.
                    false => Ok(()),
                }
            }
            HostRequest::KillServer(_) => {
                let server = device.handles.server.as_ref();
                let server = server.ok_or_else(|| format!("device {number} has no server"))?;
                server.kill().map_err(|error| error.to_string())
            }
            HostRequest::Lie(_, lie) => proxy()?.lie(lie).map_err(|error| error.to_string()),
            HostRequest::EndLies(_) => proxy()?.end_lies().map_err(|error| error.to_string()),
            HostRequest::KillWorker(_) => device
                .handles
                .supervised
                .kill_worker()
                .map_err(|error| error.to_string()),
            HostRequest::UpgradeDevice(_) => device
                .handles
                .supervised
                .upgrade()
                .map_err(|error| error.to_string()),
            // Handled above.
            HostRequest::Function(..) => Ok(()),
            HostRequest::CountLies(_) => return Ok(HostReply::Count(proxy()?.lies_told())),
        };
        done.map(|()| HostReply::Done)
    }

    fn any_stalled(&self) -> bool {
        self.all.iter().any(|device| device.stalled)
    }

    fn resume_all(&mut self) -> Vec<u32> {
        let mut resumed = Vec::new();
        for (number, device) in (0..).zip(&mut self.all) {
            if std::mem::take(&mut device.stalled) {
                // An error means that the process has ended.
                let _ = device.handles.pauser.resume();
                resumed.push(number);
            }
        }
        resumed
    }

    /// Resumes devices whose stall has timed out.
    fn expire(&mut self) {
        for number in self.resume_all() {
            self.all[number as usize].timed_out = true;
        }
    }
}

/// Serves requests until the connection ends.
fn serve_requests(port: &UnixStream, port_fd: &OwnedFd, devices: &Mutex<Devices>, limit: Duration) {
    loop {
        // The timeout is harmless without a stalled device.
        match wait_readable(&[port_fd], Instant::now() + limit) {
            Ok(true) => {}
            Ok(false) => {
                let mut devices = lock(devices);
                if devices.any_stalled() {
                    devices.expire();
                }
                continue;
            }
            Err(_) => break,
        }
        let reply = match read_frame::<HostRequest>(port) {
            Ok(request) => match lock(devices).execute(request) {
                Ok(reply) => reply,
                Err(message) => HostReply::Failed(message),
            },
            // The start of the next frame is unknown.
            Err(FrameError::Closed | FrameError::Io(_) | FrameError::TooLong(_)) => break,
            Err(error @ FrameError::Encoding(_)) => HostReply::Failed(error.to_string()),
        };
        if write_frame(port, &reply).is_err() {
            break;
        }
    }
    lock(devices).resume_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::HostProcess;
    use ringbar_agent_protocol::host::Lie;
    use std::fs;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::process::Command;

    fn process(dir: &Path) -> HostProcess {
        let mut command = Command::new("tail");
        command.args(["-f", "/dev/null"]);
        HostProcess::spawn("a test", command, &dir.join("log"), false).unwrap()
    }

    /// Handles with a control socket that does not exist.
    fn handles(process: &HostProcess) -> Vec<DeviceHandles> {
        vec![DeviceHandles {
            supervised: Supervised::new(process.id()),
            pauser: process.pauser().unwrap(),
            control: ControlSocket::new("/nonexistent/control".into()),
            file: None,
            server: None,
            proxy: None,
        }]
    }

    fn is_stopped(process: &HostProcess) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        stat.contains(") T ")
    }

    fn ask(guest: &UnixStream, request: HostRequest) -> HostReply {
        write_frame(guest, &request).unwrap();
        read_frame(guest).unwrap()
    }

    #[test]
    fn a_device_is_stopped_when_the_answer_comes() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
        assert!(is_stopped(&process));
        assert_eq!(ask(&guest, HostRequest::ResumeDevice(0)), HostReply::Done);
        assert!(!is_stopped(&process));
        assert!(port.resume_all().is_empty());

        assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
        assert_eq!(port.resume_all(), [0]);
        assert!(!is_stopped(&process));
        let reply = ask(&guest, HostRequest::StallDevice(1));
        assert_eq!(reply, HostReply::Failed("there is no device 1".into()));
    }

    #[test]
    fn a_device_that_is_not_stalled_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let _port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        guest
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(ask(&guest, HostRequest::ResumeDevice(0)), HostReply::Done);
        assert!(!is_stopped(&process));
    }

    #[test]
    fn a_stall_ends_with_the_port() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
        port.close();
        assert!(!is_stopped(&process));
        let reply = ask(&guest, HostRequest::StallDevice(0));
        assert!(matches!(reply, HostReply::Failed(_)), "{reply:?}");
        assert!(!is_stopped(&process));
        drop(port);
        assert!(matches!(
            read_frame::<HostReply>(&guest),
            Err(FrameError::Closed)
        ));
    }

    #[test]
    fn a_device_that_cannot_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let _port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        for stalled in [false, true] {
            if stalled {
                assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
            }
            let HostReply::Failed(why) = ask(&guest, HostRequest::ResizeDevice(0, 1)) else {
                panic!("resized without a device");
            };
            assert_eq!(why.contains("stalled"), stalled, "{why}");
        }
    }

    #[test]
    fn ho2_pages_that_are_not_on_the_disk_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        // The build folder, unlike perhaps the one for temporary files, is on a disk.
        let program = std::env::current_exe().unwrap();
        let mut file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        file.write_all(&[1; 10_000]).unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let mut devices = handles(&process);
        devices.extend(handles(&process));
        devices[0].file = Some(file.path().to_owned());
        let _port = HostPort::serve(host, devices, Vec::new(), STALL_TIMEOUT).unwrap();
        let range = ByteRange {
            offset: 4096,
            length: 1,
        };
        let count = |device| ask(&guest, HostRequest::CountUnwritten(device, range));
        let seen = (0..100).any(|_| {
            std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[1], 4096).unwrap();
            count(0) == HostReply::Unwritten(1)
        });
        assert!(seen, "never dirty: is the build folder on a disk?");
        file.as_file().sync_data().unwrap();
        assert_eq!(count(0), HostReply::Unwritten(0));
        assert_eq!(count(1), HostReply::Failed("the device has no file".into()));
    }

    #[test]
    fn a_host_that_cannot_count_pages_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let mut devices = handles(&process);
        let memory = rustix::fs::memfd_create("a test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        devices[0].file = Some(path.into());
        let _port = HostPort::serve(host, devices, Vec::new(), STALL_TIMEOUT).unwrap();
        let range = ByteRange {
            offset: 0,
            length: 1,
        };
        let reply = ask(&guest, HostRequest::CountUnwritten(0, range));
        assert!(matches!(reply, HostReply::Unsupported(_)), "{reply:?}");
    }

    #[test]
    fn a_device_without_proxy_cannot_lie() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let _port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        let cannot = HostReply::Failed("device 0 cannot lie".into());
        assert_eq!(ask(&guest, HostRequest::EndLies(0)), cannot);
        assert_eq!(ask(&guest, HostRequest::CountLies(0)), cannot);
        let lie = HostRequest::Lie(0, Lie::SlowStop(1));
        assert_eq!(ask(&guest, lie), cannot);
    }

    #[test]
    fn a_stall_that_takes_too_long_ends_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let limit = Duration::from_millis(20);
        let _port = HostPort::serve(host, handles(&process), Vec::new(), limit).unwrap();
        assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_stopped(&process) && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(!is_stopped(&process));
        let reply = ask(&guest, HostRequest::ResumeDevice(0));
        assert!(matches!(reply, HostReply::Failed(_)), "{reply:?}");
        assert_eq!(ask(&guest, HostRequest::ResumeDevice(0)), HostReply::Done);
    }

    #[test]
    fn the_daemon_may_end_while_stalled() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = process(dir.path());
        let (host, guest) = UnixStream::pair().unwrap();
        let _port = HostPort::serve(host, handles(&process), Vec::new(), STALL_TIMEOUT).unwrap();
        assert_eq!(ask(&guest, HostRequest::StallDevice(0)), HostReply::Done);
        process.kill();
        for request in [HostRequest::ResumeDevice(0), HostRequest::StallDevice(0)] {
            let reply = ask(&guest, request);
            assert!(matches!(reply, HostReply::Failed(_)), "{reply:?}");
        }
    }
}
