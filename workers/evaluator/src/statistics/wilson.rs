//! Wilson's score interval of a proportion (JASA 22, 1927): unlike the textbook interval it keeps its level
//! with few questions and near 0 and 1, and never leaves [0, 1].

use super::{Interval, normal_quantile};

/// The interval of `right` out of `n` at this confidence; 0 to 1 when there is nothing to go by.
pub fn interval(right: usize, n: usize, confidence: f64) -> Interval {
    if n == 0 {
        return Interval { value: 0.0, low: 0.0, high: 1.0 };
    }
    let z = normal_quantile(f64::midpoint(1.0, confidence));
    let (count, p) = (n as f64, right as f64 / n as f64);
    let spread = z * z / count;
    let centre = f64::midpoint(2.0 * p, spread) / (1.0 + spread);
    let half = z / (1.0 + spread) * (p * (1.0 - p) / count + spread / (4.0 * count)).sqrt();
    let low = if right == 0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if right == n { 1.0 } else { (centre + half).min(1.0) };
    Interval { value: p, low, high }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3; the last by symmetry
        for (right, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (20, 20, 0.8389, 1.0),
        ] {
            let found = interval(right, n, 0.95);
            assert!((found.low - low).abs() < 6e-5 && (found.high - high).abs() < 6e-5, "{right}/{n}: {found:?}");
        }
    }
}
