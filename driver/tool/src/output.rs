// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Standard output: text with colours on terminals only, or one JSON object a line.

use std::io::{self, BufWriter, StdoutLock, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// Style of headings.
pub const HEADING: Style = Style::new().bold();
/// Style of a state that is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Style of a state that needs attention.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// Standard output for text. Styles are left out unless it is a terminal, and if the environment
/// says so (`NO_COLOR`, `CLICOLOR`, `TERM=dumb`).
pub fn text() -> BufWriter<AutoStream<StdoutLock<'static>>> {
    BufWriter::new(anstream::stdout().lock())
}

/// Prints an object as a line.
pub fn json(object: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}
