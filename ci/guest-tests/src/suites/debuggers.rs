// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Debuggers and other tools access maps: every operation that works on the kernel's own
//! maps of BARs (`/sys/bus/pci/devices/*/resourceN`) must work on the device's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use ringbar_uapi as uapi;

use crate::case::{Case, Context, During, Stop, TIMEOUT, Verdict, expect_bytes, expect_errno};
use crate::fixtures::driver;
use crate::pattern;
use crate::sys::{
    self, Child, PAGE, ReadImpliesExec, Region, Traced, process_memory, process_vm_read,
};
use crate::{check, check_eq};

const READ: i32 = libc::PROT_READ;
const SHARED: i32 = libc::MAP_SHARED;

/// The cases, for the suite of maps.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a12_ptrace_and_proc_mem_of_device_memory", device_memory),
        Case::new("a12_ptrace_and_proc_mem_of_read_only_maps", read_only),
        // No CONFIG_CROSS_MEMORY_ATTACH.
        Case::new("a12_process_vm_readv_of_maps", vm_readv).not_on_debug_kernel(),
        Case::new("a12_gdb_reads_and_writes_device_memory", gdb).left_to_test_all(),
        Case::new("a12_debugger_of_a_removed_device_gets_eio", removed),
        Case::new("a12_maps_allow_what_resource_files_allow", as_resource_file),
        Case::new("a12_proc_maps_tells_how_to_map_again", proc_maps),
    ]
}

/// A kind of map: name, offset in the file.
type Kind = (&'static str, u64);

/// One map of each kind.
const KINDS: [Kind; 5] = [
    ("device memory", MEMORY),
    ("uncached device memory", UNCACHED),
    ("counters", uapi::MAP_STATISTICS << uapi::MAP_SHIFT),
    ("event log", uapi::MAP_EVENTS << uapi::MAP_SHIFT),
    ("used ring", USED_RING),
];
const MEMORY: u64 = 7 * PAGE as u64;
const UNCACHED: u64 = (uapi::MAP_MEMORY_UNCACHED << uapi::MAP_SHIFT) + MEMORY;
/// The used ring of the second queue.
const USED_RING: u64 = (uapi::MAP_USED_RINGS << uapi::MAP_SHIFT) + uapi::USED_RING_STRIDE;

fn is_memory((_, offset): Kind) -> bool {
    matches!(
        offset >> uapi::MAP_SHIFT,
        uapi::MAP_MEMORY | uapi::MAP_MEMORY_UNCACHED
    )
}

/// A process with the same memory that does nothing. Killed when dropped.
fn sleeper() -> io::Result<Child> {
    sys::fork(|| {
        loop {
            std::thread::park();
        }
    })
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_ne_bytes(word)
}

fn device_memory(context: &Context) -> Verdict {
    let file = context.open()?;
    for (name, offset) in KINDS.into_iter().filter(|&kind| is_memory(kind)) {
        let in_device = offset % (1 << uapi::MAP_SHIFT);
        let map = Region::shared(&file, offset, 2 * PAGE).during(|| format!("mapping {name}"))?;
        let data = pattern::bytes(offset, 2 * PAGE);
        map.store(0, data);
        // Waits for a word that only a debugger writes.
        let child = sys::fork(|| {
            while word(&map.load(16, 8)) != 0x600d_600d {
                std::thread::yield_now();
            }
            7
        })?;
        let traced = Traced::attach(&child).during(|| format!("attaching for {name}"))?;
        let peeked = traced
            .peek(map.address() + 8)
            .during(|| format!("PTRACE_PEEKDATA of {name}"))?;
        check_eq!(peeked, word(&data[8..16]), "PTRACE_PEEKDATA of {name}");

        let memory = process_memory(&child)?;
        let mut found = vec![0; 2 * PAGE];
        memory
            .read_exact_at(&mut found, map.address() as u64)
            .during(|| format!("reading /proc/PID/mem of {name}"))?;
        expect_bytes(&found, data, "/proc/PID/mem")?;
        let written = pattern::bytes(offset + 1, 300);
        // Across the end of a page.
        memory
            .write_all_at(written, (map.address() + PAGE - 100) as u64)
            .during(|| format!("writing /proc/PID/mem of {name}"))?;
        let mut by_dma = [0; 300];
        file.read_exact_at(&mut by_dma, in_device + PAGE as u64 - 100)?;
        expect_bytes(&by_dma, written, "what was written to /proc/PID/mem")?;

        traced
            .poke(map.address() + 16, 0x600d_600d)
            .during(|| format!("PTRACE_POKEDATA of {name}"))?;
        drop(traced);
        check_eq!(child.wait(TIMEOUT)?, Ok(7), "end of the debugged process");
    }
    Ok(())
}

/// Debuggers cannot write to read-only maps, just like the process itself.
fn read_only(context: &Context) -> Verdict {
    let reader = context.open_with(libc::O_RDONLY)?;
    for (name, offset) in KINDS {
        let map = Region::of_file(&reader, offset, PAGE, READ, SHARED)
            .during(|| format!("mapping {name}"))?;
        let child = sleeper()?;
        let traced = Traced::attach(&child)?;
        // The device is idle, so the content does not change.
        let data = map.load(0, PAGE);
        let peeked = traced
            .peek(map.address() + 64)
            .during(|| format!("PTRACE_PEEKDATA of {name}"))?;
        check_eq!(peeked, word(&data[64..72]), "PTRACE_PEEKDATA of {name}");
        let memory = process_memory(&child)?;
        let mut found = vec![0; PAGE - 3];
        memory
            .read_exact_at(&mut found, map.address() as u64 + 3)
            .during(|| format!("reading /proc/PID/mem of {name}"))?;
        expect_bytes(&found, &data[3..], name)?;

        let poked = traced.poke(map.address(), 1);
        expect_errno(poked, &[libc::EIO, libc::EFAULT], "PTRACE_POKEDATA")?;
        let written = memory.write_at(&[1; 8], map.address() as u64);
        expect_errno(written, &[libc::EIO], "writing /proc/PID/mem")?;
        expect_bytes(&map.load(0, PAGE), &data, name)?;
    }
    Ok(())
}

/// `process_vm_readv` reads ordinary pages, but not device memory, which is not RAM for
/// the kernel. Used rings may be either.
fn vm_readv(context: &Context) -> Verdict {
    let reader = context.open_with(libc::O_RDONLY)?;
    for (name, offset) in KINDS {
        let map = Region::of_file(&reader, offset, PAGE, READ, SHARED)
            .during(|| format!("mapping {name}"))?;
        let child = sleeper()?;
        let mut found = vec![0; PAGE];
        let read = process_vm_read(&child, map.address(), &mut found);
        if matches!(name, "counters" | "event log") {
            check_eq!(read.during(|| name.into())?, PAGE, "bytes of {name}");
        } else if read.is_err() {
            expect_errno(read, &[libc::EFAULT], name)?;
            continue;
        }
        expect_bytes(&found, &map.load(0, PAGE), name)?;
    }
    Ok(())
}

fn gdb(context: &Context) -> Verdict {
    let file = context.open()?;
    let map = Region::shared(&file, MEMORY, PAGE)?;
    map.store(8, &0x1122_3344_5566_7788_u64.to_ne_bytes());
    let child = sleeper()?;
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &child.id().to_string()])
        .args(["-ex", &format!("print/x {{long}}{:#x}", map.address() + 8)])
        .args(["-ex", &format!("set {{long}}{:#x} = 0x4711", map.address())])
        .output()
        .during(|| "running gdb".into())?;
    let text = String::from_utf8_lossy(&output.stdout);
    check!(
        text.contains("$1 = 0x1122334455667788"),
        "gdb printed {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut by_dma = [0; 8];
    file.read_exact_at(&mut by_dma, MEMORY)?;
    check_eq!(u64::from_ne_bytes(by_dma), 0x4711, "what gdb has set");
    Ok(())
}

fn removed(context: &Context) -> Verdict {
    let address = context.pci_address()?;
    let file = context.open()?;
    // Without the uncached map, which excludes a write-combining one.
    let kinds = KINDS.into_iter().filter(|&(_, offset)| offset != UNCACHED);
    let maps = kinds
        .map(|(name, offset)| Ok((name, Region::of_file(&file, offset, PAGE, READ, SHARED)?)))
        .collect::<io::Result<Vec<_>>>()?;
    let child = sleeper()?;
    let traced = Traced::attach(&child)?;
    for (name, map) in &maps {
        traced
            .peek(map.address())
            .during(|| format!("PTRACE_PEEKDATA of {name}"))?;
    }
    driver::unbind(&address)?;
    let results: Vec<_> = maps
        .iter()
        .map(|(name, map)| (name, traced.peek(map.address())))
        .collect();
    driver::bind(context, &address)?;
    for (name, result) in results {
        expect_errno(result, &[libc::EIO, libc::EFAULT], name)?;
    }
    drop(traced);
    driver::expect_working(context, 83)
}

/// An operation on a map of a page: its name and function.
type MapOperation = (&'static str, fn(&File, u64) -> io::Result<()>);

fn map_page(file: &File, offset: u64, protection: i32, flags: i32) -> io::Result<Region> {
    Region::of_file(file, offset, PAGE, protection, flags)
}

fn advise(file: &File, offset: u64, advice: i32) -> io::Result<()> {
    map_page(file, offset, READ, SHARED)?.advise(advice)
}

/// Gives a process with the map to a debugger.
fn debug(
    file: &File,
    offset: u64,
    look: impl FnOnce(&Child, usize) -> io::Result<()>,
) -> io::Result<()> {
    let map = map_page(file, offset, READ, SHARED)?;
    look(&sleeper()?, map.address())
}

/// Operations of tools and programs on maps.
const MAP_OPERATIONS: [MapOperation; 30] = [
    ("a shared map", |f, o| {
        map_page(f, o, READ, SHARED).map(drop)
    }),
    ("a private map", |f, o| {
        map_page(f, o, READ, libc::MAP_PRIVATE).map(drop)
    }),
    ("MAP_POPULATE", |f, o| {
        map_page(f, o, READ, SHARED | libc::MAP_POPULATE).map(drop)
    }),
    ("MAP_LOCKED", |f, o| {
        map_page(f, o, READ, SHARED | libc::MAP_LOCKED).map(drop)
    }),
    ("MAP_SHARED_VALIDATE", |f, o| {
        map_page(f, o, READ, libc::MAP_SHARED_VALIDATE).map(drop)
    }),
    ("PROT_NONE", |f, o| {
        map_page(f, o, libc::PROT_NONE, SHARED).map(drop)
    }),
    ("PROT_EXEC", |f, o| {
        map_page(f, o, READ | libc::PROT_EXEC, SHARED).map(drop)
    }),
    ("READ_IMPLIES_EXEC", |f, o| {
        let _personality = ReadImpliesExec::new()?;
        let mut map = map_page(f, o, READ, SHARED)?;
        map.load(0, 8);
        map.protect(READ)
    }),
    ("READ_IMPLIES_EXEC of a private map", |f, o| {
        let _personality = ReadImpliesExec::new()?;
        map_page(f, o, READ, libc::MAP_PRIVATE).map(drop)
    }),
    ("mprotect to PROT_NONE and back", |f, o| {
        let mut map = map_page(f, o, READ, SHARED)?;
        map.protect(libc::PROT_NONE)?;
        map.protect(READ)?;
        map.load(0, 8);
        Ok(())
    }),
    ("mprotect to PROT_EXEC", |f, o| {
        map_page(f, o, READ, SHARED)?.protect(READ | libc::PROT_EXEC)
    }),
    ("mremap to another place", |f, o| {
        let mut map = map_page(f, o, READ, SHARED)?;
        map.move_to(Region::anonymous(PAGE)?)?;
        map.load(0, 8);
        Ok(())
    }),
    ("mremap of nothing", |f, o| {
        map_page(f, o, READ, SHARED)?.duplicate().map(drop)
    }),
    ("mlock", |f, o| map_page(f, o, READ, SHARED)?.lock()),
    ("msync", |f, o| {
        map_page(f, o, READ, SHARED)?.sync(libc::MS_SYNC)
    }),
    ("msync later", |f, o| {
        map_page(f, o, READ, SHARED)?.sync(libc::MS_ASYNC)
    }),
    ("MADV_NORMAL", |f, o| advise(f, o, libc::MADV_NORMAL)),
    ("MADV_RANDOM", |f, o| advise(f, o, libc::MADV_RANDOM)),
    ("MADV_WILLNEED", |f, o| advise(f, o, libc::MADV_WILLNEED)),
    ("MADV_DONTNEED", |f, o| advise(f, o, libc::MADV_DONTNEED)),
    ("MADV_REMOVE", |f, o| advise(f, o, libc::MADV_REMOVE)),
    ("MADV_DONTFORK", |f, o| advise(f, o, libc::MADV_DONTFORK)),
    ("MADV_DONTDUMP", |f, o| advise(f, o, libc::MADV_DONTDUMP)),
    ("MADV_DODUMP", |f, o| advise(f, o, libc::MADV_DODUMP)),
    ("MADV_COLD", |f, o| advise(f, o, libc::MADV_COLD)),
    ("MADV_MERGEABLE", |f, o| advise(f, o, libc::MADV_MERGEABLE)),
    ("a child", |f, o| {
        let map = map_page(f, o, READ, SHARED)?;
        let child = sys::fork(|| {
            map.load(0, 8);
            0
        })?;
        match child.wait(TIMEOUT)? {
            Ok(0) => Ok(()),
            end => Err(io::Error::other(format!("the child ended with {end:?}"))),
        }
    }),
    ("PTRACE_PEEKDATA", |f, o| {
        debug(f, o, |child, address| {
            Traced::attach(child)?.peek(address).map(drop)
        })
    }),
    ("/proc/PID/mem", |f, o| {
        debug(f, o, |child, address| {
            process_memory(child)?.read_exact_at(&mut [0; 8], address as u64)
        })
    }),
    ("process_vm_readv", |f, o| {
        debug(f, o, |child, address| {
            process_vm_read(child, address, &mut [0; 8]).map(drop)
        })
    }),
];

/// A BAR of another device that is safe to read and can be mapped by its resource file.
fn resource_file() -> Verdict<(PathBuf, File)> {
    for device in fs::read_dir("/sys/bus/pci/devices")? {
        let device = device?.path();
        if device.join("driver").exists() {
            continue;
        }
        for bar in 0..6 {
            let path = device.join(format!("resource{bar}"));
            let Ok(file) = sys::open(&path, libc::O_RDONLY) else {
                continue;
            };
            if map_page(&file, 0, READ, SHARED).is_ok() {
                return Ok((path, file));
            }
        }
    }
    Err(Stop::Failed("no resource file can be mapped".into()))
}

fn as_resource_file(context: &Context) -> Verdict {
    let (path, resource) = resource_file()?;
    let file = context.open_with(libc::O_RDONLY)?;
    let mut refused = String::new();
    for (what, operation) in MAP_OPERATIONS {
        if operation(&resource, 0).is_err() {
            continue;
        }
        for (name, offset) in KINDS {
            if let Err(error) = operation(&file, offset) {
                refused += &format!("{what} of {name}: {error}\n");
            }
        }
    }
    check!(
        refused.is_empty(),
        "with {} it works:\n{refused}",
        path.display()
    );
    Ok(())
}

/// The file offset and name of the map at `address` in `/proc/self/maps`.
fn proc_maps_entry(address: usize) -> Verdict<(u64, PathBuf)> {
    let start = format!("{address:08x}-");
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps
        .lines()
        .find(|line| line.starts_with(&start))
        .ok_or_else(|| Stop::Failed(format!("no map at {address:#x} in\n{maps}")))?;
    let mut words = line.split_ascii_whitespace();
    let offset = words.nth(2).and_then(|o| u64::from_str_radix(o, 16).ok());
    match (offset, words.nth(2)) {
        (Some(offset), Some(path)) => Ok((offset, path.into())),
        _ => Err(Stop::Failed(format!("{line} has no offset or name"))),
    }
}

fn proc_maps(context: &Context) -> Verdict {
    let file = context.open_with(libc::O_RDONLY)?;
    for (name, offset) in KINDS {
        let map = Region::of_file(&file, offset, PAGE, READ, SHARED)?;
        let (found, path) = proc_maps_entry(map.address())?;
        check_eq!((found, path.as_path()), (offset, context.path()), "{name}");
        let again = sys::open(&path, libc::O_RDONLY)?;
        let again = Region::of_file(&again, found, PAGE, READ, SHARED)
            .during(|| format!("mapping {name} again"))?;
        expect_bytes(&again.load(0, PAGE), &map.load(0, PAGE), name)?;
    }
    Ok(())
}
