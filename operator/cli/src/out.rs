//! Standard output, whose reader may leave before the end, as in `s3 plan … | head -1`.

use crate::text::Problem;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// What commands print to, `writeln!(Out, …)?`: `println!` would panic once nobody reads.
pub struct Out;

impl Out {
    /// Prints a text; `write!` and `writeln!` call this.
    #[allow(clippy::unused_self)] // the form that the macros ask for
    pub fn write_fmt(&self, text: Arguments) -> Result<(), Problem> {
        printed(io::stdout().write_fmt(text))
    }

    /// Prints bytes as they are, at once.
    #[allow(clippy::unused_self)] // as above
    pub fn write_all(&self, bytes: &[u8]) -> Result<(), Problem> {
        let mut out = io::stdout();
        printed(out.write_all(bytes).and_then(|()| out.flush()))
    }
}

fn printed(end: io::Result<()>) -> Result<(), Problem> {
    end.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Problem::nobody_reads(),
        _ => Problem::io("write", Path::new("standard output"), &error),
    })
}
