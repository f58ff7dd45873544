// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looks through a kernel log for anything that a healthy kernel never says.

/// What marks a line as a problem: a text that it contains, and what it means.
///
/// The texts are those that the kernel prints itself, not ones that a driver
/// could choose, so that a line is a problem wherever it comes from.
const MARKS: &[(&str, &str)] = &[
    ("Kernel panic", "panic"),
    ("kernel BUG at", "BUG"),
    ("BUG: ", "BUG"),
    ("WARNING: ", "warning"),
    ("Oops: ", "oops"),
    ("general protection fault", "oops"),
    ("unable to handle", "oops"),
    ("Unable to handle", "oops"),
    ("rust_kernel: panicked", "Rust panic"),
    ("UBSAN: ", "undefined behaviour"),
    ("DMA-API: ", "DMA API misuse"),
    ("ODEBUG: ", "object life cycle"),
    ("INFO: task ", "hung task"),
    ("INFO: trying to register non-static key", "locking"),
    ("INFO: lockdep is turned off", "locking"),
    ("possible recursive locking detected", "locking"),
    ("possible circular locking dependency", "locking"),
    ("inconsistent lock state", "locking"),
    ("irq lock inversion", "locking"),
    ("suspicious RCU usage", "RCU"),
    ("detected stall", "stall"),
    ("detected stalls", "stall"),
    ("soft lockup", "stall"),
    ("hard LOCKUP", "stall"),
    ("scheduling while atomic", "sleep in atomic context"),
    (
        "sleeping function called from invalid context",
        "sleep in atomic context",
    ),
    ("list_add corruption", "corruption"),
    ("list_del corruption", "corruption"),
    ("refcount_t: ", "reference count"),
    ("Bad page state", "page state"),
    ("Bad rss-counter", "page state"),
    ("bad: scheduling from the idle thread", "scheduler"),
    ("unreferenced object", "memory leak"),
    ("new suspected memory leaks", "memory leak"),
    ("nobody cared", "lost interrupt"),
    ("Disabling IRQ", "lost interrupt"),
    ("Object already free", "use after free"),
    ("Poison overwritten", "use after free"),
    ("Out of memory: ", "out of memory"),
    ("page allocation failure", "out of memory"),
    ("enqueued on deprecated workqueue", "deprecated work queue"),
    ("segfault at", "crash of a program"),
    ("traps: ", "crash of a program"),
];

/// Lines that look like problems and are none of the kernel's: parts of them.
/// Each entry needs a comment that says why it may be ignored.
const HARMLESS: &[&str] = &[
    // Said at boot, depending on the CPU that QEMU shows: about mitigations, not
    // about a fault.
    "Spectre V2 : WARNING: ",
    // Said at boot by the debug kernel: whether the checker is there.
    "DMA-API: preallocated",
    "DMA-API: debugging enabled by kernel config",
    "DMA-API: debugging disabled on kernel command line",
];

/// A line that a healthy kernel does not print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of problem it is.
    pub kind: &'static str,
    /// Number of the line in the log, from 1.
    pub number: usize,
    /// The line.
    pub line: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in line {}: {}", self.kind, self.number, self.line)
    }
}

/// Finds all problems in a log.
pub fn problems(log: &str) -> Vec<Problem> {
    log.lines()
        .enumerate()
        .filter_map(|(i, line)| {
            if HARMLESS.iter().any(|text| line.contains(text)) {
                return None;
            }
            let (_, kind) = MARKS.iter().find(|(mark, _)| line.contains(mark))?;
            Some(Problem {
                kind,
                number: i + 1,
                line: line.trim_end().to_owned(),
            })
        })
        .collect()
}

/// The problems and the lines that follow the first of them, which tell where
/// in the kernel it happened.
pub fn report(log: &str) -> Option<String> {
    const FOLLOWING: usize = 40;
    const LISTED: usize = 10;

    let problems = problems(log);
    let first = problems.first()?;
    let mut text = format!("{} problem(s) in the kernel log\n", problems.len());
    for problem in problems.iter().take(LISTED) {
        text += &format!("{problem}\n");
    }
    text += "--- from the first on ---\n";
    for line in log.lines().skip(first.number - 1).take(FOLLOWING) {
        text += line.trim_end();
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as the kernel prints them, one of each kind.
    const SICK: &[&str] = &[
        "[    8.160000] Kernel panic - not syncing: sysrq triggered crash",
        "[   12.345678] WARNING: CPU: 1 PID: 77 at kernel/dma/debug.c:1021 check_unmap+0x8a/0x9e0",
        "[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[   12.345678] BUG: unable to handle page fault for address: ffffc90000200000",
        "[   12.345678] BUG: KASAN: slab-use-after-free in ringbar_complete+0x30/0x90 [ringbar]",
        "[   12.345678] BUG: sleeping function called from invalid context at mm/page_alloc.c:4800",
        "[   12.345678] kernel BUG at mm/gup.c:120!",
        "[   12.345678] Oops: Oops: 0000 [#1] SMP NOPTI",
        "[   12.345678] Oops: general protection fault, probably for non-canonical address 0xdead",
        "[   12.345678] UBSAN: array-index-out-of-bounds in drivers/x.c:1:2",
        "[   12.345678] DMA-API: ringbar 0000:00:03.0: device driver tries to free DMA memory",
        "[   12.345678] INFO: task fio:123 blocked for more than 60 seconds.",
        "[   12.345678] WARNING: possible circular locking dependency detected",
        "[   12.345678] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "[   12.345678] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [fio:123]",
        "[   12.345678] BUG: scheduling while atomic: fio/123/0x00000002",
        "[   12.345678] list_del corruption. prev->next should be ffff, but was dead",
        "[   12.345678] refcount_t: underflow; use-after-free.",
        "[   12.345678] BUG: Bad page state in process fio  pfn:12345",
        "[   12.345678] irq 24: nobody cared (try booting with the \"irqpoll\" option)",
        "[   12.345678] rust_kernel: panicked at drivers/x.rs:10:5:",
        "[   12.345678] ringbar-guest-t[99]: segfault at 0 ip 0000000000401000 sp 00007ffd error 4",
        "[   12.345678] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    ];

    /// Lines of a healthy guest.
    const HEALTHY: &str = "\
[    0.000000] Linux version 7.3.4+deb13-amd64 (debian-kernel@lists.debian.org)
[    0.000000] Command line: console=ttyS0 tsc=reliable quiet panic=-1 oops=panic
[    0.011000] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on
[    0.200000] PCI: Using configuration type 1 for base access
[    0.300000] ACPI: Added _OSI(Module Device)
[    1.000000] Freeing unused kernel image (initmem) memory: 4012K
[    5.000000] ringbar: loading out-of-tree module taints kernel.
[    5.000000] ringbar 0000:00:03.0: 256 MiB, 4 queues
[    6.000000] ringbar 0000:00:03.0: error: the device reported a broken queue
";

    #[test]
    fn each_kind_of_problem_is_found() {
        for line in SICK {
            let found = problems(line);
            assert_eq!(found.len(), 1, "{line}");
            assert_eq!(found[0].line, *line);
        }
    }

    #[test]
    fn a_healthy_log_has_none() {
        assert_eq!(problems(HEALTHY), []);
        assert_eq!(report(HEALTHY), None);
    }

    #[test]
    fn the_report_leads_to_the_place() {
        let log = format!(
            "{HEALTHY}[ 7.0] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\n[ 7.0] Call Trace:\n[ 7.0]  g+0x3/0x4\n"
        );
        let report = report(&log).unwrap();
        assert!(report.starts_with("1 problem(s)"), "{report}");
        assert!(
            report.contains("warning in line 10: [ 7.0] WARNING"),
            "{report}"
        );
        assert!(report.ends_with("[ 7.0]  g+0x3/0x4\n"), "{report}");
    }
}
