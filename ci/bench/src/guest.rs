// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's side: finds the file of each device and sets it up for speed.

use std::collections::HashMap;
use std::time::Duration;

use ringbar_vm::agent::{Agent, GuestCommand};
use ringbar_vm::error::{Error, Result};
use ringbar_vm::vm::DEVICE_NODE;

use crate::column::Column;
use crate::peers::pci_address;

/// Maximum time for loading the drivers.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Loads the drivers of the peers. Arguments: the PCI address of the virtio device that
/// gets a poll queue, and the number of CPUs.
///
/// virtio_blk takes the poll queue from its default queues, one for each CPU. So the
/// script gives one device a poll queue only after the other devices are set up.
const LOAD_DRIVERS: &str = r#"
set -eu
modprobe virtio_blk
modprobe nvme poll_queues="$2"
driver=/sys/bus/virtio/drivers/virtio_blk
device=$(basename /sys/bus/pci/devices/"$1"/virtio*)
echo "$device" >"$driver/unbind"
echo 1 >/sys/module/virtio_blk/parameters/poll_queues
echo "$device" >"$driver/bind"
"#;

/// Waits for the block device of a PCI address, because its driver may create it some
/// time after it was loaded. Sets the device up, and prints its name and, on a second
/// line, its interrupt numbers.
const FIND_BLOCK_DEVICE: &str = r#"
set -eu
cd /sys/bus/pci/devices/"$1"
shopt -s nullglob
for ((tries = 0; tries < 300; tries++)); do
    set -- virtio*/block/* nvme/nvme*/nvme*n*
    [[ $# == 0 || ! -b /dev/${1##*/} ]] || break
    sleep 0.1
done
[[ $# != 0 ]] || { echo 'no block device appeared' >&2; exit 1; }
echo none >"$1/queue/scheduler"
echo 0 >"$1/queue/iostats"
echo "${1##*/}"
echo "$(ls msi_irqs)"
"#;

/// A device in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Path of the device file.
    pub path: String,
    /// Whether fio opens it with `O_DIRECT`.
    pub direct: bool,
    /// Interrupt numbers; `None` for a file without interrupts.
    pub interrupts: Option<Vec<u32>>,
}

/// Loads the drivers and finds the device of each column that has one.
pub fn prepare(agent: &Agent, cpus: u32) -> Result<HashMap<Column, Node>> {
    let polled = pci_address(Column::VirtioBlkPoll).unwrap_or_default();
    let load = GuestCommand::shell(LOAD_DRIVERS).args(["sh".into(), polled, cpus.to_string()]);
    agent.check(&load, LOAD_TIMEOUT)?;

    let mut nodes = HashMap::new();
    for column in Column::ALL {
        let node = if let Some(address) = pci_address(column) {
            let find = GuestCommand::shell(FIND_BLOCK_DEVICE).args(["sh", &address]);
            let text = agent.check(&find, LOAD_TIMEOUT)?;
            parse(&text).ok_or_else(|| {
                Error::Protocol(format!("{text:?} for the block device at {address}"))
            })?
        } else if column.is_ringbar() {
            Node {
                path: DEVICE_NODE.into(),
                direct: true,
                interrupts: None,
            }
        } else if column == Column::Floor {
            Node {
                path: "/dev/null".into(),
                ..Node::default()
            }
        } else {
            continue;
        };
        nodes.insert(column, node);
    }
    Ok(nodes)
}

fn parse(text: &str) -> Option<Node> {
    let mut words = text.split_ascii_whitespace();
    let name = words.next()?;
    let interrupts: Option<Vec<u32>> = words.map(|word| word.parse().ok()).collect();
    Some(Node {
        path: format!("/dev/{name}"),
        direct: true,
        interrupts: Some(interrupts.filter(|numbers| !numbers.is_empty())?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_device_has_interrupts() {
        let node = parse("vda\n29\n30\n31\n").unwrap();
        assert_eq!(node.path, "/dev/vda");
        assert!(node.direct);
        assert_eq!(node.interrupts, Some(vec![29, 30, 31]));
        assert_eq!(parse("vda\n"), None);
        assert_eq!(parse("vda x"), None);
        assert_eq!(parse(""), None);
    }
}
