// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Copies in mapped memory that can be lost.
//!
//! Where the kernel cannot provide a page of a mapped file (somebody has truncated
//! the file, the disk does not answer, the file system has no block), the thread
//! that touches it gets `SIGBUS`, of which a process dies by default.
//!
//! Here the handler of that signal puts zero pages in the place of the whole mapping
//! and notes that the memory is [`Lost`]. The copy then goes on, and comes to its end
//! with the wrong bytes; whoever made it looks at the note afterwards and fails. No
//! code is jumped out of, and memory that Rust code may access stays memory that it
//! may access.
//!
//! Only the thread that touches a page gets the signal, so the handler learns from a
//! thread-local variable which mapping the thread copies in. A fault anywhere else
//! goes to the handler that was there before, Rust's own as a rule, which lets the
//! process die.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering, compiler_fence, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{
    BUS_ADRERR, BUS_MCEERR_AR, MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE,
    PROT_READ, PROT_WRITE, SA_ONSTACK, SA_SIGINFO, SIGBUS, sigaction, siginfo_t,
};
use vm_memory::MmapRegion;

/// Whether the memory of a mapping was lost.
#[derive(Debug, Default)]
pub(crate) struct Lost(AtomicBool);

impl Lost {
    /// Notes that it was, which is for good.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was lost before the caller's last access to it.
    pub(crate) fn get(&self) -> bool {
        // Whoever has seen a zero page sees the note, which is made before there is one.
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed)
    }
}

/// What a thread copies in.
struct Access {
    start: usize,
    length: usize,
    lost: *const Lost,
}

thread_local! {
    /// Null where the thread copies in nothing that is guarded. Needs no initialisation
    /// and no destructor, so that a signal handler may use it.
    static CURRENT: AtomicPtr<Access> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// Who handled the signal before.
static PREVIOUS: OnceLock<sigaction> = OnceLock::new();

/// Says that the handler is installed.
///
/// # Invariants
///
/// [`PREVIOUS`] is set, and [`handle`] was installed after that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handler(());

impl Handler {
    /// Installs the handler in this process, where that is still to be done.
    pub(crate) fn install() -> io::Result<Self> {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        // Set in the end.
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            // SAFETY: All bytes 0 are a valid value of this C structure.
            let mut previous: sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: Reads the present action into a structure of ours.
            if unsafe { sigaction(SIGBUS, ptr::null(), &raw mut previous) } != 0 {
                return Err(io::Error::last_os_error());
            }
            PREVIOUS.get_or_init(|| previous);
            // SAFETY: As above.
            let mut action: sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: The handler has the signature that SA_SIGINFO asks for, and calls only
            // what a signal handler may: system calls, and atomic accesses to what is there
            // already.
            if unsafe { sigaction(SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            *installed = true;
        }
        // INVARIANT: Now or by an earlier call.
        Ok(Self(()))
    }

    /// Runs `copy`, which accesses `memory`. If pages of it are missing, `lost` is set
    /// when this returns, and the memory is zero from then on.
    pub(crate) fn access<T>(self, memory: &MmapRegion, lost: &Lost, copy: impl FnOnce() -> T) -> T {
        /// Ends the access however `copy` ends.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                compiler_fence(Ordering::SeqCst);
                CURRENT.with(|current| current.store(ptr::null_mut(), Ordering::Relaxed));
            }
        }

        let mut access = Access {
            start: memory.as_ptr().expose_provenance(),
            length: memory.size(),
            lost,
        };
        CURRENT.with(|current| current.store(&raw mut access, Ordering::Relaxed));
        let _end = End;
        // The handler runs in this thread: it sees what the compiler has done by now.
        compiler_fence(Ordering::SeqCst);
        copy()
    }
}

extern "C" fn handle(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: Where C keeps errno of this thread, which the interrupted code may be about
    // to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: It is valid for the life of the thread.
    let saved = unsafe { *errno };
    // SAFETY: The kernel passes a valid structure.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: Any signal's structure has these bytes; the code says whether they are an
    // address.
    let address = unsafe { info.si_addr() }.addr();
    let missing = code == BUS_ADRERR || code == BUS_MCEERR_AR;
    if !(missing && replace(address)) {
        resign(code);
    }
    // SAFETY: As above.
    unsafe { *errno = saved };
}

/// Replaces the memory that this thread copies in, if the fault is there.
fn replace(address: usize) -> bool {
    let access = CURRENT.with(|current| current.load(Ordering::Relaxed));
    if access.is_null() {
        return false;
    }
    // SAFETY: It is on the stack of `Handler::access`, which this handler has interrupted
    // and which sets the pointer to null before it returns.
    let access = unsafe { &*access };
    if address.wrapping_sub(access.start) >= access.length {
        return false;
    }
    // SAFETY: `access` borrows it.
    let lost = unsafe { &*access.lost };
    // First, so that nobody who sees the new pages sees an old note.
    lost.set();
    // SAFETY: The range is a mapping that `access` borrows; the new one has the same length
    // and protection, so that it stays valid for all accesses, and for its unmapping. Other
    // threads that copy there get other bytes, as they would from another process.
    let new = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(access.start),
            access.length,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE,
            -1,
            0,
        )
    };
    new != MAP_FAILED
}

/// Leaves a signal to whoever handled it before: an access that faults does so again.
fn resign(code: c_int) {
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: The action was in force before; this is its process still.
        unsafe { sigaction(SIGBUS, previous, ptr::null_mut()) };
    }
    if code <= 0 {
        // Nobody faults, somebody has sent it.
        // SAFETY: No memory is involved. The signal comes when this handler returns.
        unsafe { libc::raise(SIGBUS) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::sync::Arc;
    use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};

    const SIZE: usize = 100_000;

    fn mapped(file: &Arc<File>) -> MmapRegion {
        MmapRegion::from_file(FileOffset::from_arc(Arc::clone(file), 0), SIZE).unwrap()
    }

    fn access<T>(memory: &MmapRegion, lost: &Lost, copy: impl FnOnce() -> T) -> T {
        Handler::install().unwrap().access(memory, lost, copy)
    }

    fn file() -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE as u64).unwrap();
        Arc::new(file)
    }

    fn copy(memory: &MmapRegion, at: usize) -> [u8; 8] {
        let mut bytes = [0xee; 8];
        memory
            .get_slice(at, 8)
            .unwrap()
            .copy_to_volatile_slice(VolatileSlice::from(&mut bytes[..]));
        bytes
    }

    #[test]
    fn ho8_missing_page_reads_as_0_and_is_noted() {
        let file = file();
        let (memory, other) = (mapped(&file), mapped(&file));
        let (lost, other_lost) = (Lost::default(), Lost::default());
        assert_eq!(access(&memory, &lost, || copy(&memory, 0)), [0; 8]);
        assert!(!lost.get());
        file.set_len(0).unwrap();
        let bytes = access(&memory, &lost, || copy(&memory, SIZE - 8));
        assert_eq!(bytes, [0; 8]);
        assert!(lost.get());
        // It stays like that, and another mapping is another matter.
        assert_eq!(access(&memory, &lost, || copy(&memory, 0)), [0; 8]);
        assert!(!other_lost.get());
        access(&other, &other_lost, || copy(&other, 5));
        assert!(other_lost.get());
    }

    #[test]
    fn ho8_an_access_ends_with_a_panic() {
        let file = file();
        let memory = mapped(&file);
        let lost = Lost::default();
        std::panic::catch_unwind(|| access(&memory, &lost, || panic!("on purpose"))).unwrap_err();
        assert!(CURRENT.with(|current| current.load(Ordering::Relaxed).is_null()));
    }

    /// Faults that are not ours kill the process as before: each is tried in a process of
    /// its own, which runs this test again.
    #[test]
    fn ho8_other_faults_kill_the_process() {
        const CASE: &str = "RINGBAR_TEST_FAULT";
        let cases: [(&str, fn()); 3] = [
            ("unguarded", || {
                let file = file();
                let (memory, lost) = (mapped(&file), Lost::default());
                access(&memory, &lost, || copy(&memory, 0));
                file.set_len(0).unwrap();
                copy(&memory, 0);
            }),
            ("another mapping", || {
                let file = file();
                let (memory, other, lost) = (mapped(&file), mapped(&file), Lost::default());
                file.set_len(0).unwrap();
                access(&memory, &lost, || copy(&other, 0));
            }),
            ("sent", || {
                let file = file();
                let (memory, lost) = (mapped(&file), Lost::default());
                // Rust's own handler takes one, and then leaves it to the kernel.
                for _ in 0..2 {
                    access(&memory, &lost, || {
                        // SAFETY: No memory is involved.
                        unsafe { libc::raise(SIGBUS) }
                    });
                }
            }),
        ];
        if let Ok(name) = std::env::var(CASE) {
            // A fault that is dealt with wrongly comes again, without end.
            // SAFETY: No memory is involved.
            unsafe { libc::alarm(10) };
            cases.iter().find(|case| case.0 == name).unwrap().1();
            return;
        }
        for (name, _) in cases {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "guard::tests::ho8_other_faults_kill_the_process"])
                .env(CASE, name)
                .output()
                .unwrap()
                .status;
            assert_eq!(status.signal(), Some(SIGBUS), "{name}: {status}");
        }
    }
}
