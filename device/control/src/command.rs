// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device can be asked to do.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::reply::{AddedFault, Cleared, Done, Fault, Statistics, Status};

/// A command, and the type of what it returns: device and client cannot disagree about it.
pub trait Execute: Into<Command> {
    /// What the command returns.
    type Return: Serialize + DeserializeOwned;
}

/// Defines the commands, and [`Command`] as any of them.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* } -> $return:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name {
                $(
                    $(#[$field_doc])*
                    pub $field: $type,
                )*
            }

            impl Execute for $name {
                type Return = $return;
            }

            impl From<$name> for Command {
                fn from(command: $name) -> Self {
                    Self::$name(command)
                }
            }
        )*

        /// Any command.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(
            tag = "execute",
            content = "arguments",
            rename_all = "kebab-case",
            deny_unknown_fields
        )]
        pub enum Command {
            $($(#[$doc])* $name($name),)*
        }
    };
}

commands! {
    /// Describes the device.
    QueryDevice {} -> Status;

    /// Returns what the device has done so far.
    QueryStatistics {} -> Statistics;

    /// Changes the size of the device memory.
    Resize {
        /// The new size in bytes.
        bytes: u64,
    } -> Done;

    /// Adds a rule for faults.
    AddFault {
        /// The rule, as `docs/faults.md` describes it.
        rule: String,
    } -> AddedFault;

    /// Lists the rules for faults.
    QueryFaults {} -> Vec<Fault>;

    /// Clears a rule for faults, or all of them.
    ClearFaults {
        /// The number of the rule; `None` for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    } -> Cleared;

    /// Changes which messages the log has.
    SetLog {
        /// A level, or levels for modules, as the option `--log` takes them.
        filter: String,
    } -> Done;

    /// Ends the process as SIGTERM does.
    Shutdown {} -> Done;
}
