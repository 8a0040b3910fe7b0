//! What to do when a component's process ends.

use crate::Role;
use std::time::Duration;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// What kind of end that was, by the workers' exit codes (`sysexits.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// 0.
    Done,
    /// 64: wrong configuration or input.
    Input,
    /// 65: a loss, gradient or reward is not a number.
    NotANumber,
    /// 69: something it needs is out of reach.
    Unavailable,
    /// 74: reading or writing failed.
    Io,
    /// 75: interrupted after saving.
    Interrupted,
    /// 76: another replica was lost.
    PeerLost,
    /// 77: a newer attempt has taken over.
    Fenced,
    /// 78: a guard has paused it; a person decides whether it goes on.
    Paused,
    /// 70, any other code, or a signal.
    Defect,
}

impl Exit {
    /// Its kind.
    pub fn kind(self) -> ExitKind {
        match self {
            Self::Code(0) => ExitKind::Done,
            Self::Code(64) => ExitKind::Input,
            Self::Code(65) => ExitKind::NotANumber,
            Self::Code(69) => ExitKind::Unavailable,
            Self::Code(74) => ExitKind::Io,
            Self::Code(75) => ExitKind::Interrupted,
            Self::Code(76) => ExitKind::PeerLost,
            Self::Code(77) => ExitKind::Fenced,
            Self::Code(78) => ExitKind::Paused,
            Self::Code(_) | Self::Signal(_) => ExitKind::Defect,
        }
    }

    /// For people: `exit code 70`, `signal 9`.
    pub fn describe(self) -> String {
        match self {
            Self::Code(code) => format!("exit code {code}"),
            Self::Signal(signal) => format!("signal {signal}"),
        }
    }
}

/// The next move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A job that ended well.
    Finished,
    /// Start it again after this pause; workers resume from what they saved.
    Restart(Duration),
    /// Starting again would change nothing, or was tried often enough.
    GiveUp,
}

/// Limits of restarting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Pause before the first restart; doubles each time.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// Restarts in a row at most. A process that lived for `stable` starts a new row.
    pub restarts: u32,
    /// See `restarts`.
    pub stable: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            restarts: 5,
            stable: Duration::from_secs(300),
        }
    }
}

impl RestartPolicy {
    /// Decides after an end that nobody asked for. `restarts` counts the current row.
    pub fn after(&self, role: Role, exit: Exit, restarts: u32) -> Next {
        match (role, exit.kind()) {
            (Role::Job, ExitKind::Done) => Next::Finished,
            (_, ExitKind::Input | ExitKind::NotANumber | ExitKind::Io | ExitKind::Fenced | ExitKind::Paused) => {
                Next::GiveUp
            }
            _ if restarts >= self.restarts => Next::GiveUp,
            _ => Next::Restart(self.first_pause.saturating_mul(1 << restarts.min(16)).min(self.longest_pause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_help_is_tried_again_and_not_for_ever() {
        let policy = RestartPolicy::default();
        assert_eq!(policy.after(Role::Job, Exit::Code(0), 0), Next::Finished);
        for code in [64, 65, 74, 77, 78] {
            assert_eq!(policy.after(Role::Job, Exit::Code(code), 0), Next::GiveUp);
            assert_eq!(policy.after(Role::Service, Exit::Code(code), 0), Next::GiveUp);
        }
        for exit in [Exit::Code(69), Exit::Code(76), Exit::Code(70), Exit::Code(75), Exit::Code(101), Exit::Signal(9)] {
            let pauses: Vec<_> = (0..=policy.restarts).map(|row| policy.after(Role::Job, exit, row)).collect();
            assert_eq!(pauses[0], Next::Restart(Duration::from_secs(1)));
            assert_eq!(pauses[3], Next::Restart(Duration::from_secs(8)));
            assert_eq!(pauses[5], Next::GiveUp);
        }
        // A service never ends by itself, not even well.
        assert_eq!(policy.after(Role::Service, Exit::Code(0), 0), Next::Restart(Duration::from_secs(1)));
    }
}
