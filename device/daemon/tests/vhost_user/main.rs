// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The program from outside: a process at the other end of a real socket, with
//! a mock virtual machine that has real shared memory.

mod aperture;
mod block;
mod commands;
mod control;
mod descriptors;
mod device;
mod ending;
mod hostile;
mod log;
mod nbd;
mod program;
mod resize;
mod sandbox;
mod service_unit;
mod storage_failure;
mod support;
mod survival;
mod systemd;
