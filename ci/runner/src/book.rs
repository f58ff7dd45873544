// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The experiments of the book: commands in its pages, with their expected output.
//!
//! An experiment is a fenced block of a page in docs/, whose info string is
//! `console experiment=NAME`. A line that begins with `$ ` is a command for the guest's shell, and
//! lines with `> ` continue it; the other lines are the output that follows, standard output and
//! standard error in their order. In the output `...` stands for what differs from run to run: a line of
//! its own for any number of lines, and within a line for any text.
//!
//! A page can also have programs in C, in blocks with `c program=NAME`. They are compiled, and
//! experiments find them in /mnt, as readers do with `make exec SHARE=FOLDER`.
//!
//! All experiments run in one virtual machine, the one of `make exec`, each in a shell of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use ringbar_vm::agent::GuestCommand;
use ringbar_vm::kernel_log;
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::{Vm, VmOptions};

use crate::suite::checks;

/// Maximum time of an experiment.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Stands for output that differs from run to run.
const ANY: &str = "...";

/// Precedes the output of each command; no command of an experiment prints it.
const SEPARATOR: &str = "--8<-- next command";

/// The tests that follow the experiments.
const CHECKS: [&str; 2] = ["kernel_log_is_clean", "guest_ends_in_order"];

/// A command of an experiment, and the lines that it is to print.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// For the shell; may have several lines.
    pub command: String,
    /// Expected lines.
    pub output: Vec<String>,
}

/// An experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experiment {
    /// `PAGE::NAME`, where the page is a file name without its ending.
    pub name: String,
    /// Its commands, in order.
    pub steps: Vec<Step>,
}

/// A program in C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name of the executable file.
    pub name: String,
    /// Its source.
    pub source: String,
}

/// What the pages contain for tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// The experiments, in the order of the pages' names.
    pub experiments: Vec<Experiment>,
    /// The programs.
    pub programs: Vec<Program>,
}

impl Book {
    /// Reads all pages in docs/ of a checkout.
    ///
    /// # Errors
    ///
    /// Pages that cannot be read, blocks that are wrong, names that occur twice.
    pub fn read(checkout: &Path) -> anyhow::Result<Self> {
        let mut book = Self::default();
        for path in pages(&checkout.join("docs"))? {
            let shown = path.strip_prefix(checkout).unwrap_or(&path).display();
            let text = fs::read_to_string(&path).with_context(|| format!("reading {shown}"))?;
            let page = path.file_stem().unwrap_or_default().to_string_lossy();
            book.add_page(&page, &text)
                .with_context(|| format!("reading the experiments of {shown}"))?;
        }
        Ok(book)
    }

    fn add_page(&mut self, page: &str, text: &str) -> anyhow::Result<()> {
        let mut info = None;
        let mut body = String::new();
        for event in Parser::new(text) {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(words))) => {
                    info = Some(words);
                    body.clear();
                }
                Event::Text(lines) if info.is_some() => body.push_str(&lines),
                Event::End(TagEnd::CodeBlock) => {
                    if let Some(words) = info.take() {
                        self.add_block(page, &words, &body)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_block(&mut self, page: &str, info: &str, body: &str) -> anyhow::Result<()> {
        let words: Vec<_> = info.split_ascii_whitespace().collect();
        let [language, attribute] = words[..] else {
            ensure!(words.len() < 2, "`{info}` has too many words");
            return Ok(());
        };
        let (key, name) = attribute.split_once('=').unwrap_or((attribute, ""));
        if key == "from" {
            // A quotation, which tests/links compares with its source.
            return Ok(());
        }
        ensure!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "`{info}`: a name has lower-case letters and _"
        );
        match (language, key) {
            ("console", "experiment") => {
                let name = format!("{page}::{name}");
                let steps = steps(body).with_context(|| name.clone())?;
                let twice = self.experiments.iter().any(|other| other.name == name);
                ensure!(!twice, "{name} exists twice");
                self.experiments.push(Experiment { name, steps });
            }
            ("c", "program") => {
                let twice = self.programs.iter().any(|other| other.name == name);
                ensure!(!twice, "the program {name} exists twice");
                self.programs.push(Program {
                    name: name.to_owned(),
                    source: body.to_owned(),
                });
            }
            _ => bail!("`{info}`: neither `console experiment=NAME` nor `c program=NAME`"),
        }
        Ok(())
    }

    /// Names of the tests.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let experiments = self.experiments.iter().map(|it| it.name.as_str());
        experiments
            .chain(CHECKS)
            .map(|name| format!("book::{name}"))
    }

    /// Runs all experiments; returns their results in the order of [`Self::names`].
    pub fn run(&self, setup: &Setup, log_dir: &Path) -> Vec<Result<(), String>> {
        match self.start(setup, log_dir) {
            Ok(vm) => self.run_in(vm),
            Err(error) => self.names().map(|_| Err(format!("{error:#}"))).collect(),
        }
    }

    /// Compiles the programs and starts the machine.
    fn start(&self, setup: &Setup, log_dir: &Path) -> anyhow::Result<Vm> {
        let share = log_dir.join("programs");
        fs::create_dir_all(&share).with_context(|| format!("creating {}", share.display()))?;
        self.compile(&setup.checkout, &share)?;
        let options = VmOptions {
            share: Some(share),
            log_dir: Some(log_dir.to_owned()),
            ..VmOptions::default()
        };
        let mut vm = Vm::start(setup, &options)?;
        vm.load_driver()?;
        vm.mount_share()?;
        Ok(vm)
    }

    /// Compiles the programs to `folder`, for the guest, with the toolbox's compiler.
    fn compile(&self, checkout: &Path, folder: &Path) -> anyhow::Result<()> {
        let toolbox = checkout.join("guest-image/toolbox");
        let mut find = Command::new(toolbox.join("root.sh"));
        let root = PathBuf::from(output("finding the toolbox", find.arg("toolbox"))?.trim());
        for program in &self.programs {
            let source = folder.join(&program.name).with_extension("c");
            fs::write(&source, &program.source)
                .with_context(|| format!("writing {}", source.display()))?;
            let mut compile = Command::new(toolbox.join("enter.sh"));
            compile
                .arg(&root)
                .args(["--", "gcc", "-static"])
                .args(COMPILER_ARGUMENTS)
                .arg("-I")
                .arg(checkout.join("driver/uapi").canonicalize()?)
                .arg("-o")
                .arg(folder.join(&program.name))
                .arg(&source);
            output(&format!("compiling {}", program.name), &mut compile)?;
        }
        Ok(())
    }

    fn run_in(&self, mut vm: Vm) -> Vec<Result<(), String>> {
        let experiments = self.experiments.iter();
        let mut results: Vec<_> = experiments.map(|it| run(&vm, it)).collect();
        let log = vm.agent().kernel_log();
        results.push(match log.map(|log| kernel_log::report(&log, &[])) {
            Ok(None) => Ok(()),
            Ok(Some(report)) => Err(report),
            Err(error) => Err(error.to_string()),
        });
        let running = vm.check_devices("the experiments ran");
        results.push(match running {
            Ok(()) => checks::shut_down(vm, 0),
            Err(error) => Err(error.to_string()),
        });
        results
    }
}

/// Arguments of the C compiler for programs of the book.
pub const COMPILER_ARGUMENTS: [&str; 5] = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"];

/// The output of a program of the host, which must succeed.
fn output(what: &str, command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| what.to_owned())?;
    ensure!(
        output.status.success(),
        "{what}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The Markdown files below a folder, sorted.
fn pages(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            found.extend(pages(&path)?);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The commands of a block.
fn steps(body: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for line in body.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                output: Vec::new(),
            });
            continue;
        }
        let step = steps
            .last_mut()
            .context("the first line is no command: it does not begin with `$ `")?;
        match line.strip_prefix("> ") {
            Some(more) if step.output.is_empty() => {
                step.command.push('\n');
                step.command.push_str(more);
            }
            _ => step.output.push(line.trim_end().to_owned()),
        }
    }
    ensure!(!steps.is_empty(), "the block has no command");
    Ok(steps)
}

/// Runs an experiment in the guest.
fn run(vm: &Vm, experiment: &Experiment) -> Result<(), String> {
    let command = GuestCommand::shell(&script(&experiment.steps));
    let output = vm.agent().run(&command, TIMEOUT);
    let output = output.map_err(|error| error.to_string())?;
    compare(&experiment.steps, &String::from_utf8_lossy(&output.stdout))
}

/// The lines for the shell, which separate the output of the commands.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("exec 2>&1\n");
    for step in steps {
        script.push_str(&format!("echo '{SEPARATOR}'\n{}\n", step.command));
    }
    script
}

/// Compares the output of a [`script`] with the expected one. An error has each command that
/// differs.
fn compare(steps: &[Step], output: &str) -> Result<(), String> {
    let separator = format!("{SEPARATOR}\n");
    let mut parts = output.split(&separator);
    // What precedes the first command.
    let before = parts.next().unwrap_or_default();
    if !before.is_empty() {
        return Err(format!("the shell said: {before}"));
    }
    let mut differences = Vec::new();
    for step in steps {
        let Some(part) = parts.next() else {
            differences.push(format!("the shell did not reach `{}`", step.command));
            break;
        };
        let found: Vec<_> = part.lines().map(str::trim_end).collect();
        if !matches(&step.output, &found) {
            differences.push(format!(
                "$ {}\n--- the page says\n{}\n--- the guest says\n{}",
                step.command,
                step.output.join("\n"),
                found.join("\n")
            ));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(differences.join("\n"))
}

/// Whether lines are as expected.
fn matches(expected: &[String], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((line, rest)) if line == ANY => {
            (0..=found.len()).any(|skipped| matches(rest, &found[skipped..]))
        }
        Some((line, rest)) => found
            .split_first()
            .is_some_and(|(first, others)| line_matches(line, first) && matches(rest, others)),
    }
}

/// Whether a line is as expected.
fn line_matches(expected: &str, found: &str) -> bool {
    let Some((start, rest)) = expected.split_once(ANY) else {
        return expected == found;
    };
    let Some(after) = found.strip_prefix(start) else {
        return false;
    };
    let ends = after.char_indices().map(|(at, _)| at).chain([after.len()]);
    ends.into_iter().any(|at| line_matches(rest, &after[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(command: &str, output: &[&str]) -> Step {
        Step {
            command: command.into(),
            output: output.iter().map(|&line| line.into()).collect(),
        }
    }

    fn book(text: &str) -> anyhow::Result<Book> {
        let mut book = Book::default();
        book.add_page("x", text)?;
        Ok(book)
    }

    #[test]
    fn blocks_become_experiments_and_programs() {
        let book = book(
            "```console experiment=one\n$ a \\\n> b\nout\n> put\n$ c\n```\n\n```sh\n$ no\n```\n\n    \
             $ no\n\n```c program=two\nint a;\n```\n",
        );
        let expected = Book {
            experiments: vec![Experiment {
                name: "x::one".into(),
                steps: vec![step("a \\\nb", &["out", "> put"]), step("c", &[])],
            }],
            programs: vec![Program {
                name: "two".into(),
                source: "int a;\n".into(),
            }],
        };
        assert_eq!(book.unwrap(), expected);
        let names: Vec<_> = expected.names().collect();
        assert_eq!(names.first().unwrap(), "book::x::one");
        assert_eq!(names.len(), 1 + CHECKS.len());
    }

    #[test]
    fn wrong_blocks_are_errors() {
        for (text, reason) in [
            ("```console experiment=\n$ a\n```", "a name has"),
            ("```console experiment=A\n$ a\n```", "a name has"),
            ("```console experiment=a b\n$ a\n```", "too many words"),
            ("```console experment=a\n$ a\n```", "neither"),
            ("```sh experiment=a\n$ a\n```", "neither"),
            ("```console experiment=a\n```", "no command"),
            ("```console experiment=a\nb\n```", "no command"),
            (
                "```console experiment=a\n$ b\n```\n```console experiment=a\n$ b\n```",
                "exists twice",
            ),
            ("```c program=a\n```\n```c program=a\n```", "exists twice"),
        ] {
            let error = book(text).expect_err(text);
            assert!(format!("{error:#}").contains(reason), "{text}: {error:#}");
        }
    }

    #[test]
    fn dots_stand_for_what_differs() {
        let same = |expected: &[&str], found: &[&str]| {
            let expected: Vec<_> = expected.iter().map(|&line| line.to_owned()).collect();
            matches(&expected, found)
        };
        assert!(same(&["a", "b"], &["a", "b"]));
        assert!(same(&["...", "b"], &["b"]));
        assert!(same(&["...", "b", "..."], &["b", "a", "b", "c"]));
        assert!(same(&["a ... c"], &["a b c"]));
        assert!(same(&["a...c...e"], &["abcde"]));
        assert!(same(&["... ä..."], &["x ä"]));
        assert!(!same(&["a"], &["a", "b"]));
        assert!(!same(&["a", "b"], &["a"]));
        assert!(!same(&["a"], &[""]));
        assert!(!same(&["...", "b"], &["b", "a"]));
        assert!(!same(&["a...c"], &["abcd"]));
    }

    #[test]
    fn output_belongs_to_its_command() {
        let steps = [step("a", &["1"]), step("b", &[]), step("c", &["2 ..."])];
        let output = |parts: &[&str]| {
            let parts = parts.iter().map(|part| format!("{SEPARATOR}\n{part}"));
            compare(&steps, &parts.collect::<String>())
        };
        assert_eq!(output(&["1\n", "", "2 x\n"]), Ok(()));
        for wrong in [
            &["1\n", "", "2x\n"][..],
            &["", "1\n", "2 x\n"],
            &["1\n", ""],
            &[],
        ] {
            assert!(output(wrong).is_err(), "{wrong:?}");
        }
        assert!(compare(&[], "sh: syntax error\n").is_err());
        assert!(script(&steps).contains("\na\n"));
    }
}
