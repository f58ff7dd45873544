// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lines that a client sends: commands, what is nearly one, and any bytes.

use arbitrary::Arbitrary;
use ringbar_control::MAX_REQUEST_BYTES;
use serde_json::Value;

use crate::fault_rules::PARTS;

#[derive(Arbitrary, Debug)]
pub(super) struct Line {
    content: Content,
    /// Spaces after it.
    padding: Padding,
    /// Another value of one byte.
    damage: Option<(u16, u8)>,
    /// The line feed is absent.
    is_open: bool,
}

#[derive(Arbitrary, Debug)]
enum Padding {
    None,
    Spaces(u8),
    /// Until the line is by so much longer than a request may be.
    Greatest(i8),
}

#[derive(Arbitrary, Debug)]
enum Content {
    Command {
        command: Command,
        id: Option<Json>,
        /// Other members, of the arguments and of the request.
        arguments: Vec<(Name, Json)>,
        request: Vec<(Name, Json)>,
        /// Arguments that are none.
        no_arguments: Option<Json>,
        /// By how many places the members are rotated.
        order: u8,
    },
    Bytes(Vec<u8>),
    Json(Json),
}

#[derive(Arbitrary, Debug)]
enum Command {
    QueryDevice,
    QueryStatistics,
    Resize(Size),
    AddFault(RuleText),
    QueryFaults,
    ClearFaults(Option<u8>),
    SetLog(Json),
    Shutdown,
    /// With this name.
    Other(Json),
}

#[derive(Arbitrary, Debug)]
enum Size {
    Bytes(u16),
    Bits(u8),
    Any(u64),
    Not(Json),
}

/// The text of a rule.
#[derive(Arbitrary, Debug)]
enum RuleText {
    /// One that is right.
    Valid(u8),
    /// Parts of rules.
    Parts(Vec<u8>),
    Not(Json),
}

/// Names of members.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    Execute,
    Arguments,
    Id,
    Bytes,
    Rule,
    Filter,
    Return,
    Empty,
}

#[derive(Arbitrary, Debug)]
enum Json {
    Null,
    Bool(bool),
    Small(u8),
    Unsigned(u64),
    Signed(i64),
    Float(f32),
    /// No number that a float can be.
    Exponent(i16),
    Text(String),
    Command(u8),
    /// Arrays or objects within each other.
    Nested(bool, u8),
    Object(Name, Box<Json>),
}

const VALID_RULES: [&str; 6] = [
    "short",
    "read:nth=3:error=EIO",
    "queue=2:latency=2ms",
    "write:offset=0..100:corrupt",
    "stall",
    "hold-reset=1ms",
];

const COMMANDS: [&str; 8] = [
    "query-device",
    "query-statistics",
    "resize",
    "add-fault",
    "query-faults",
    "clear-faults",
    "set-log",
    "shutdown",
];

impl Name {
    fn text(self) -> String {
        let name = match self {
            Self::Execute => "execute",
            Self::Arguments => "arguments",
            Self::Id => "id",
            Self::Bytes => "bytes",
            Self::Rule => "rule",
            Self::Filter => "filter",
            Self::Return => "return",
            Self::Empty => "",
        };
        name.to_owned()
    }
}

impl Json {
    fn text(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Small(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Exponent(value) => format!("1e{value}"),
            Self::Text(value) => quoted(value),
            Self::Command(value) => quoted(choose(&COMMANDS, *value)),
            Self::Nested(true, depth) => {
                let depth = usize::from(*depth);
                format!("{}{}", "[".repeat(depth), "]".repeat(depth))
            }
            Self::Nested(false, depth) => {
                let depth = usize::from(*depth);
                format!("{}0{}", "{\"id\":".repeat(depth), "}".repeat(depth))
            }
            Self::Object(name, value) => object(vec![(name.text(), value.text())], 0),
        }
    }
}

fn choose<'a>(choices: &[&'a str], number: u8) -> &'a str {
    choices[usize::from(number) % choices.len()]
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn object(mut members: Vec<(String, String)>, order: u8) -> String {
    if !members.is_empty() {
        let by = usize::from(order) % members.len();
        members.rotate_left(by);
    }
    let members: Vec<_> = members
        .iter()
        .map(|(name, value)| format!("{}: {value}", quoted(name)))
        .collect();
    format!("{{{}}}", members.join(", "))
}

impl Command {
    /// The name as JSON, and the arguments.
    fn text(&self) -> (String, Vec<(String, String)>) {
        let one = |name: &str, value: String| vec![(name.to_owned(), value)];
        match self {
            Self::QueryDevice => (quoted("query-device"), Vec::new()),
            Self::QueryStatistics => (quoted("query-statistics"), Vec::new()),
            Self::Resize(size) => {
                let bytes = match size {
                    Size::Bytes(bytes) => bytes.to_string(),
                    Size::Bits(bits) => (1_u64 << (bits % 64)).to_string(),
                    Size::Any(bytes) => bytes.to_string(),
                    Size::Not(json) => json.text(),
                };
                (quoted("resize"), one("bytes", bytes))
            }
            Self::AddFault(rule) => {
                let rule = match rule {
                    RuleText::Valid(number) => quoted(choose(&VALID_RULES, *number)),
                    RuleText::Parts(parts) => {
                        let parts = parts.iter().map(|part| choose(PARTS, *part));
                        quoted(&parts.collect::<String>())
                    }
                    RuleText::Not(json) => json.text(),
                };
                (quoted("add-fault"), one("rule", rule))
            }
            Self::QueryFaults => (quoted("query-faults"), Vec::new()),
            Self::ClearFaults(None) => (quoted("clear-faults"), Vec::new()),
            Self::ClearFaults(Some(id)) => (quoted("clear-faults"), one("id", id.to_string())),
            Self::SetLog(filter) => (quoted("set-log"), one("filter", filter.text())),
            Self::Shutdown => (quoted("shutdown"), Vec::new()),
            Self::Other(name) => (name.text(), Vec::new()),
        }
    }
}

impl Line {
    /// The line, with its line feed.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = match &self.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Json(json) => json.text().into_bytes(),
            Content::Command {
                command,
                id,
                arguments,
                request,
                no_arguments,
                order,
            } => {
                let others = |members: &[(Name, Json)]| -> Vec<_> {
                    let members = members.iter();
                    members
                        .map(|(name, value)| (name.text(), value.text()))
                        .collect()
                };
                let (name, mut parameters) = command.text();
                parameters.extend(others(arguments));
                let mut members = vec![("execute".to_owned(), name)];
                if let Some(json) = no_arguments {
                    members.push(("arguments".to_owned(), json.text()));
                } else if !parameters.is_empty() {
                    members.push(("arguments".to_owned(), object(parameters, *order)));
                }
                members.extend(id.iter().map(|id| ("id".to_owned(), id.text())));
                members.extend(others(request));
                object(members, *order).into_bytes()
            }
        };
        if let Some((at, value)) = self.damage
            && !bytes.is_empty()
        {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        let length = match self.padding {
            Padding::None => 0,
            Padding::Spaces(count) => bytes.len() + usize::from(count),
            Padding::Greatest(more) => {
                (MAX_REQUEST_BYTES as usize - 1).saturating_add_signed(more.into())
            }
        };
        bytes.resize(bytes.len().max(length), b' ');
        if !self.is_open {
            bytes.push(b'\n');
        }
        bytes
    }
}
