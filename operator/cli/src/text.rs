//! Problems as people read them, and small formatting.

use s3_artifacts::ArtifactError;
use s3_plan::PlanError;
use s3_telemetry::{ExitClass, Failure};
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Exit code of a command whose output nobody reads any more, as a shell gives it: 128 + SIGPIPE.
const NOBODY_READS: u8 = 141;

/// One or more problems; each becomes one line, the first one's class is the exit code. None is the end of a command
/// whose output nobody reads any more: it says nothing.
#[derive(Debug)]
pub struct Problem(pub Vec<Failure>);

impl Problem {
    /// Wrong input: running again changes nothing.
    pub fn input(message: impl Display) -> Self {
        Self(vec![Failure::input(message)])
    }

    /// Something is out of reach.
    pub fn unavailable(message: impl Display) -> Self {
        Self(vec![Failure::unavailable(message)])
    }

    /// An error of ours.
    pub fn internal(message: impl Display) -> Self {
        Self(vec![Failure::internal(message)])
    }

    /// Reading or writing failed.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        Self(vec![Failure::io(format!("{action} {}: {error}", path.display()))])
    }

    /// A failure of the artifact store, by whether the disk or the content is at fault.
    pub fn artifact(error: ArtifactError) -> Self {
        let class = if error.is_io() { ExitClass::Io } else { ExitClass::Input };
        Self(vec![Failure::new(class, error)])
    }

    /// Joins what several checks found; `Ok` when nothing was found.
    pub fn all(problems: Vec<Failure>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self(problems)) }
    }

    /// Whoever read the output has gone.
    pub fn nobody_reads() -> Self {
        Self(Vec::new())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.0.first().map_or(NOBODY_READS, |failure| failure.class.code())
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Defect(_) => Self::internal(error),
            _ => Self::input(error),
        }
    }
}

/// `850 ms`, `4.2 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=59 => format!("{:.1} s", time.as_secs_f64()),
        60..=3599 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `7.7 MB`, in decimal units as disks are sold.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1000.0 || unit == "TB" {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{count} B")
}

/// `10,033`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!(thousands(10_033), "10,033");
        assert_eq!(thousands(33), "33");
        assert_eq!(bytes(7_705_344), "7.7 MB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(duration(Duration::from_millis(185_400)), "3 min 05 s");
        assert_eq!(duration(Duration::from_millis(40)), "40 ms");
    }
}
