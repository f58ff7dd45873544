// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Threads: sleep states, CPU affinity, signals.

use std::fs;
use std::io;
use std::mem;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::process::Child;
use super::result::check;

/// A thread of this process or of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    process: i32,
    thread: i32,
}

/// State of a thread that sleeps in a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepState {
    /// Any signal wakes it (`S`).
    Interruptible,
    /// At most a fatal signal wakes it (`D`).
    Uninterruptible,
}

impl Task {
    /// The calling thread.
    pub fn current() -> Self {
        // SAFETY: neither call touches memory.
        let thread = unsafe { libc::gettid() };
        Self {
            process: std::process::id().cast_signed(),
            thread,
        }
    }

    /// The only thread of a child.
    pub fn of(child: &Child) -> Self {
        Self {
            process: child.id(),
            thread: child.id(),
        }
    }

    /// All threads of a child, including kernel-created ones such as io_uring's workers.
    pub fn all_of(child: &Child) -> io::Result<Vec<Self>> {
        let mut tasks = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/task", child.id()))? {
            if let Some(thread) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
                tasks.push(Self {
                    process: child.id(),
                    thread,
                });
            }
        }
        Ok(tasks)
    }

    fn read(self, file: &str) -> io::Result<String> {
        let mut path = PathBuf::from("/proc");
        path.push(self.process.to_string());
        path.push("task");
        path.push(self.thread.to_string());
        path.push(file);
        fs::read_to_string(path)
    }

    /// The sleep state in the system call with this number; `None` if the thread runs or
    /// is in another call. An error if it has ended.
    ///
    /// Not to be used for a process that may be about to end: reading its state takes a
    /// reference to its memory for a moment. If that is the last one, the caller frees
    /// the memory and waits for asynchronous I/O in flight.
    pub fn sleep_state_in(self, call: i64) -> io::Result<Option<SleepState>> {
        // The file names a call only for a sleeping thread.
        let found = self.read("syscall")?;
        let number = found.split_ascii_whitespace().next();
        if number.and_then(|number| number.parse().ok()) != Some(call) {
            return Ok(None);
        }
        Ok(state(&self.read("stat")?))
    }

    /// The kernel function in which the thread sleeps, `0` if it does not sleep. Also
    /// usable for a process that is about to end.
    pub fn kernel_function(self) -> io::Result<String> {
        self.read("wchan")
    }

    /// Whether the thread sleeps in a kernel module, and at most a fatal signal wakes it.
    pub fn waits_in_module(self, module: &str) -> io::Result<bool> {
        let within = self.read("stack")?.contains(&format!("[{module}]"));
        Ok(within && state(&self.read("stat")?) == Some(SleepState::Uninterruptible))
    }

    /// Sends a signal to this thread.
    pub fn signal(self, signal: i32) -> io::Result<()> {
        // SAFETY: the call touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, signal) };
        check(result as isize).map(drop)
    }
}

/// The state in the text of a `stat` file, after the program's name, which may contain
/// any character.
fn state(stat: &str) -> Option<SleepState> {
    let (_, rest) = stat.rsplit_once(") ")?;
    match rest.as_bytes().first()? {
        b'S' => Some(SleepState::Interruptible),
        b'D' => Some(SleepState::Uninterruptible),
        _ => None,
    }
}

static COUNTED: AtomicU64 = AtomicU64::new(0);

extern "C" fn counting_handler(_signal: i32) {
    COUNTED.fetch_add(1, Ordering::SeqCst);
}

/// Counts a signal. Interrupted system calls are restarted if `restart` is set
/// (`SA_RESTART`).
pub fn count_signal(signal: i32, restart: bool) -> io::Result<()> {
    // SAFETY: all fields of the structure may be 0.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = counting_handler as *const () as usize;
    action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
    // SAFETY: the handler does one atomic operation.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    check(result as isize).map(drop)
}

/// Number of signals that [`count_signal`] has counted.
pub fn signals_counted() -> u64 {
    COUNTED.load(Ordering::SeqCst)
}

fn affinity() -> io::Result<libc::cpu_set_t> {
    // SAFETY: an empty set is all 0.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&set);
    // SAFETY: the kernel writes at most the set.
    let result = unsafe { libc::sched_getaffinity(0, size, &raw mut set) };
    check(result as isize)?;
    Ok(set)
}

fn set_affinity(set: &libc::cpu_set_t) -> io::Result<()> {
    // SAFETY: the kernel reads the set.
    let result = unsafe { libc::sched_setaffinity(0, mem::size_of_val(set), set) };
    check(result as isize).map(drop)
}

/// CPUs in the affinity mask of this thread.
pub fn cpus() -> io::Result<Vec<usize>> {
    let set = affinity()?;
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the number is within the set.
    Ok(all
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect())
}

/// Keeps the calling thread on a CPU until dropped. Must be dropped by the same thread.
pub struct CpuAffinity {
    before: libc::cpu_set_t,
    _thread: std::marker::PhantomData<*const ()>,
}

/// Moves the calling thread to a CPU and keeps it there.
pub fn pin_to_cpu(cpu: usize) -> io::Result<CpuAffinity> {
    let before = affinity()?;
    // SAFETY: an empty set is all 0.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    assert!(cpu < libc::CPU_SETSIZE as usize, "CPU {cpu}");
    // SAFETY: just checked to be within the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set_affinity(&set)?;
    Ok(CpuAffinity {
        before,
        _thread: std::marker::PhantomData,
    })
}

impl Drop for CpuAffinity {
    fn drop(&mut self) {
        // The set is the earlier one, so it is valid.
        let _ = set_affinity(&self.before);
    }
}

/// Sets `SCHED_FIFO`: threads with this policy run in the order in which they are woken,
/// each until it sleeps.
pub fn use_sched_fifo() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads the structure.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    check(result as isize).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn states_are_found_behind_any_name() {
        assert_eq!(state("7 (a) D b) S 1 7"), Some(SleepState::Interruptible));
        assert_eq!(state("7 (a) D 1 7"), Some(SleepState::Uninterruptible));
        assert_eq!(state("7 (a) R 1 7"), None);
        assert_eq!(state(""), None);
    }

    #[test]
    fn a_sleeping_thread_is_seen_in_its_call() {
        let (sender, receiver) = mpsc::channel();
        let (reader, writer) = io::pipe().unwrap();
        let thread = thread::spawn(move || {
            sender.send(Task::current()).unwrap();
            io::read_to_string(reader).unwrap();
        });
        let task = receiver.recv().unwrap();
        while task.sleep_state_in(libc::SYS_read).unwrap() != Some(SleepState::Interruptible) {
            thread::yield_now();
        }
        assert_eq!(task.sleep_state_in(libc::SYS_pread64).unwrap(), None);
        drop(writer);
        thread.join().unwrap();
        assert!(task.sleep_state_in(libc::SYS_read).is_err());
    }

    #[test]
    fn a_thread_moves_and_comes_back() {
        let all = cpus().unwrap();
        let pinned = pin_to_cpu(all[0]).unwrap();
        assert_eq!(cpus().unwrap(), [all[0]]);
        drop(pinned);
        assert_eq!(cpus().unwrap(), all);
    }
}
