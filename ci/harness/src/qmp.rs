// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU's machine protocol (QMP), as far as the harness needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connection to QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Names of events that came with an answer.
    events: Vec<String>,
}

impl Monitor {
    /// Takes over a fresh connection and leaves the negotiation mode.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        socket
            .set_read_timeout(Some(PATIENCE))
            .map_err(Error::io("setting a timeout for the monitor"))?;
        let writer = socket
            .try_clone()
            .map_err(Error::io("duplicating the monitor"))?;
        let mut monitor = Self {
            reader: BufReader::new(socket),
            writer,
            events: Vec::new(),
        };
        let greeting = monitor.read("the greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Monitor {
                command: "connection".into(),
                message: format!("no greeting but {greeting}"),
            });
        }
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Waits until an event of this name has come since this was called last, however long
    /// that takes. Others are passed over.
    pub fn wait_for_event(&mut self, name: &str) -> Result<()> {
        if std::mem::take(&mut self.events).iter().any(|n| n == name) {
            return Ok(());
        }
        self.set_timeout(None)?;
        loop {
            let message = self.read(name)?;
            if message["event"] == name {
                return self.set_timeout(Some(PATIENCE));
            }
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        self.writer
            .set_read_timeout(timeout)
            .map_err(Error::io("setting a timeout for the monitor"))
    }

    /// Executes a command and returns its result. Events are kept for
    /// [`Self::wait_for_event`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.writer, "{request}")
            .map_err(Error::io(format!("sending {command} to QEMU")))?;
        loop {
            let mut answer = self.read(command)?;
            if let Some(event) = answer["event"].as_str() {
                self.events.push(event.to_owned());
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::Monitor {
                    command: command.to_owned(),
                    message: error["desc"].as_str().unwrap_or("no reason").to_owned(),
                });
            }
        }
    }

    fn read(&mut self, what: &str) -> Result<Value> {
        let mut line = String::new();
        let length = self
            .reader
            .read_line(&mut line)
            .map_err(Error::io(format!("reading QEMU's answer to {what}")))?;
        let refuse = |message: String| Error::Monitor {
            command: what.to_owned(),
            message,
        };
        if length == 0 {
            return Err(refuse("the connection was closed".into()));
        }
        serde_json::from_str(&line).map_err(|error| refuse(format!("{error} in {line:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU that answers each line it gets with the next of `answers`.
    fn qemu(answers: &'static [&'static str]) -> Result<Monitor> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut line = String::new();
            for (i, answer) in answers.iter().enumerate() {
                if i > 0 && reader.read_line(&mut line).unwrap() == 0 {
                    return;
                }
                writeln!(&theirs, "{answer}").unwrap();
            }
        });
        Monitor::connect(ours)
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    #[test]
    fn events_before_an_answer_are_passed_over() {
        let mut monitor = qemu(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"running\"}}",
        ])
        .unwrap();
        let status = monitor.execute("query-status", json!({})).unwrap();
        assert_eq!(status["status"], "running");
    }

    #[test]
    fn an_error_carries_the_description() {
        let mut monitor = qemu(&[
            GREETING,
            r#"{"return": {}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such device"}}"#,
        ])
        .unwrap();
        let error = monitor
            .execute("device_del", json!({"id": "x"}))
            .unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused device_del: no such device");
    }

    #[test]
    fn a_closed_connection_and_a_wrong_greeting_are_errors() {
        assert!(qemu(&[]).is_err());
        assert!(qemu(&[r#"{"hello": 1}"#]).is_err());
        assert!(qemu(&["not json"]).is_err());
    }
}
