// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A regular file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::ResizeError;
use crate::error::StorageError;
use crate::storage::Mappable;
use crate::storage::Storage;
use rustix::fs::{
    FallocateFlags, FlockOperation, SeekFrom, fallocate, fdatasync, flock, ftruncate, seek,
};
use rustix::io::{Errno, retry_on_intr};
use tracing::{error, info, warn};
use vm_memory::VolatileSlice;

use crate::error::OpenError;
use crate::failure::{Failure, StorageFailure};
use crate::holes::Holes;
use crate::mapping::{Before, Mapping, check_size};
use crate::write_back::WriteBack;

/// Mode of a file that is created: its owner's only, as what is in it is the guest's.
const MODE: u32 = 0o600;

/// Device memory in a file, mapped shared.
///
/// All blocks are allocated when the file is opened or grows, and the file is locked
/// (`flock`, exclusive) against a second device. Programs that ignore the lock must leave
/// the file's size alone while it is in use.
///
/// What is discarded loses its blocks, until the storage is opened again or the range
/// is written to. Requests allocate what may be missing before they write, so that a
/// full file system is an error of the request. A store through another mapping cannot
/// be helped like that: a driver that discards and then stores through the aperture
/// relies on the file system having space. (On tmpfs, where a load takes space as well,
/// so does one that discards and then loads.)
///
/// Where a page is missing all the same, or data cannot be written back, the storage has
/// failed for good, see [`Storage`]. That is so as well for transfers of a range while
/// it is discarded, on a file system without space.
///
/// The lock belongs to the open file, which the virtual machine monitor shares
/// once it has mapped the device memory: it ends when both are gone.
#[derive(Debug)]
pub struct FileStorage {
    mapping: Mapping,
    /// As it was opened, for messages.
    path: PathBuf,
    holes: Holes,
    write_back: WriteBack<Failure>,
}

impl FileStorage {
    /// Opens the file at `path`, and creates it where it does not exist, for its owner
    /// only.
    ///
    /// With a `size`, a shorter file is extended with zeros, and of a longer one
    /// the first `size` bytes are used; the rest is left as it is. Without, the
    /// size is that of the file. A file is never made shorter. One that was created
    /// is deleted after an error.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self, OpenError> {
        let open_error = |source| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(size) = size {
            check_size(size)?;
        }
        let (file, created) = open_or_create(path, size.is_some(), 0).map_err(|source| {
            match (source.kind(), size) {
                (io::ErrorKind::NotFound, None) => OpenError::SizeMissing(path.to_owned()),
                _ => open_error(source),
            }
        })?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(OpenError::NotAFile(path.to_owned()));
        }
        lock(&file, path)?;
        // Not before: until then it could be another device's.
        let unused = Unused(created.then_some(path));

        // The length once more: before the lock it could still change.
        let length = file.metadata().map_err(open_error)?.len();
        let capacity = match size {
            Some(size) => size,
            None if length == 0 => return Err(OpenError::SizeMissing(path.to_owned())),
            None => length,
        };
        check_size(capacity)?;
        if length == 0 {
            make_name_durable(path);
        }
        if length > capacity {
            info!(
                path = %path.display(),
                file_bytes = length,
                device_bytes = capacity,
                "the file is longer than the device: the rest stays untouched"
            );
        }
        let storage = Self::from_locked(file, path, length, capacity)?;
        unused.keep();
        Ok(storage)
    }

    /// The first `capacity` bytes of the file that another process has opened at `path`, and has
    /// given to this one ([`Storage::mappable`]). The lock goes with it. What was discarded has no
    /// blocks still. The `failure` of the storage in the other process is one in this as well.
    pub fn adopt(
        file: File,
        path: &Path,
        capacity: u64,
        failure: Option<StorageFailure>,
    ) -> Result<Self, OpenError> {
        let holes = find_holes(&file, capacity);
        let write_back = failure.map(|failure| WriteBack::failed(failure.into()));
        Ok(Self {
            mapping: Mapping::new(file, path.display().to_string(), capacity)?,
            path: path.to_owned(),
            holes,
            write_back: write_back.unwrap_or_default(),
        })
    }

    fn from_locked(file: File, path: &Path, length: u64, capacity: u64) -> Result<Self, OpenError> {
        let before = Before {
            file: &file,
            length,
            capacity: 0,
        };
        allocate(&before, path, capacity)?;
        Ok(Self {
            mapping: Mapping::new(file, path.display().to_string(), capacity)?,
            path: path.to_owned(),
            holes: Holes::default(),
            write_back: WriteBack::default(),
        })
    }

    /// Sees to it that a range has blocks. Costs a system call only where something was
    /// discarded and not written since. A file system that cannot do this was warned about
    /// when the file was opened.
    fn reserve(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let capacity = || self.mapping.capacity();
        self.holes.fill(offset, length, capacity, |offset, length| {
            self.mapping
                .allocate(FallocateFlags::empty(), offset, length)
                .map(drop)
        })
    }

    /// # Errors
    ///
    /// Where the storage has failed for good, and must not be written to.
    fn check_writable(&self) -> Result<(), StorageError> {
        match self.write_back.error() {
            None => self.mapping.check(),
            Some(failure) => Err(failure.error()),
        }
    }

    /// Makes something durable by `sync`.
    fn make_durable(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), StorageError> {
        self.mapping.check_intact()?;
        let synced = self.write_back.flush(|| {
            sync().map_err(|error| {
                let what = format!("data of {} could not be written back", self.path.display());
                let failure = Failure::new(what, Some(error));
                error!(
                    "{}: nothing can be written until the storage is opened anew",
                    failure.chain()
                );
                failure
            })
        });
        synced.map_err(Failure::error)?;
        // What was cut off meanwhile was not written.
        self.mapping.check_intact()
    }
}

/// Where blocks may be missing in the first `capacity` bytes of a file: everywhere, where the file
/// system does not say.
fn find_holes(file: &File, capacity: u64) -> Holes {
    let holes = Holes::default();
    let mut at = 0;
    while at < capacity {
        // An error other than that nothing follows is one of a file system that does not know.
        let start = seek(file, SeekFrom::Hole(at)).unwrap_or(at);
        if start >= capacity {
            break;
        }
        let data = seek(file, SeekFrom::Data(start)).unwrap_or(capacity);
        // Who has mapped the file can fill the hole meanwhile.
        let end = data.clamp(start + 1, capacity);
        holes.discard(start, end - start, || {});
        at = end;
    }
    holes
}

/// Opens a file, with further `flags` of open(2), and says whether it was created for that.
pub(crate) fn open_or_create(path: &Path, create: bool, flags: i32) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(MODE)
        .custom_flags(flags);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {}
        other => return other.map(|file| (file, false)),
    }
    match options.clone().create_new(true).open(path) {
        // By somebody else, meanwhile; or it is a link that leads nowhere yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options
            .create(true)
            .truncate(false)
            .open(path)
            .map(|file| (file, false)),
        other => other.map(|file| (file, true)),
    }
}

/// Writes the directory of a file that may be new to the disk: what is flushed to the file
/// later would else be lost with its name. Some file systems cannot do that.
pub(crate) fn make_name_durable(path: &Path) {
    // The file's own directory, where the path is a link to it.
    let synced = fs::canonicalize(path)
        .and_then(|path| File::open(path.parent().unwrap_or(Path::new("/"))))
        .and_then(|directory| directory.sync_all());
    if let Err(error) = synced {
        warn!(
            path = %path.display(),
            %error,
            "cannot write the directory of the file to the disk: after a crash of this \
             machine the file may be gone"
        );
    }
}

/// A file that is deleted unless it is of use.
pub(crate) struct Unused<'a>(pub(crate) Option<&'a Path>);

impl Unused<'_> {
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0
            && let Err(error) = fs::remove_file(path)
        {
            warn!(path = %path.display(), %error, "cannot delete the unused file");
        }
    }
}

pub(crate) fn lock(file: &File, path: &Path) -> Result<(), OpenError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(OpenError::InUse(path.to_owned())),
        Err(errno) => Err(OpenError::Lock {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Sees to it that the first `capacity` bytes exist and have blocks; those that were in
/// use before may have lost theirs on purpose.
pub(crate) fn allocate(before: &Before<'_>, path: &Path, capacity: u64) -> Result<(), OpenError> {
    let &Before { file, length, .. } = before;
    let Some(added) = capacity.checked_sub(before.capacity).filter(|n| *n > 0) else {
        return Ok(());
    };
    let allocate_error = |errno: Errno| OpenError::Allocate {
        path: path.to_owned(),
        size: capacity,
        source: errno.into(),
    };
    let mode = FallocateFlags::empty();
    match retry_on_intr(|| fallocate(file, mode, before.capacity, added)) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => {
            warn!(
                path = %path.display(),
                "this file system cannot allocate blocks in advance: if it fills up, \
                 the storage fails"
            );
            if length < capacity {
                ftruncate(file, capacity).map_err(allocate_error)?;
            }
            Ok(())
        }
        Err(errno) => {
            // A partly allocated file keeps the length it had.
            if length < capacity
                && let Err(error) = ftruncate(file, length)
            {
                warn!(path = %path.display(), %error, "cannot restore the length of the file");
            }
            Err(allocate_error(errno))
        }
    }
}

impl Storage for FileStorage {
    fn capacity(&self) -> u64 {
        self.mapping.capacity()
    }

    /// The file grows if it has to. It is never made shorter.
    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        self.mapping
            .resize(capacity, |before| allocate(before, &self.path, capacity))
    }

    fn failure(&self) -> Option<StorageFailure> {
        self.mapping
            .failure()
            .or(self.write_back.error())
            .map(Failure::report)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        let length = target.len() as u64;
        let range = self.mapping.range(offset, length)?;
        if self.holes.any(offset, length) {
            return self.mapping.read_file(&range, target);
        }
        self.mapping.read(&range, target)
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        self.check_writable()?;
        let length = source.len() as u64;
        let range = self.mapping.range(offset, length)?;
        self.reserve(offset, length)?;
        self.mapping.write(&range, source)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.check_writable()?;
        let range = self.mapping.range(offset, length)?;
        let punched = self
            .holes
            .discard(offset, length, || self.mapping.punch(&range))?;
        if !punched {
            // Then no blocks were ever given up, and the stores are safe.
            self.mapping.zero(&range)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.check_writable()?;
        let range = self.mapping.range(offset, length)?;
        let mode = FallocateFlags::ZERO_RANGE;
        let allocated = self.holes.overwrite(offset, length, || {
            self.mapping.allocate(mode, offset, length)
        })?;
        if !allocated {
            self.reserve(offset, length)?;
            self.mapping.zero(&range)?;
        }
        Ok(())
    }

    /// The kernel knows which pages were stored to through any mapping, that of
    /// the virtual machine monitor included, so one `fdatasync` covers all.
    fn flush(&self) -> Result<(), StorageError> {
        self.make_durable(|| Ok(retry_on_intr(|| fdatasync(self.mapping.file()))?))
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let range = self.mapping.range(offset, length)?;
        if length == 0 {
            return self.check_writable();
        }
        self.make_durable(|| range.sync())
    }

    fn mappable(&self) -> Option<Mappable<'_>> {
        self.mapping.mappable()
    }
}
