// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lines on the socket.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::command::{Command, Execute};

/// A request as the device reads it.
#[derive(Debug)]
pub struct Request {
    /// The value by which the client knows the reply, if it gave one.
    pub id: Option<Value>,
    /// The command, or why there is none.
    pub command: Result<Command, String>,
}

impl Request {
    /// Parses a line.
    pub fn parse(line: &[u8]) -> Self {
        let syntax = |error: serde_json::Error| format!("this is no request: {error}");
        let mut object: Map<String, Value> = match serde_json::from_slice(line) {
            Ok(object) => object,
            Err(error) => {
                return Self {
                    id: None,
                    command: Err(syntax(error)),
                };
            }
        };
        let id = object.remove("id");
        let arguments = object.entry("arguments").or_insert_with(|| json!({}));
        let command = match arguments.is_object() {
            true => serde_json::from_value(Value::Object(object)).map_err(syntax),
            false => Err("the arguments of a request are an object".to_owned()),
        };
        Self { id, command }
    }
}

/// A reply as the device writes it.
#[derive(Debug)]
pub struct Reply(Value);

impl Reply {
    /// What a command has returned. A value that cannot be written as JSON becomes an error.
    pub fn returned<E: Execute>(value: &E::Return) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self(json!({"return": value})),
            Err(error) => Self::refused(&error.to_string()),
        }
    }

    /// Why a command was not executed, or failed.
    pub fn refused(description: &str) -> Self {
        Self(json!({"error": {"desc": description}}))
    }

    /// The same reply, to a request with this id.
    #[must_use]
    pub fn with_id(mut self, id: Option<Value>) -> Self {
        if let Some(id) = id {
            self.0["id"] = id;
        }
        self
    }

    /// The reply as a line.
    pub fn to_line(&self) -> String {
        format!("{}\n", self.0)
    }
}

/// A request as the client writes it: a line.
pub fn request_line(command: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", serde_json::to_string(command)?))
}

/// A reply as the client reads it.
#[derive(Debug)]
pub enum ReplyRead<T> {
    /// What the command has returned.
    Returned(T),
    /// Why the device did not execute the command.
    Refused(String),
}

/// Parses a reply of a device.
pub fn parse_reply<T: DeserializeOwned>(line: &[u8]) -> Result<ReplyRead<T>, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(line)?;
    if let Some(Value::String(description)) = value.pointer_mut("/error/desc").map(Value::take) {
        return Ok(ReplyRead::Refused(description));
    }
    // Without the member this is `null`, which no command returns.
    let returned = value.get_mut("return").map(Value::take);
    serde_json::from_value(returned.unwrap_or_default()).map(ReplyRead::Returned)
}
