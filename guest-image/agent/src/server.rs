// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Executes the host's requests.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, bail};
use ringbar_agent_protocol::{
    FrameError, MAX_FRAME, Reply, Request, RequestId, VERSION, read_frame,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::uname;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::port::{self, ReplyPort};
use crate::process;
use crate::reaper::Reaper;

/// Greatest number of bytes of a file or log in one reply.
const MAX_CONTENT: u64 = MAX_FRAME as u64 - 64;

/// The serial console.
pub const CONSOLE: &str = "/dev/ttyS0";

/// Options of a 9p mount: the protocol variant with Linux semantics, and
/// messages large enough that a file is not copied page by page.
const SHARE_OPTIONS: &std::ffi::CStr = c"trans=virtio,version=9p2000.L,msize=524288";

/// Executes requests until the host sends `PowerOff` or closes the port. `line` is the serial
/// line for requests; without it they come over the virtio-serial port.
pub fn serve(reaper: &Reaper, line: Option<&str>) -> anyhow::Result<()> {
    let requests = match line {
        Some(line) => port::open_line(line)?,
        None => port::open()?,
    };
    let replies = ReplyPort::new(requests.try_clone().context("duplicating the port")?);

    // This also waits until the host has opened its end; an earlier read would return an end of
    // file.
    replies.send(&Reply::Hello {
        version: VERSION,
        kernel_release: uname().release().to_string_lossy().into_owned(),
    })?;

    let server = Server {
        reaper: reaper.clone(),
        replies,
        running: Arc::default(),
    };
    loop {
        match read_frame::<Request>(&requests) {
            Ok(Request::PowerOff) | Err(FrameError::Closed) => return Ok(()),
            Ok(request) => server.execute(request)?,
            Err(error) => return Err(error.into()),
        }
    }
}

struct Server {
    reaper: Reaper,
    replies: ReplyPort,
    /// Running processes, by the request that started them.
    running: Arc<Mutex<HashMap<RequestId, Pid>>>,
}

impl Server {
    /// Executes one request. An error is one of the port; errors of the request are sent to the
    /// host.
    fn execute(&self, request: Request) -> anyhow::Result<()> {
        let (id, result) = match request {
            Request::Exec {
                id,
                argv,
                env,
                directory,
            } => match self.exec(id, &argv, &env, directory.as_deref()) {
                Ok(()) => return Ok(()),
                Err(error) => (id, Err(error)),
            },
            Request::Signal { id, target, signal } => {
                (id, self.signal(target, signal).map(|()| Reply::Done { id }))
            }
            Request::MountShare { id, tag, target } => (
                id,
                self.mount_share(&tag, &target).map(|()| Reply::Done { id }),
            ),
            Request::ReadFile { id, path } => (
                id,
                read_file(&path).map(|bytes| Reply::Content { id, bytes }),
            ),
            Request::KernelLog { id } => {
                (id, kernel_log().map(|bytes| Reply::Content { id, bytes }))
            }
            Request::ResizeConsole { id, rows, columns } => (
                id,
                resize_console(rows, columns).map(|()| Reply::Done { id }),
            ),
            // The caller handles this one, and ends.
            Request::PowerOff => return Ok(()),
        };
        self.replies
            .send(&result.unwrap_or_else(|error| Reply::Failed {
                id,
                message: format!("{error:#}"),
            }))
    }

    fn exec(
        &self,
        id: RequestId,
        argv: &[String],
        env: &[(String, String)],
        directory: Option<&str>,
    ) -> anyhow::Result<()> {
        let process = process::start(&self.reaper, argv, env, directory)?;
        lock(&self.running).insert(id, process.pid);
        let running = Arc::clone(&self.running);
        let replies = self.replies.clone();
        thread::Builder::new()
            .name(format!("exec-{id}"))
            .spawn(move || {
                let result = process::follow(id, process, &replies);
                lock(&running).remove(&id);
                if let Err(error) = result {
                    eprintln!("ringbar-init: request {id}: {error:#}");
                }
            })
            .context("starting a thread for the command")?;
        Ok(())
    }

    fn signal(&self, target: RequestId, signal: i32) -> anyhow::Result<()> {
        let signal = Signal::from_named_raw(signal)
            .with_context(|| format!("there is no signal {signal}"))?;
        let Some(&pid) = lock(&self.running).get(&target) else {
            return Ok(());
        };
        match kill_process_group(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("sending the signal"),
        }
    }

    fn mount_share(&self, tag: &str, target: &str) -> anyhow::Result<()> {
        // `mount` would load the file system, but not its transport.
        let status = self.reaper.run(
            Command::new("modprobe")
                .arg("-a")
                .args(["9pnet_virtio", "9p"]),
        )?;
        if !status.success() {
            bail!("loading the modules 9pnet_virtio and 9p: {status}");
        }
        fs::create_dir_all(target).with_context(|| format!("creating {target}"))?;
        mount(
            tag,
            target,
            "9p",
            MountFlags::NOSUID | MountFlags::NODEV,
            SHARE_OPTIONS,
        )
        .with_context(|| format!("mounting the share {tag} on {target}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Each change of the map is a single operation.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_file(path: &str) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("opening {path}"))?;
    let mut bytes = Vec::new();
    // Files in proc and sysfs have no size, so the limit applies to the bytes read.
    file.take(MAX_CONTENT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {path}"))?;
    if bytes.len() as u64 > MAX_CONTENT {
        bail!("{path} is longer than {MAX_CONTENT} bytes");
    }
    Ok(bytes)
}

/// The kernel's log in the format of `dmesg --raw`; of a log that is too long, an error line and
/// the end of the log.
fn kernel_log() -> anyhow::Result<Vec<u8>> {
    let mut kmsg = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/kmsg")
        .context("opening /dev/kmsg")?;
    let mut log = Vec::new();
    let mut lost = 0;
    let mut next = 0;
    let mut record = [0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(n) => {
                let (number, line) = format_record(&record[..n]);
                lost += number.saturating_sub(next);
                next = number + 1;
                log.extend_from_slice(line.as_bytes());
            }
            // Records were overwritten during the read: continue behind them.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("reading /dev/kmsg"),
        }
    }
    Ok(incomplete(log, lost, MAX_CONTENT as usize - 128))
}

/// The whole log, or its last `most` bytes after a line that says how much is missing.
fn incomplete(mut log: Vec<u8>, lost: u64, most: usize) -> Vec<u8> {
    let excess = log.len().saturating_sub(most);
    if lost == 0 && excess == 0 {
        return log;
    }
    let mut whole = format!(
        "<3>[    0.000000] ringbar-init: {lost} records and {excess} bytes of the log are missing\n"
    )
    .into_bytes();
    whole.extend(log.split_off(excess));
    whole
}

/// Number and text of a record of `/dev/kmsg`, which is
/// `<priority>,<number>,<microseconds>,<flags>;<text>` and lines with properties,
/// which begin with a space.
fn format_record(record: &[u8]) -> (u64, String) {
    let record = String::from_utf8_lossy(record);
    let (prefix, text) = record.split_once(';').unwrap_or(("", &record));
    let mut fields = prefix
        .split(',')
        .map(|field| field.parse::<u64>().unwrap_or(0));
    let mut field = || fields.next().unwrap_or(0);
    // The priority is that of syslog: level and facility.
    let (level, number, micros) = (field() & 7, field(), field());
    let text = text.lines().next().unwrap_or("");
    let line = format!(
        "<{level}>[{:5}.{:06}] {text}\n",
        micros / 1_000_000,
        micros % 1_000_000
    );
    (number, line)
}

/// Sets the size of the serial console's terminal; the kernel signals the foreground processes.
fn resize_console(rows: u16, columns: u16) -> anyhow::Result<()> {
    let console = File::options()
        .read(true)
        .write(true)
        .open(CONSOLE)
        .with_context(|| format!("opening {CONSOLE}"))?;
    tcsetwinsize(
        &console,
        Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .context("setting the size of the console")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_records_look_as_dmesg_prints_them() {
        let record = b"6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=net\n";
        assert_eq!(
            format_record(record),
            (
                339,
                "<6>[    5.140900] NET: Registered PF_INET\n".to_owned()
            )
        );
        // Written by a program.
        let record = b"12,7,1000000,-;hello\n";
        assert_eq!(
            format_record(record),
            (7, "<4>[    1.000000] hello\n".to_owned())
        );
    }

    #[test]
    fn incomplete_log_begins_with_an_error() {
        let log = b"<6>[    5.140900] NET\n".to_vec();
        assert_eq!(incomplete(log.clone(), 0, 100), log);
        for (lost, most) in [(1, 100), (0, 10)] {
            let whole = String::from_utf8(incomplete(log.clone(), lost, most)).unwrap();
            assert!(whole.starts_with("<3>"), "{whole}");
            assert!(whole.ends_with("NET\n"), "{whole}");
        }
    }
}
