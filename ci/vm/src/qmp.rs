// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU's machine protocol (QMP), as far as the harness needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Maximum time for QEMU's reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Connection to QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// The incomplete line read so far.
    line: Vec<u8>,
    /// Id of the next command.
    next: u64,
    /// Names of events that arrived before a reply.
    events: Vec<String>,
}

impl Monitor {
    /// Takes a fresh connection out of the negotiation mode.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        let writer = socket
            .try_clone()
            .map_err(Error::io("duplicating the monitor"))?;
        let mut monitor = Self {
            reader: BufReader::new(socket),
            writer,
            line: Vec::new(),
            next: 1,
            events: Vec::new(),
        };
        monitor.set_reply_timeout(Some(REPLY_TIMEOUT))?;
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

    /// Sets the timeout for replies; `None` for no limit.
    fn set_reply_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        self.writer
            .set_read_timeout(timeout)
            .map_err(Error::io("setting a timeout for the monitor"))
    }

    /// Waits without a limit for an event of this name that arrived after the last call.
    /// Discards other events.
    pub fn wait_for_event(&mut self, name: &str) -> Result<()> {
        if std::mem::take(&mut self.events).iter().any(|n| n == name) {
            return Ok(());
        }
        self.set_reply_timeout(None)?;
        loop {
            let message = self.read(name)?;
            if message["event"] == name {
                return self.set_reply_timeout(Some(REPLY_TIMEOUT));
            }
        }
    }

    /// Executes a command and returns its result. Keeps events for
    /// [`Self::wait_for_event`]; discards late replies to earlier commands.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        writeln!(self.writer, "{request}")
            .map_err(Error::io(format!("sending {command} to QEMU")))?;
        loop {
            let mut answer = self.read(command)?;
            // QEMU's error about malformed input has no id.
            let ours = answer["id"].as_u64().is_none_or(|answered| answered == id);
            if !ours {
                continue;
            }
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
        // After a timeout, an incomplete line is kept for the next read.
        let length = self
            .reader
            .read_until(b'\n', &mut self.line)
            .map_err(Error::io(format!("reading QEMU's answer to {what}")))?;
        let line = std::mem::take(&mut self.line);
        let refuse = |message: String| Error::Monitor {
            command: what.to_owned(),
            message,
        };
        if length == 0 {
            return Err(refuse("the connection was closed".into()));
        }
        serde_json::from_slice(&line)
            .map_err(|error| refuse(format!("{error} in {}", line.escape_ascii())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU that replies to each line with the next of `answers`. Three dots stand for
    /// the rest of a line, which does not arrive.
    fn qemu(answers: &'static [&'static str]) -> Result<Monitor> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut line = String::new();
            for (i, answer) in answers.iter().enumerate() {
                if i > 0 && reader.read_line(&mut line).unwrap() == 0 {
                    return;
                }
                match answer.strip_suffix("...") {
                    Some(part) => write!(&theirs, "{part}").unwrap(),
                    None => writeln!(&theirs, "{answer}").unwrap(),
                }
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
    fn an_answer_that_comes_late_is_not_taken_for_the_next() {
        let mut monitor = qemu(&[
            GREETING,
            r#"{"return": {}, "id": 1}"#,
            // Half of the reply to command 2 arrives in time.
            "{\"event\": \"STOP\"}\n{\"return\": {\"status\"...",
            ": \"late\"}, \"id\": 2}\n{\"return\": {\"status\": \"running\"}, \"id\": 3}",
        ])
        .unwrap();
        monitor
            .set_reply_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(monitor.execute("query-status", json!({})).is_err());
        monitor.set_reply_timeout(Some(REPLY_TIMEOUT)).unwrap();
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
