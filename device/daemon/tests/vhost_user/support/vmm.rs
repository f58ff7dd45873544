// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The virtual machine monitor's end of vhost-user, on the `vhost` crate.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ringbar_spec::{DeviceConfig, Event};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use super::driver::{Desc, QUEUE_SIZE, Queue, WRITE, desc};

/// Guest address of the aperture.
pub const APERTURE_AT: u64 = 0x10_0000_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Reply of the monitor to a request to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPolicy {
    /// Map, list the mapping in the memory table, and reply, as QEMU does.
    Accept,
    /// Refuse.
    Refuse,
    /// Never reply.
    Ignore,
    /// Reply when there is another policy, by that one.
    Wait,
}

/// The monitor's side of the aperture.
struct Aperture {
    memory: GuestMemoryMmap,
    state: Arc<Mutex<ApertureState>>,
}

struct ApertureState {
    /// Dead once the monitor is dropped.
    frontend: Option<Frontend>,
    policy: MapPolicy,
    maps: u32,
    mapped: Option<GuestMemoryMmap>,
}

impl VhostUserFrontendReqHandler for Aperture {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let mut state = self.state.lock().unwrap();
        state.maps += 1;
        while state.policy == MapPolicy::Wait {
            drop(state);
            std::thread::yield_now();
            state = self.state.lock().unwrap();
        }
        match state.policy {
            MapPolicy::Accept | MapPolicy::Wait => {}
            MapPolicy::Refuse => return Err(std::io::Error::from_raw_os_error(22)),
            MapPolicy::Ignore => {
                drop(state);
                loop {
                    std::thread::park();
                }
            }
        }
        // SAFETY: the library owns the descriptor until this returns.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let file = File::from(fd.try_clone_to_owned().unwrap());
        let (len, offset) = (request.len, request.fd_offset);
        assert_eq!((request.shmid, { request.shm_offset }), (0, 0));
        assert_eq!({ request.flags }, 1, "not writable");
        let region = GuestRegionMmap::from_range(
            GuestAddress(APERTURE_AT),
            len as usize,
            Some(FileOffset::new(file, offset)),
        )
        .unwrap();
        let all = self.memory.insert_region(Arc::new(region)).unwrap();
        // The device has to accept the new table before it gets the reply.
        let frontend = state.frontend.as_ref().unwrap();
        frontend.set_mem_table(&regions(&all)).unwrap();
        state.mapped = Some(all);
        Ok(0)
    }
}

fn regions(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
        .collect()
}

/// A virtual machine that is connected to a daemon.
pub struct Vmm {
    pub frontend: Frontend,
    memory: GuestMemoryMmap,
    aperture: Arc<Mutex<ApertureState>>,
    pub queues: Vec<Queue>,
}

impl Vmm {
    /// Connects, negotiates everything and starts all queues.
    pub fn start(socket: &Path, io_queues: u16) -> Self {
        let mut vmm = Self::connect(socket, io_queues, VhostUserProtocolFeatures::all());
        vmm.start_device();
        vmm
    }

    /// Connects and negotiates those of `protocol` that the device offers.
    pub fn connect(socket: &Path, io_queues: u16, protocol: VhostUserProtocolFeatures) -> Self {
        let count = u64::from(io_queues) + 2;
        let mut frontend = Frontend::connect(socket, count).unwrap();
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered & protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), count);

        // Two regions that touch, so that data can lie across them.
        let size = Queue::FOOTPRINT * count;
        let half = Queue::FOOTPRINT * 2 + 0x30_0000;
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        let file = Arc::new(File::from(file));
        let part = |start: u64, end: u64| {
            (
                GuestAddress(start),
                (end - start) as usize,
                Some(FileOffset::from_arc(Arc::clone(&file), start)),
            )
        };
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges_with_files([part(0, half), part(half, size)]).unwrap();

        let aperture = Arc::new(Mutex::new(ApertureState {
            frontend: Some(frontend.clone()),
            policy: MapPolicy::Accept,
            maps: 0,
            mapped: None,
        }));
        if (offered & protocol).contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            serve_device(&mut frontend, &memory, &aperture);
        }
        Self {
            queues: (0..count)
                .map(|i| Queue::new(&memory, i * Queue::FOOTPRINT))
                .collect(),
            frontend,
            memory,
            aperture,
        }
    }

    /// Starts the device: the messages of the monitor when a guest sets `DRIVER_OK`.
    pub fn start_device(&mut self) {
        for queue in &mut self.queues {
            queue.clear();
        }
        let bases = vec![0; self.queues.len()];
        self.configure(&bases);
        self.enable();
    }

    /// Sends all messages of a start before the rings are enabled.
    pub fn configure(&mut self, bases: &[u32]) {
        let features = VERSION_1 | EVENT_IDX | INDIRECT_DESC | PROTOCOL_FEATURES;
        self.frontend.set_features(features).unwrap();
        self.frontend.set_mem_table(&regions(&self.memory)).unwrap();
        for (i, queue) in self.queues.iter().enumerate() {
            let host = |addr| self.memory.get_host_address(GuestAddress(addr)).unwrap() as u64;
            self.frontend.set_vring_num(i, QUEUE_SIZE).unwrap();
            self.frontend.set_vring_base(i, bases[i] as u16).unwrap();
            self.frontend
                .set_vring_addr(
                    i,
                    &VringConfigData {
                        queue_max_size: QUEUE_SIZE,
                        queue_size: QUEUE_SIZE,
                        flags: 0,
                        desc_table_addr: host(queue.table()),
                        used_ring_addr: host(queue.used_ring()),
                        avail_ring_addr: host(queue.avail()),
                        log_addr: None,
                    },
                )
                .unwrap();
            self.frontend.set_vring_kick(i, &queue.kick).unwrap();
            self.frontend.set_vring_call(i, &queue.call).unwrap();
        }
    }

    /// Enables the rings.
    pub fn enable(&mut self) {
        for i in 0..self.queues.len() {
            self.frontend.set_vring_enable(i, true).unwrap();
        }
    }

    /// Stops the rings, as for a reset or a stop of the guest; returns the index of each.
    pub fn stop_device(&mut self) -> Vec<u32> {
        self.aperture.lock().unwrap().mapped = None;
        (0..self.queues.len())
            .map(|i| self.frontend.get_vring_base(i).unwrap())
            .collect()
    }

    /// The configuration space as the guest reads it.
    pub fn config(&mut self) -> DeviceConfig {
        let (_, bytes) = self
            .frontend
            .get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
            .unwrap();
        DeviceConfig::parse(bytes[..].try_into().unwrap()).unwrap()
    }

    pub fn control(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    pub fn events(&mut self) -> &mut Queue {
        &mut self.queues[1]
    }

    pub fn io(&mut self, index: usize) -> &mut Queue {
        &mut self.queues[2 + index]
    }

    pub fn set_map_policy(&self, policy: MapPolicy) {
        self.aperture.lock().unwrap().policy = policy;
    }

    /// Number of requests to map so far.
    pub fn maps(&self) -> u32 {
        self.aperture.lock().unwrap().maps
    }

    /// The guest's memory and the aperture in it.
    pub fn mapped(&self) -> GuestMemoryMmap {
        self.aperture.lock().unwrap().mapped.clone().unwrap()
    }

    /// Reads through the BAR.
    pub fn bar_read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mapped()
            .read_slice(&mut out, GuestAddress(APERTURE_AT + offset))
            .unwrap();
        out
    }

    /// Stores through the BAR.
    pub fn bar_write(&self, offset: u64, bytes: &[u8]) {
        self.mapped()
            .write_slice(bytes, GuestAddress(APERTURE_AT + offset))
            .unwrap();
    }

    /// Size of the BAR's mapping.
    pub fn bar_len(&self) -> u64 {
        self.mapped()
            .find_region(GuestAddress(APERTURE_AT))
            .unwrap()
            .len()
    }

    /// Puts `count` buffers on the event queue.
    pub fn post_event_buffers(&mut self, count: u16) {
        let queue = self.events();
        let table: Vec<Desc> = (0..u64::from(count))
            .map(|i| desc(queue.scratch() + 64 * i, Event::SIZE as u32, WRITE, 0))
            .collect();
        queue.put_table(0, &table);
        for head in 0..count {
            queue.add(head);
        }
        queue.kick();
    }

    /// Waits for an event.
    #[track_caller]
    pub fn wait_event(&mut self) -> Event {
        let queue = self.events();
        queue.want_interrupt();
        loop {
            if let Some((head, len)) = queue.take_used() {
                assert_eq!(len, Event::SIZE as u32);
                let bytes = queue.get(queue.scratch() + 64 * u64::from(head), Event::SIZE);
                return Event::parse(bytes[..].try_into().unwrap()).unwrap();
            }
            queue.wait_interrupt();
        }
    }
}

impl Drop for Vmm {
    /// Disconnects, since this is the last copy of the connection, and unmaps the aperture, which
    /// keeps its file locked.
    fn drop(&mut self) {
        let mut state = self.aperture.lock().unwrap();
        state.frontend = None;
        state.mapped = None;
    }
}

/// Opens the channel for requests of the device, and replies to them on a thread of its own.
fn serve_device(
    frontend: &mut Frontend,
    memory: &GuestMemoryMmap,
    state: &Arc<Mutex<ApertureState>>,
) {
    let mut handler = FrontendReqHandler::new(Arc::new(Aperture {
        memory: memory.clone(),
        state: Arc::clone(state),
    }))
    .unwrap();
    handler.set_reply_ack_flag(true);
    // SAFETY: the handler owns the descriptor and lives until the call is over.
    let fd = unsafe { BorrowedFd::borrow_raw(handler.get_tx_raw_fd()) };
    frontend.set_backend_request_fd(&fd).unwrap();
    std::thread::spawn(move || {
        // A refusal is an error as well; a broken channel ends in one each time.
        let mut failures = 0;
        while failures < 100 {
            failures = match handler.handle_request() {
                Ok(_) => 0,
                Err(_) => failures + 1,
            };
        }
    });
}
