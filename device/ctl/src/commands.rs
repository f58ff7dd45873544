// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What each command asks and shows.

use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringbar_control::command::{
    AddFault, ClearFaults, QueryDevice, QueryFaults, QueryStatistics, Resize, SetLog, Shutdown,
};
use ringbar_control::reply::{Fault, Statistics, Status};
use ringbar_control::{Client, Execute};
use serde::Serialize;

use crate::cli::{Cli, Command, FaultCommand};
use crate::error::Error;
use crate::report::Scale;
use crate::table::Align::{Left, Right};
use crate::table::Table;
use crate::{generate, prometheus, report};

/// Runs the command of a command line.
pub fn run(cli: Cli) -> Result<(), Error> {
    let mut output = Output {
        stdout: io::stdout().lock(),
        json: cli.json,
    };
    match cli.command {
        Command::Completions { shell } => {
            return Ok(generate::completions(shell, &mut output.stdout)?);
        }
        Command::Man { directory } => return Ok(generate::manual(&directory)?),
        _ => {}
    }
    let socket = cli.socket.as_deref().ok_or(Error::NoSocket)?;
    let mut client = Client::connect(socket, Duration::from_secs(cli.timeout))?;
    match cli.command {
        Command::Status => output.execute(&mut client, QueryDevice {}, status),
        Command::Stats {
            prometheus: true,
            name,
            ..
        } => metrics(&mut client, &mut output, socket, name),
        Command::Stats {
            queue,
            watch: Some(seconds),
            count,
            ..
        } => watch(
            &mut client,
            &mut output,
            queue,
            Duration::from_secs(seconds),
            count.unwrap_or(u64::MAX),
        ),
        Command::Stats { queue, .. } => {
            let statistics = statistics(&mut client, queue)?;
            output.show(&statistics, || {
                report::statistics(&statistics, Scale::Total)
            })
        }
        Command::Fault { command } => fault(&mut client, &mut output, command),
        Command::Resize { size } => output.execute(&mut client, Resize { bytes: size }, |_| {
            format!("The device memory has {}.\n", ringbar_size::describe(size))
        }),
        Command::Log { filter } => {
            output.execute(&mut client, SetLog { filter }, |_| String::new())
        }
        Command::Shutdown => output.execute(&mut client, Shutdown {}, |_| String::new()),
        // Above, because they need no device.
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// Where results go.
struct Output<'a> {
    stdout: io::StdoutLock<'a>,
    json: bool,
}

impl Output<'_> {
    /// Shows a result, as a line of JSON or as text for people.
    fn show(
        &mut self,
        result: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let text = match self.json {
            true => serde_json::to_string(result).map_err(io::Error::other)? + "\n",
            false => text(),
        };
        self.stdout.write_all(text.as_bytes())?;
        Ok(self.stdout.flush()?)
    }

    /// Executes a command and shows what it returns.
    fn execute<E: Execute>(
        &mut self,
        client: &mut Client,
        command: E,
        text: impl FnOnce(&E::Return) -> String,
    ) -> Result<(), Error> {
        let result = client.execute(command)?;
        self.show(&result, || text(&result))
    }
}

fn status(status: &Status) -> String {
    let health = match &status.storage_failure {
        None => status.storage.clone(),
        Some(reason) => format!("{}, failed for good: {reason}", status.storage),
    };
    let monitor = match status.connected {
        true => "connected",
        false => "not connected",
    };
    let mut table = Table::new([(Left, ""), (Left, "")]);
    for (name, value) in [
        ("version", status.version.clone()),
        (
            "process",
            format!("{}, for {} s", status.pid, status.uptime_seconds),
        ),
        ("memory", ringbar_size::describe(status.bytes)),
        ("storage", health),
        ("I/O queues", status.io_queues.to_string()),
        ("transport", status.transport.clone()),
        ("monitor", format!("{monitor}, {}", status.socket)),
        ("log", status.log.clone()),
    ] {
        table.row([name.to_owned(), value]);
    }
    // The header is empty.
    table.to_string().trim_start().to_owned()
}

/// The statistics of the device, of one queue or of all.
fn statistics(client: &mut Client, queue: Option<u16>) -> Result<Statistics, Error> {
    let mut statistics = client.execute(QueryStatistics {})?;
    let Some(number) = queue else {
        return Ok(statistics);
    };
    let last = statistics.queues.len().saturating_sub(1);
    statistics.queues.retain(|queue| queue.queue == number);
    match &statistics.queues[..] {
        [queue] => statistics.total = queue.counts,
        _ => return Err(Error::NoQueue(number, last)),
    }
    Ok(statistics)
}

fn metrics(
    client: &mut Client,
    output: &mut Output<'_>,
    socket: &Path,
    name: Option<String>,
) -> Result<(), Error> {
    let status = client.execute(QueryDevice {})?;
    let statistics = client.execute(QueryStatistics {})?;
    let name = name.unwrap_or_else(|| socket.display().to_string());
    let text = prometheus::text(&name, &status, &statistics);
    output.stdout.write_all(text.as_bytes())?;
    Ok(output.stdout.flush()?)
}

/// Shows what was done within each interval.
fn watch(
    client: &mut Client,
    output: &mut Output<'_>,
    queue: Option<u16>,
    interval: Duration,
    count: u64,
) -> Result<(), Error> {
    let mut before = (Instant::now(), statistics(client, queue)?);
    let mut due = before.0;
    for number in 0..count {
        due += interval;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = (Instant::now(), statistics(client, queue)?);
        let difference = now.1.since(&before.1);
        let scale = Scale::PerSecond(now.0 - before.0);
        output.show(&difference, || {
            let gap = if number > 0 { "\n" } else { "" };
            format!("{gap}{}", report::statistics(&difference, scale))
        })?;
        before = now;
    }
    Ok(())
}

fn fault(client: &mut Client, output: &mut Output<'_>, command: FaultCommand) -> Result<(), Error> {
    match command {
        FaultCommand::Add { rule } => output.execute(client, AddFault { rule }, |added| {
            format!("Rule {} is in effect.\n", added.id)
        }),
        FaultCommand::List => output.execute(client, QueryFaults {}, |faults| rules(faults)),
        FaultCommand::Clear { id, .. } => output.execute(client, ClearFaults { id }, |cleared| {
            match cleared.cleared {
                1 => "1 rule was cleared.\n".to_owned(),
                number => format!("{number} rules were cleared.\n"),
            }
        }),
    }
}

fn rules(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "There are no rules.\n".to_owned();
    }
    let mut table = Table::new([
        (Right, "ID"),
        (Left, "RULE"),
        (Right, "MATCHES"),
        (Right, "FIRINGS"),
    ]);
    for fault in faults {
        table.row([
            fault.id.to_string(),
            fault.rule.clone(),
            fault.matches.to_string(),
            fault.firings.to_string(),
        ]);
    }
    table.to_string()
}
