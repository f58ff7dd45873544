// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Temporary directories that are removed however this process ends.
//!
//! Dropping a [`TemporaryDir`] removes it, and so does a signal that ends this process
//! ([`crate::process::clean_up_on_signals`]). After SIGKILL, the next process removes it:
//! the owner of each directory holds a file lock, which the kernel releases with the
//! owner.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::error::{Error, Result};
use crate::process;

/// Prefix of the names of the directories.
const PREFIX: &str = "ringbar-ci-";

/// The lock file. The owner gives it this name after locking it.
const OWNER_FILE: &str = "owner";

/// A temporary directory, removed when dropped.
#[derive(Debug)]
pub struct TemporaryDir {
    directory: tempfile::TempDir,
    _owner: File,
}

impl TemporaryDir {
    /// Creates a directory for sockets in `/tmp`, whatever `TMPDIR` says: QEMU may run in
    /// another root file system, which shares only `/tmp` with ours, and the path of a
    /// socket has at most 107 bytes.
    pub fn new() -> Result<Self> {
        Self::new_in("/tmp")
    }

    /// Creates a directory for other purposes in `parent`, which QEMU must be able to
    /// access.
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
    // Before the rename, other processes ignore the directory.
    fs::rename(&draft, directory.join(OWNER_FILE))?;
    Ok(owner)
}

/// Removes our directories in `parent` whose owners are gone. Errors are ignored.
fn remove_ownerless(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let directory = entry.path();
        // The lock is held during the removal, so that no other process removes the
        // directory.
        if let Some(_owner) = lock_ownerless(&directory) {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// Locks one of our directories whose owner is gone.
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
        // The kernel has released the lock.
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
