// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The event log of a device, in the region `events`.
//!
//! The driver writes it without a lock while it is read. `driver/uapi/src/ringbar.rs` has the
//! layout and `driver/event_log.rs` the writer, which counts a record first, then sets
//! its kind to 0, then writes time and values, and the kind last.

use std::fmt;
use std::thread;

use ringbar_uapi as uapi;
use serde_json::{Value, json};

use crate::sys::mapping::Mapping;

/// Greatest number of attempts to read a record that is being written; then it is skipped. A
/// writer takes some nanoseconds, unless it loses its CPU.
const ATTEMPTS: usize = 10_000;

/// Words of memory that another thread writes.
pub trait Words {
    /// Number of words.
    fn count(&self) -> usize;

    /// Loads a word with acquire ordering.
    fn load(&self, index: usize) -> u64;
}

impl Words for Mapping {
    fn count(&self) -> usize {
        self.len() / size_of::<u64>()
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index)
    }
}

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Time in nanoseconds since boot.
    pub time: u64,
    /// Kind: one of the `EVENT` constants.
    pub kind: u64,
    /// Values, whose meaning depends on the kind.
    pub values: [u64; 2],
}

/// Contents of a log at one time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// Number of older records that were overwritten.
    pub overwritten: u64,
    /// Number of records that were still being written.
    pub unfinished: u64,
}

/// Result of reading one record.
enum Read {
    Complete(Record),
    Unfinished,
    Overwritten,
}

/// Reads a log.
pub fn read(words: &impl Words) -> Snapshot {
    let size = uapi::EVENT_RECORD_WORDS;
    let mut snapshot = Snapshot::default();
    let capacity = (words.count() / size).saturating_sub(1) as u64;
    if capacity == 0 {
        return snapshot;
    }
    let count = words.load(0);
    let first = count.saturating_sub(capacity);
    snapshot.overwritten = first;
    for number in first..count {
        // A record that was counted but not yet begun has its old contents, which are older than
        // all others. Two records that were written at the same time may also be in the wrong
        // order, and still are when they are read again.
        let oldest = snapshot.records.first().map_or(0, |record| record.time);
        let mut read = Read::Unfinished;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                thread::yield_now();
            }
            read = read_record(words, number, capacity);
            match &read {
                Read::Unfinished => {}
                Read::Complete(record) if record.time < oldest => {}
                Read::Complete(_) | Read::Overwritten => break,
            }
        }
        match read {
            Read::Complete(record) => snapshot.records.push(record),
            Read::Unfinished => snapshot.unfinished += 1,
            Read::Overwritten => snapshot.overwritten += 1,
        }
    }
    snapshot
}

fn read_record(words: &impl Words, number: u64, capacity: u64) -> Read {
    let size = uapi::EVENT_RECORD_WORDS;
    // Less than the number of words.
    let place = size * (1 + (number % capacity) as usize);
    let kind = words.load(place + 1);
    let record = Record {
        time: words.load(place),
        kind,
        values: [words.load(place + 2), words.load(place + 3)],
    };
    // A writer that reached this record during the read was counted before.
    if words.load(0) > number.saturating_add(capacity) {
        Read::Overwritten
    } else if kind == 0 {
        Read::Unfinished
    } else {
        Read::Complete(record)
    }
}

impl Record {
    /// Whether the device failed, or was taken out of service for an error.
    pub fn is_fault(&self) -> bool {
        match self.kind {
            uapi::EVENT_QUEUE_BROKEN => true,
            uapi::EVENT_STOPPED => self.values[0] != 0,
            uapi::EVENT_RESET => self.values[0] == uapi::RESET_BY_TIMEOUT,
            _ => false,
        }
    }

    /// Name of the kind and values for programs.
    pub fn json(&self) -> Value {
        let [first, second] = self.values;
        let mut object = match self.kind {
            uapi::EVENT_STARTED => json!({ "event": "started", "memory": first }),
            uapi::EVENT_CAPACITY => json!({ "event": "capacity", "memory": first }),
            uapi::EVENT_QUEUE_BROKEN => json!({
                "event": "queue_broken",
                "queue": first,
                "found_by": if second == 0 { "driver" } else { "device" },
            }),
            uapi::EVENT_STOPPED => json!({ "event": "stopped", "errno": first }),
            uapi::EVENT_SUSPENDED => json!({ "event": "suspended" }),
            uapi::EVENT_RESET => json!({
                "event": "reset",
                "cause": match first {
                    uapi::RESET_BY_TIMEOUT => "timeout",
                    _ => "administrator",
                },
            }),
            kind => json!({ "event": "unknown", "kind": kind, "values": self.values }),
        };
        object["time_ns"] = self.time.into();
        object
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SECOND: u64 = 1_000_000_000;
        let (seconds, rest) = (self.time / SECOND, self.time % SECOND);
        write!(f, "[{seconds:5}.{:06}] ", rest / 1000)?;
        let [first, second] = self.values;
        match self.kind {
            uapi::EVENT_STARTED => {
                write!(f, "started with {first} bytes of device memory")
            }
            uapi::EVENT_CAPACITY => {
                write!(f, "device memory has a new size: {first} bytes")
            }
            uapi::EVENT_QUEUE_BROKEN => {
                let who = match second {
                    0 => "the driver found out",
                    _ => "the device said so",
                };
                write!(f, "queue {first} broke: {who}")
            }
            uapi::EVENT_STOPPED => match i32::try_from(first) {
                Ok(0) => write!(f, "taken out of service"),
                Ok(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    write!(f, "taken out of service: {error}")
                }
                Err(_) => write!(f, "taken out of service: error {first}"),
            },
            uapi::EVENT_SUSPENDED => write!(f, "put to sleep"),
            uapi::EVENT_RESET => match first {
                uapi::RESET_BY_TIMEOUT => write!(f, "reset: a request took too long"),
                _ => write!(f, "reset by an administrator"),
            },
            kind => write!(f, "event {kind}: {first:#x} {second:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// A log as the driver keeps it.
    struct Log(Vec<AtomicU64>);

    impl Log {
        fn new(capacity: usize) -> Self {
            let words = uapi::EVENT_RECORD_WORDS * (1 + capacity);
            Self((0..words).map(|_| AtomicU64::new(0)).collect())
        }

        fn place(&self, number: u64) -> &[AtomicU64] {
            let size = uapi::EVENT_RECORD_WORDS;
            let capacity = self.0.len() / size - 1;
            &self.0[size * (1 + number as usize % capacity)..][..size]
        }

        /// The same stores in the same order as in `driver/event_log.rs`.
        fn record(&self, time: u64, kind: u64, values: [u64; 2]) {
            let place = self.place(self.0[0].fetch_add(1, Ordering::SeqCst));
            place[1].store(0, Ordering::Relaxed);
            place[0].store(time, Ordering::Release);
            place[2].store(values[0], Ordering::Release);
            place[3].store(values[1], Ordering::Release);
            place[1].store(kind, Ordering::Release);
        }
    }

    impl Words for Log {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn load(&self, index: usize) -> u64 {
            self.0[index].load(Ordering::Acquire)
        }
    }

    fn times(snapshot: &Snapshot) -> Vec<u64> {
        snapshot.records.iter().map(|record| record.time).collect()
    }

    #[test]
    fn records_come_in_order() {
        let log = Log::new(4);
        assert_eq!(read(&log), Snapshot::default());
        log.record(10, 1, [2, 3]);
        log.record(20, 4, [5, 6]);
        let snapshot = read(&log);
        assert_eq!(times(&snapshot), [10, 20]);
        assert_eq!(
            snapshot.records[1],
            Record {
                time: 20,
                kind: 4,
                values: [5, 6]
            }
        );
        assert_eq!((snapshot.overwritten, snapshot.unfinished), (0, 0));
    }

    #[test]
    fn old_records_are_overwritten() {
        let log = Log::new(3);
        for time in 1..=8 {
            log.record(time, 1, [0, 0]);
        }
        let snapshot = read(&log);
        assert_eq!(times(&snapshot), [6, 7, 8]);
        assert_eq!(snapshot.overwritten, 5);
    }

    #[test]
    fn a_record_that_is_never_finished_is_left_out() {
        let log = Log::new(3);
        log.record(1, 1, [0, 0]);
        log.record(2, 0, [0, 0]);
        log.record(3, 1, [0, 0]);
        let snapshot = read(&log);
        assert_eq!(times(&snapshot), [1, 3]);
        assert_eq!(snapshot.unfinished, 1);
    }

    #[test]
    fn a_log_without_room_is_empty() {
        assert_eq!(read(&Log(Vec::new())), Snapshot::default());
        let log = Log::new(0);
        log.0[0].store(9, Ordering::Relaxed);
        assert_eq!(read(&log), Snapshot::default());
    }

    #[test]
    fn no_record_is_torn_while_it_is_written() {
        // More than one lap of the log at a time is not what a driver does.
        let log = Log::new(64);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for time in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    log.record(time, 2 * time, [3 * time, 4 * time]);
                }
            });
            let mut seen = 0;
            while seen < 10_000 {
                for record in read(&log).records {
                    seen += 1;
                    let time = record.time;
                    assert_eq!(record.kind, 2 * time, "{record:?}");
                    assert_eq!(record.values, [3 * time, 4 * time], "{record:?}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn records_are_described() {
        let text = |kind, first, second| {
            let record = Record {
                time: 12_034_567_890,
                kind,
                values: [first, second],
            };
            record.to_string()
        };
        assert_eq!(
            text(uapi::EVENT_STARTED, 4096, 0),
            "[   12.034567] started with 4096 bytes of device memory"
        );
        assert!(text(uapi::EVENT_CAPACITY, 8192, 0).ends_with("new size: 8192 bytes"));
        assert!(
            text(uapi::EVENT_QUEUE_BROKEN, 3, 1).ends_with("queue 3 broke: the device said so")
        );
        assert!(text(uapi::EVENT_QUEUE_BROKEN, 3, 0).ends_with(": the driver found out"));
        let stopped = text(uapi::EVENT_STOPPED, 19, 0);
        assert!(
            stopped.contains("out of service: No such device"),
            "{stopped}"
        );
        assert!(text(uapi::EVENT_STOPPED, u64::MAX, 0).contains("error 18446744073709551615"));
        assert!(text(uapi::EVENT_SUSPENDED, 0, 0).ends_with("put to sleep"));
        assert!(text(uapi::EVENT_RESET, 0, 0).ends_with("a request took too long"));
        assert!(text(uapi::EVENT_RESET, 1, 0).ends_with("by an administrator"));
        assert!(text(99, 1, 255).ends_with("event 99: 0x1 0xff"));
    }
}
