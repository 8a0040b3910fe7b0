//! Mean and percentiles as the reference's `compute_context_stats.py` has them (`NumPy`'s linear interpolation).

use serde::{Deserialize, Serialize};

/// How one quantity is spread over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Values.
    pub n: usize,
    /// Sum.
    pub total: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// The spread of these values; none of nothing.
pub fn spread(values: &[f64]) -> Option<Spread> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let total: f64 = values.iter().sum();
    let at = |p: f64| {
        let place = p * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    };
    Some(Spread {
        n: values.len(),
        total,
        mean: total / values.len() as f64,
        p50: at(0.5),
        p90: at(0.9),
        p95: at(0.95),
        p99: at(0.99),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests {
    use super::*;

    #[test]
    fn as_numpy_interpolates() {
        // numpy.percentile([1..=10], [50, 90, 95, 99])
        let found = spread(&(1..=10).rev().map(f64::from).collect::<Vec<_>>()).unwrap();
        assert_eq!((found.total, found.mean, found.p50), (55.0, 5.5, 5.5));
        for (found, wanted) in [(found.p90, 9.1), (found.p95, 9.55), (found.p99, 9.91)] {
            assert!((found - wanted).abs() < 1e-12);
        }
        assert_eq!(spread(&[4.0]).unwrap().p99, 4.0);
        assert!(spread(&[]).is_none());
    }
}
