// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The virtual machine of the benchmark, with all devices.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ringbar_agent_protocol::machine::Transport;
use ringbar_vm::device::DeviceOptions;
use ringbar_vm::error::Result;
use ringbar_vm::kernel_log;
use ringbar_vm::setup::Setup;
use ringbar_vm::vm::{Vm, VmOptions};

use crate::column::Column;
use crate::guest;
use crate::measure::BenchContext;
use crate::peers::Peers;

/// Virtual CPUs of the guest.
pub const CPUS: u32 = 2;

/// Options of the machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineOptions<'a> {
    /// Protocol between `ringbar-device` and QEMU.
    pub transport: Transport,
    /// Arguments added to the kernel command line.
    pub kernel_args: &'a [String],
    /// Arguments added to those of `ringbar-device`.
    pub device_args: &'a [String],
    /// Arguments added to QEMU's command line.
    pub qemu_args: &'a [String],
    /// Directory of the logs.
    pub log_dir: &'a Path,
}

/// A virtual machine with Ringbar and its peers.
#[derive(Debug)]
// Field order: the machine uses the peers until it ends.
pub struct Machine {
    vm: Vm,
    peers: Peers,
    size: u64,
}

impl Machine {
    /// Starts the peers and the machine, and loads the driver.
    pub fn start(setup: &Setup, options: &MachineOptions<'_>) -> Result<Self> {
        let device = DeviceOptions {
            transport: options.transport,
            extra: options.device_args.to_vec(),
            ..DeviceOptions::default()
        };
        let size = device.size;
        let peers = Peers::start(setup, size, CPUS, options.log_dir)?;
        let vm_options = VmOptions {
            devices: vec![device],
            log_dir: Some(options.log_dir.to_owned()),
            cpus: CPUS,
            kernel_args: options.kernel_args.to_vec(),
            qemu_args: [peers.qemu_arguments(), options.qemu_args].concat(),
            ..VmOptions::default()
        };
        eprintln!(
            "Booting Linux {} in QEMU {} ({}, Ringbar over {})",
            setup.kernel_release, setup.qemu_version, setup.accel, options.transport
        );
        let mut vm = Vm::start(setup, &vm_options)?;
        vm.load_driver()?;
        Ok(Self { vm, peers, size })
    }

    /// Prepares the guest, fills the devices of these columns and calls `measure`.
    pub fn run<T>(
        &mut self,
        columns: &[Column],
        measure: impl FnOnce(&BenchContext<'_>) -> Result<T>,
    ) -> Result<T> {
        let agent = Arc::clone(self.vm.agent());
        let mut daemons = HashMap::from([(Column::VhostUserBlk, self.peers.daemon().id())]);
        if let Some(ringbar) = self.vm.devices().first_mut() {
            let pid = ringbar.process().id();
            let ours = Column::ALL.into_iter().filter(|column| column.is_ringbar());
            daemons.extend(ours.map(|column| (column, pid)));
        }
        let prepared = guest::prepare(&agent, CPUS);
        let measured = prepared.and_then(|nodes| {
            let bench = BenchContext {
                agent: &agent,
                nodes,
                size: self.size,
                qemu: self.vm.qemu_id(),
                daemons,
            };
            eprintln!("Filling the devices");
            for column in columns {
                bench.fill(*column)?;
            }
            measure(&bench)
        });
        // If the daemon has ended, that is the cause of the failure.
        let measured = match self.peers.daemon().exit_error("the guest still used it") {
            Some(error) => Err(error),
            None => measured,
        };
        self.vm.with_logs(measured)
    }

    /// Release of the guest's kernel.
    pub fn kernel_release(&self) -> &str {
        self.vm.agent().kernel_release()
    }

    /// Bytes of each device.
    pub fn device_size(&self) -> u64 {
        self.size
    }

    /// How the peers' files are accessed.
    pub fn peer_access(&self) -> &'static str {
        self.peers.access()
    }

    /// Powers the guest off. Results with errors in the kernel log do not count.
    pub fn end(self) -> anyhow::Result<()> {
        let log = self.vm.agent().kernel_log()?;
        self.vm.power_off()?;
        match kernel_log::report(&log, &[]) {
            None => Ok(()),
            Some(complaints) => anyhow::bail!("{complaints}"),
        }
    }
}
