// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The columns of the result: the devices that a job is measured on.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::job::Job;

/// A device, or a way of using one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Column {
    /// Ringbar, doing exactly what the job says.
    Ringbar,
    /// Ringbar without the registered buffers of the job.
    RingbarPlain,
    /// Ringbar without the polling of the job.
    RingbarInterrupt,
    /// Ringbar with polling that the job does not ask for.
    RingbarIopoll,
    /// `virtio-blk-pci` with an I/O thread.
    VirtioBlk,
    /// `vhost-user-blk-pci` with qemu-storage-daemon.
    VhostUserBlk,
    /// QEMU's NVMe controller.
    Nvme,
    /// `virtio-blk-pci` with a queue that is polled.
    VirtioBlkPoll,
    /// QEMU's NVMe controller with queues that are polled.
    NvmePoll,
    /// `/dev/null`: the cost of fio and the system calls alone.
    Floor,
    /// Copies of the same size within the guest's memory.
    Memcpy,
}

impl Column {
    /// All columns, in the order of the tables.
    pub const ALL: [Self; 11] = [
        Self::Ringbar,
        Self::RingbarPlain,
        Self::RingbarInterrupt,
        Self::RingbarIopoll,
        Self::VirtioBlk,
        Self::VhostUserBlk,
        Self::Nvme,
        Self::VirtioBlkPoll,
        Self::NvmePoll,
        Self::Floor,
        Self::Memcpy,
    ];

    /// The peers with default settings. The best of them counts as `best_peer`.
    pub const PEERS: [Self; 3] = [Self::VirtioBlk, Self::VhostUserBlk, Self::Nvme];

    /// Name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ringbar => "ringbar",
            Self::RingbarPlain => "ringbar-plain",
            Self::RingbarInterrupt => "ringbar-interrupt",
            Self::RingbarIopoll => "ringbar-iopoll",
            Self::VirtioBlk => "virtio-blk",
            Self::VhostUserBlk => "vhost-user-blk",
            Self::Nvme => "nvme",
            Self::VirtioBlkPoll => "virtio-blk-poll",
            Self::NvmePoll => "nvme-poll",
            Self::Floor => "floor",
            Self::Memcpy => "memcpy",
        }
    }

    /// A description for the report.
    pub fn description(self) -> &'static str {
        match self {
            Self::Ringbar => "/dev/ringbar0 with default settings",
            Self::RingbarPlain => "/dev/ringbar0, the job without registered buffers",
            Self::RingbarInterrupt => "/dev/ringbar0, the job without IOPOLL",
            Self::RingbarIopoll => "/dev/ringbar0, the job with IOPOLL",
            Self::VirtioBlk => "virtio-blk-pci, an iothread of its own, a queue for each CPU",
            Self::VhostUserBlk => {
                "vhost-user-blk-pci, qemu-storage-daemon with an iothread, a queue for each CPU"
            }
            Self::Nvme => "nvme, ioeventfd=on, a queue for each CPU",
            Self::VirtioBlkPoll => "virtio-blk-pci as above, one queue polled, the job with IOPOLL",
            Self::NvmePoll => "nvme as above, a polled queue for each CPU, the job with IOPOLL",
            Self::Floor => "/dev/null, always written: no data is moved",
            Self::Memcpy => "copies between memory as large as the device and the job's buffers",
        }
    }

    /// Whether the column is a variant of Ringbar.
    pub fn is_ringbar(self) -> bool {
        matches!(
            self,
            Self::Ringbar | Self::RingbarPlain | Self::RingbarInterrupt | Self::RingbarIopoll
        )
    }

    /// Whether the column is a peer, polled or not.
    pub fn is_peer(self) -> bool {
        Self::PEERS.contains(&self) || matches!(self, Self::VirtioBlkPoll | Self::NvmePoll)
    }

    /// The variant of `job` that this column runs; `None` if the column does not take
    /// part.
    pub fn variant(self, job: Job) -> Option<Job> {
        match self {
            Self::Ringbar | Self::Memcpy => Some(job),
            Self::RingbarPlain => job.fixed().then(|| job.plain()),
            Self::RingbarInterrupt => job.polled.then(|| job.polled(false)),
            Self::RingbarIopoll => (job.uses_io_uring() && !job.polled).then(|| job.polled(true)),
            // Their drivers refuse to poll without poll queues.
            Self::VirtioBlk | Self::VhostUserBlk | Self::Nvme => (!job.polled).then_some(job),
            Self::VirtioBlkPoll | Self::NvmePoll => job.uses_io_uring().then(|| job.polled(true)),
            // A read of /dev/null returns nothing. One of /dev/zero stores byte by byte,
            // which takes longer than a device needs.
            Self::Floor => Some(Job {
                access: job.access.written(),
                ..job.polled(false)
            }),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|column| column.name() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                format!("{text:?} is no device: {known}")
            })
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(job: &str) -> Vec<&'static str> {
        let job = job.parse().unwrap();
        Column::ALL
            .into_iter()
            .filter(|column| column.variant(job).is_some())
            .map(Column::name)
            .collect()
    }

    #[test]
    fn names_are_read_again() {
        for column in Column::ALL {
            assert_eq!(column.name().parse(), Ok(column));
        }
        let error = "virtio".parse::<Column>().unwrap_err();
        assert!(error.contains("virtio-blk, vhost-user-blk"), "{error}");
    }

    #[test]
    fn only_io_uring_is_polled() {
        assert_eq!(
            columns("randread-4k-qd32-libaio"),
            [
                "ringbar",
                "virtio-blk",
                "vhost-user-blk",
                "nvme",
                "floor",
                "memcpy"
            ]
        );
        let all = columns("randread-4k-qd32-io_uring");
        for name in ["ringbar-iopoll", "virtio-blk-poll", "nvme-poll", "nvme"] {
            assert!(all.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_polled_job_is_compared_with_polled_peers_and_our_interrupts() {
        assert_eq!(
            columns("randread-4k-qd32-io_uring-iopoll"),
            [
                "ringbar",
                "ringbar-interrupt",
                "virtio-blk-poll",
                "nvme-poll",
                "floor",
                "memcpy"
            ]
        );
    }

    #[test]
    fn registered_buffers_are_compared_with_plain_ones() {
        let job = "read-128k-qd8-io_uring-fixed".parse().unwrap();
        assert!(columns("read-128k-qd8-io_uring-fixed").contains(&"ringbar-plain"));
        assert!(!Column::RingbarPlain.variant(job).unwrap().fixed());
        assert!(Column::Nvme.variant(job).unwrap().fixed());
        assert!(!columns("read-128k-qd8-io_uring").contains(&"ringbar-plain"));
    }

    #[test]
    fn the_floor_moves_no_data() {
        let job = "randread-4k-qd32-io_uring-iopoll-j2".parse().unwrap();
        let floor = Column::Floor.variant(job).unwrap();
        assert_eq!(floor.to_string(), "randwrite-4k-qd32-io_uring-j2");
        let job = "rw-1m-qd4-libaio".parse().unwrap();
        let floor = Column::Floor.variant(job).unwrap();
        assert_eq!(floor.to_string(), "write-1m-qd4-libaio");
    }
}
