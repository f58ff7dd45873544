// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Temporary directories that do not stay, however this process ends.
//!
//! Dropping a [`TemporaryDir`] removes it, and so does a signal that ends this process
//! ([`crate::process::clean_up_on_signals`]). What is left where it is killed without
//! notice, the next one removes: each directory has a file that its owner has
//! locked, and the kernel gives the lock up with the owner.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::error::{Error, Result};
use crate::process;

/// What the names of the directories begin with.
const PREFIX: &str = "ringbar-ci-";

/// The file that the owner has locked. It gets this name when it is.
const OWNER_FILE: &str = "owner";

/// A temporary directory, removed in the end.
#[derive(Debug)]
pub struct TemporaryDir {
    directory: tempfile::TempDir,
    _owner: File,
}

impl TemporaryDir {
    /// Creates one for sockets. It lies in `/tmp`, whatever `TMPDIR` says: QEMU may run in a
    /// root file system of its own that has only this in common with ours, and
    /// the path of a socket has at most 107 bytes.
    pub fn new() -> Result<Self> {
        Self::new_in("/tmp")
    }

    /// Creates one for other purposes in this directory, which QEMU must see too.
    pub fn new_in(parent: &str) -> Result<Self> {
        remove_ownerless(Path::new(parent));
        let problem = || Error::io(format!("creating a directory in {parent}"));
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .map_err(problem())?;
        process::remove_at_exit(directory.path());
        let owner = lock_owner_file(directory.path()).map_err(problem())?;
        Ok(Self {
            directory,
            _owner: owner,
        })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        process::keep_at_exit(self.directory.path());
    }
}

/// Makes this process the owner of a directory as long as the file is open.
fn lock_owner_file(directory: &Path) -> io::Result<File> {
    let draft = directory.join("owner.new");
    let owner = File::create_new(&draft)?;
    flock(&owner, FlockOperation::NonBlockingLockExclusive)?;
    // Before this it looks like no directory of ours to others.
    fs::rename(&draft, directory.join(OWNER_FILE))?;
    Ok(owner)
}

/// Removes our directories in `parent` whose owners are gone. What cannot be
/// removed stays: it is in nobody's way.
fn remove_ownerless(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let directory = entry.path();
        // Held while it is removed, so that nobody else does so.
        if let Some(_owner) = lock_ownerless(&directory) {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// Takes a directory of ours over whose owner is gone.
fn lock_ownerless(directory: &Path) -> Option<impl Sized> {
    let metadata = fs::symlink_metadata(directory).ok()?;
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
    if !ours {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let owner = open(directory.join(OWNER_FILE), flags, Mode::empty()).ok()?;
    flock(&owner, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_directories_vanish() {
        let dir = TemporaryDir::new().unwrap();
        let path = dir.path().to_owned();
        assert!(path.is_dir());
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_by_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join(file), "").unwrap();
            path
        };
        // The kernel has given the lock up.
        let left = make("ringbar-ci-left", OWNER_FILE);
        fs::write(left.join("socket"), "").unwrap();
        let being_made = make("ringbar-ci-being-made", "owner.new");
        let not_ours = make("ringbar-ci-notes", "text");
        let other = make("ringbar-other", OWNER_FILE);
        let living = TemporaryDir::new_in(parent.path().to_str().unwrap()).unwrap();
        assert!(!left.exists(), "what a killed process had is there");

        let second = TemporaryDir::new_in(parent.path().to_str().unwrap()).unwrap();
        for path in [living.path(), second.path(), &being_made, &not_ours, &other] {
            assert!(path.is_dir(), "{} is gone", path.display());
        }
    }
}
