// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The commands.

mod bench;
mod dma;
mod events;
mod info;
mod map;
mod reset;
mod stats;
mod top;

use crate::cli::{Cli, Command, QueueArgs};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::sys::queue::Direction;
use crate::transfer::job::{Data, Job, JobError};
use crate::transfer::measurement::Measurement;

/// Runs a command.
pub fn run(cli: Cli) -> Result<()> {
    let json = cli.json;
    match cli.command {
        Command::Map(args) => map::run(&args, json),
        Command::Dma { operation } => dma::run(&operation, json),
        Command::Top(args) => top::run(&args, json),
        Command::Bench(args) => bench::run(&args, json),
        Command::Stats(args) => stats::run(&args, json),
        Command::Events(args) => events::run(&args.device, json),
        Command::Info(args) => info::run(&args.device, json),
        Command::Reset(args) => reset::run(&args.device, json),
    }
}

/// Executes a job on a device.
fn run_job(
    device: &Device,
    args: &QueueArgs,
    job: &Job,
    data: &mut impl Data<Error = Error>,
    progress: impl FnMut(u64),
) -> Result<Measurement> {
    let mut queue = device.queue(args.engine, args.depth(), job.block)?;
    job.run(&mut queue, data, progress)
        .map_err(|error| match error {
            JobError::Transfer {
                block,
                done,
                source,
            } => Error::Transfer {
                verb: match job.direction {
                    Direction::Read => "reading",
                    Direction::Write => "writing",
                },
                path: device.path().to_owned(),
                offset: block.offset,
                length: block.length,
                done,
                source,
            },
            JobError::Queue(source) => Error::Engine {
                engine: args.engine,
                source,
            },
            JobError::Data(error) => error,
        })
}
