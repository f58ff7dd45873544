// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A block device, or a regular file as if it were one: direct I/O by io_uring.
//!
//! | module | holds |
//! |---|---|
//! | `geometry` | what direct I/O wants of offsets and memory |
//! | `scheduler` | from operations of the storage to those of the kernel |
//! | `ring` | what executes these, as a trait |
//! | `uring` | io_uring |
//!
//! One thread has the ring. Others give it operations by a queue under a lock that nobody
//! holds for long, and it calls whoever waits for the end of one. So no thread but this waits
//! for a disk, not even where the kernel executes a part of a submission at once.

mod geometry;
mod ring;
mod scheduler;
#[cfg(test)]
mod tests;
mod uring;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::fs::OFlags;
use vm_memory::VolatileSlice;

use self::geometry::Geometry;
use self::ring::{Ring, Waker};
use self::scheduler::{Scheduler, Submitted};
use self::uring::Uring;
use crate::asynchronous::{AsyncStorage, Completed, Done, Extent, Operation, Owner};
use crate::buffer::{Buffer, Buffers};
use crate::error::OpenError;
use crate::failure::Failure;
use crate::file::{Unused, allocate, lock, make_name_durable, open_or_create};
use crate::mapping::{Before, check_size};
use crate::storage::{Mappable, ResizeError, Storage, StorageError};

/// Submissions that the kernel takes at once. It has up to four times as many operations.
const RING_ENTRIES: u32 = 256;

/// Most memory of the buffers, in bytes: some hundred requests of 1 MiB.
const BUFFER_BYTES: usize = 128 << 20;

/// Bytes that the direct face transfers at once.
const CHUNK: u64 = 1 << 20;

/// Whose operations those of the direct face are. Nobody cancels them.
const DIRECT: Owner = Owner(u32::MAX);

/// A block device, or a regular file, by direct I/O.
///
/// The size is a multiple of its blocks. Requests may have any offset and length: a write of a
/// part of a block reads the block first. The bytes that such a write leaves alone are written
/// again, so a disk that loses a block in the middle of a write loses them too.
///
/// It is locked as a [`crate::FileStorage`] is, and a block device is opened exclusively, so
/// that it is neither mounted nor part of another. A regular file is created, extended and gets
/// its blocks as there.
///
/// A write that fails is an error of its request, and nothing else; a flush that fails is for
/// good, see [`Storage`].
#[derive(Debug)]
pub struct BlockStorage {
    face: Arc<Face>,
    path: PathBuf,
    /// Held while the size changes.
    resizing: Mutex<()>,
    thread: Option<JoinHandle<()>>,
}

/// What is shared with those who have the asynchronous face.
struct Face {
    file: Arc<File>,
    geometry: Geometry,
    capacity: AtomicU64,
    buffers: Buffers,
    inbox: Inbox,
    failure: Arc<OnceLock<Failure>>,
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Face")
            .field("file", &self.file)
            .field("geometry", &self.geometry)
            .field("capacity", &self.capacity)
            .field("buffers", &self.buffers)
            .finish_non_exhaustive()
    }
}

/// What the thread of the ring is told.
enum Message {
    Submit(Submitted),
    Cancel(Owner),
    /// To end, once the operations that have begun have ended.
    End,
}

#[derive(Default)]
struct Letters {
    messages: Vec<Message>,
    /// The thread waits in the ring, or is about to.
    asleep: bool,
    /// The thread has ended.
    closed: bool,
}

/// The way to the thread of the ring.
struct Inbox {
    letters: Mutex<Letters>,
    waker: Waker,
}

impl Inbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        // Each change is a single one.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the message where the thread has ended.
    fn post(&self, message: Message) -> Result<(), Message> {
        let asleep = {
            let mut letters = self.letters();
            if letters.closed {
                return Err(message);
            }
            letters.messages.push(message);
            std::mem::take(&mut letters.asleep)
        };
        if asleep {
            (self.waker)();
        }
        Ok(())
    }

    /// Takes an owner's operations out, and tells the thread. A thread that is held up gets
    /// no more of them, however often somebody submits and cancels.
    fn cancel(&self, owner: Owner) {
        let of_owner = |message: &mut Message| match message {
            Message::Submit(submitted) => submitted.owner == owner,
            Message::Cancel(other) => *other == owner,
            Message::End => false,
        };
        let mut letters = self.letters();
        let cancelled: Vec<_> = letters.messages.extract_if(.., of_owner).collect();
        drop(letters);
        // Not with the lock held: whoever waits for them is told.
        drop(cancelled);
        // Where the thread has ended there is nothing to cancel.
        let _ = self.post(Message::Cancel(owner));
    }

    /// The thread is awake, and will take messages before it waits.
    fn wake_up(&self) {
        self.letters().asleep = false;
    }

    /// Swaps the messages for `empty`. Where there are none, the next one wakes the thread.
    fn take(&self, empty: &mut Vec<Message>) {
        let mut letters = self.letters();
        std::mem::swap(&mut letters.messages, empty);
        letters.asleep = empty.is_empty();
    }

    fn close(&self) -> Vec<Message> {
        let mut letters = self.letters();
        letters.closed = true;
        std::mem::take(&mut letters.messages)
    }
}

/// Executes what is in the inbox until it is to end.
fn run(mut ring: impl Ring, mut scheduler: Scheduler, face: &Face) {
    /// Closes the inbox however the thread ends. What is left is dropped, and so the requests
    /// behind it are answered.
    struct Close<'a>(&'a Inbox);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            drop(self.0.close());
        }
    }

    let close = Close(&face.inbox);
    let (mut messages, mut ended) = (Vec::new(), Vec::new());
    let mut ends = false;
    loop {
        face.inbox.take(&mut messages);
        let is_idle = messages.is_empty();
        for message in messages.drain(..) {
            match message {
                Message::Submit(submitted) => scheduler.accept(submitted),
                Message::Cancel(owner) => scheduler.cancel(owner),
                Message::End => ends = true,
            }
        }
        if ends {
            scheduler.cancel_all();
            if !scheduler.is_busy() {
                return;
            }
        }
        scheduler.push(&mut ring);
        let turned = ring.turn(is_idle, &mut ended);
        face.inbox.wake_up();
        if let Err(error) = turned {
            for message in close.0.close() {
                if let Message::Submit(submitted) = message {
                    scheduler.accept(submitted);
                }
            }
            return scheduler.give_up(&format!("io_uring cannot be used any more ({error})"));
        }
        for (io, result) in ended.drain(..) {
            scheduler.ended(io, result);
        }
        scheduler.push(&mut ring);
    }
}

impl BlockStorage {
    /// Opens the block device or regular file at `path`; a regular file is created where it
    /// does not exist, for its owner only.
    ///
    /// With a `size`, a shorter regular file is extended with zeros, and of a longer file or
    /// device the first `size` bytes are used; the rest is left as it is. Without, the size is
    /// that of the file or device. A file that was created is deleted after an error.
    pub fn open(path: &Path, size: Option<u64>) -> Result<Self, OpenError> {
        Self::open_with(path, size, |file| {
            let ring = Uring::new(file, RING_ENTRIES)?;
            let waker = ring.waker();
            Ok((ring, waker))
        })
    }

    /// With another ring, which `make` makes on the thread that has it.
    fn open_with<R: Ring>(
        path: &Path,
        size: Option<u64>,
        make: impl FnOnce(Arc<File>) -> io::Result<(R, Waker)> + Send + 'static,
    ) -> Result<Self, OpenError> {
        if let Some(size) = size {
            check_size(size)?;
        }
        let (file, created) = open(path, size.is_some())?;
        let geometry = Geometry::of(&file, path)?;
        lock(&file, path)?;
        // Not before: until then it could be another device's.
        let unused = Unused(created.then_some(path));

        let length = length(&file, path)?;
        let capacity = match size {
            Some(size) => size,
            None if length == 0 => return Err(OpenError::SizeMissing(path.to_owned())),
            None => length,
        };
        check_size(capacity)?;
        geometry.check(path, capacity)?;
        if length == 0 && !geometry.is_device {
            make_name_durable(path);
        }
        extend(&file, path, geometry, length, 0, capacity)?;

        let file = Arc::new(file);
        let failure = Arc::<OnceLock<Failure>>::default();
        let (granularity, align) = (geometry.granularity, geometry.align);
        let face = |waker| Face {
            file: Arc::clone(&file),
            geometry,
            capacity: capacity.into(),
            buffers: Buffers::new(granularity, align, BUFFER_BYTES),
            inbox: Inbox {
                letters: Mutex::default(),
                waker,
            },
            failure: Arc::clone(&failure),
        };
        let name = path.display().to_string();
        let scheduler = Scheduler::new(name, granularity, align, Arc::clone(&failure));
        let ring_error = |source| OpenError::Ring {
            path: path.to_owned(),
            source,
        };
        // The ring belongs to the thread that makes it.
        let (made, wait_made) = channel();
        let (face_sender, wait_face) = channel::<Arc<Face>>();
        let own = Arc::clone(&file);
        let thread = thread::Builder::new()
            .name("block-io".into())
            .spawn(move || {
                let ring = match make(own) {
                    Ok((ring, waker)) => {
                        let _ = made.send(Ok(waker));
                        ring
                    }
                    Err(error) => {
                        let _ = made.send(Err(error));
                        return;
                    }
                };
                if let Ok(face) = wait_face.recv() {
                    run(ring, scheduler, &face);
                }
            })
            .map_err(ring_error)?;
        let waker = match wait_made.recv() {
            Ok(made) => made.map_err(ring_error)?,
            Err(_) => return Err(ring_error(io::Error::other("its thread has panicked"))),
        };
        let face = Arc::new(face(waker));
        // It waits for this.
        let _ = face_sender.send(Arc::clone(&face));
        unused.keep();
        Ok(Self {
            face,
            path: path.to_owned(),
            resizing: Mutex::default(),
            thread: Some(thread),
        })
    }

    /// Executes an operation and waits for its end.
    fn execute(&self, operation: Operation) -> Result<Option<Buffer>, StorageError> {
        let (sender, ended) = channel();
        self.face.submit(
            DIRECT,
            operation,
            Box::new(move |completed| {
                // Whoever asked waits.
                let _ = sender.send(completed);
            }),
        );
        let Completed { result, buffer } = ended
            .recv()
            .map_err(|_| io::Error::other("the operation was dropped"))?;
        result.map(|()| buffer)
    }

    /// The extent in pieces that the direct face transfers at once.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
    ) -> Result<impl Iterator<Item = Extent>, StorageError> {
        self.face.check(Extent { offset, length })?;
        Ok((0..length.div_ceil(CHUNK)).map(move |index| Extent {
            offset: offset + index * CHUNK,
            length: CHUNK.min(length - index * CHUNK),
        }))
    }
}

impl Drop for BlockStorage {
    fn drop(&mut self) {
        // A thread that has ended needs to be told nothing.
        let _ = self.face.inbox.post(Message::End);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by its thread.
            let _ = thread.join();
        }
    }
}

/// Opens for direct I/O. Returns whether the file was created for that.
fn open(path: &Path, create: bool) -> Result<(File, bool), OpenError> {
    let flags = OFlags::DIRECT | OFlags::EXCL;
    let open_error = |source: io::Error| match source.raw_os_error() {
        Some(libc::EINVAL) => OpenError::NoDirectIo {
            path: path.to_owned(),
            source: Some(source),
        },
        Some(libc::EBUSY) => OpenError::InUse(path.to_owned()),
        Some(libc::EROFS) => OpenError::ReadOnly(path.to_owned()),
        Some(libc::ENOENT) if !create => OpenError::SizeMissing(path.to_owned()),
        _ => OpenError::Open {
            path: path.to_owned(),
            source,
        },
    };
    // Exclusively means something else where a file is created.
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| {
        use std::os::unix::fs::FileTypeExt;
        metadata.file_type().is_block_device()
    });
    let flags = match is_device {
        true => flags,
        false => OFlags::DIRECT,
    };
    let (file, created) =
        open_or_create(path, create && !is_device, flags.bits() as i32).map_err(open_error)?;
    let metadata = file.metadata().map_err(open_error)?;
    match is_device || metadata.is_file() {
        true => Ok((file, created)),
        false => Err(OpenError::NotABlockDevice(path.to_owned())),
    }
}

fn length(file: &File, path: &Path) -> Result<u64, OpenError> {
    Geometry::length(file).map_err(|source| OpenError::Open {
        path: path.to_owned(),
        source,
    })
}

/// Sees to it that there are `capacity` bytes, of which `before` were in use.
fn extend(
    file: &File,
    path: &Path,
    geometry: Geometry,
    length: u64,
    before: u64,
    capacity: u64,
) -> Result<(), OpenError> {
    if geometry.is_device {
        return match capacity <= length {
            true => Ok(()),
            false => Err(OpenError::DeviceTooSmall {
                path: path.to_owned(),
                size: capacity,
                length,
            }),
        };
    }
    let before = Before {
        file,
        length,
        capacity: before,
    };
    allocate(&before, path, capacity)
}

impl Face {
    fn check(&self, extent: Extent) -> Result<(), StorageError> {
        let capacity = self.capacity.load(Ordering::Relaxed);
        let Extent { offset, length } = extent;
        match offset.checked_add(length) {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(StorageError::OutOfRange {
                offset,
                length,
                capacity,
            }),
        }
    }

    fn post(&self, owner: Owner, operation: Operation, done: Done) {
        let submitted = Submitted {
            owner,
            operation,
            done,
        };
        if let Err(Message::Submit(submitted)) = self.inbox.post(Message::Submit(submitted)) {
            let error = self.failure.get().map_or_else(
                || io::Error::other("the thread of the storage has ended").into(),
                Failure::error,
            );
            (submitted.done)(Completed {
                result: Err(error),
                buffer: None,
            });
        }
    }

    /// Sets an extent to 0: whole blocks by `operation`, and the parts of blocks around them
    /// by writes.
    fn clear(&self, owner: Owner, extent: Extent, operation: fn(Extent) -> Operation, done: Done) {
        let granularity = self.geometry.granularity;
        let (start, end) = (extent.offset, extent.end());
        let first = start.next_multiple_of(granularity);
        let last = end - end % granularity;
        let between = |offset: u64, end: u64| Extent {
            offset,
            length: end - offset,
        };
        let parts = match first <= last {
            true => [
                (between(start, first), true),
                (between(first, last), false),
                (between(last, end), true),
            ],
            // Within one block.
            false => [(extent, true), Default::default(), Default::default()],
        };
        let parts = parts.into_iter().filter(|(part, _)| part.length > 0);
        let join = Join::new(done);
        for (part, edge) in parts {
            let operation = match edge {
                false => operation(part),
                true => {
                    let zeros = self.buffers.unlimited(part);
                    Operation::Write(zeros)
                }
            };
            self.post(owner, operation, Join::part(&join));
        }
    }
}

/// The end of an operation that has parts. It ends when this and all parts are dropped.
struct Join {
    /// Taken by the last one.
    done: Mutex<Option<Done>>,
    error: Mutex<Option<StorageError>>,
    /// Parts that ended, and parts there are.
    counts: [AtomicUsize; 2],
}

impl Join {
    fn new(done: Done) -> Arc<Self> {
        Arc::new(Self {
            done: Mutex::new(Some(done)),
            error: Mutex::default(),
            counts: Default::default(),
        })
    }

    fn part(join: &Arc<Self>) -> Done {
        let join = Arc::clone(join);
        join.counts[1].fetch_add(1, Ordering::Relaxed);
        Box::new(move |completed| {
            if let Err(error) = completed.result {
                *join.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            join.counts[0].fetch_add(1, Ordering::Relaxed);
        })
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        let [ended, parts] = &mut self.counts;
        if ended.get_mut() != parts.get_mut() {
            // Cancelled.
            return;
        }
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner);
        let error = self.error.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = done.take() {
            done(Completed {
                result: error.take().map_or(Ok(()), Err),
                buffer: None,
            });
        }
    }
}

impl AsyncStorage for Face {
    fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    fn submit(&self, owner: Owner, operation: Operation, done: Done) {
        let extent = match &operation {
            Operation::Read(buffer) | Operation::Write(buffer) => buffer.extent(),
            Operation::Discard(extent) | Operation::WriteZeroes(extent) => *extent,
            Operation::Flush => Extent::default(),
        };
        if let Err(error) = self.check(extent) {
            let buffer = match operation {
                Operation::Read(buffer) | Operation::Write(buffer) => Some(buffer),
                _ => None,
            };
            let result = Err(error);
            return done(Completed { result, buffer });
        }
        match operation {
            Operation::Discard(extent) => self.clear(owner, extent, Operation::Discard, done),
            Operation::WriteZeroes(extent) => {
                self.clear(owner, extent, Operation::WriteZeroes, done);
            }
            other => self.post(owner, other, done),
        }
    }

    fn cancel(&self, owner: Owner) {
        self.buffers.cancel(owner);
        self.inbox.cancel(owner);
    }
}

impl Storage for BlockStorage {
    fn capacity(&self) -> u64 {
        self.face.capacity.load(Ordering::Relaxed)
    }

    /// A regular file grows if it has to; it is never made shorter. A block device has to be
    /// large enough.
    fn resize(&self, capacity: u64) -> Result<(), ResizeError> {
        // Protects nothing that could be left half done.
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let Face { file, geometry, .. } = self.face.as_ref();
        let resize = || {
            check_size(capacity)?;
            geometry.check(&self.path, capacity)?;
            let length = length(file, &self.path)?;
            extend(
                file,
                &self.path,
                *geometry,
                length,
                self.capacity(),
                capacity,
            )
        };
        resize().map_err(|source| ResizeError {
            capacity,
            source: source.into(),
        })?;
        self.face.capacity.store(capacity, Ordering::Relaxed);
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.face.failure.get().map(Failure::chain)
    }

    fn read(&self, offset: u64, target: VolatileSlice<'_>) -> Result<(), StorageError> {
        let mut rest = target;
        for extent in self.pieces(offset, target.len() as u64)? {
            let buffer = self.face.buffers.unlimited(extent);
            let buffer = self.execute(Operation::Read(buffer))?;
            let data = buffer.as_ref().map_or(&[][..], Buffer::data);
            rest.copy_from(data);
            rest = rest.offset(data.len()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, source: VolatileSlice<'_>) -> Result<(), StorageError> {
        let mut rest = source;
        for extent in self.pieces(offset, source.len() as u64)? {
            let mut buffer = self.face.buffers.unlimited(extent);
            rest.copy_to(buffer.data_mut());
            self.execute(Operation::Write(buffer))?;
            rest = rest
                .offset(extent.length as usize)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.execute(Operation::Discard(Extent { offset, length }))
            .map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.execute(Operation::WriteZeroes(Extent { offset, length }))
            .map(drop)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.execute(Operation::Flush).map(drop)
    }

    fn flush_range(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        self.face.check(Extent { offset, length })?;
        self.flush()
    }

    /// What a mapping shows is the page cache, which direct I/O goes around.
    fn mappable(&self) -> Option<Mappable<'_>> {
        None
    }

    fn asynchronous(&self) -> Option<Arc<dyn AsyncStorage>> {
        Some(Arc::clone(&self.face) as Arc<dyn AsyncStorage>)
    }
}
