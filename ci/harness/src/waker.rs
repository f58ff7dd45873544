// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wakes a machine up whenever it sleeps.

use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::json;

use crate::error::{Error, Result};
use crate::qmp::Monitor;

/// Wakes the machine behind this monitor up, each time it has gone to sleep, for as long as
/// there is one.
pub fn start(monitor: UnixStream) -> Result<()> {
    let mut monitor = Monitor::connect(monitor)?;
    thread::Builder::new()
        .name("waker".into())
        .spawn(move || {
            // The end of the connection is that of the machine.
            while monitor.wait_for_event("SUSPEND").is_ok() {
                if let Err(error) = monitor.execute("system_wakeup", json!({})) {
                    eprintln!("waking the machine up: {error}");
                }
            }
        })
        .map_err(Error::io("starting the thread that wakes the machine up"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn each_sleep_is_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut next = || {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                line
            };
            let send = |text: &str| writeln!(&theirs, "{text}").unwrap();
            send(r#"{"QMP": {"version": {}, "capabilities": []}}"#);
            assert!(next().contains("qmp_capabilities"));
            // One that comes before anybody waits for it counts, too.
            send(r#"{"event": "SUSPEND"}"#);
            send(r#"{"return": {}}"#);
            for _ in 0..2 {
                assert!(next().contains("system_wakeup"));
                send(r#"{"event": "WAKEUP"}"#);
                send(r#"{"return": {}}"#);
                send(r#"{"event": "SUSPEND"}"#);
            }
            assert!(next().contains("system_wakeup"));
        });
        start(ours).unwrap();
        qemu.join().unwrap();
    }
}
