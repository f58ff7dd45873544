// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs one program for the host and forwards its output.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use ringbar_agent_protocol::{Reply, RequestId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};

use crate::port::ReplyPort;
use crate::reaper::{Process, Reaper};

/// Greatest number of bytes of output in one message.
const OUTPUT_CHUNK: usize = 64 << 10;

/// Starts a program in a session of its own, so that a signal reaches it and its children.
pub fn start(
    reaper: &Reaper,
    argv: &[String],
    env: &[(String, String)],
    directory: Option<&str>,
) -> anyhow::Result<Process> {
    let (program, arguments) = argv.split_first().context("the command is empty")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(directory.unwrap_or("/"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    new_session(&mut command);
    reaper
        .spawn(&mut command)
        .with_context(|| format!("starting {program}"))
}

/// Puts the process of `command` into a session of its own.
pub fn new_session(command: &mut Command) {
    let enter = || {
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: `enter` makes one system call and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// Forwards the output of a process until the process ends, then its exit status.
///
/// The output of a process that has ended is still in the pipes, and is forwarded. Processes
/// that it left in the background do not delay the exit status. Their later output is lost,
/// because it could not be assigned to a command.
pub fn follow(id: RequestId, mut process: Process, port: &ReplyPort) -> anyhow::Result<()> {
    let mut stdout = Stream::new(process.child.stdout.take().map(OwnedFd::from))?;
    let mut stderr = Stream::new(process.child.stderr.take().map(OwnedFd::from))?;
    let mut buffer = vec![0; OUTPUT_CHUNK];

    loop {
        let ended = wait(&process.ended, &stdout, &stderr)?;
        stdout.forward(&mut buffer, |bytes| {
            port.send(&Reply::Stdout {
                id,
                bytes: bytes.to_vec(),
            })
        })?;
        stderr.forward(&mut buffer, |bytes| {
            port.send(&Reply::Stderr {
                id,
                bytes: bytes.to_vec(),
            })
        })?;
        if ended {
            break;
        }
    }
    let status = process.status.recv().context("the reaper is gone")?;
    port.send(&Reply::Exited { id, status })
}

/// Waits until there is output or the process has ended; returns whether it has ended.
fn wait(ended: &OwnedFd, stdout: &Stream, stderr: &Stream) -> anyhow::Result<bool> {
    let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
    for stream in [stdout, stderr] {
        if let Some(file) = &stream.file {
            fds.push(PollFd::new(file, PollFlags::IN));
        }
    }
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for output"),
        }
    }
}

/// The reading end of a pipe, until its end of file.
struct Stream {
    file: Option<File>,
}

impl Stream {
    fn new(fd: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &fd {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(Self {
            file: fd.map(File::from),
        })
    }

    /// Forwards the bytes that are in the pipe now. Later bytes stay for the next call, because
    /// the pipe is never empty if a process in the background writes without end.
    fn forward(
        &mut self,
        buffer: &mut [u8],
        mut send: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut left = ioctl_fionread(&*file).context("asking how much output there is")?;
        // One more read finds the end of the file.
        loop {
            let most = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .clamp(1, buffer.len());
            match file.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.file = None;
                    return Ok(());
                }
                Ok(n) => {
                    send(&buffer[..n])?;
                    left = left.saturating_sub(n as u64);
                    if left == 0 {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading output"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn output_and_its_end_are_forwarded() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut stream = Stream::new(Some(reader.into())).unwrap();
        let mut buffer = [0; 4];
        let mut forward = || {
            let mut passed = Vec::new();
            stream
                .forward(&mut buffer, |bytes| {
                    passed.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
            (String::from_utf8(passed).unwrap(), stream.file.is_some())
        };
        assert_eq!(forward(), (String::new(), true));
        writer.write_all(b"a long line\n").unwrap();
        assert_eq!(forward(), ("a long line\n".to_owned(), true));
        drop(writer);
        assert_eq!(forward(), (String::new(), false));
        assert_eq!(forward(), (String::new(), false));
    }

    #[test]
    fn endless_output_does_not_delay_the_exit_status() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut stream = Stream::new(Some(reader.into())).unwrap();
        writer.write_all(&[b'y'; 2 * TEST_CHUNK]).unwrap();
        let mut passed = 0;
        stream
            .forward(&mut [0; TEST_CHUNK], |bytes| {
                passed += bytes.len();
                assert!(passed <= 2 * TEST_CHUNK, "it is still read");
                // As fast as the output is read.
                writer.write_all(bytes)?;
                Ok(())
            })
            .unwrap();
        assert_eq!(passed, 2 * TEST_CHUNK);
    }

    const TEST_CHUNK: usize = 1000;
}
