// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Finds problems in a kernel log: by the text in any log, and by the level in a log with
//! levels. In the latter, every error is a problem, and every warning about the driver.

use ringbar_agent_protocol::TEST_MARK;

/// Patterns that mark a line as a problem: a text, and the kind of the problem.
///
/// The kernel itself prints these texts, so a line is a problem whatever its origin.
///
/// The texts are those that the kernel prints itself, not ones that a driver
/// could choose, so that a line is a problem wherever it comes from.
const PROBLEM_PATTERNS: &[(&str, &str)] = &[
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
    ("pagealloc: memory corruption", "use after free"),
    ("pagealloc: single bit error", "use after free"),
    ("Out of memory: ", "out of memory"),
    ("page allocation failure", "out of memory"),
    ("segfault at", "crash of a program"),
    ("traps: ", "crash of a program"),
];

/// Kind of a line of level 3 (`KERN_ERR`) or worse.
const ERROR: &str = "error";

/// Kind of a line of level 4 (`KERN_WARNING`) about the driver.
const WARNING: &str = "warning about the driver";

/// Text in every line about the driver, its devices and functions, and our programs.
const DRIVER_PATTERN: &str = "ringbar";

/// Parts of lines that look like problems but are harmless. Each entry needs a comment
/// that says why.
const HARMLESS_PATTERNS: &[&str] = &[
    // Printed at boot, depending on QEMU's CPU model: about mitigations, not about a
    // fault.
    "Spectre V2 : WARNING: ",
    // Printed at boot by the debug kernel: the state of the checker.
    "DMA-API: preallocated",
    "DMA-API: debugging enabled by kernel config",
    "DMA-API: debugging disabled on kernel command line",
    // Printed for every out-of-tree module.
    "ringbar: loading out-of-tree module taints kernel.",
    // Printed by the kernel for a driver that limits the rate of a message: how many lines there
    // were before. On a slow machine the next one comes late enough for it.
    "ringbar_ratelimit: ",
];

/// A problem that is expected, or not caused by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedProblem {
    /// A line that a test provokes on purpose. It is expected while this test runs, or,
    /// without a test, at any time.
    Provoked {
        /// Name of the test.
        test: Option<String>,
        /// Part of the line.
        text: String,
        /// Whether the line must appear.
        required: bool,
    },
    /// A warning whose stack trace contains all of these texts.
    Trace(&'static [&'static str]),
}

/// A problem in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Kind of the problem.
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

/// A line of the log: `[time] text`. The agent's log has `<level>` before it; a console's
/// has not.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    level: Option<u8>,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn parse(number: usize, line: &'a str) -> Self {
        let split = || {
            let (level, text) = line.strip_prefix('<')?.split_once('>')?;
            Some((level.parse().ok()?, text))
        };
        let (level, text) = match split() {
            Some((level, text)) => (Some(level), text),
            None => (None, line),
        };
        Self {
            number,
            level,
            text: text.trim_end(),
        }
    }

    fn contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// Kind of the problem by the line's text.
    fn kind_by_text(&self) -> Option<&'static str> {
        let (_, kind) = PROBLEM_PATTERNS
            .iter()
            .find(|(mark, _)| self.contains(mark))?;
        Some(kind)
    }

    /// Kind of the problem by the line's level. `addresses` are the PCI addresses of our
    /// devices.
    fn kind_by_level(&self, addresses: &[&str]) -> Option<&'static str> {
        match self.level? {
            ..=3 => Some(ERROR),
            4 if self.contains(DRIVER_PATTERN) || addresses.iter().any(|a| self.contains(a)) => {
                Some(WARNING)
            }
            _ => None,
        }
    }

    /// Whether this is the first line of `dump_stack`'s output.
    fn begins_stack(&self) -> bool {
        self.contains("] CPU: ") && self.contains(" Comm: ")
    }

    /// Whether this is the last line of `dump_stack`'s output.
    fn ends_stack(&self) -> bool {
        self.contains("]  </TASK>")
    }

    fn problem(&self, kind: &'static str) -> Problem {
        Problem {
            kind,
            number: self.number,
            line: self.text.to_owned(),
        }
    }
}

/// The PCI addresses of our devices, taken from the driver's messages: `ringbar
/// 0000:00:02.0: text`.
fn addresses<'a>(lines: &[Line<'a>]) -> Vec<&'a str> {
    let mut addresses: Vec<_> = lines
        .iter()
        .filter_map(|line| {
            let (_, rest) = line.text.split_once("] ringbar ")?;
            let (address, _) = rest.split_once(": ")?;
            (address.contains(':') && !address.contains(' ')).then_some(address)
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Maximum number of lines of a stack trace, whose end may be missing.
const MAX_STACK_LINES: usize = 80;

/// Finds all problems in a log.
pub fn problems(log: &str, expected: &[ExpectedProblem]) -> Vec<Problem> {
    let lines: Vec<_> = log
        .lines()
        .enumerate()
        .map(|(i, line)| Line::parse(i + 1, line))
        .collect();
    let addresses = addresses(&lines);
    let mut problems = Vec::new();
    let mut running = None;
    let (mut told, mut in_stack) = (false, 0_usize);
    let mut provoked = vec![false; expected.len()];
    let mut rest = lines.as_slice();
    while let Some((&line, others)) = rest.split_first() {
        if let Some((_, name)) = line.text.split_once(TEST_MARK) {
            running = Some(name);
        }
        // A warning and its stack trace are one problem.
        if let Some(end) = trace(rest) {
            let (trace, others) = rest.split_at(end);
            rest = others;
            let is_expected = expected.iter().any(|expectation| match expectation {
                ExpectedProblem::Trace(parts) => parts
                    .iter()
                    .all(|part| trace.iter().any(|line| line.contains(part))),
                ExpectedProblem::Provoked { .. } => false,
            });
            if !is_expected {
                let before = problems.len();
                problems.extend(
                    trace
                        .iter()
                        .filter_map(|line| Some(line.problem(line.kind_by_text()?))),
                );
                if problems.len() == before {
                    problems.push(line.problem("warning"));
                }
            }
            continue;
        }
        rest = others;
        if HARMLESS_PATTERNS.iter().any(|text| line.contains(text)) {
            told = false;
            continue;
        }
        let mut is_expected = false;
        for (expectation, provoked) in expected.iter().zip(&mut provoked) {
            if let ExpectedProblem::Provoked { test, text, .. } = expectation
                && line.contains(text)
                && test.as_deref().is_none_or(|test| running == Some(test))
            {
                *provoked = true;
                is_expected = true;
            }
        }
        // A stack trace belongs to the line before it, if that line gives the reason.
        let begins = line.begins_stack();
        let kind_by_level = match in_stack > 0 || told && begins {
            true => None,
            false => line.kind_by_level(&addresses),
        };
        told = is_expected;
        if !is_expected && let Some(kind) = line.kind_by_text().or(kind_by_level) {
            problems.push(line.problem(kind));
            told = true;
        }
        in_stack = match (begins, line.ends_stack()) {
            (true, _) => MAX_STACK_LINES,
            (false, true) => 0,
            (false, false) => in_stack.saturating_sub(1),
        };
    }
    // In a log without levels, a required line is not reported as missing.
    let levels = lines.iter().any(|line| line.level.is_some());
    for (expectation, provoked) in expected.iter().zip(provoked) {
        if let ExpectedProblem::Provoked {
            test,
            text,
            required: true,
        } = expectation
            && levels
            && !provoked
        {
            let test = test.as_deref().unwrap_or("the test");
            problems.push(Problem {
                kind: "line that is missing",
                number: lines.len(),
                line: format!("{test} was to provoke {text:?}"),
            });
        }
    }
    problems
}

/// Number of lines of the warning with a stack trace that begins here.
fn trace(lines: &[Line<'_>]) -> Option<usize> {
    const BEGIN: &str = "------------[ cut here ]------------";
    const END: &str = "---[ end trace ";

    lines.first().filter(|line| line.contains(BEGIN))?;
    let after = lines[1..]
        .iter()
        .position(|line| line.contains(END) || line.contains(BEGIN));
    Some(match after {
        Some(last) if lines[1 + last].contains(END) => last + 2,
        // The trace was cut off, or the kernel died.
        Some(next) => next + 1,
        None => lines.len(),
    })
}

/// The problems, and the lines after the first one, which show where in the kernel it
/// happened.
pub fn report(log: &str, expected: &[ExpectedProblem]) -> Option<String> {
    const CONTEXT_LINES: usize = 40;
    const MAX_LISTED: usize = 10;

    let problems = problems(log, expected);
    let first = problems.first()?;
    let mut text = format!("{} problem(s) in the kernel log\n", problems.len());
    for problem in problems.iter().take(MAX_LISTED) {
        text += &format!("{problem}\n");
    }
    text += "--- from the first on ---\n";
    for line in log.lines().skip(first.number - 1).take(CONTEXT_LINES) {
        text += line.trim_end();
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of the kernel, one of each kind.
    const PROBLEM_LINES: &[&str] = &[
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
        "[   12.345678] pagealloc: memory corruption",
        "[   12.345678] irq 24: nobody cared (try booting with the \"irqpoll\" option)",
        "[   12.345678] rust_kernel: panicked at drivers/x.rs:10:5:",
        "[   12.345678] ringbar-guest-t[99]: segfault at 0 ip 0000000000401000 sp 00007ffd error 4",
        "[   12.345678] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    ];

    /// Lines of a healthy guest.
    const CLEAN_LOG: &str = "\
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

    /// The same log with levels, as the agent sends it.
    const CLEAN_LOG_WITH_LEVELS: &str = "\
<5>[    0.000000] Linux version 7.3.4+deb13-amd64 (debian-kernel@lists.debian.org)
<4>[    0.060000] tsc: Unable to calibrate against PIT
<4>[    8.846608] ringbar: loading out-of-tree module taints kernel.
<5>[    8.846932] ringbar: module verification failed: signature and/or required key missing
<6>[    8.874285] pci 0000:00:02.0: ringbar: taken over from virtio-pci
<6>[    8.964950] ringbar 0000:00:02.0: 268435456 bytes of device memory
<4>[    9.000000] virtio-pci 0000:00:04.0: something about another device
<4>[    9.100000] ringbar_ratelimit: 69 callbacks suppressed
";

    fn kinds(log: &str, expected: &[ExpectedProblem]) -> Vec<&'static str> {
        problems(log, expected).iter().map(|p| p.kind).collect()
    }

    fn provoked(test: Option<&str>, text: &str) -> ExpectedProblem {
        ExpectedProblem::Provoked {
            test: test.map(str::to_owned),
            text: text.to_owned(),
            required: true,
        }
    }

    #[test]
    fn warnings_about_the_driver_are_found_by_their_level() {
        for line in [
            "<4>[    9.1] workqueue: work func _RINvMs0_ringbar_main6device [ringbar] enqueued on deprecated workqueue. Use system_{percpu|dfl}_wq instead.",
            "<4>[    9.1] ringbar 0000:00:02.0: queue 3 is not used",
            "<4>[    9.1] ringbar: unknown event in buffer 3",
            "<4>[    9.1] pcieport 0000:00:01.0: no answer from 0000:00:02.0",
        ] {
            assert_eq!(
                kinds(&format!("{CLEAN_LOG_WITH_LEVELS}{line}\n"), &[]),
                [WARNING],
                "{line}"
            );
            let info = line.replace("<4>", "<5>");
            assert_eq!(
                kinds(&format!("{CLEAN_LOG_WITH_LEVELS}{info}\n"), &[]),
                [""; 0],
                "{info}"
            );
        }
    }

    #[test]
    fn errors_are_found_by_their_level_whoever_has_them() {
        for level in 0..=3 {
            let log = format!("{CLEAN_LOG_WITH_LEVELS}<{level}>[    9.1] ACPI: no tables\n");
            assert_eq!(kinds(&log, &[]), [ERROR]);
        }
    }

    #[test]
    fn a_provoked_line_is_excused_in_its_test_only() {
        let line = "<3>[    9.1] ringbar 0000:00:02.0: the device broke queue 1\n";
        let log = format!(
            "{CLEAN_LOG_WITH_LEVELS}<6>[    9.0] {TEST_MARK}d5_broken\n{line}<6>[    9.2] {TEST_MARK}b1_read\n"
        );
        let expectation = [provoked(Some("d5_broken"), "broke queue")];
        assert_eq!(kinds(&log, &[]), [ERROR]);
        assert_eq!(kinds(&log, &expectation), [""; 0]);
        assert_eq!(kinds(&format!("{log}{line}"), &expectation), [ERROR]);
        assert_eq!(kinds(&log, &[provoked(None, "broke queue")]), [""; 0]);
        let other = [provoked(Some("d5_broken"), "is not used")];
        assert_eq!(kinds(&log, &other), [ERROR, "line that is missing"]);
    }

    #[test]
    fn a_provoked_line_has_to_come() {
        let expectation = [provoked(Some("d5_broken"), "broke queue")];
        assert_eq!(
            kinds(CLEAN_LOG_WITH_LEVELS, &expectation),
            ["line that is missing"]
        );
        // A console log has no levels, so the line is not reported as missing.
        assert_eq!(kinds(CLEAN_LOG, &expectation), [""; 0]);
        let may = [ExpectedProblem::Provoked {
            test: None,
            text: "broke queue".into(),
            required: false,
        }];
        assert_eq!(kinds(CLEAN_LOG_WITH_LEVELS, &may), [""; 0]);
    }

    #[test]
    fn a_stack_trace_is_part_of_the_line_before() {
        let why = "<4>[    9.1] ringbar-guest-t: vmalloc error: size 16384\n";
        let stack = "\
            <4>[    9.1] CPU: 1 UID: 0 PID: 105 Comm: ringbar-guest-t Tainted: G\n\
            <4>[    9.1] Call Trace:\n\
            <4>[    9.1]  <TASK>\n\
            <4>[    9.1]  f+0x1/0x2 [ringbar]\n\
            <4>[    9.1]  </TASK>\n";
        let log = format!("{CLEAN_LOG_WITH_LEVELS}{why}{stack}");
        assert_eq!(kinds(&log, &[]), [WARNING]);
        let expectation = [provoked(None, "vmalloc error")];
        assert_eq!(kinds(&log, &expectation), [""; 0]);
        // The trace ends, and without a reason it is a problem itself.
        let after = "<4>[    9.1] ringbar 0000:00:02.0: queue 3 is not used\n";
        assert_eq!(kinds(&format!("{log}{after}"), &expectation), [WARNING]);
        assert_eq!(
            kinds(&format!("{CLEAN_LOG_WITH_LEVELS}{stack}"), &[]),
            [WARNING],
            "a trace without a reason"
        );
    }

    #[test]
    fn a_warning_of_the_kernel_itself_is_excused_by_its_trace() {
        let warning = |caller: &str| {
            format!(
                "<4>[    9.1] ------------[ cut here ]------------\n\
                 <4>[    9.1] name 'spurious'\n\
                 <4>[    9.1] WARNING: fs/proc/generic.c:742 at remove_proc_entry+0x1/0x2, CPU#0: x/1\n\
                 <4>[    9.1] Modules linked in: ringbar(OE)\n\
                 <4>[    9.1] Call Trace:\n\
                 <4>[    9.1]  {caller}+0x1/0x2\n\
                 <4>[    9.1] ---[ end trace 0000000000000000 ]---\n"
            )
        };
        let expectation = [ExpectedProblem::Trace(&[
            "at remove_proc_entry+",
            " unregister_irq_proc+",
        ])];
        let log = format!("{CLEAN_LOG_WITH_LEVELS}{}", warning("unregister_irq_proc"));
        assert_eq!(kinds(&log, &[]), ["warning"]);
        assert_eq!(kinds(&log, &expectation), [""; 0]);
        // A second warning, and one of another caller, are not expected.
        let other = format!("{log}{}", warning("ringbar_exit"));
        assert_eq!(kinds(&other, &expectation), ["warning"]);
        let cut = log.replace("<4>[    9.1] ---[ end trace 0000000000000000 ]---\n", "");
        assert_eq!(
            kinds(&format!("{cut}{}", warning("ringbar_exit")), &expectation),
            ["warning"]
        );
    }

    #[test]
    fn each_kind_of_problem_is_found() {
        for line in PROBLEM_LINES {
            let found = problems(line, &[]);
            assert_eq!(found.len(), 1, "{line}");
            assert_eq!(found[0].line, *line);
        }
    }

    #[test]
    fn a_healthy_log_has_none() {
        assert_eq!(problems(CLEAN_LOG, &[]), []);
        assert_eq!(problems(CLEAN_LOG_WITH_LEVELS, &[]), []);
        assert_eq!(report(CLEAN_LOG, &[]), None);
    }

    #[test]
    fn the_report_leads_to_the_place() {
        let log = format!(
            "{CLEAN_LOG}[ 7.0] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\n[ 7.0] Call Trace:\n[ 7.0]  g+0x3/0x4\n"
        );
        let report = report(&log, &[]).unwrap();
        assert!(report.starts_with("1 problem(s)"), "{report}");
        assert!(
            report.contains("warning in line 10: [ 7.0] WARNING"),
            "{report}"
        );
        assert!(report.ends_with("[ 7.0]  g+0x3/0x4\n"), "{report}");
    }
}
