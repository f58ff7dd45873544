// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Client of a device's control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ringbar_agent_protocol::host::ListedFault;
use serde_json::{Value, json};

/// Maximum time for the device's reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The control socket of a device.
#[derive(Clone, Debug)]
pub struct ControlSocket {
    socket: PathBuf,
}

impl ControlSocket {
    /// A client for the device that listens on `socket`.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Gives the device memory another size in bytes.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        self.execute(&json!({"execute": "resize", "arguments": {"bytes": bytes}}))
            .map(drop)
    }

    /// Adds a rule for faults.
    pub fn add_fault(&self, rule: &str) -> io::Result<()> {
        self.execute(&json!({"execute": "add-fault", "arguments": {"rule": rule}}))
            .map(drop)
    }

    /// The rules for faults.
    pub fn faults(&self) -> io::Result<Vec<ListedFault>> {
        let listed = self.execute(&json!({"execute": "query-faults"}))?;
        Ok(serde_json::from_value(listed)?)
    }

    /// Clears the rules for faults.
    pub fn clear_faults(&self) -> io::Result<()> {
        self.execute(&json!({"execute": "clear-faults"})).map(drop)
    }

    /// Process id of the device: with a supervisor, that of the worker.
    pub fn process(&self) -> io::Result<u64> {
        let status = self.execute(&json!({"execute": "query-device"}))?;
        number(&status["pid"])
    }

    /// Number of requests of all queues that the device has taken and not completed.
    pub fn in_flight(&self) -> io::Result<u64> {
        let statistics = self.execute(&json!({"execute": "query-statistics"}))?;
        let queues = statistics["queues"].as_array().into_iter().flatten();
        // A buffer of the event queue waits for an event.
        queues
            .filter(|queue| queue["role"] != "event")
            .map(|queue| number(&queue["in-flight"]))
            .sum()
    }

    /// How often a driver has broken a queue.
    pub fn broken_queues(&self) -> io::Result<u64> {
        let statistics = self.execute(&json!({"execute": "query-statistics"}))?;
        number(&statistics["broken-queues"])
    }

    /// Executes a request and returns its result. A refusal is an error.
    fn execute(&self, request: &Value) -> io::Result<Value> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        writeln!(&stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let mut answer: Value = serde_json::from_str(&line)?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(io::Error::other(format!(
                "the device answered {}",
                line.trim_end()
            ))),
        }
    }
}

/// A number in a reply.
fn number(value: &Value) -> io::Result<u64> {
    value
        .as_u64()
        .ok_or_else(|| io::Error::other(format!("the device answered {value}, and not a number")))
}
