// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The aperture: the device memory as a VIRTIO shared memory region (VIRTIO
//! 1.3, 2.10), mapped by the virtual machine monitor on our request
//! (vhost-user, `VHOST_USER_BACKEND_SHMEM_MAP`).
//!
//! The monitor forgets the mapping when the driver resets the device, and QEMU
//! takes the request only while the device is started. So it is sent when the
//! driver asks over the control queue, which it can do in that time only.
//!
//! A thread of its own sends the request and waits for the answer, without limit: the crate
//! below knows none. The worker of the control queue waits for that thread, until the
//! connection ends.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use ringbar_model::Storage;
use ringbar_spec::{APERTURE_PAGE, APERTURE_SHMID, RequestStatus, StatusCode, aperture_of};
use tracing::{info, warn};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserShMemConfig};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

use crate::error::Error;

/// Sizes of the shared memory region and of the mapping in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApertureLayout {
    /// Size of the region: a power of two, because QEMU makes a BAR of it.
    region: u64,
    /// Bytes mapped: the whole pages of the device memory. A last one that it does not
    /// fill is left out, because the rest of that is not the device's: a longer file may
    /// go on there.
    mapped: u64,
}

impl ApertureLayout {
    /// For `bytes` of device memory.
    pub(crate) fn new(bytes: u64) -> Result<Self, Error> {
        let mapped = aperture_of(bytes);
        match mapped.max(APERTURE_PAGE).checked_next_power_of_two() {
            Some(region) if region <= 1 << 62 => Ok(Self { region, mapped }),
            _ => Err(Error::ApertureSize(bytes)),
        }
    }

    /// The answer to `VHOST_USER_GET_SHMEM_CONFIG`: region 0 and no other.
    pub(crate) fn shmem_config(&self) -> VhostUserShMemConfig {
        const { assert!(APERTURE_SHMID == 0) };
        VhostUserShMemConfig::new(1, &[self.region])
    }
}

/// Whether the aperture shows the device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// Not, or no longer.
    Absent,
    /// Since the driver started the device.
    Present,
    /// The monitor refused; to be told to the driver once.
    Refused,
}

struct State {
    mapping: Mapping,
    /// Counts the stops of the device: a mapping is worth nothing after one.
    generation: u64,
    backend: Option<Backend>,
    /// The connection has ended.
    ended: bool,
    /// Ends the wait of [`Aperture::map`].
    waiting: Option<Sender<io::Result<()>>>,
}

/// The aperture of one connection.
pub(crate) struct Aperture {
    layout: ApertureLayout,
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
}

impl Aperture {
    pub(crate) fn new(layout: ApertureLayout, storage: Arc<dyn Storage>) -> Self {
        Self {
            layout,
            storage,
            state: Mutex::new(State {
                mapping: Mapping::Absent,
                generation: 0,
                backend: None,
                ended: false,
                waiting: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn layout(&self) -> &ApertureLayout {
        &self.layout
    }

    /// The channel over which the monitor takes requests.
    pub(crate) fn set_backend(&self, backend: Backend) {
        self.state().backend = Some(backend);
    }

    /// The device was stopped: what was mapped is gone.
    pub(crate) fn stopped(&self) {
        let mut state = self.state();
        state.generation += 1;
        state.mapping = Mapping::Absent;
    }

    /// The connection has ended: no answer of the monitor is waited for any more. It may
    /// still come, where the monitor has kept the channel for requests of the device.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        if let Some(waiting) = state.waiting.take() {
            // It may just have got its answer.
            let _ = waiting.send(Err(hung_up()));
        }
    }

    /// The answer to `MapAperture`, or `None` where [`Self::map`] must be called
    /// first.
    pub(crate) fn answer(&self) -> Option<RequestStatus> {
        let mut state = self.state();
        match state.mapping {
            Mapping::Absent if self.layout.mapped > 0 => None,
            // Without a whole page there is nothing to map.
            Mapping::Absent | Mapping::Present => Some(RequestStatus {
                code: StatusCode::Ok,
                result: self.layout.mapped,
            }),
            Mapping::Refused => {
                state.mapping = Mapping::Absent;
                Some(RequestStatus {
                    code: StatusCode::ApertureUnavailable,
                    result: 0,
                })
            }
        }
    }

    /// Asks the monitor for the mapping and waits for its answer. No lock is
    /// held meanwhile: before it answers, the monitor sends messages of its own
    /// (the new memory table) and waits for them to be handled.
    pub(crate) fn map(&self) {
        let (generation, result) = self.request();
        let mapping = match result {
            Ok(()) => {
                info!(bytes = self.layout.mapped, "aperture mapped");
                Mapping::Present
            }
            Err(error) => {
                warn!(%error, "aperture cannot be mapped");
                Mapping::Refused
            }
        };
        let mut state = self.state();
        if state.generation == generation {
            state.mapping = mapping;
        }
    }

    /// Returns the generation in which it was asked for, with what came of it.
    fn request(&self) -> (u64, io::Result<()>) {
        let (sender, receiver) = channel();
        let (generation, backend) = {
            let mut state = self.state();
            if state.ended {
                return (state.generation, Err(hung_up()));
            }
            state.waiting = Some(sender.clone());
            (state.generation, state.backend.clone())
        };
        let (storage, bytes) = (Arc::clone(&self.storage), self.layout.mapped);
        let result = thread::Builder::new()
            .name("aperture".to_owned())
            .spawn(move || {
                // Nobody may wait for it any more.
                let _ = sender.send(request(backend, storage.as_ref(), bytes));
            })
            // A thread that panics has sent nothing, but others can.
            .and_then(|_| receiver.recv().map_err(io::Error::other)?);
        self.state().waiting = None;
        (generation, result)
    }
}

fn hung_up() -> io::Error {
    io::Error::other("the connection has ended")
}

/// Asks the monitor to map the first `bytes` of the storage.
fn request(backend: Option<Backend>, storage: &dyn Storage, bytes: u64) -> io::Result<()> {
    let backend = backend.ok_or_else(|| {
        io::Error::other("the monitor opened no channel for requests of the device")
    })?;
    let source = storage
        .mappable()
        .ok_or_else(|| io::Error::other("this storage cannot be mapped, or has failed"))?;
    let request = VhostUserMMap {
        shmid: APERTURE_SHMID,
        padding: [0; 7],
        fd_offset: source.offset,
        shm_offset: 0,
        len: bytes,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    match backend.shmem_map(&request, source.file)? {
        0 => Ok(()),
        code => Err(io::Error::other(format!("the monitor answered {code:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use ringbar_storage::MemoryStorage;
    use vhost::vhost_user::{FrontendReqHandler, HandlerResult};

    use super::*;

    const BYTES: u64 = 8192;

    /// A monitor that maps, and may stop the device before it says so.
    struct Monitor {
        aperture: Arc<Aperture>,
        stops: AtomicBool,
    }

    impl VhostUserFrontendReqHandler for Monitor {
        fn shmem_map(&self, _: &VhostUserMMap, _: &dyn AsRawFd) -> HandlerResult<u64> {
            if self.stops.load(Ordering::Relaxed) {
                self.aperture.stopped();
            }
            Ok(0)
        }
    }

    #[test]
    fn a_map_that_the_device_did_not_outlive_is_asked_for_anew() {
        let storage = Arc::new(MemoryStorage::new(BYTES).unwrap());
        let layout = ApertureLayout::new(BYTES).unwrap();
        let aperture = Arc::new(Aperture::new(layout, storage));
        let monitor = Arc::new(Monitor {
            aperture: Arc::clone(&aperture),
            stops: AtomicBool::new(true),
        });
        let mut handler = FrontendReqHandler::new(Arc::clone(&monitor)).unwrap();
        handler.set_reply_ack_flag(true);
        // SAFETY: the handler owns the descriptor and lives until the call is over.
        let ours = unsafe { BorrowedFd::borrow_raw(handler.get_tx_raw_fd()) };
        let ours = UnixStream::from(ours.try_clone_to_owned().unwrap());
        let backend = Backend::from_stream(ours);
        backend.set_reply_ack_flag(true);
        backend.set_shmem_flag(true);
        aperture.set_backend(backend);

        for (stops, mapped) in [(true, None), (false, Some(BYTES))] {
            monitor.stops.store(stops, Ordering::Relaxed);
            thread::scope(|scope| {
                scope.spawn(|| handler.handle_request().unwrap());
                aperture.map();
            });
            assert_eq!(aperture.answer().map(|status| status.result), mapped);
        }
    }

    #[test]
    fn ho10_region_is_a_power_of_two_that_holds_the_whole_pages() {
        for (bytes, mapped, region) in [
            (1, 0, 4096),
            (4095, 0, 4096),
            (4096, 4096, 4096),
            (8191, 4096, 4096),
            (8192, 8192, 8192),
            (12 << 10, 12 << 10, 16 << 10),
            (256 << 20, 256 << 20, 256 << 20),
            ((256 << 20) + 4096, (256 << 20) + 4096, 512 << 20),
        ] {
            let layout = ApertureLayout::new(bytes).unwrap();
            assert_eq!((layout.mapped, layout.region), (mapped, region), "{bytes}");
            let config = layout.shmem_config();
            assert_eq!({ config.nregions }, 1);
            assert_eq!({ config.memory_sizes }[0], region);
        }
    }

    #[test]
    fn impossible_regions_are_refused() {
        for bytes in [(1 << 62) + APERTURE_PAGE, i64::MAX as u64, u64::MAX] {
            assert!(ApertureLayout::new(bytes).is_err(), "{bytes}");
        }
    }
}
