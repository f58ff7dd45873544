// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kit: writes a card of your own from the template `ci/kit/mycard`, which is a card itself.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, bail};
use ringbar_agent_protocol::machine::Transport;
use ringbar_vm::process::{HostProcess, log_excerpt};
use ringbar_vm::setup::Setup;

/// The template, and its name in all forms.
const TEMPLATE: &str = "ci/kit/mycard";
const TEMPLATE_NAME: &str = "mycard";

/// The line of the template's Makefile that says where Ringbar is.
const CHECKOUT_LINE: &str = "RINGBAR ?= $(abspath ../../..)";

/// What the template's own builds leave in its folder.
const GENERATED: [&str; 3] = ["build", "ringbar", "Cargo.lock"];

/// Maximum time of a card's tests, whose first build takes minutes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// Longest name: the driver and the device compare 16 bytes, and a task or an interrupt shows 15.
const MAX_NAME: usize = 15;

/// Names that mean something else: keywords of Rust and C, macros that the C compiler defines,
/// crates that the template uses, folders of the template, this driver, and modules of Linux.
const RESERVED: &[&str] = &[
    "abstract", "alloc", "as", "asm", "async", "auto", "await", "become", "bool", "box", "break",
    "build", "case", "char", "clap", "const", "continue", "core", "crate", "crc32c", "default",
    "do", "double", "dyn", "else", "enum", "extern", "false", "final", "float", "fn", "for", "gen",
    "goto", "helpers", "i386", "if", "impl", "in", "inline", "int", "kernel", "let", "linux",
    "long", "loop", "macro", "macros", "main", "match", "mod", "move", "mut", "null", "override",
    "pin", "priv", "proc", "pub", "ref", "register", "restrict", "return", "ringbar", "rustix",
    "self", "short", "signed", "sizeof", "static", "std", "struct", "super", "switch", "tempfile",
    "test", "trait", "true", "try", "type", "typedef", "typeof", "union", "unix", "unsafe",
    "unsigned", "unsized", "use", "virtual", "void", "volatile", "where", "while", "yield",
];

/// The name of a card: an identifier in Rust and in C, and a name of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardName(String);

impl FromStr for CardName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !plain
            || !text.starts_with(|first: char| first.is_ascii_lowercase())
            || text.ends_with(|last: char| last.is_ascii_digit())
            || !(2..=MAX_NAME).contains(&text.len())
        {
            return Err(format!(
                "a name has 2 to {MAX_NAME} lower-case letters and digits, and begins and ends \
                 with a letter: a digit at the end would look like the number of a device"
            ));
        }
        if RESERVED.contains(&text) {
            return Err(format!(
                "\"{text}\" means something else in Rust, C or the kernel: take another name"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CardName {
    /// As the name of a type.
    fn capitalised(&self) -> String {
        capitalised(&self.0)
    }

    /// A file of the template, for this card.
    fn replace_in(&self, text: &str) -> String {
        text.replace(TEMPLATE_NAME, &self.0)
            .replace(&capitalised(TEMPLATE_NAME), &self.capitalised())
            .replace(&TEMPLATE_NAME.to_uppercase(), &self.0.to_uppercase())
    }
}

fn capitalised(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    first.to_uppercase() + rest
}

/// Writes the card `name` to `folder`, which must not exist or be empty, for this checkout of Ringbar.
///
/// # Errors
///
/// What cannot be read or written. Nothing is removed then.
pub fn instantiate(checkout: &Path, name: &CardName, folder: &Path) -> anyhow::Result<()> {
    let checkout = checkout
        .canonicalize()
        .with_context(|| format!("looking for the checkout {}", checkout.display()))?;
    // Make has no way to quote these, and the module's build none for a blank.
    let full = std::path::absolute(folder)?;
    for path in [&checkout, &full] {
        let text = path.to_string_lossy();
        if text.contains(|c: char| c.is_whitespace() || "$#:'\"\\%".contains(c)) {
            bail!("{text}: make cannot handle a path with blanks, quotes or any of $ # : % \\");
        }
    }
    if folder.exists() && fs::read_dir(folder).is_ok_and(|mut found| found.next().is_some()) {
        bail!(
            "{} exists and is not empty: take another folder",
            folder.display()
        );
    }
    copy(&checkout.join(TEMPLATE), folder, name, &|text| {
        text.replace(CHECKOUT_LINE, &format!("RINGBAR ?= {}", checkout.display()))
    })
}

/// Copies a folder of the template.
fn copy(
    from: &Path,
    to: &Path,
    name: &CardName,
    adapt: &impl Fn(&str) -> String,
) -> anyhow::Result<()> {
    let reading = || format!("reading {}", from.display());
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if GENERATED.contains(&file.as_ref()) {
            continue;
        }
        let target: PathBuf = to.join(name.replace_in(&file));
        if path.is_dir() {
            copy(&path, &target, name, adapt)?;
            continue;
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        write(&target, &name.replace_in(&adapt(&text)))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// A test: a make target of a card passes.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// Protocol between the card and QEMU.
    pub transport: Transport,
    /// Whether `make test` runs it; `make test-all` runs all.
    pub daily: bool,
    card: Card,
    target: &'static str,
}

/// The card of a test.
#[derive(Clone, Copy, Debug)]
enum Card {
    /// One that is written to a folder outside of the checkout's sources, as a user of the kit does.
    New,
    /// An example in the tree.
    Example(&'static str),
}

impl Test {
    const fn daily(name: &'static str, transport: Transport, card: Card) -> Self {
        Self {
            name,
            transport,
            daily: true,
            card,
            target: "test",
        }
    }

    const fn in_test_all(name: &'static str, card: Card, target: &'static str) -> Self {
        Self {
            name,
            transport: Transport::VhostUser,
            daily: false,
            card,
            target,
        }
    }
}

const GRABBER: Card = Card::Example("ci/kit/grabber");
const HASHER: Card = Card::Example("ci/kit/hasher");

/// The tests. `test-all` of a card covers both transports.
pub const TESTS: [Test; 7] = [
    Test::daily(
        "kit::new_card_passes_its_tests",
        Transport::VhostUser,
        Card::New,
    ),
    Test::daily(
        "kit::vfio-user::new_card_passes_its_tests",
        Transport::VfioUser,
        Card::New,
    ),
    Test::daily("kit::hasher_passes_its_tests", Transport::VhostUser, HASHER),
    Test::daily(
        "kit::vfio-user::grabber_passes_its_tests",
        Transport::VfioUser,
        GRABBER,
    ),
    Test::in_test_all("kit::new_card_passes_all_tests", Card::New, "test-all"),
    Test::in_test_all("kit::hasher_passes_all_tests", HASHER, "test-all"),
    Test::in_test_all("kit::grabber_passes_all_tests", GRABBER, "test-all"),
];

/// Runs a test.
///
/// # Errors
///
/// The end of the output of a make that fails.
pub fn run(setup: &Setup, test: &Test) -> Result<(), String> {
    let log_name = test.name.replace("::", "-");
    let log = setup.checkout.join(format!("build/test/{log_name}.log"));
    let outcome = || -> anyhow::Result<bool> {
        let mut make = Command::new("make");
        make.args(["--no-print-directory", "-C"])
            .arg(folder(setup, test.card)?)
            .args([test.target, &format!("TRANSPORT={}", test.transport)])
            // Those of a make that has started this program.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .env_remove("MFLAGS");
        let mut make = HostProcess::spawn("make of a card", make, &log, false)?;
        let status = make
            .wait(TIMEOUT)
            .context("make of a card takes too long")?;
        Ok(status.success())
    };
    match outcome() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("make failed{}", log_excerpt("the card", &log))),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// The folder of a card, after it was written.
fn folder(setup: &Setup, card: Card) -> anyhow::Result<PathBuf> {
    let checkout = &setup.checkout;
    match card {
        Card::Example(folder) => Ok(checkout.join(folder)),
        Card::New => {
            let folder = checkout.join("build/test/kit");
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", folder.display()));
                }
                _ => {}
            }
            let name = "sample".parse().map_err(Error::msg)?;
            instantiate(checkout, &name, &folder)?;
            Ok(folder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn names_are_identifiers_everywhere() {
        for name in ["ab", "mycard", "crc32sum", "abcdefghijklmno"] {
            assert_eq!(name.parse::<CardName>().unwrap().to_string(), name);
        }
        for name in [
            "",
            "a",
            "card2",
            "abcdefghijklmnop",
            "1card",
            "my-card",
            "my_card",
            "MyCard",
            "my card",
            "../x",
            "ä2",
            "linux",
            "match",
            "ringbar",
            "register",
            "core",
        ] {
            assert!(name.parse::<CardName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn nothing_of_the_template_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("hasher");
        instantiate(&checkout(), &"hasher".parse().unwrap(), &folder).unwrap();
        let mut folders = vec![folder.clone()];
        let mut files = 0;
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                let relative = path.strip_prefix(&folder).unwrap().to_str().unwrap();
                assert!(!relative.contains(TEMPLATE_NAME), "{relative}");
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                files += 1;
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.to_lowercase().contains(TEMPLATE_NAME), "{relative}");
            }
        }
        assert!(files > 12, "{files} files");
        let makefile = fs::read_to_string(folder.join("Makefile")).unwrap();
        let line = format!(
            "RINGBAR ?= {}\n",
            checkout().canonicalize().unwrap().display()
        );
        assert!(makefile.contains(&line), "{makefile}");
        let driver = fs::read_to_string(folder.join("driver/hasher_main.rs")).unwrap();
        assert!(driver.contains("type HasherModule"), "{driver}");
        let header = fs::read_to_string(folder.join("uapi/hasher.h")).unwrap();
        assert!(header.contains("HASHER_IOC_RUN"), "{header}");
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mine"), "").unwrap();
        let name = "hasher".parse().unwrap();
        let error = instantiate(&checkout(), &name, directory.path()).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        let error = instantiate(&checkout(), &name, &directory.path().join("a b")).unwrap_err();
        assert!(error.to_string().contains("blanks"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
