// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci test`: the tests in virtual machines.

mod results;
mod selection;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use anyhow::Context;
use clap::{Args, ValueEnum};
use libtest_mimic::{Arguments, Failed, Trial};
use ringbar_agent_protocol::machine::{TRANSPORT_VARIABLE, Transport};
use ringbar_runner::binding;
use ringbar_runner::book::Book;
use ringbar_runner::kit;
use ringbar_runner::reboot;
use ringbar_runner::refusal::{self, BEHIND_IOMMU};
use ringbar_runner::several;
use ringbar_runner::suite::checks::Check;
use ringbar_runner::suite::plan::Plan;
use ringbar_runner::unplug;
use ringbar_vm::setup::{Kernel, OutputDir, Setup};

use results::{Job, Results, suite_table};
use selection::{Selection, full_name, plans, wanted};

/// Tests the driver in virtual machines, one for each suite
///
/// Names of tests on the debug kernel begin with `debug::`. Names of tests over vfio-user
/// contain `vfio-user::` if the suite runs over vhost-user too. The last line is the number of
/// tests, including those of --unit-log.
#[derive(Debug, Args)]
pub struct Options {
    /// Output of `cargo test`, whose results are added to the last line
    #[arg(long, value_name = "FILE")]
    unit_log: Option<PathBuf>,

    /// Run on this kernel only
    #[arg(long, value_enum, value_name = "KERNEL")]
    kernel: Option<KernelName>,

    /// Run all that can over this transport, and nothing over the other one
    /// [default: all that can over vhost-user, and over vfio-user what depends on it]
    #[arg(long, env = TRANSPORT_VARIABLE, value_name = "NAME")]
    transport: Option<Transport>,

    /// Also run the suites that are too slow on the debug kernel for daily use, and all that
    /// can over both transports. A FILTER selects among all suites
    #[arg(long)]
    all: bool,

    /// Number of machines that run at once: with 2, those of the debug kernel beside those of
    /// Debian's kernel. Tests that depend on time may fail then
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    machines: u8,

    /// List the tests instead of running them
    #[arg(long)]
    list: bool,

    /// Run only tests whose name, `suite::test`, contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Names of the kernels on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KernelName {
    /// Debian's kernel
    Stock,
    /// The kernel of `make debug`, with all checkers
    Debug,
}

impl From<KernelName> for Kernel {
    fn from(name: KernelName) -> Self {
        match name {
            KernelName::Stock => Self::Stock,
            KernelName::Debug => Self::Debug,
        }
    }
}

/// Runs the tests.
pub fn run(setup: &Setup, options: &Options) -> anyhow::Result<ExitCode> {
    let unit = match &options.unit_log {
        Some(path) => {
            let text =
                fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            count_unit_tests(&text)
        }
        None => Counts::default(),
    };
    let kernels = match options.kernel {
        Some(kernel) => vec![kernel.into()],
        None => vec![Kernel::Stock, Kernel::Debug],
    };
    let selection = Selection {
        all: options.all,
        transport: options.transport,
        filters: &options.filters,
    };
    let plans: Vec<_> = kernels
        .iter()
        .flat_map(|&kernel| plans(&setup.checkout, kernel, &selection))
        .collect();
    let arguments = Arguments {
        list: options.list,
        // Results in order.
        test_threads: Some(1),
        ..Arguments::default()
    };
    let machines: Vec<_> = unplug::MACHINES
        .into_iter()
        .filter(|machine| kernels.contains(&machine.kernel) && selection.runs_machine(machine))
        .collect();
    let debug = plans.iter().any(|plan| plan.kernel == Kernel::Debug)
        || machines
            .iter()
            .any(|machine| machine.kernel == Kernel::Debug);
    let debug = match debug && !options.list {
        true => Some(
            setup
                .with_debug_kernel()
                .context("loading the record of the debug kernel; run `make debug`")?,
        ),
        false => None,
    };
    let setup = Arc::new(setup.clone());
    let debug = debug.map_or_else(|| Arc::clone(&setup), Arc::new);
    let mut all = Vec::new();
    let mut suites = Vec::new();
    for plan in plans {
        let kernel = plan.kernel;
        let setup = match plan.kernel {
            Kernel::Stock => &setup,
            Kernel::Debug => &debug,
        };
        let (suite, trials) = trials(setup, plan);
        suites.push((kernel, suite));
        all.extend(trials);
    }
    let vhost_user = selection.includes(Transport::VhostUser);
    if kernels.contains(&Kernel::Stock) && vhost_user {
        for (name, iommu) in BEHIND_IOMMU {
            if wanted(&options.filters, name) {
                let setup = Arc::clone(&setup);
                all.push(Trial::test(name, move || {
                    let log_dir = setup.checkout.join("build/test/refusal").join(iommu.name());
                    refusal::behind_iommu(&setup, iommu, &log_dir).map_err(Failed::from)
                }));
            }
        }
    }
    if kernels.contains(&Kernel::Stock) && vhost_user {
        let (setup, several_setup) = (Arc::clone(&setup), Arc::clone(&setup));
        let log_dir = setup.checkout.join("build/test/binding");
        let run = move || binding::run(&setup, &log_dir);
        all.extend(steps(binding::names(), &options.filters, run));
        let setup = Arc::clone(&several_setup);
        let log_dir = setup.checkout.join("build/test/several");
        let run = move || several::run(&setup, &log_dir);
        all.extend(steps(several::names(), &options.filters, run));
    }
    if kernels.contains(&Kernel::Stock) && vhost_user {
        let book = Book::read(&setup.checkout)?;
        let setup = Arc::clone(&setup);
        let log_dir = setup.checkout.join("build/test/book");
        let names: Vec<_> = book.names().collect();
        let run = move || book.run(&setup, &log_dir);
        all.extend(steps(names.into_iter(), &options.filters, run));
    }
    if kernels.contains(&Kernel::Stock) {
        for test in kit::TESTS {
            if selection.runs_kit(&test) && wanted(&options.filters, test.name) {
                let setup = Arc::clone(&setup);
                all.push(Trial::test(test.name, move || {
                    kit::run(&setup, &test).map_err(Failed::from)
                }));
            }
        }
    }
    if kernels.contains(&Kernel::Stock) {
        for machine in reboot::MACHINES {
            if selection.runs_reboots(&machine) {
                let setup = Arc::clone(&setup);
                let log_dir = setup.checkout.join("build/test");
                let log_dir = log_dir.join(machine.name.replace("::", "/"));
                let run = move || reboot::run(&setup, &machine, &log_dir);
                all.extend(steps(reboot::names(&machine), &options.filters, run));
            }
        }
    }
    for machine in machines {
        let setup = match machine.kernel {
            Kernel::Stock => Arc::clone(&setup),
            Kernel::Debug => Arc::clone(&debug),
        };
        let log_dir = setup.checkout.join("build/test");
        let log_dir = log_dir.join(machine.name.replace("::", "/"));
        let run = move || unplug::run(&setup, &machine, &log_dir);
        all.extend(steps(unplug::names(&machine), &options.filters, run));
    }
    if all.is_empty() {
        anyhow::bail!("no test matches");
    }
    let _output = match options.list {
        true => None,
        false => Some(OutputDir::of(&setup, "test")?),
    };
    if !options.list && options.machines > 1 {
        start_beside(&suites, Kernel::Debug)?;
    }
    let conclusion = libtest_mimic::run(&arguments, all);
    // The last result of a suite arrives before its machine is shut down.
    let lines: Vec<_> = suites
        .iter()
        .filter_map(|(_, suite)| {
            suite
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .finish()
        })
        .collect();
    if options.list {
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", suite_table(&lines));
    let total = Counts {
        passed: unit.passed + conclusion.num_passed,
        failed: unit.failed + conclusion.num_failed,
    };
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(if total.failed == 0 && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Number of passed and failed tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; …` of `cargo test`.
fn count_unit_tests(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log.lines() {
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else {
            continue;
        };
        let (_, numbers) = rest.split_once(". ").unwrap_or(("", rest));
        for part in numbers.split(';') {
            let mut words = part.split_ascii_whitespace();
            let number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => counts.passed += number,
                Some("failed") => counts.failed += number,
                _ => {}
            }
        }
    }
    counts
}

/// The tests of a suite, in the order of their results.
fn trials(setup: &Arc<Setup>, plan: Plan) -> (Arc<Mutex<Results>>, Vec<Trial>) {
    let suite = full_name(plan.suite, &plan.needs, plan.kernel, plan.transport);
    let checks = Check::of(&plan.needs, plan.kernel);
    let names: Vec<String> = plan
        .tests
        .iter()
        .cloned()
        .chain(checks.into_iter().map(|c| c.name().to_owned()))
        .collect();
    let results = Arc::new(Mutex::new(Results::new(Arc::clone(setup), plan)));
    let trials = names
        .into_iter()
        .map(|name| {
            let results = Arc::clone(&results);
            Trial::ignorable_test(format!("{suite}::{name}"), move || {
                results
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .wait_for(&name)
            })
        })
        .collect();
    (results, trials)
}

/// Runs the suites on a kernel, one after the other, on a thread of their own, beside those whose
/// results are requested.
fn start_beside(suites: &[(Kernel, Arc<Mutex<Results>>)], kernel: Kernel) -> anyhow::Result<()> {
    if suites.iter().all(|(of, _)| *of == kernel) {
        return Ok(());
    }
    let jobs: Vec<_> = suites
        .iter()
        .filter(|(of, _)| *of == kernel)
        .filter_map(|(_, suite)| {
            let mut suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
            suite.take_job()
        })
        .collect();
    thread::Builder::new()
        .name("beside".into())
        .spawn(move || jobs.into_iter().for_each(Job::run))
        .context("starting the thread of the suites on the other kernel")?;
    Ok(())
}

/// The selected ones of tests that share a virtual machine, which all run when the first one
/// starts.
fn steps(
    names: impl Iterator<Item = String>,
    filters: &[String],
    run: impl Fn() -> Vec<Result<(), String>> + Send + Sync + 'static,
) -> Vec<Trial> {
    let run = Arc::new(run);
    let outcomes = Arc::new(OnceLock::new());
    names
        .enumerate()
        .filter(|(_, name)| wanted(filters, name))
        .map(|(number, name)| {
            let (run, outcomes) = (Arc::clone(&run), Arc::clone(&outcomes));
            Trial::test(name, move || {
                let outcomes: &Vec<_> = outcomes.get_or_init(|| run());
                outcomes[number].clone().map_err(Failed::from)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_test_results_are_added_up() {
        let log = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s\n\
            test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out\n\
            something passed; 9 failed\n";
        assert_eq!(
            count_unit_tests(log),
            Counts {
                passed: 7,
                failed: 2
            }
        );
        assert_eq!(count_unit_tests(""), Counts::default());
    }
}
