// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device in use while the machine sleeps: open files and maps, and processes that move
//! data.

use std::fs;

use crate::case::{Context, During, TIMEOUT, Verdict, expect_bytes};
use crate::check_eq;
use crate::fixtures::processes::{SharedProgress, expect_good_end, process};
use crate::pattern;
use crate::sys::{self, AioContext, AioOperation, Buffers, PAGE, Region, Ring, UringOperation};

/// A file and a map from before the suspend.
pub(super) struct OpenDevice {
    pub(super) file: fs::File,
    pub(super) map: Region,
    pub(super) seed: u64,
}

impl OpenDevice {
    pub(super) const AT: usize = (3 << 20) + 5;
    pub(super) const LENGTH: usize = 3 * PAGE;

    pub(super) fn new(context: &Context, seed: u64) -> Verdict<Self> {
        let open = Self {
            file: context.open()?,
            map: context.map()?,
            seed,
        };
        open.map.store(Self::AT, pattern::bytes(seed, Self::LENGTH));
        Ok(open)
    }

    /// Checks that the old data is there, by the map and by DMA, and that both show new
    /// data.
    pub(super) fn expect_alive(&self) -> Verdict {
        let old = pattern::bytes(self.seed, Self::LENGTH);
        let new = pattern::bytes(self.seed + 1000, Self::LENGTH);
        let memory = Region::anonymous(Self::LENGTH)?;
        let buffer = memory.buffer(0, Self::LENGTH);
        let position = Self::AT as u64;
        let load = || self.map.load(Self::AT, Self::LENGTH);

        expect_bytes(&load(), old, "the old map")?;
        let read = sys::pread(&self.file, buffer, position).during(|| "the old file".into())?;
        check_eq!(read, Self::LENGTH, "bytes read");
        expect_bytes(
            &memory.load(0, Self::LENGTH),
            old,
            "what the old file reads",
        )?;
        memory.store(0, new);
        let written = sys::pwrite(&self.file, buffer, position)?;
        check_eq!(written, Self::LENGTH, "bytes written");
        expect_bytes(&load(), new, "the old map after a write")?;
        self.map.store(Self::AT, old);
        sys::pread(&self.file, buffer, position)?;
        expect_bytes(&memory.load(0, Self::LENGTH), old, "a store to the old map")
    }
}

/// Number of methods of moving data.
pub(super) const ENGINES: usize = 3;

/// Writes and reads back repeatedly, until told to stop.
pub(super) fn move_data(context: &Context, progress: &SharedProgress, engine: usize) -> Verdict {
    pub(super) const DEPTH: usize = 4;
    pub(super) const LENGTH: usize = 150_001;

    let file = context.open()?;
    let memory = Region::anonymous(DEPTH * LENGTH)?;
    let buffer = |i: usize| memory.buffer(i * LENGTH, LENGTH);
    let place = |i: usize| ((16 + 2 * engine) << 20) as u64 + (i * LENGTH) as u64;
    let aio = AioContext::new(DEPTH as u32)?;
    let mut ring = Ring::new(DEPTH as u32)?;
    let mut transfer = |write: bool| -> Verdict {
        let results = match engine {
            0 => (0..DEPTH)
                .map(|i| match write {
                    true => (i as u64, sys::pwrite(&file, buffer(i), place(i))),
                    false => (i as u64, sys::pread(&file, buffer(i), place(i))),
                })
                .collect(),
            1 => {
                let operations: Vec<_> = (0..DEPTH)
                    .map(|i| match write {
                        true => AioOperation::pwrite(&file, buffer(i), place(i)),
                        false => AioOperation::pread(&file, buffer(i), place(i)),
                    })
                    .collect();
                let taken = aio.submit(&operations)?;
                check_eq!(taken, DEPTH, "operations taken");
                aio.results(DEPTH, DEPTH, TIMEOUT)?
            }
            _ => {
                let operations: Vec<_> = (0..DEPTH)
                    .map(|i| match write {
                        true => UringOperation::write(&file, Buffers::One(buffer(i)), place(i)),
                        false => UringOperation::read(&file, Buffers::One(buffer(i)), place(i)),
                    })
                    .collect();
                check_eq!(ring.submit(&operations)?, DEPTH, "operations taken");
                ring.results(DEPTH, TIMEOUT)?
            }
        };
        check_eq!(results.len(), DEPTH, "results");
        for (_, result) in results {
            check_eq!(result?, LENGTH, "bytes moved");
        }
        Ok(())
    };
    let mut seed = 1;
    while !progress.signalled() {
        for i in 0..DEPTH {
            memory.store(i * LENGTH, pattern::bytes(seed + i as u64, LENGTH));
        }
        transfer(true).during(|| "writing".into())?;
        memory.fill(0, DEPTH * LENGTH, 0);
        transfer(false).during(|| "reading".into())?;
        for i in 0..DEPTH {
            expect_bytes(
                &memory.load(i * LENGTH, LENGTH),
                pattern::bytes(seed + i as u64, LENGTH),
                "what was read back",
            )?;
        }
        seed = seed % 50 + 1;
        progress.count(engine);
    }
    Ok(())
}

/// Suspends `times` times while data is moved by all methods, and checks that the
/// transfers continue.
pub(super) fn with_io(
    context: &Context,
    times: u32,
    mut sleep: impl FnMut() -> Verdict,
) -> Verdict {
    let open = OpenDevice::new(context, 5)?;
    let progress = SharedProgress::new()?;
    let mut children = Vec::new();
    for engine in 0..ENGINES {
        children.push(process(engine, || move_data(context, &progress, engine))?);
    }
    let wait_for_progress = || -> Verdict {
        for engine in 0..ENGINES {
            progress.expect_done(engine, progress.done(engine) + 2)?;
        }
        Ok(())
    };
    let slept: Verdict = (0..times).try_for_each(|round| {
        let during = || format!("round {round}");
        wait_for_progress().during(during)?;
        sleep().during(during)?;
        wait_for_progress().during(during)?;
        open.expect_alive().during(during)
    });
    progress.signal();
    for (engine, child) in children.into_iter().enumerate() {
        expect_good_end(engine, child)?;
    }
    slept
}
