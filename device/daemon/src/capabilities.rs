// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `--print-capabilities`, which the back-end program conventions of vhost-user require.

use ringbar_spec::{PCI_DEVICE_ID, PCI_DEVICE_ID_VFIO_USER, PCI_VENDOR_ID, VIRTIO_DEVICE_ID};

/// One JSON object. The conventions list no type for this device, so `type` is its own name.
pub fn json() -> String {
    serde_json::json!({
        "type": "ringbar",
        "features": [],
        "version": env!("CARGO_PKG_VERSION"),
        "virtio-id": VIRTIO_DEVICE_ID,
        "pci-vendor-id": PCI_VENDOR_ID,
        "pci-device-id": PCI_DEVICE_ID,
        "pci-device-id-vfio-user": PCI_DEVICE_ID_VFIO_USER,
        "transports": ["vhost-user", "vfio-user"],
        "storage": ["memory", "file", "block", "nbd"],
        "operations": [
            "read", "write", "flush", "discard", "write-zeroes", "copy", "fill", "compare", "crc32c",
        ],
        "max-io-queues": ringbar_spec::MAX_IO_QUEUES,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use ringbar_serve::connection::TransportName;

    use super::*;

    #[test]
    fn capabilities_name_the_type() {
        let parsed: serde_json::Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(parsed["type"], "ringbar");
        assert_eq!(parsed["virtio-id"], 21);
        assert_eq!(parsed["max-io-queues"], 64);
        assert_eq!(parsed["operations"][8], "crc32c");
        assert_eq!(parsed["pci-device-id-vfio-user"], 0x10f0);
        for name in TransportName::value_variants() {
            let name = name.to_possible_value().unwrap();
            let listed = parsed["transports"].as_array().unwrap();
            assert!(listed.iter().any(|transport| transport == name.get_name()));
        }
    }
}
