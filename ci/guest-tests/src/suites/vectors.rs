// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Interrupts of a device that has vectors to choose: one for each queue, fewer, one, MSI, the
//! line INTx.
//!
//! Each suite has another machine, and the same tests: the driver has the interrupts that it
//! should have, I/O on a CPU raises those of the CPU's queue and no other queue's, a resize is
//! noticed, and all of it again after the driver was bound again.

use std::fs;
use std::ops::RangeInclusive;

use ringbar_agent_protocol::machine::{Iommu, Transport};

use super::concurrency::{Worker, positional_free};
use crate::case::{Case, Context, During, Stop, Suite, Verdict, eventually};
use crate::fixtures::driver::{bind, expect_working, unbind};
use crate::host::Host;
use crate::interrupts::{self, Interrupt};
use crate::needs::{Daemon, DeviceKind, Kernels, Needs, Transports};
use crate::sys::{self, Region};
use crate::{check, check_eq};

/// CPUs of the machine. Each has a queue.
const CPUS: usize = 4;

/// I/O queues of the device: one for each CPU, and one for polled requests.
const QUEUES: u16 = CPUS as u16 + 1;

/// Index of the first I/O queue, as names of interrupts have it.
const FIRST_QUEUE: usize = ringbar_spec::FIRST_IO_QUEUE as usize;

/// What the driver calls its interrupts with a vector for each queue, after the name of the
/// device.
const EACH: &[&str] = &[
    "-config", "-events", "-queue2", "-queue3", "-queue4", "-queue5",
];

/// The interrupts of a device.
#[derive(Clone, Copy, Debug)]
struct Variant {
    /// Name of the suite.
    suite: &'static str,
    about: &'static str,
    /// Part of the names of its tests.
    name: &'static str,
    /// Arguments of the daemon.
    arguments: &'static [&'static str],
    iommu: Iommu,
    /// Text in the kind of each interrupt.
    kind: &'static str,
    /// Names of the interrupts, after the name of the device.
    interrupts: &'static [&'static str],
    kernels: Kernels,
}

const VARIANTS: [Variant; 6] = [
    Variant {
        suite: "vectors",
        about: "an MSI-X vector for each queue",
        name: "msix",
        arguments: &[],
        iommu: Iommu::None,
        kind: "MSIX",
        interrupts: EACH,
        kernels: Kernels::OwnInTestAll,
    },
    Variant {
        suite: "vectors_few",
        about: "fewer MSI-X vectors than queues, which share them",
        name: "few",
        arguments: &["--vectors=3"],
        iommu: Iommu::None,
        kind: "MSIX",
        interrupts: &["-config", "-queues2-3", "-queues4-5"],
        kernels: Kernels::OwnInTestAll,
    },
    Variant {
        suite: "vectors_one",
        about: "one MSI-X vector for everything",
        name: "one",
        arguments: &["--vectors=1"],
        iommu: Iommu::None,
        kind: "MSIX",
        interrupts: &[""],
        kernels: Kernels::TestAllOnly,
    },
    Variant {
        suite: "vectors_msi",
        about: "MSI, of which Linux uses one without interrupt remapping",
        name: "msi",
        arguments: &["--msi-only"],
        iommu: Iommu::None,
        kind: "MSI-",
        interrupts: &[""],
        kernels: Kernels::TestAllOnly,
    },
    Variant {
        suite: "vectors_msi_remapped",
        about: "MSI with interrupt remapping, a vector for each queue",
        name: "msi_remapped",
        arguments: &["--msi-only"],
        iommu: Iommu::Intel,
        kind: "MSI-",
        interrupts: EACH,
        kernels: Kernels::TestAllOnly,
    },
    Variant {
        suite: "vectors_intx",
        about: "no message-signalled interrupt, but the line INTx",
        name: "intx",
        arguments: &["--vectors=0"],
        iommu: Iommu::None,
        kind: "IO-APIC",
        interrupts: &[""],
        kernels: Kernels::OwnInTestAll,
    },
];

/// The suites.
pub fn suites() -> impl Iterator<Item = Suite> {
    VARIANTS.into_iter().map(suite)
}

fn suite(variant: Variant) -> Suite {
    let case = |what: &str, run: fn(&Context, &Variant) -> Verdict| {
        let case = Case::new(format!("c3_{}_{what}", variant.name), move |context| {
            run(context, &variant)
        });
        // No CONFIG_IRQ_REMAP.
        match variant.iommu {
            Iommu::Intel => case.not_on_debug_kernel(),
            _ => case,
        }
    };
    Suite {
        name: variant.suite,
        about: variant.about,
        needs: Needs {
            device: DeviceKind::Daemon(Daemon {
                queues: Some(QUEUES),
                arguments: variant.arguments,
                transports: Transports::Only(
                    Transport::VfioUser,
                    "over vhost-user QEMU offers one MSI-X vector",
                ),
                ..Daemon::default()
            }),
            cpus: CPUS as u32,
            iommu: variant.iommu,
            kernels: variant.kernels,
            ..Needs::default()
        },
        cases: vec![
            case("names_and_kinds_in_proc_interrupts", names),
            case("are_spread_over_cpus", spread),
            case("io_on_a_cpu_raises_the_interrupt_of_its_queue", raised),
            case("data_of_all_cpus_at_once", data),
            case("resize_is_noticed", resize),
            case("are_the_same_after_unbind_and_bind", bound_again),
        ],
    }
}

/// The driver's interrupts now.
fn found() -> Verdict<Vec<Interrupt>> {
    let table = fs::read_to_string("/proc/interrupts")?;
    Ok(interrupts::of_handler(&table, "ringbar"))
}

/// The name of an interrupt after the name of the device.
fn suffix(interrupt: &Interrupt) -> &str {
    let name = interrupt.name.trim_start_matches("ringbar");
    name.trim_start_matches(|c: char| c.is_ascii_digit())
}

/// The I/O queues that an interrupt serves, by index; `None` if it serves all or none.
fn queues(suffix: &str) -> Option<RangeInclusive<usize>> {
    if let Some(queue) = suffix.strip_prefix("-queue")
        && let Ok(queue) = queue.parse()
    {
        return Some(queue..=queue);
    }
    let (first, last) = suffix.strip_prefix("-queues")?.split_once('-')?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// The interrupts since `before`.
fn since(before: &[Interrupt]) -> Verdict<Vec<Interrupt>> {
    let mut now = found()?;
    check_eq!(now.len(), before.len(), "number of interrupts");
    for (now, before) in now.iter_mut().zip(before) {
        check_eq!(now.name, before.name, "name of an interrupt");
        for (now, before) in now.counts.iter_mut().zip(&before.counts) {
            *now -= before;
        }
    }
    Ok(now)
}

fn names(_context: &Context, variant: &Variant) -> Verdict {
    let found = found()?;
    let names: Vec<_> = found.iter().map(suffix).collect();
    check_eq!(names, variant.interrupts, "names of the interrupts");
    for interrupt in &found {
        check!(
            interrupt.kind.contains(variant.kind),
            "{} is {:?}, not {}",
            interrupt.name,
            interrupt.kind,
            variant.kind
        );
    }
    Ok(())
}

fn spread(_context: &Context, _variant: &Variant) -> Verdict {
    for interrupt in found()? {
        let Some(queues) = queues(suffix(&interrupt)) else {
            continue;
        };
        let path = format!("/proc/irq/{}/smp_affinity_list", interrupt.number);
        let cpus = fs::read_to_string(&path).during(|| format!("reading {path}"))?;
        let (first, last) = (queues.start() - FIRST_QUEUE, queues.end() - FIRST_QUEUE);
        let expected = match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        check_eq!(cpus.trim(), expected, "CPUs of {}", interrupt.name);
    }
    Ok(())
}

/// Reads, one after the other, that are too large to be polled for.
fn read_on(cpu: usize, context: &Context, reads: u64) -> Verdict {
    const LENGTH: usize = 2 << 20;

    let _pinned = sys::pin_to_cpu(cpu)?;
    let file = context.open()?;
    let memory = Region::anonymous(LENGTH)?;
    for i in 0..reads {
        let read = sys::pread(&file, memory.buffer(0, LENGTH), i * LENGTH as u64)?;
        check_eq!(read, LENGTH, "bytes read");
    }
    Ok(())
}

fn raised(context: &Context, _variant: &Variant) -> Verdict {
    for cpu in 0..CPUS {
        // The kernel moves a vector to another CPU when the next interrupt comes.
        read_on(cpu, context, 5)?;
        let before = found()?;
        read_on(cpu, context, 20).during(|| format!("on CPU {cpu}"))?;
        let since = since(&before)?;
        let own = |interrupt: &Interrupt| match queues(suffix(interrupt)) {
            Some(queues) => queues.contains(&(FIRST_QUEUE + cpu)),
            None => suffix(interrupt).is_empty(),
        };
        let raised: u64 = since.iter().filter(|i| own(i)).map(Interrupt::total).sum();
        check!(
            raised > 0,
            "no interrupt of its queue on CPU {cpu}: {since:?}"
        );
        for interrupt in since.iter().filter(|interrupt| !own(interrupt)) {
            check_eq!(
                interrupt.total(),
                0,
                "{} with I/O on CPU {cpu}",
                interrupt.name
            );
        }
        // Where a queue has an interrupt to itself, it comes on the queue's CPU.
        for interrupt in since.iter().filter(|interrupt| {
            queues(suffix(interrupt))
                .is_some_and(|queues| queues == (FIRST_QUEUE + cpu..=FIRST_QUEUE + cpu))
        }) {
            check_eq!(
                interrupt.counts.get(cpu).copied(),
                Some(interrupt.total()),
                "interrupts of {} on CPU {cpu}: {:?}",
                interrupt.name,
                interrupt.counts
            );
        }
    }
    Ok(())
}

fn data(context: &Context, _variant: &Variant) -> Verdict {
    const STEPS: usize = 60;
    const RANGE: usize = 1 << 20;

    let methods = positional_free();
    let results: Vec<Verdict> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CPUS)
            .map(|cpu| {
                let methods = &methods;
                scope.spawn(move || -> Verdict {
                    let _pinned = sys::pin_to_cpu(cpu)?;
                    let file = context.open()?;
                    let mut worker = Worker::new((cpu * RANGE) as u64 + 3, RANGE, cpu as u64)?;
                    worker.begin(&file)?;
                    for _ in 0..STEPS {
                        worker.step(&file, methods)?;
                    }
                    // Not through the map, which is slow with INTx.
                    worker.expect_read(&file)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Verdict>| {
            let panicked = |_| Err(Stop::Failed("a thread panicked".into()));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(join).collect()
    });
    results.into_iter().collect()
}

fn resize(context: &Context, _variant: &Variant) -> Verdict {
    const STEP: u64 = 32 << 20;

    let host = Host::connect()?;
    let file = context.open()?;
    let has = |bytes: u64| {
        eventually(&format!("{bytes} bytes"), || {
            Ok(sys::lseek(&file, 0, libc::SEEK_END)? == bytes)
        })
    };
    for bytes in [context.size() - STEP, context.size()] {
        let before = found()?;
        host.resize(bytes)?;
        has(bytes)?;
        // The event and the change of the configuration tell of the same, in any order.
        let serves_all = |interrupt: &Interrupt| queues(suffix(interrupt)).is_none();
        eventually(&format!("interrupts that tell of {bytes} bytes"), || {
            let since = since(&before)?;
            let mut told = since.iter().filter(|interrupt| serves_all(interrupt));
            Ok(told.all(|interrupt| interrupt.total() > 0))
        })?;
        for interrupt in since(&before)?.iter().filter(|i| !serves_all(i)) {
            check_eq!(interrupt.total(), 0, "{}", interrupt.name);
        }
    }
    Ok(())
}

fn bound_again(context: &Context, variant: &Variant) -> Verdict {
    let address = context.pci_address()?;
    for round in 0..3 {
        unbind(&address)?;
        check_eq!(found()?, [], "interrupts without driver");
        bind(context, &address)?;
        expect_working(context, round)?;
        names(context, variant)?;
        raised(context, variant)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_queues() {
        assert_eq!(queues("-queue12"), Some(12..=12));
        assert_eq!(queues("-queues2-3"), Some(2..=3));
        for name in ["", "-config", "-events", "-queue", "-queues2", "-queuex"] {
            assert_eq!(queues(name), None, "{name}");
        }
    }
}
