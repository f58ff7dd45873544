// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The restrictions of a process.

use std::fmt;
use std::process;

use rustix::param::page_size;
use rustix::thread::set_no_new_privs;
use seccompiler::{BpfProgram, apply_filter};
use syscalls::Sysno;

use crate::call::Call;
use crate::capabilities;
use crate::error::Error;
use crate::files::{self, Files};
use crate::filter::{self, Forbidden};
use crate::report::{self, Report};
use crate::runtime::{CLONES, RUNTIME, process_clones};

/// A kind of thread: a name, and the system calls that such a thread may make.
#[derive(Clone, Debug)]
pub struct ThreadKind {
    name: &'static str,
    calls: Vec<Call>,
}

impl ThreadKind {
    /// The kind called `name`, with the calls of these lists and those of [`RUNTIME`].
    pub fn new(name: &'static str, lists: &[&[Call]]) -> Self {
        let lists = RUNTIME.iter().chain(lists);
        Self {
            name,
            calls: lists.copied().flatten().copied().collect(),
        }
    }

    /// The same with all calls of other kinds: for a thread that starts such threads.
    #[must_use]
    pub fn with_calls_of(mut self, others: &[Self]) -> Self {
        self.calls
            .extend(others.iter().flat_map(|other| &other.calls));
        self
    }

    /// Its name, also in messages.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// All calls that a thread of this kind may make.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn starts_threads(&self) -> bool {
        self.calls.iter().any(|call| call.number() == Sysno::clone)
    }
}

/// What becomes of a forbidden system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is not executed: the process writes a line to standard error and ends with the status
    /// [`crate::EXIT_FORBIDDEN`]. The start of a thread or process fails with EPERM instead.
    Enforce,
    /// It is executed, and the kernel logs it (dmesg or audit(8), type 1326). Access to files is
    /// not restricted.
    Log,
}

/// A part of the sandbox that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Restriction of files: landlock.
    Files,
    /// Restriction of system calls: seccomp.
    Calls,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "landlock",
            Self::Calls => "seccomp filters",
        })
    }
}

/// The rules for each kind of thread. Threads are restricted one by one.
pub struct Sandbox {
    /// Programs of the kinds, in the order in which a thread gets them: the last one forbids to add
    /// more. None where the kernel has no filters.
    kinds: Vec<(&'static str, Vec<BpfProgram>)>,
    /// Programs for all threads.
    common: Vec<BpfProgram>,
    restrict_files: bool,
    missing: Vec<Part>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("restrict_files", &self.restrict_files)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Prepares the rules and the handler of SIGSYS. Restricts nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::Rules`] for rules that make no filter, [`Error::Twice`] in a process that has a
    /// sandbox, [`Error::Signal`] where the handler cannot be installed. A kernel without a part
    /// is no error, see [`Self::missing`].
    pub fn new(kinds: &[ThreadKind], mode: Mode, report: Report) -> Result<Self, Error> {
        let mut missing = Vec::new();
        let mut require = |part, is_there: bool| {
            if !is_there {
                missing.push(part);
            }
            is_there
        };
        let restrict_calls = require(Part::Calls, has_filters());
        let restrict_files = mode == Mode::Enforce && require(Part::Files, files::is_supported());

        let mut common = Vec::new();
        if restrict_calls && mode == Mode::Enforce {
            common.push(filter::fail([Call::any(Sysno::clone3)], libc::ENOSYS)?);
            common.push(filter::fail(process_clones(), libc::EPERM)?);
            if !restrict_files {
                // Files could be read then.
                common.push(filter::fail([Call::any(Sysno::openat)], libc::EACCES)?);
            }
        }
        // Signals to threads of this process only.
        let own = Call::any(Sysno::tgkill).when(0, u32::MAX.into(), process::id().into());
        let compile = |(index, kind): (usize, &ThreadKind)| {
            let (calls, mut programs) = (kind.calls.iter().copied().chain([own]), Vec::new());
            match mode {
                _ if !restrict_calls => {}
                Mode::Enforce => {
                    if !kind.starts_threads() {
                        programs.push(filter::fail([Call::any(Sysno::clone)], libc::EPERM)?);
                    }
                    // A signal would have priority over the errors, here and in the threads that
                    // this one starts.
                    let calls = calls.chain(CLONES.iter().copied());
                    let signal = Forbidden::Signal(u16::try_from(index).unwrap_or(u16::MAX));
                    programs.push(filter::allow(calls, signal)?);
                }
                Mode::Log => programs.push(filter::allow(calls, Forbidden::Log)?),
            }
            Ok((kind.name, programs))
        };
        let programs = kinds.iter().enumerate().map(compile);
        let programs = programs.collect::<Result<_, Error>>()?;
        // rustix reads the auxiliary vector when it first needs it: by a call that no kind has, or
        // from a file before Linux 6.4. So it reads it here.
        let _ = page_size();
        report::install(report, kinds.iter().map(|kind| kind.name).collect())?;
        Ok(Self {
            kinds: programs,
            common,
            restrict_files,
            missing,
        })
    }

    /// The parts that this kernel lacks. The others work without them.
    pub fn missing(&self) -> &[Part] {
        &self.missing
    }

    /// Restricts the calling thread, which is of this kind and was started by a thread without
    /// restrictions: it loses all capabilities and the right to get new ones, access to all but
    /// `files`, and all calls that its kind does not need. Threads that it starts begin with the
    /// same restrictions.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses. The thread then has a part of the restrictions.
    pub fn restrict_first(&self, kind: &str, files: &Files) -> Result<(), Error> {
        set_no_new_privs(true).map_err(|errno| Error::Capabilities(errno.into()))?;
        capabilities::drop_all().map_err(|errno| Error::Capabilities(errno.into()))?;
        if self.restrict_files {
            files::restrict(files)?;
        }
        for program in &self.common {
            apply_filter(program)?;
        }
        self.restrict(kind)
    }

    /// Restricts the calling thread, which is of this kind and was started by a restricted thread:
    /// it loses all calls that its kind does not need.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownKind`], or [`Error::Filter`] where the kernel refuses.
    pub fn restrict(&self, kind: &str) -> Result<(), Error> {
        let own = self.kinds.iter().find(|(name, _)| *name == kind);
        let Some((_, programs)) = own else {
            return Err(Error::UnknownKind(kind.to_owned()));
        };
        for program in programs {
            apply_filter(program)?;
        }
        Ok(())
    }
}

/// Whether the kernel has filters that send a signal (seccomp(2), Linux 4.14).
fn has_filters() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: The call reads the action, and nothing else.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    result == 0
}
