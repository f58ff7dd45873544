// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Access to files, restricted by landlock(7).
//!
//! Descriptors that are open already are not affected.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};

use crate::error::Error;

/// The newest version of landlock whose restrictions the tests have seen (Linux 6.15). An older
/// kernel enforces those that it has.
const NEWEST: ABI = ABI::V7;

/// The executable of this process, also where its file was removed.
const EXECUTABLE: &str = "/proc/self/exe";

/// Files that a restricted thread can still open or remove. It can always read the executable of
/// the process, by which a panic names the functions of its back trace.
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
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(
            PathFd::new(EXECUTABLE)?,
            AccessFs::ReadFile,
        ))?;
    for directory in &files.remove_in {
        let directory = PathFd::new(directory)?;
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}
