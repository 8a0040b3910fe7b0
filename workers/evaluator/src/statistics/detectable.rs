//! The smallest difference that a paired comparison can be expected to find.

use super::normal_quantile;

/// Discordant share assumed before anything is known: on one question in five exactly one of two retrieval
/// arms is right, which is what short factual questions usually show.
pub const ASSUMED_DISCORDANT: f64 = 0.2;
/// Probability of finding a difference of that size.
pub const POWER: f64 = 0.8;

/// The smallest true difference in accuracy that a two-sided paired test at level `1 − confidence` finds with
/// 80 % power on `n` questions of which `discordant` (a share) are answered rightly by exactly one arm
/// (Connor, Biometrics 43, 1987): solves `n δ² = (z₁ √d + z₂ √(d − δ²))²` for δ. A difference cannot exceed
/// the discordant share; `None` when even that is not found.
pub fn difference(n: usize, discordant: f64, confidence: f64) -> Option<f64> {
    let level = normal_quantile(f64::midpoint(1.0, confidence));
    let power = normal_quantile(POWER);
    let found = |delta: f64| {
        let spread = level * discordant.sqrt() + power * (discordant - delta * delta).max(0.0).sqrt();
        n as f64 * delta * delta >= spread * spread
    };
    if n == 0 || !found(discordant) {
        return None;
    }
    let (mut low, mut high) = (0.0, discordant);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if found(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// The sentence printed before a run and on the report.
pub fn sentence(n: usize, confidence: f64) -> String {
    let share = ASSUMED_DISCORDANT * 100.0;
    let level = (1.0 - confidence) * 100.0;
    match difference(n, ASSUMED_DISCORDANT, confidence) {
        Some(delta) => format!(
            "With {n} paired questions the minimum detectable effect is {:.1} points of accuracy ({:.0} % power, two-sided {level:.0} % level, {share:.0} % discordant pairs assumed); smaller differences may be there and not show.",
            delta * 100.0,
            POWER * 100.0,
        ),
        None => format!(
            "With {n} paired questions no difference can be relied on to show ({:.0} % power, two-sided {level:.0} % level, {share:.0} % discordant pairs assumed).",
            POWER * 100.0,
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn three_points_need_1742_questions() {
        // Connor's formula by hand: (1.95996·√.2 + .84162·√.1991)² / .03² = 1741.9
        assert!(difference(1742, 0.2, 0.95).unwrap() <= 0.03);
        assert!(difference(1741, 0.2, 0.95).unwrap() > 0.03);
        assert!((difference(48, 0.2, 0.95).unwrap() - 0.177).abs() < 0.002);
        assert_eq!(difference(10, 0.2, 0.95), None);
        assert!(sentence(1750, 0.95).contains("3.0 points"));
        assert!(sentence(4, 0.95).contains("no difference"));
    }
}
