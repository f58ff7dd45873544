// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The aperture: the device memory as a VIRTIO shared memory region (VIRTIO 1.3, 2.10). The
//! virtual machine monitor maps it, at the request of the transport.
//!
//! The monitor accepts that request only while the device is started, and drops the mapping
//! when the driver resets the device. So the device sends the request when the driver submits
//! [`Opcode::MapAperture`] to the control queue, which a driver can do only while the device
//! is started.
//!
//! [`Opcode::MapAperture`]: ringbar_spec::Opcode::MapAperture
//!
//! ```text
//!            MapAperture            mapped
//!   Absent ──────────────► Pending ─────────► Present
//!     ▲                       │                  │
//!     ├───── refused ─────────┘                  │
//!     └───── device stopped ─────────────────────┘
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringbar_engine::model::{Mapper, SharedFile, SharedRegion};
use ringbar_spec::{APERTURE_PAGE, RequestStatus, StatusCode, aperture_of};
use ringbar_storage::Storage;
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::executor::Outcome;
use crate::response::{Request, Response};

/// Sizes of the shared memory region and of the mapping in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApertureLayout {
    /// Size of the region: a power of two, because QEMU makes a BAR of it.
    pub(crate) region: u64,
    /// Bytes mapped: the whole pages of the device memory. An incomplete last page is left
    /// out, because its rest does not belong to the device: the file may be longer.
    pub(crate) mapped: u64,
}

impl ApertureLayout {
    /// The layout for device memory of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::ApertureSize`] where the region would be larger than 2^62 bytes.
    pub(crate) fn new(bytes: u64) -> Result<Self, Error> {
        let mapped = aperture_of(bytes);
        match mapped.max(APERTURE_PAGE).checked_next_power_of_two() {
            Some(region) if region <= 1 << 62 => Ok(Self { region, mapped }),
            _ => Err(Error::ApertureSize(bytes)),
        }
    }
}

#[derive(Debug)]
enum Mapping {
    /// Not mapped.
    Absent,
    /// These requests of the driver wait for the monitor's reply.
    Pending(Vec<Request>),
    /// Mapped since the driver started the device.
    Present,
}

#[derive(Debug)]
struct State {
    mapping: Mapping,
    /// Number of stops of the device so far. The mapping of an earlier run does not count.
    run: u64,
    /// Whether a request to the monitor has no reply yet, in this run or an earlier one. One
    /// request is in flight at a time, and none is sent while the device is stopped.
    map_in_flight: bool,
    mapper: Option<Arc<dyn Mapper>>,
}

/// The aperture of one connection.
#[derive(Debug)]
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
                run: 0,
                map_in_flight: false,
                mapper: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shared memory region, for transports.
    pub(crate) const fn region(&self) -> SharedRegion {
        SharedRegion {
            bytes: self.layout.region,
        }
    }

    /// What is mapped into the region.
    fn source(&self) -> io::Result<SharedFile> {
        let source = self
            .storage
            .mappable()
            .ok_or_else(|| io::Error::other("this storage cannot be mapped, or has failed"))?;
        Ok(SharedFile {
            file: source.file.try_clone()?,
            offset: source.offset,
            length: self.layout.mapped,
        })
    }

    /// The file behind the region, for a transport that maps it itself; `None` where nothing
    /// can be mapped.
    pub(crate) fn file(&self) -> Option<SharedFile> {
        match self.source() {
            Ok(file) => (file.length > 0).then_some(file),
            Err(error) => {
                debug!(%error, "the aperture has no file");
                None
            }
        }
    }

    /// Sets the mapper of the transport.
    pub(crate) fn set_mapper(&self, mapper: Arc<dyn Mapper>) {
        self.state().mapper = Some(mapper);
    }

    /// Called when the device was stopped. After a reset the mapping is gone, and no request
    /// waits for it. After a stop of the virtual machine QEMU still has the mapping; no driver
    /// requests it again before a reset.
    pub(crate) fn device_stopped(&self) {
        let before = {
            let mut state = self.state();
            state.run += 1;
            std::mem::replace(&mut state.mapping, Mapping::Absent)
        };
        // Without the lock: dropping a request notifies its worker.
        drop(before);
    }

    /// Handles a [`MapAperture`](ringbar_spec::Opcode::MapAperture) of the driver. Returns the
    /// request with its response where the monitor need not be asked; otherwise the request is
    /// completed after the monitor's reply.
    pub(crate) fn map(aperture: &Arc<Self>, request: Request) -> Option<(Request, Response)> {
        let mut state = aperture.state();
        match &mut state.mapping {
            Mapping::Absent if aperture.layout.mapped > 0 => {
                state.mapping = Mapping::Pending(vec![request]);
            }
            // Also device memory of less than a page, of which nothing is mapped.
            Mapping::Absent | Mapping::Present => {
                return Some((request, aperture.mapped_response()));
            }
            Mapping::Pending(waiting) => waiting.push(request),
        }
        drop(state);
        Self::send_map_request(aperture);
        None
    }

    /// Sends a request to the monitor where requests of the driver wait for one and none is in
    /// flight.
    fn send_map_request(aperture: &Arc<Self>) {
        let (request, mapper) = {
            let mut state = aperture.state();
            if state.map_in_flight || !matches!(state.mapping, Mapping::Pending(_)) {
                return;
            }
            state.map_in_flight = true;
            let request = MapRequest {
                aperture: Arc::clone(aperture),
                run: state.run,
                result: None,
            };
            (request, state.mapper.clone())
        };
        match (mapper, aperture.source()) {
            (Some(mapper), Ok(source)) => {
                let done = Box::new(move |result| request.complete(result));
                mapper.map(source.file, source.offset, source.length, done);
            }
            (None, _) => request.complete(Err(io::Error::other("nobody has memory mapped"))),
            (_, Err(error)) => request.complete(Err(error)),
        }
    }

    fn mapped_response(&self) -> Response {
        let status = RequestStatus {
            code: StatusCode::Ok,
            result: self.layout.mapped,
        };
        Response::Status(status.into())
    }

    /// Handles the monitor's reply to the request that was sent in run `run` of the device. A
    /// reply to a request of an earlier run is ignored.
    fn map_completed(&self, run: u64, result: io::Result<()>) {
        let waiting = {
            let mut state = self.state();
            state.map_in_flight = false;
            if state.run != run {
                return;
            }
            let mapping = match &result {
                Ok(()) => Mapping::Present,
                Err(_) => Mapping::Absent,
            };
            match std::mem::replace(&mut state.mapping, mapping) {
                Mapping::Pending(waiting) => waiting,
                Mapping::Absent | Mapping::Present => Vec::new(),
            }
        };
        match &result {
            Ok(()) => info!(bytes = self.layout.mapped, "aperture mapped"),
            Err(error) => warn!(%error, "aperture cannot be mapped"),
        }
        for request in waiting {
            request.complete(match result {
                Ok(()) => self.mapped_response(),
                Err(_) => Response::Status(Outcome::refused(StatusCode::ApertureUnavailable)),
            });
        }
    }
}

/// A request to the monitor that has no reply yet, sent in run `run` of the device. Dropping it
/// without a result reports a failure.
struct MapRequest {
    aperture: Arc<Aperture>,
    run: u64,
    result: Option<io::Result<()>>,
}

impl MapRequest {
    fn complete(mut self, result: io::Result<()>) {
        self.result = Some(result);
    }
}

impl Drop for MapRequest {
    fn drop(&mut self) {
        let result = self.result.take();
        let result = result.unwrap_or_else(|| Err(io::Error::other("nobody answers")));
        self.aperture.map_completed(self.run, result);
        // Requests of a run that began meanwhile wait for a request of their own.
        Aperture::send_map_request(&self.aperture);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    #[test]
    fn impossible_regions_are_refused() {
        for bytes in [(1 << 62) + APERTURE_PAGE, i64::MAX as u64, u64::MAX] {
            assert!(ApertureLayout::new(bytes).is_err(), "{bytes}");
        }
    }
}
