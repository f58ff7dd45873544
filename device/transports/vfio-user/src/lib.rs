// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device over vfio-user: the whole PCI function outside the virtual machine monitor.

pub mod dma;
pub mod server;

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use ringbar_engine::model::DeviceModel;
use ringbar_engine::{Counters, Options};

/// The interrupts that the function offers besides INTx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// MSI-X.
    MsiX {
        /// Number of vectors, 1 to 128.
        vectors: u16,
    },
    /// MSI.
    Msi {
        /// Number of vectors, a power of two up to 32.
        vectors: u16,
    },
    /// None.
    IntxOnly,
}

/// Options of the PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionOptions {
    /// Interrupts that it offers.
    pub interrupts: Interrupts,
}

/// Reason why a connection cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("not implemented")]
pub struct Error;

/// A connection.
pub struct Connection(Infallible);

impl Connection {
    /// Accepts a connection.
    pub fn accept<D: DeviceModel>(
        _device: Arc<D>,
        _counters: Arc<Counters>,
        _options: Options,
        _function: FunctionOptions,
        _listener: &UnixListener,
    ) -> Result<Self, Error> {
        Err(Error)
    }

    /// A descriptor that becomes readable when the connection has ended.
    pub fn finished(&self) -> BorrowedFd<'_> {
        match self.0 {}
    }

    /// Closes the connection.
    pub fn shut_down(&self) {
        match self.0 {}
    }

    /// Waits until the connection has ended.
    pub fn join(self) -> Result<(), Error> {
        match self.0 {}
    }
}
