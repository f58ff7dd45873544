// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device whose memory an NBD server holds. The storage does with it what it does with a disk
//! (suite `block`); here is what differs: another machine may have the data, and go away.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ringbar_fio::{Engine, Job};
use ringbar_uapi::{Command, OP_CRC32C, OP_DISCARD};

use super::block;
use crate::case::{Case, Context, During, Stop, Suite, Verdict, eventually, expect_errno};
use crate::fio::{Fio, verified};
use crate::host::Host;
use crate::needs::{Daemon, DeviceKind, End, HostStorage, Kernels, Needs};
use crate::sys::{self, Buffers, Region, Ring, UringOperation};
use crate::{check, check_eq};

/// Name of the test that makes the storage fail: no other can follow.
const KILL: &str = "e3_nbd_server_is_killed_under_load";

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "nbd",
        about: "a device whose memory is an export of an NBD server, which is killed at the end",
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                size: Some(64 << 20),
                storage: HostStorage::Nbd,
                ..Daemon::default()
            }),
            kernels: Kernels::OwnInTestAll,
            end: End::StorageFailed(KILL),
            ..Needs::default()
        },
        cases: vec![
            Case::new("e3_nbd_storage_verified_by_fio", fio),
            Case::new("e3_nbd_storage_durable_writes", block::durable),
            Case::new("e3_nbd_storage_random_commands", block::random_commands),
            Case::new(KILL, kill),
        ],
    }
}

fn fio(context: &Context) -> Verdict {
    let job = Job {
        depth: 128,
        size: 8 << 20,
        further: vec!["--bsrange=512-64k".into(), "--bs_unaligned".into()],
        ..verified(context, Engine::IoUring)
    };
    Fio::start(&job)?.expect_good_end()
}

/// Timeout for results.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Reads and writes with many in flight until one fails or `stop`, and takes all results. Counts those
/// that are good.
fn load(file: &File, good: &AtomicU64, stop: &AtomicBool) -> Verdict {
    const DEPTH: usize = 64;
    const LENGTH: usize = 10_000;

    let memory = Region::anonymous(DEPTH * LENGTH)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    let operation = |number: usize| {
        let buffers = Buffers::One(memory.buffer(number * LENGTH, LENGTH));
        // Some share blocks.
        let offset = number as u64 * 9001;
        match number % 2 {
            0 => UringOperation::read(file, buffers, offset),
            _ => UringOperation::write(file, buffers, offset),
        }
        .tag(number as u64)
    };
    loop {
        let operations: Vec<_> = (0..DEPTH).map(operation).collect();
        check_eq!(ring.submit(&operations)?, DEPTH, "operations taken");
        let results = ring.results(DEPTH, TIMEOUT)?;
        check_eq!(results.len(), DEPTH, "results after the server was killed");
        let mut failed = 0;
        for (tag, result) in results {
            match result {
                Ok(bytes) => check_eq!(bytes, LENGTH, "bytes of operation {tag}"),
                Err(error) => {
                    let errno = error.raw_os_error();
                    check_eq!(errno, Some(libc::EIO), "operation {tag}: {error}");
                    failed += 1;
                }
            }
        }
        good.fetch_add((DEPTH - failed) as u64, Ordering::Relaxed);
        if failed > 0 || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// The server goes away under load: each request ends, with its data or with `EIO`, and so does
/// each later one. The driver can still be used.
fn kill(context: &Context) -> Verdict {
    const THREADS: u64 = 2;

    let file = context.open()?;
    let (good, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| load(&file, &good, &stop)))
            .collect();
        // All have had results, so they are busy.
        let begun = eventually("requests are executed", || {
            Ok(good.load(Ordering::Relaxed) > 200)
        });
        let killed = Host::connect().and_then(|host| host.kill_server());
        // The threads end by an error otherwise.
        stop.store(killed.is_err(), Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, Verdict>| {
            let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
            thread.join().unwrap_or_else(panicked)
        };
        let results: Vec<_> = threads.into_iter().map(join).collect();
        begun.and(killed)?;
        results.into_iter().collect::<Verdict>()
    })?;

    let memory = Region::anonymous(4096)?;
    let buffer = || memory.buffer(0, 4096);
    for round in 0..2 {
        let during = || format!("round {round}");
        let eio = |result: io::Result<()>, what: &str| expect_errno(result, &[libc::EIO], what);
        eio(sys::pread(&file, buffer(), 0).map(drop), "a read").during(during)?;
        eio(sys::pwrite(&file, buffer(), 0).map(drop), "a write").during(during)?;
        eio(sys::fsync(&file), "a flush").during(during)?;
        for opcode in [OP_DISCARD, OP_CRC32C] {
            let mut command = Command {
                opcode,
                length: 8192,
                ..Command::default()
            };
            let result = sys::execute(&file, &mut command);
            eio(result.map(drop), "a command").during(during)?;
        }
    }
    check!(context.open().is_ok(), "the device cannot be opened");
    Ok(())
}
