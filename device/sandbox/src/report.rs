// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The last words of a process that made a forbidden call, or that cannot restrict a thread.
//!
//! The kernel does not execute the call and sends SIGSYS to the thread. The handler writes one
//! line to standard error and ends the process. It uses only what a signal handler may use, and
//! only calls of [`crate::RUNTIME`]. [`end_process`] does the same outside of a signal handler.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::ptr;
use std::sync::OnceLock;

use libc::{SA_NODEFER, SA_ONSTACK, SA_SIGINFO, SIGSYS, siginfo_t};
use syscalls::Sysno;

use crate::error::Error;

/// Exit status of a process that made a forbidden call.
pub const EXIT_FORBIDDEN: u8 = 3;

/// `si_code` of a signal from a filter (`SYS_SECCOMP`, asm-generic/siginfo.h).
const FROM_FILTER: c_int = 1;

/// Longest time that the line waits for room in standard error, in milliseconds.
const WRITE_TIMEOUT: c_int = 1000;

/// Texts of the line.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the program.
    pub program: String,
    /// What the user can do.
    pub advice: &'static str,
}

/// What the handler needs.
struct Texts {
    report: Report,
    kinds: Vec<&'static str>,
}

static TEXTS: OnceLock<Texts> = OnceLock::new();

/// The part of `siginfo_t` that SIGSYS fills in (sigaction(2)); the same on all architectures with
/// pointers of 64 bits.
#[repr(C)]
struct ForbiddenCall {
    signal: c_int,
    /// The lower half of the filter's result: the number of the thread's kind.
    errno: c_int,
    code: c_int,
    _padding: c_int,
    _address: *const c_void,
    number: c_int,
    _architecture: u32,
}

const _: () = assert!(size_of::<ForbiddenCall>() <= size_of::<siginfo_t>());

/// Installs the handler for the rest of the process's life.
pub(crate) fn install(report: Report, kinds: Vec<&'static str>) -> Result<(), Error> {
    let texts = Texts { report, kinds };
    TEXTS.set(texts).map_err(|_| Error::Twice)?;
    // SAFETY: All bytes 0 are a valid value of this C structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    // A forbidden call within the handler must not be held back: it would end the process without
    // a line.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    // SAFETY: The handler has the signature that SA_SIGINFO asks for, and uses only what a signal
    // handler may use.
    match unsafe { libc::sigaction(SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(Error::Signal(io::Error::last_os_error())),
    }
}

extern "C" fn handle(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: The kernel passes a valid structure, whose size was compared above; any bytes are a
    // valid value of the fields.
    let call = unsafe { &*info.cast::<ForbiddenCall>() };
    debug_assert_eq!(call.signal, SIGSYS);
    let mut line = Line::new();
    if let Some(Texts { report, kinds }) = TEXTS.get() {
        line.text(&report.program).text(": sandbox: ");
        if call.code == FROM_FILTER {
            let kind = usize::try_from(call.errno).ok();
            let kind = kind.and_then(|kind| kinds.get(kind)).copied();
            let number = usize::try_from(call.number).ok();
            let name = number.and_then(Sysno::new).map(|number| number.name());
            line.text("forbidden system call ")
                .text(name.unwrap_or("without a name"))
                .text(" (")
                .number(call.number.unsigned_abs())
                .text(") by a thread of the kind ")
                .text(kind.unwrap_or("unknown"));
        } else {
            line.text("SIGSYS from a process");
        }
        line.text("; the process ends. ").text(report.advice);
    }
    line.text("\n").write();
    // SAFETY: Ends the process; nothing of it is used any more.
    unsafe { libc::_exit(EXIT_FORBIDDEN.into()) }
}

/// Ends the process as after a forbidden call, with a line that says why: a thread that cannot be
/// restricted must not run, and the others are of no use without it.
pub fn end_process(reason: &str) -> ! {
    let mut line = Line::new();
    if let Some(Texts { report, .. }) = TEXTS.get() {
        line.text(&report.program)
            .text(": sandbox: ")
            .text(reason)
            .text("; the process ends. ")
            .text(report.advice);
    } else {
        line.text("sandbox: ").text(reason);
    }
    line.text("\n").write();
    // SAFETY: Ends the process; nothing of it is used any more.
    unsafe { libc::_exit(EXIT_FORBIDDEN.into()) }
}

/// A line of limited length, without allocation. What does not fit is cut off.
struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: [0; 512],
            length: 0,
        }
    }

    fn text(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            // The last byte is for the end of the line.
            if self.length < self.bytes.len() - 1 || byte == b'\n' && self.length < self.bytes.len()
            {
                self.bytes[self.length] = byte;
                self.length += 1;
            }
        }
        self
    }

    fn number(&mut self, number: u32) -> &mut Self {
        let mut divisor = 1;
        while number / divisor >= 10 {
            divisor *= 10;
        }
        while divisor > 0 {
            let digit = b'0' + (number / divisor % 10) as u8;
            self.text(std::str::from_utf8(&[digit]).unwrap_or_default());
            divisor /= 10;
        }
        self
    }

    /// Writes it to standard error, unless nobody reads there for [`WRITE_TIMEOUT`].
    fn write(&self) {
        let mut stderr = libc::pollfd {
            fd: libc::STDERR_FILENO,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: One structure of ours.
        if unsafe { libc::poll(&raw mut stderr, 1, WRITE_TIMEOUT) } > 0 {
            self.write_to(stderr.fd);
        }
    }

    /// Writes it to a file, or where there is room for it. Another thread may have filled a pipe
    /// just now, and nobody may ever read it. A terminal, and before Linux 6.5 a pipe too, can only
    /// be written to with a wait.
    fn write_to(&self, fd: c_int) {
        let part = libc::iovec {
            iov_base: self.bytes.as_ptr().cast_mut().cast(),
            iov_len: self.length,
        };
        // The current position.
        let position: c_long = -1;
        // SAFETY: The kernel reads the structure, and the bytes, which are those of the line.
        let written = unsafe {
            let number = libc::SYS_pwritev2;
            libc::syscall(
                number,
                fd,
                &raw const part,
                1,
                position,
                0,
                libc::RWF_NOWAIT,
            )
        };
        // A file always gets room. Some file systems refuse all the same.
        let refused = io::Error::last_os_error().raw_os_error();
        if written < 0 && (refused == Some(libc::EOPNOTSUPP) || is_file(fd)) {
            // SAFETY: The bytes are those of the line. A failure has nobody to be told.
            let _ = unsafe { libc::write(fd, self.bytes.as_ptr().cast(), self.length) };
        }
    }
}

fn is_file(fd: c_int) -> bool {
    // SAFETY: All bytes 0 are a valid value of this C structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: The kernel writes to the structure only.
    let result = unsafe { libc::fstat(fd, &raw mut stat) };
    result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn shown(line: &Line) -> &str {
        std::str::from_utf8(&line.bytes[..line.length]).unwrap()
    }

    /// The bytes that are read from a pipe after a line was written to it, which has no room if it
    /// is `full`. `None` where the write waits.
    fn through_a_pipe(full: bool) -> Option<Vec<u8>> {
        let (mut reader, mut writer) = io::pipe().unwrap();
        if full {
            // SAFETY: No memory is involved.
            let capacity = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
            let filler = vec![b'x'; usize::try_from(capacity).unwrap()];
            writer.write_all(&filler).unwrap();
        }
        let (sender, done) = channel();
        thread::spawn(move || {
            let mut line = Line::new();
            line.text("a line\n").write_to(writer.as_raw_fd());
            drop(writer);
            let _ = sender.send(());
        });
        // A write that waits ends with the reader.
        done.recv_timeout(Duration::from_secs(10)).ok()?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    /// Whether the kernel can write to a pipe without a wait.
    fn pipes_can_refuse() -> bool {
        let (_reader, writer) = io::pipe().unwrap();
        let mut byte = b'x';
        let part = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: The kernel reads the structure and the byte.
        let written =
            unsafe { libc::pwritev2(writer.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
        written == 1
    }

    #[test]
    fn a_pipe_that_is_full_gets_no_line() {
        assert_eq!(through_a_pipe(false).unwrap(), b"a line\n");
        if !pipes_can_refuse() {
            eprintln!("before Linux 6.5 a write to a pipe waits");
            return;
        }
        let bytes = through_a_pipe(true).expect("the write waits");
        assert!(bytes.iter().all(|byte| *byte == b'x'));
    }

    #[test]
    fn a_file_gets_the_line() {
        // SAFETY: The name is a string that ends with 0.
        let memory = unsafe { libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(memory >= 0);
        // SAFETY: A new descriptor, which belongs to nobody else.
        let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(memory) });
        for text in ["one\n", "two\n"] {
            Line::new().text(text).write_to(file.as_raw_fd());
        }
        file.rewind().unwrap();
        assert_eq!(io::read_to_string(file).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn numbers_are_decimal() {
        for number in [0, 7, 10, 257, u32::MAX] {
            let mut line = Line::new();
            line.text("<").number(number).text(">");
            assert_eq!(shown(&line), format!("<{number}>"));
        }
    }

    #[test]
    fn a_line_too_long_keeps_its_end() {
        let mut line = Line::new();
        line.text(&"x".repeat(1000)).text("y").text("\n");
        assert_eq!(shown(&line), format!("{}\n", "x".repeat(511)));
    }
}
