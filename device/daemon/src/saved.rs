// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a worker leaves to the next one, beside the storage and the record of what is in flight:
//! sizes that have changed since the start, and the failure of the storage.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use ringbar_model::Resumed;
use ringbar_storage::{ErrorKind, StorageFailure};
use rustix::fs::{MemfdFlags, memfd_create};

/// A number in the file.
#[derive(Clone, Copy)]
enum Field {
    Capacity = 0,
    Aperture = 8,
    IsResized = 16,
    /// Bytes of the text from [`FAILURE`] on, or 0.
    FailureLength = 24,
    /// 1 for a lack of space, 0 for any other failure.
    FailureIsNoSpace = FAILURE as isize + MAX_FAILURE as isize,
}

/// Where the text is that says why the storage has failed.
const FAILURE: u64 = 32;

/// Greatest length of the text.
const MAX_FAILURE: usize = 4096;

/// A file in memory that outlives the process.
#[derive(Debug)]
pub struct Saved(File);

impl Saved {
    /// For a device of this capacity.
    pub fn new(capacity: u64) -> io::Result<Self> {
        let saved = Self(memfd_create("ringbar-saved", MemfdFlags::CLOEXEC)?.into());
        saved.set(Field::Capacity, capacity)?;
        Ok(saved)
    }

    /// The file that another process has left.
    pub const fn adopt(file: File) -> Self {
        Self(file)
    }

    fn set(&self, field: Field, value: u64) -> io::Result<()> {
        self.0.write_all_at(&value.to_ne_bytes(), field as u64)
    }

    fn get(&self, field: Field) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, field as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// A connection has begun, on which the monitor can map so many bytes.
    pub fn connected(&self, aperture: u64) -> io::Result<()> {
        self.set(Field::Aperture, aperture)?;
        self.set(Field::IsResized, 0)
    }

    /// The device has another capacity.
    pub fn resized(&self, capacity: u64) -> io::Result<()> {
        // First: an event that says nothing new does no harm.
        self.set(Field::IsResized, 1)?;
        self.set(Field::Capacity, capacity)
    }

    /// The storage has failed for good, for this reason. The first one counts.
    pub fn failed(&self, failure: &StorageFailure) -> io::Result<()> {
        if self.failure()?.is_some() {
            return Ok(());
        }
        let is_no_space = failure.kind == ErrorKind::NoSpace;
        self.set(Field::FailureIsNoSpace, is_no_space.into())?;
        let reason = failure.reason.as_bytes();
        let reason = &reason[..reason.len().min(MAX_FAILURE)];
        self.0.write_all_at(reason, FAILURE)?;
        // Last: until here it has not failed.
        self.set(Field::FailureLength, reason.len() as u64)
    }

    /// Why the storage has failed in another process, if it has.
    pub fn failure(&self) -> io::Result<Option<StorageFailure>> {
        let length = self.get_if_there(Field::FailureLength)?;
        if length == 0 {
            return Ok(None);
        }
        let mut reason = vec![0; (length as usize).min(MAX_FAILURE)];
        self.0.read_exact_at(&mut reason, FAILURE)?;
        Ok(Some(StorageFailure {
            reason: String::from_utf8_lossy(&reason).into_owned(),
            kind: match self.get_if_there(Field::FailureIsNoSpace)? {
                0 => ErrorKind::Io,
                _ => ErrorKind::NoSpace,
            },
        }))
    }

    /// 0 where the file is of another version, which does not tell.
    fn get_if_there(&self, field: Field) -> io::Result<u64> {
        match self.get(field) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            other => other,
        }
    }

    /// Capacity of the device.
    pub fn capacity(&self) -> io::Result<u64> {
        self.get(Field::Capacity)
    }

    /// The connection that another process has begun.
    pub fn connection(&self) -> io::Result<Resumed> {
        Ok(Resumed {
            aperture: self.get(Field::Aperture)?,
            is_resized: self.get(Field::IsResized)? != 0,
        })
    }
}

impl AsFd for Saved {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_finds_what_was_saved() {
        let saved = Saved::new(5000).unwrap();
        saved.connected(4096).unwrap();
        let other = Saved::adopt(saved.0.try_clone().unwrap());
        let resumed = |is_resized| Resumed {
            aperture: 4096,
            is_resized,
        };
        assert_eq!(other.capacity().unwrap(), 5000);
        assert_eq!(other.connection().unwrap(), resumed(false));
        saved.resized(9000).unwrap();
        assert_eq!(other.capacity().unwrap(), 9000);
        assert_eq!(other.connection().unwrap(), resumed(true));
        assert_eq!(other.failure().unwrap(), None);
        let [first, second] = [ErrorKind::NoSpace, ErrorKind::Io].map(|kind| StorageFailure {
            reason: format!("the disk is lost: {kind:?}"),
            kind,
        });
        saved.failed(&first).unwrap();
        saved.failed(&second).unwrap();
        assert_eq!(other.failure().unwrap(), Some(first));
        let saved = Saved::new(5000).unwrap();
        saved.failed(&second).unwrap();
        assert_eq!(saved.failure().unwrap(), Some(second));
        // A former version does not tell the kind.
        saved.0.set_len(FAILURE + MAX_FAILURE as u64).unwrap();
        assert_eq!(saved.failure().unwrap().unwrap().kind, ErrorKind::Io);
        other.connected(8192).unwrap();
        assert!(!saved.connection().unwrap().is_resized);
    }
}
