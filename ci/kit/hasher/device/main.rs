// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `hasher-device`: the card as a program, over vhost-user or vfio-user.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use hasher::Hasher;
use hasher::protocol::{PCI_DEVICE_ID_VFIO_USER, PCI_VENDOR_ID, QUEUES};
use ringbar_serve::{Function, Identity, ServeArgs};

/// A card that computes SHA-256 for a virtual machine, over vhost-user or vfio-user.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Number of engines, which hash at the same time
    #[arg(long, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=64))]
    engines: u16,

    #[command(flatten)]
    serve: ServeArgs,
}

/// The PCI function over vfio-user. Its class says nothing of what it does (0xff).
const FUNCTION: Function = Function {
    identity: Identity {
        vendor: PCI_VENDOR_ID,
        device: PCI_DEVICE_ID_VFIO_USER,
        subsystem_vendor: PCI_VENDOR_ID,
        subsystem: PCI_DEVICE_ID_VFIO_USER,
        revision: 1,
        class: 0xff_00_00,
    },
    vectors: QUEUES,
};

fn main() -> ExitCode {
    let args = Args::parse();
    ringbar_serve::main::<Args, _>(&args.serve, &FUNCTION, || {
        let hasher = Hasher::new(args.engines);
        Ok(Arc::new(hasher.context("cannot start the engines")?))
    })
}
