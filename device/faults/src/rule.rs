// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A rule, and how it is written.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use ringbar_spec::Opcode;

/// The operations that a rule can name, with their names.
pub const OPERATIONS: [(Opcode, &str); 9] = [
    (Opcode::Read, "read"),
    (Opcode::Write, "write"),
    (Opcode::Flush, "flush"),
    (Opcode::Discard, "discard"),
    (Opcode::WriteZeroes, "write-zeroes"),
    (Opcode::Copy, "copy"),
    (Opcode::Fill, "fill"),
    (Opcode::Compare, "compare"),
    (Opcode::Crc32c, "crc32c"),
];

/// Microseconds of the units of time, the largest first.
pub(crate) const TIME_UNITS: [(u32, &str); 3] = [(1_000_000, "s"), (1_000, "ms"), (1, "us")];

/// A fault, and where and when it happens. [`fmt::Display`] writes it in its shortest form, and
/// parsing that gives the same rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens, and to which requests or queues.
    pub fault: Fault,
    /// Which of the matches have the effect.
    pub occurrences: Occurrences,
}

/// What happens, and to which requests or queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Of requests: the device model executes it.
    Request {
        /// Which requests.
        filter: RequestFilter,
        /// What happens to them.
        effect: RequestEffect,
    },
    /// Of queues: the engine executes it, which knows no operations.
    Queue {
        /// Number of the queue; `None` for any.
        queue: Option<u16>,
        /// What happens.
        effect: QueueEffect,
    },
}

/// Which requests a rule is about. Those that its effect cannot apply to are never among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFilter {
    /// Their operation, one of those that rules can name; `None` for any.
    pub operation: Option<Opcode>,
    /// Their queue, by its number; `None` for any.
    pub queue: Option<u16>,
    /// Bytes of the device memory at least one of which they concern; `None` for all requests,
    /// also those that concern none.
    pub range: Option<Range>,
}

/// Bytes of the device memory, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    end: Option<u64>,
}

impl Range {
    /// The bytes from offset `start` on and before `end`; without an end, all from `start` on.
    /// `None` if there is no such byte.
    pub const fn new(start: u64, end: Option<u64>) -> Option<Self> {
        match end {
            Some(end) if end <= start => None,
            _ => Some(Self { start, end }),
        }
    }

    /// The first of `length` bytes at `offset` that lies in the range.
    pub(crate) fn first_of(self, offset: u64, length: u64) -> Option<u64> {
        let first = offset.max(self.start);
        let is_in_both = first - offset < length && self.end.is_none_or(|end| first < end);
        is_in_both.then_some(first)
    }
}

/// Which of the matches of a rule have its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrences {
    /// Number of the first one, counted from 1.
    pub first: NonZeroU64,
    /// How many there are, from the first one on; `None` for all.
    pub times: Option<NonZeroU64>,
}

impl Occurrences {
    /// All matches.
    pub const ALL: Self = Self {
        first: NonZeroU64::MIN,
        times: None,
    };

    /// Whether match number `number`, counted from 1, is one of them.
    pub(crate) fn include(self, number: u64) -> bool {
        number
            .checked_sub(self.first.get())
            .is_some_and(|later| self.times.is_none_or(|times| later < times.get()))
    }
}

/// A time of 1 us to an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(NonZeroU32);

impl Time {
    /// The longest time, in microseconds.
    const MAX_US: u32 = 3_600_000_000;

    /// This number of microseconds, if it is a possible time.
    pub const fn from_micros(micros: u64) -> Option<Self> {
        if micros > Self::MAX_US as u64 {
            return None;
        }
        // Fits: checked.
        match NonZeroU32::new(micros as u32) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }
}

impl From<Time> for std::time::Duration {
    fn from(time: Time) -> Self {
        Self::from_micros(time.0.get().into())
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEffect {
    /// It fails, and nothing of it is executed.
    Error(Errno),
    /// It is executed later.
    Latency(Time),
    /// A read or write: the first half of its bytes is transferred, rounded down, and then it
    /// fails with [`Errno::Eio`].
    Short,
    /// A read or write: the first byte that the rule is about is inverted on its way.
    Corrupt,
}

impl RequestEffect {
    /// Whether requests of this operation can have the effect.
    pub const fn applies_to(self, operation: Opcode) -> bool {
        match self {
            Self::Error(_) | Self::Latency(_) => true,
            Self::Short | Self::Corrupt => matches!(operation, Opcode::Read | Opcode::Write),
        }
    }
}

/// What happens to a queue. Each has occasions of its own, which are what a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueEffect {
    /// An interrupt is not raised.
    DropInterrupt,
    /// A used entry is written twice.
    DuplicateUsed,
    /// A used entry names a descriptor beyond the table, in place of its request.
    BadUsedId,
    /// At an available entry, the queue takes no more of them, until it is stopped or the rule is
    /// cleared.
    Stall,
    /// The queue stops later, when the driver resets the device or the monitor stops it.
    HoldReset(Time),
}

impl QueueEffect {
    /// The occasion on which a queue has the effect.
    pub const fn occasion(self) -> Occasion {
        match self {
            Self::DropInterrupt => Occasion::Interrupt,
            Self::DuplicateUsed | Self::BadUsedId => Occasion::Used,
            Self::Stall => Occasion::Available,
            Self::HoldReset(_) => Occasion::Stop,
        }
    }
}

/// What a queue is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// To take an available entry.
    Available,
    /// To write a used entry.
    Used,
    /// To interrupt the driver.
    Interrupt,
    /// To stop.
    Stop,
}

/// Declares the errors with which requests can fail.
macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// An error with which a request can fail: those for which the protocol has a status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Errno {
            $($(#[$doc])* $name,)*
        }

        impl Errno {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

errnos! {
    /// The storage failed.
    Eio = "EIO",
    /// It has no space left.
    Enospc = "ENOSPC",
    /// The range is not within the device.
    Enxio = "ENXIO",
    /// The request makes no sense.
    Einval = "EINVAL",
    /// The device does not execute such requests.
    Eopnotsupp = "EOPNOTSUPP",
}

/// Writes the parts of a rule with colons between them.
struct Parts<'a, 'b> {
    formatter: &'a mut fmt::Formatter<'b>,
    first: bool,
}

impl Parts<'_, '_> {
    fn put(&mut self, part: impl fmt::Display) -> fmt::Result {
        let colon = if std::mem::take(&mut self.first) {
            ""
        } else {
            ":"
        };
        write!(self.formatter, "{colon}{part}")
    }

    fn put_occurrences(&mut self, occurrences: Occurrences) -> fmt::Result {
        let Occurrences { first, times } = occurrences;
        let once = NonZeroU64::MIN;
        match (first, times) {
            (NonZeroU64::MIN, None) => Ok(()),
            (first, Some(times)) if times == once => self.put(format_args!("nth={first}")),
            (NonZeroU64::MIN, Some(times)) => self.put(format_args!("times={times}")),
            (first, Some(times)) => self.put(format_args!("nth={first}:times={times}")),
            (first, None) => self.put(format_args!("nth={first}:times=all")),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Parts {
            formatter: f,
            first: true,
        };
        let RequestFilter {
            operation,
            queue,
            range,
        } = match &self.fault {
            Fault::Request { filter, .. } => filter.clone(),
            Fault::Queue { queue, .. } => RequestFilter {
                queue: *queue,
                ..RequestFilter::default()
            },
        };
        for (opcode, name) in OPERATIONS {
            if operation == Some(opcode) {
                parts.put(name)?;
            }
        }
        if let Some(queue) = queue {
            parts.put(format_args!("queue={queue}"))?;
        }
        if let Some(range) = range {
            parts.put(format_args!("offset={range}"))?;
        }
        parts.put_occurrences(self.occurrences)?;
        match &self.fault {
            Fault::Request { effect, .. } => parts.put(effect),
            Fault::Queue { effect, .. } => parts.put(effect),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end.map(ringbar_size::format).unwrap_or_default();
        write!(f, "{}..{end}", ringbar_size::format(self.start))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(micros) = self;
        for (unit, name) in TIME_UNITS {
            if micros.get().is_multiple_of(unit) {
                return write!(f, "{}{name}", micros.get() / unit);
            }
        }
        Ok(())
    }
}

impl fmt::Display for RequestEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => write!(f, "error={}", errno.name()),
            Self::Latency(time) => write!(f, "latency={time}"),
            Self::Short => f.write_str("short"),
            Self::Corrupt => f.write_str("corrupt"),
        }
    }
}

impl fmt::Display for QueueEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropInterrupt => f.write_str("drop-interrupt"),
            Self::DuplicateUsed => f.write_str("duplicate-used"),
            Self::BadUsedId => f.write_str("bad-used-id"),
            Self::Stall => f.write_str("stall"),
            Self::HoldReset(time) => write!(f, "hold-reset={time}"),
        }
    }
}
