// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ringbar-ci new`: a card of your own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ringbar_runner::kit::{self, CardName};

/// Writes a folder with a card of your own: device, driver, header, test, README
#[derive(Debug, Args)]
pub struct Options {
    /// Name of the card, of its module and of its programs: 2 to 15 lower-case letters and
    /// digits, the first and the last a letter
    #[arg(env = "RINGBAR_NAME", value_name = "NAME")]
    name: CardName,

    /// The folder to create [default: NAME, in the current folder]
    #[arg(env = "RINGBAR_DIR", value_name = "DIR")]
    folder: Option<PathBuf>,

    /// The checkout of Ringbar
    #[arg(long, value_name = "DIR", default_value = ".")]
    checkout: PathBuf,
}

/// Writes the folder.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let folder = (options.folder.clone()).unwrap_or_else(|| options.name.to_string().into());
    kit::instantiate(&options.checkout, &options.name, &folder)?;
    println!("{0} is there. Next: make -C {0} test", folder.display());
    Ok(ExitCode::SUCCESS)
}
