// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A VIRTIO function on the PCI bus (VIRTIO 1.3, 4.1): register accesses in, actions out.
