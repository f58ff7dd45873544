// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The PCI function over a real socket, driven by the client of the `vfio_user` crate.

mod conformance;
mod function;
mod machine;
