// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Access to files, restricted by landlock(7).
//!
//! Descriptors that are open already are not affected.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::error::Error;

/// The newest version of landlock whose restrictions the tests have seen (Linux 6.15). An older
/// kernel enforces those that it has.
const NEWEST: ABI = ABI::V7;

/// The executable of this process, also where its file was removed.
const EXECUTABLE: &str = "/proc/self/exe";

/// Files that a restricted thread can still open or remove. It can also read the executable of the
/// process, by which a panic names the functions of its back trace, if that is a file and `/proc`
/// is mounted.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Directories in which files can be removed, but neither opened nor created.
    pub remove_in: Vec<PathBuf>,
}

/// Whether the kernel can restrict access to files at all.
pub(crate) fn is_supported() -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(Ruleset::create)
        .is_ok()
}

/// Restricts the calling thread, and those that it starts later, to these files. It can use no TCP
/// and no abstract sockets of other processes, and send no signals to them, where the kernel can
/// restrict this.
pub(crate) fn restrict(files: &Files) -> Result<(), Error> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let mut rules = with_readable(rules, EXECUTABLE);
    for directory in &files.remove_in {
        let directory = PathFd::new(directory)?;
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}

/// Adds the right to read a file, where that is possible. It is not for a file in memory
/// (memfd_create(2)), and not for one that cannot be opened.
fn with_readable(rules: RulesetCreated, path: &str) -> RulesetCreated {
    let add = || {
        let file = PathBeneath::new(PathFd::new(path).ok()?, AccessFs::ReadFile);
        rules.try_clone().ok()?.add_rule(file).ok()
    };
    add().unwrap_or(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_that_cannot_be_opened_is_left_out() {
        let rules = Ruleset::default()
            .handle_access(AccessFs::ReadFile)
            .and_then(Ruleset::create);
        // Nothing is restricted yet.
        drop(with_readable(rules.unwrap(), "/nonexistent/exe"));
    }
}
