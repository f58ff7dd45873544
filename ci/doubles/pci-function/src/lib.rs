// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A Ringbar device as a PCI function over vfio-user, whose registers the tests control.
//!
//! With vhost-user, the device's registers belong to the monitor and cannot lie: a driver
//! that resets the device finds it reset. This function has its own registers. It has
//! only the features that the tests need: it executes a request when the driver notifies
//! it, and has no events and no aperture.
//!
//! Commands make it keep requests pending and write to their memory as long as bus
//! mastering is enabled, delay a reset, break a queue, override registers, and change its
//! configuration during a read.

#![forbid(unsafe_code)]

mod config_space;
mod function;
mod registers;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use ringbar_agent_protocol::host::FunctionCommand;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use function::Function;

/// Interval between writes to the memory of pending requests.
const SCRIBBLE_INTERVAL: Duration = Duration::from_micros(20);

/// Interval of checking for pending requests.
const IDLE_INTERVAL: Duration = Duration::from_millis(1);

/// A function with threads of its own, which end with the monitor's connection, or,
/// without one, when the function is dropped.
#[derive(Clone)]
pub struct PciFunction(Arc<Inner>);

struct Inner {
    function: Arc<Mutex<Function>>,
    socket: PathBuf,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Ends the wait for a monitor by a connection that is closed at once.
        let _ = UnixStream::connect(&self.socket);
    }
}

impl std::fmt::Debug for PciFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciFunction").finish_non_exhaustive()
    }
}

impl PciFunction {
    /// Listens on a new socket for a monitor.
    pub fn start(socket: &Path) -> io::Result<Self> {
        let function = Arc::new(Mutex::new(Function::new()?));
        let server = Server::new(socket, true, interrupts(), regions())
            .map_err(|error| io::Error::other(error.to_string()))?;
        let served = Arc::clone(&function);
        thread::Builder::new()
            .name("pci-function".into())
            .spawn(move || {
                if let Err(error) = server.run(&mut Backend(served)) {
                    eprintln!("PCI function: {error}");
                }
            })?;
        let scribbled = Arc::downgrade(&function);
        thread::Builder::new()
            .name("pci-function-dma".into())
            .spawn(move || scribble(&scribbled))?;
        Ok(Self(Arc::new(Inner {
            function,
            socket: socket.to_owned(),
        })))
    }

    /// Executes a command.
    pub fn execute(&self, command: FunctionCommand) -> io::Result<()> {
        let mut function = lock(&self.0.function);
        match command {
            FunctionCommand::DelayReset(delay) => function.delay_reset(delay),
            FunctionCommand::KeepRequestsPending(keep) => function.keeps_requests_pending = keep,
            FunctionCommand::BreakQueue => function.break_queue()?,
            FunctionCommand::OverrideRegister(at, value) => function.override_register(at, value),
            FunctionCommand::ChangeCapacityOnRead(bytes) => function.change_capacity(Some(bytes)),
            FunctionCommand::RestoreRegisters => function.restore(),
        }
        Ok(())
    }
}

fn lock(function: &Mutex<Function>) -> MutexGuard<'_, Function> {
    // A function in an inconsistent state is one more that misbehaves.
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread for stray DMA.
fn scribble(function: &Weak<Mutex<Function>>) {
    while let Some(function) = function.upgrade() {
        let interval = match lock(&function).scribble() {
            true => SCRIBBLE_INTERVAL,
            false => IDLE_INTERVAL,
        };
        drop(function);
        thread::sleep(interval);
    }
}

/// The function as a back end of the vfio-user library.
struct Backend(Arc<Mutex<Function>>);

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        lock(&self.0).read(region, offset, data);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        lock(&self.0).write(region, offset, data)
    }

    fn dma_map(
        &mut self,
        _flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        lock(&self.0).map(address, size, offset, file)
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        lock(&self.0).unmap(address, size)
    }

    fn reset(&mut self) -> io::Result<()> {
        lock(&self.0).reset_function();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        _start: u32,
        _count: u32,
        files: Vec<File>,
    ) -> io::Result<()> {
        lock(&self.0).set_interrupts(index, flags, files);
        Ok(())
    }
}

fn interrupts() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| IrqInfo {
            index,
            flags: VFIO_IRQ_INFO_EVENTFD,
            count: u32::from(index == VFIO_PCI_MSIX_IRQ_INDEX),
        })
        .collect()
}

fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_BAR0_REGION_INDEX => config_space::BAR_SIZE,
                VFIO_PCI_CONFIG_REGION_INDEX => config_space::SIZE as u64,
                _ => 0,
            };
            let flags = match size {
                0 => 0,
                _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            };
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: size_of::<vfio_region_info>() as u32,
                    index,
                    flags,
                    size,
                    ..Default::default()
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn without_a_monitor_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let function = PciFunction::start(&socket).unwrap();
        let state = Arc::downgrade(&function.0.function);
        assert!(socket.exists());
        drop(function);
        let deadline = Instant::now() + Duration::from_secs(10);
        while state.strong_count() > 0 || socket.exists() {
            assert!(Instant::now() < deadline, "it still waits for a monitor");
            thread::sleep(IDLE_INTERVAL);
        }
    }
}
