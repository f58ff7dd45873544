// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `grabber-device`: the card as a program, over vhost-user or vfio-user.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use grabber::Grabber;
use grabber::protocol::{MAX_FRAME_BYTES, PCI_DEVICE_ID_VFIO_USER, PCI_VENDOR_ID, QUEUES};
use ringbar_serve::{Function, Identity, ServeArgs};

/// A frame grabber for a virtual machine, over vhost-user or vfio-user.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Number of bytes of a frame
    #[arg(long, value_name = "BYTES", default_value_t = 65_000,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FRAME_BYTES)))]
    frame_bytes: u32,

    /// Number of frames in each second
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,

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
    let period = Duration::from_secs(1) / args.rate;
    ringbar_serve::main::<Args, _>(&args.serve, &FUNCTION, || {
        let grabber = Grabber::new(args.frame_bytes, period);
        Ok(Arc::new(grabber.context("cannot start the thread")?))
    })
}
