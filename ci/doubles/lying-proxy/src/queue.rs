// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A split virtqueue of the guest (VIRTIO 1.3, 2.7), and its shadow for the device.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{Ordering, fence};

use ringbar_agent_protocol::host::LieQueue;
use ringbar_spec::{CONTROL_QUEUE, EVENT_QUEUE};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use crate::memory::{Memory, shadow_avail, shadow_used};
use crate::message::invalid;

/// Largest ring that fits into a shadow.
const MAX_SIZE: u32 = 1024;

/// Maximum number of event buffers that the device has at a time. The others are for
/// made-up events.
const EVENT_BUFFERS: usize = 8;

/// Offsets in the available ring (2.7.6): flags, index, ring.
const INDEX: u64 = 2;
const RING: u64 = 4;

/// Size of a used element (2.7.8).
const ELEMENT: u64 = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

/// A used element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u32,
    pub(crate) len: u32,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    index: usize,
    size: u16,
    /// Available index at which the queue starts.
    base: u16,
    event_idx: bool,
    /// The guest's kick: a notification to the device.
    pub(crate) kick: Option<OwnedFd>,
    /// The guest's call: an interrupt.
    call: Option<OwnedFd>,
    /// The device's kick and call.
    device_kick: OwnedFd,
    pub(crate) device_call: OwnedFd,
    pub(crate) rings: Option<Rings>,
}

/// The rings of a started queue.
#[derive(Debug)]
pub(crate) struct Rings {
    /// Guest addresses.
    pub(crate) descriptors: u64,
    avail: u64,
    used: u64,
    /// Next entry to read in the guest's available ring, and to write in its used ring.
    next_avail: u16,
    next_used: u16,
    /// Next entry to write in the shadow available ring, and to read in the shadow used
    /// ring.
    shadow_avail: u16,
    shadow_used: u16,
    /// Available buffers that were not passed to the device yet.
    pub(crate) undelivered: VecDeque<u16>,
    /// Buffers that the device has.
    outstanding: Vec<u16>,
    /// Used index at the last decision about an interrupt.
    signalled_used: u16,
    /// The queue returns no more entries.
    pub(crate) broken: bool,
}

impl Queue {
    pub(crate) fn new(index: usize) -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            index,
            size: 0,
            base: 0,
            event_idx: false,
            kick: None,
            call: None,
            device_kick: eventfd(0, flags)?,
            device_call: eventfd(0, flags)?,
            rings: None,
        })
    }

    pub(crate) fn is_in(&self, queues: LieQueue) -> bool {
        let index = self.index;
        match queues {
            LieQueue::Control => index == usize::from(CONTROL_QUEUE),
            LieQueue::Event => index == usize::from(EVENT_QUEUE),
            LieQueue::Io => index > usize::from(EVENT_QUEUE),
        }
    }

    pub(crate) fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
    }

    pub(crate) fn set_size(&mut self, size: u32) -> io::Result<()> {
        if size > MAX_SIZE {
            return Err(invalid(format!("a ring of {size} entries")));
        }
        self.size = size as u16;
        Ok(())
    }

    pub(crate) fn set_base(&mut self, base: u32) {
        // A ring index has 16 bits.
        self.base = base as u16;
    }

    /// Sets the guest's kick; returns the kick for the device.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) -> io::Result<OwnedFd> {
        self.kick = Some(kick);
        self.device_kick.try_clone()
    }

    /// Sets the guest's call; returns the call for the device.
    pub(crate) fn set_call(&mut self, call: OwnedFd) -> io::Result<OwnedFd> {
        self.call = Some(call);
        self.device_call.try_clone()
    }

    /// Starts the queue with rings at these guest addresses. Returns the user addresses
    /// of the shadow rings: available and used.
    pub(crate) fn start(
        &mut self,
        memory: &Memory,
        descriptors: u64,
        avail: u64,
        used: u64,
    ) -> io::Result<(u64, u64)> {
        let next_used = memory.load(used + INDEX)?;
        let ((avail_shadow, avail_user), (used_shadow, used_user)) =
            (shadow_avail(self.index), shadow_used(self.index));
        // The device reads its used index from the shadow ring, where nothing is
        // available yet.
        memory.store(used_shadow + INDEX, next_used)?;
        memory.store(avail_shadow + INDEX, self.base)?;
        let event = avail_shadow + RING + 2 * u64::from(self.size);
        memory.write(event, next_used)?;
        self.rings = Some(Rings {
            descriptors,
            avail,
            used,
            next_avail: self.base,
            next_used,
            shadow_avail: self.base,
            shadow_used: next_used,
            undelivered: VecDeque::new(),
            outstanding: Vec::new(),
            signalled_used: next_used,
            broken: false,
        });
        Ok((avail_user, used_user))
    }

    /// Stops the queue.
    pub(crate) fn stop(&mut self) {
        self.rings = None;
    }

    /// Takes the guest's new buffers and makes them available to the device.
    pub(crate) fn forward_available(&mut self, memory: &Memory) -> io::Result<()> {
        self.take_available(memory)?;
        let limit = match self.is_in(LieQueue::Event) {
            true => EVENT_BUFFERS,
            false => usize::from(self.size),
        };
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        let (shadow, _) = shadow_avail(self.index);
        let mut any = false;
        while rings.outstanding.len() < limit
            && let Some(head) = rings.undelivered.pop_front()
        {
            let at = shadow + RING + 2 * u64::from(rings.shadow_avail % self.size);
            memory.write(at, head)?;
            rings.shadow_avail = rings.shadow_avail.wrapping_add(1);
            memory.store(shadow + INDEX, rings.shadow_avail)?;
            rings.outstanding.push(head);
            any = true;
        }
        if any {
            signal(&self.device_kick)?;
        }
        Ok(())
    }

    /// Takes the guest's new buffers and requests a kick for the next one.
    pub(crate) fn take_available(&mut self, memory: &Memory) -> io::Result<()> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        loop {
            let index: u16 = memory.load(rings.avail + INDEX)?;
            if index.wrapping_sub(rings.next_avail) > self.size {
                return Err(invalid(format!(
                    "queue {}: available index {index}",
                    self.index
                )));
            }
            while rings.next_avail != index {
                let at = rings.avail + RING + 2 * u64::from(rings.next_avail % self.size);
                rings.undelivered.push_back(memory.read(at)?);
                rings.next_avail = rings.next_avail.wrapping_add(1);
            }
            if self.event_idx {
                let at = rings.used + RING + ELEMENT * u64::from(self.size);
                memory.write(at, rings.next_avail)?;
            }
            fence(Ordering::SeqCst);
            if memory.load::<u16>(rings.avail + INDEX)? == rings.next_avail {
                return Ok(());
            }
        }
    }

    /// Takes the entries that the device has used since the last call.
    pub(crate) fn take_used(&mut self, memory: &Memory) -> io::Result<Vec<Used>> {
        let mut all = Vec::new();
        let Some(rings) = &mut self.rings else {
            return Ok(all);
        };
        let ((avail, _), (used, _)) = (shadow_avail(self.index), shadow_used(self.index));
        loop {
            let index: u16 = memory.load(used + INDEX)?;
            while rings.shadow_used != index {
                let at = used + RING + ELEMENT * u64::from(rings.shadow_used % self.size);
                let element = Used {
                    id: memory.read(at)?,
                    len: memory.read(at + 4)?,
                };
                rings.shadow_used = rings.shadow_used.wrapping_add(1);
                rings
                    .outstanding
                    .retain(|&head| u32::from(head) != element.id);
                all.push(element);
            }
            let event = avail + RING + 2 * u64::from(self.size);
            memory.write(event, rings.shadow_used)?;
            fence(Ordering::SeqCst);
            if memory.load::<u16>(used + INDEX)? == rings.shadow_used {
                return Ok(all);
            }
        }
    }

    /// Writes a used entry for the guest. `extra` is added to the used index without
    /// entries.
    pub(crate) fn put_used(&mut self, memory: &Memory, used: Used, extra: u16) -> io::Result<()> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        let at = rings.used + RING + ELEMENT * u64::from(rings.next_used % self.size);
        memory.write(at, used.id)?;
        memory.write(at + 4, used.len)?;
        rings.next_used = rings.next_used.wrapping_add(1);
        memory.store(rings.used + INDEX, rings.next_used.wrapping_add(extra))
    }

    /// An entry that is below the size of the ring and that the guest has not made
    /// available.
    pub(crate) fn unavailable_entry(&self, except: u32) -> Option<u32> {
        let rings = self.rings.as_ref()?;
        (0..self.size)
            .find(|entry| {
                u32::from(*entry) != except
                    && !rings.outstanding.contains(entry)
                    && !rings.undelivered.contains(entry)
            })
            .map(u32::from)
    }

    /// Interrupts the guest if it has requested that for the entries since the last call.
    pub(crate) fn notify_guest(&mut self, memory: &Memory) -> io::Result<()> {
        let Some(rings) = &mut self.rings else {
            return Ok(());
        };
        let old = std::mem::replace(&mut rings.signalled_used, rings.next_used);
        let new = rings.next_used;
        if old == new {
            return Ok(());
        }
        // The used index is written before the guest's event index is read (2.7.7.2).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let at = rings.avail + RING + 2 * u64::from(self.size);
            let event: u16 = memory.load(at)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            memory.load::<u16>(rings.avail)? & NO_INTERRUPT == 0
        };
        match wanted {
            true => self.interrupt(),
            false => Ok(()),
        }
    }

    /// Interrupts the guest.
    pub(crate) fn interrupt(&self) -> io::Result<()> {
        self.call.as_ref().map_or(Ok(()), signal)
    }
}

/// Signals an eventfd.
fn signal(counter: &OwnedFd) -> io::Result<()> {
    match rustix::io::write(counter, &1u64.to_ne_bytes()) {
        // A full counter is signalled already.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Clears an eventfd.
pub(crate) fn clear(counter: &OwnedFd) -> io::Result<()> {
    match rustix::io::read(counter, &mut [0; 8]) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
