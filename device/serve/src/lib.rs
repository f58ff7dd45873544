// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device of the engine as a program: arguments, log, signals, socket, connections.
//!
//! [`main`] is the whole `main` of a device that needs no more than a [`DeviceModel`]. A program
//! with more to do (`ringbar-device`, which has a storage and a control socket) puts the parts
//! together itself and ends in [`serve`].
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the arguments that all devices have |
//! | [`logging`], `rate_limit` | messages on standard error |
//! | [`socket`] | the listening socket and its file |
//! | [`connection`] | the transports: options, connections |
//! | [`signals`] | signals as descriptors |
//! | [`serve`] | the life of the process, from the first connection to the last |
//!
//! It does not know what a device does.
//!
//! [`DeviceModel`]: ringbar_engine::DeviceModel

pub mod args;
pub mod connection;
pub mod logging;
mod rate_limit;
pub mod serve;
pub mod signals;
pub mod socket;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use clap::error::ErrorKind;
use ringbar_engine::{Counters, DeviceModel};
use tracing::info;

pub use args::{Options, ServeArgs};
pub use connection::{Function, Identity};
pub use serve::serve;

use signals::Termination;
use socket::PreparedSocket;

/// Runs a device until its last connection has ended, or the process gets a signal. `A` are the
/// arguments of the program, of which `args` are a part. `connect` makes the device of a connection
/// that is about to come.
///
/// The exit status is 0, 1 if an operation failed, whose message is then the last one, and 2 for
/// wrong arguments.
pub fn main<A: CommandFactory, D: DeviceModel>(
    args: &ServeArgs,
    function: &Function,
    mut connect: impl FnMut() -> anyhow::Result<Arc<D>>,
) -> ExitCode {
    let mut command = A::command();
    let options = match args.options(function) {
        Ok(options) => options,
        Err(message) => command.error(ErrorKind::ValueValidation, message).exit(),
    };
    logging::run(command.get_name(), &options.log, options.log_format, || {
        // Before this process opens any descriptor, which could have the number given by mistake.
        let endpoint = PreparedSocket::new(&options.endpoint)?;
        let termination = Termination::catch().context("cannot catch signals")?;
        let mut socket = endpoint.listen()?;
        info!("listening on {}", options.endpoint);

        let counters = Arc::<Counters>::default();
        let served = serve(&mut socket, &termination, &options, || {
            Ok((connect()?, Arc::clone(&counters)))
        });
        let counts = counters.get();
        info!(
            requests = counts.requests,
            kicks = counts.kicks,
            interrupts = counts.interrupts,
            broken_queues = counts.broken_queues,
            "done"
        );
        served
    })
}
