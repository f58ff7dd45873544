// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket of a device.

use std::path::PathBuf;
use std::time::Duration;

use ringbar_agent_protocol::host::ListedFault;
use ringbar_control::command::{
    AddFault, ClearFaults, QueryDevice, QueryFaults, QueryStatistics, Resize,
};
use ringbar_control::{Client, ClientError, Execute, QueueRole};

/// Maximum time for the device's reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The control socket of a device.
#[derive(Clone, Debug)]
pub struct ControlSocket {
    socket: PathBuf,
}

impl ControlSocket {
    /// That of the device which listens on `socket`.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Gives the device memory another size in bytes.
    pub fn resize(&self, bytes: u64) -> Result<(), ClientError> {
        self.execute(Resize { bytes }).map(drop)
    }

    /// Adds a rule for faults.
    pub fn add_fault(&self, rule: String) -> Result<(), ClientError> {
        self.execute(AddFault { rule }).map(drop)
    }

    /// The rules for faults.
    pub fn faults(&self) -> Result<Vec<ListedFault>, ClientError> {
        let faults = self.execute(QueryFaults {})?.into_iter();
        let listed = faults.map(|fault| ListedFault {
            rule: fault.rule,
            matches: fault.matches,
            firings: fault.firings,
        });
        Ok(listed.collect())
    }

    /// Clears the rules for faults.
    pub fn clear_faults(&self) -> Result<(), ClientError> {
        self.execute(ClearFaults { id: None }).map(drop)
    }

    /// Process id of the device: with a supervisor, that of the worker.
    pub fn process(&self) -> Result<u32, ClientError> {
        Ok(self.execute(QueryDevice {})?.pid)
    }

    /// Number of requests of all queues that the device has taken and not completed.
    pub fn in_flight(&self) -> Result<u64, ClientError> {
        let statistics = self.execute(QueryStatistics {})?;
        // A buffer of the event queue waits for an event.
        let queues = statistics.queues.iter();
        Ok(queues
            .filter(|queue| queue.role != QueueRole::Event)
            .map(|queue| queue.in_flight)
            .sum())
    }

    /// How often a driver has broken a queue.
    pub fn broken_queues(&self) -> Result<u64, ClientError> {
        Ok(self.execute(QueryStatistics {})?.total.broken_queues)
    }

    /// Has the device execute a command, over a connection of its own.
    fn execute<E: Execute>(&self, command: E) -> Result<E::Return, ClientError> {
        Client::connect(&self.socket, REPLY_TIMEOUT)?.execute(command)
    }
}
