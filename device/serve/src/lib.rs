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
//! | [`sandbox`] | the restrictions of the process and its threads |
//! | `logging`, `rate_limit` | messages on standard error |
//! | [`socket`] | the listening socket and its file |
//! | [`connection`] | the transports: options, connections |
//! | [`faults`] | faults of queues on demand |
//! | [`service_manager`] | what the service manager is told |
//! | [`signals`] | signals, and other requests to end, as descriptors |
//! | [`serve`] | the life of the process, from the first connection to the last |
//!
//! It does not know what a device does.
//!
//! [`DeviceModel`]: ringbar_engine::DeviceModel

pub mod args;
pub mod connection;
pub mod faults;
pub mod logging;
mod rate_limit;
pub mod sandbox;
pub mod serve;
pub mod service_manager;
pub mod signals;
pub mod socket;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use clap::error::ErrorKind;
use ringbar_engine::{Counters, DeviceModel};
use tracing::info;

pub use args::{LogFormat, Options, ServeArgs};
pub use connection::{Function, Identity};
pub use serve::serve;

use sandbox::{Confinement, Kinds};
use service_manager::ServiceManager;
use signals::Termination;
use socket::PreparedSocket;

/// Runs a device until its last connection has ended, or the process gets a signal. `A` are the
/// arguments of the program, of which `args` are a part. `connect` makes the device of a connection
/// that is about to come; the process has restricted itself then ([`sandbox`]).
///
/// The exit status is 0, 1 if an operation failed, whose message is then the last one, 2 for
/// wrong arguments, and 3 if the sandbox prevented a system call.
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
    let faults = match faults::of_queues(&options.faults) {
        Ok(faults) => faults::injection(faults),
        Err(message) => command.error(ErrorKind::ValueValidation, message).exit(),
    };
    let name = command.get_name();
    run(name, &options, Kinds::default(), |confinement| {
        // Before this process opens any descriptor, which could have the number given by mistake.
        let endpoint = PreparedSocket::new(&options.endpoint)?;
        let termination = Termination::catch().context("cannot catch signals")?;
        let mut socket = endpoint.listen()?;
        let manager = ServiceManager::connect();
        let mut engine = options.engine(confinement.threads());
        engine.faults = faults;
        confinement.restrict_main(&options.endpoint, &[])?;
        info!("listening on {}", options.endpoint);

        let counters = Arc::<Counters>::default();
        let served = serve(
            &mut socket,
            &termination,
            &manager,
            &options,
            &engine,
            || Ok((connect()?, Arc::clone(&counters))),
        );
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

/// Starts the log, prepares the sandbox, and runs the program called `name`, whose failure is the
/// last message. `kinds` are the threads that the program has besides those of the engine.
///
/// Returns the exit status: 1 after a failure, 2 where the log filter is none.
pub fn run(
    name: &str,
    options: &Options,
    kinds: Kinds,
    program: impl FnOnce(&Confinement) -> anyhow::Result<()>,
) -> ExitCode {
    let failed = |status: u8, error: anyhow::Error| {
        eprintln!("{name}: {error:#}");
        ExitCode::from(status)
    };
    let filter = match logging::parse_filter(&options.log) {
        Ok(filter) => filter,
        Err(error) => return failed(2, error),
    };
    let confinement = match Confinement::new(options.sandbox, name, kinds) {
        Ok(confinement) => confinement,
        Err(error) => return failed(1, error),
    };
    let log = match logging::init(filter, options.log_format, &confinement) {
        Ok(log) => log,
        Err(error) => return failed(1, error),
    };
    confinement.report_missing();
    let result = program(&confinement);
    log.report();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
    // Dropping the log writes its last lines.
}
