//! Exit codes, so that whoever started a worker can tell what to do next.

use crate::last_words;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

/// What kind of end a worker came to. Codes follow `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitClass {
    /// 64: wrong configuration or input; starting again changes nothing.
    Input,
    /// 65: a loss, gradient or reward is not a number; the same would happen again.
    NotANumber,
    /// 69: another worker or endpoint is out of reach; starting again may help.
    Unavailable,
    /// 70: a defect here.
    Internal,
    /// 74: reading or writing failed (disk full, permissions).
    Io,
    /// 75: interrupted after saving; starting again continues.
    Interrupted,
    /// 76: another replica was lost; the attempt is over, the next one goes on from the newest checkpoint.
    PeerLost,
    /// 77: another try of the same job has taken over; nothing of this process counts any more.
    Fenced,
    /// 78: a guard's bound is passed; everything is saved, and a person decides whether it goes on.
    Paused,
}

impl ExitClass {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Input => 64,
            Self::NotANumber => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Io => 74,
            Self::Interrupted => 75,
            Self::PeerLost => 76,
            Self::Fenced => 77,
            Self::Paused => 78,
        }
    }

    /// The class of a code, when it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        use ExitClass::{Fenced, Input, Internal, Interrupted, Io, NotANumber, Paused, PeerLost, Unavailable};
        [Input, NotANumber, Unavailable, Internal, Io, Interrupted, PeerLost, Fenced, Paused]
            .into_iter()
            .find(|class| i32::from(class.code()) == code)
    }
}

/// An error with its class. `Display` is one line that says what to do.
#[derive(Debug)]
pub struct Failure {
    /// What kind.
    pub class: ExitClass,
    /// The line.
    pub message: String,
}

impl Failure {
    /// Makes a failure from any error, joining its sources into one line.
    pub fn new(class: ExitClass, error: impl Display) -> Self {
        Self { class, message: error.to_string().replace('\n', " ") }
    }

    /// See [`ExitClass::Input`].
    pub fn input(error: impl Display) -> Self {
        Self::new(ExitClass::Input, error)
    }

    /// See [`ExitClass::Unavailable`].
    pub fn unavailable(error: impl Display) -> Self {
        Self::new(ExitClass::Unavailable, error)
    }

    /// See [`ExitClass::Io`].
    pub fn io(error: impl Display) -> Self {
        Self::new(ExitClass::Io, error)
    }

    /// See [`ExitClass::Internal`].
    pub fn internal(error: impl Display) -> Self {
        Self::new(ExitClass::Internal, error)
    }

    /// See [`ExitClass::NotANumber`].
    pub fn not_a_number(error: impl Display) -> Self {
        Self::new(ExitClass::NotANumber, error)
    }

    /// See [`ExitClass::Fenced`].
    pub fn fenced(error: impl Display) -> Self {
        Self::new(ExitClass::Fenced, error)
    }

    /// See [`ExitClass::Paused`].
    pub fn paused(why: &str) -> Self {
        Self::new(ExitClass::Paused, format!("paused by a guard: {why}; everything is saved: start again to go on"))
    }

    /// See [`ExitClass::Interrupted`].
    pub fn interrupted() -> Self {
        Self::new(ExitClass::Interrupted, "interrupted; run the same command again to continue")
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

/// A text and, behind it, what it comes from: the sources of an error that its own text leaves out, in one line.
pub fn one_line(text: impl Display, mut source: Option<&(dyn Error + 'static)>) -> String {
    let mut text = text.to_string();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}

/// Turns a worker's result into its exit code; a failure is one line on standard error. What was said to
/// [`last_words`] is written, too.
pub fn finish(result: Result<(), Failure>) -> ExitCode {
    // Whoever stopped because it was fenced leaves by that code, so that nobody takes it for a saved stop.
    let result = match result {
        Err(failure) if failure.class == ExitClass::Interrupted && last_words().fenced() => {
            Err(Failure::fenced("another attempt has taken over; nothing of this process counts any more"))
        }
        result => result,
    };
    let written = last_words().write(result.as_ref().err());
    if let Err(error) = written {
        eprintln!("last words not written: {error}");
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.class.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    #[test]
    fn sources_are_said_once_in_one_line() {
        let deepest = Layer("refused\nby the port", None);
        let error = Layer("cannot connect", Some(Box::new(Layer("connect", Some(Box::new(deepest))))));
        assert_eq!(one_line(&error, error.source()), "cannot connect: refused by the port");
        assert_eq!(one_line("alone", None), "alone");
    }
}
