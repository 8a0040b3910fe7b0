//! The `BCa` bootstrap (Efron, JASA 82, 1987) of a mean over questions.
//!
//! Resample r draws its questions from the counter-based stream (seed, r): the interval is a pure function of
//! values and seed. Paired differences are resampled as pairs, because one value is one question.

use super::random::Stream;
use super::{Interval, normal_cdf, normal_quantile, wilson};

/// The `BCa` interval of the mean of `values`.
///
/// Values that are all equal carry no spread for a bootstrap to find, and a width of zero would claim
/// certainty: the interval is then widened on both sides by what Wilson's interval leaves possible for the
/// share of questions that differ, times `scale`, the largest size of a value.
pub fn mean(values: &[f64], scale: f64, confidence: f64, resamples: usize, seed: u64) -> Interval {
    let n = values.len();
    if n == 0 {
        return Interval { value: 0.0, low: -scale, high: scale };
    }
    let value = average(values);
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), one| (a.min(*one), b.max(*one)));
    if least >= most {
        let room = wilson::interval(0, n, confidence).high * scale;
        return Interval { value, low: (value - room).max(-scale), high: (value + room).min(scale) };
    }
    let mut means: Vec<f64> = (0..resamples.max(1)).map(|number| resample(values, seed, number as u64)).collect();
    means.sort_by(f64::total_cmp);
    let bias = bias(&means, value);
    let acceleration = acceleration(values, value);
    let tail = (1.0 - confidence) / 2.0;
    let end = |p: f64| {
        let z = bias + normal_quantile(p);
        quantile(&means, normal_cdf(bias + z / (1.0 - acceleration * z)))
    };
    Interval { value, low: end(tail), high: end(1.0 - tail) }
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn resample(values: &[f64], seed: u64, number: u64) -> f64 {
    let stream = Stream::new(seed, number);
    let sum: f64 = (0..values.len()).map(|at| values[stream.below(at as u64, values.len())]).sum();
    sum / values.len() as f64
}

/// z0: how far the resamples' median lies from the estimate. Ties, frequent with few distinct values, count
/// half.
fn bias(means: &[f64], value: f64) -> f64 {
    let near = 1e-12 * (1.0 + value.abs());
    let below = means.iter().filter(|mean| **mean < value - near).count() as f64;
    let equal = means.iter().filter(|mean| (**mean - value).abs() <= near).count() as f64;
    let total = means.len() as f64;
    normal_quantile(((below + equal / 2.0) / total).clamp(0.5 / total, 1.0 - 0.5 / total))
}

/// The jackknife acceleration of a mean: a sixth of its skewness.
fn acceleration(values: &[f64], value: f64) -> f64 {
    let (mut square, mut cube) = (0.0, 0.0);
    for one in values {
        let distance = one - value;
        square += distance * distance;
        cube += distance * distance * distance;
    }
    if square > 0.0 { cube / (6.0 * square.powf(1.5)) } else { 0.0 }
}

/// Linear interpolation between order statistics.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]
    use super::*;

    #[test]
    fn seeded_and_ordered() {
        let values: Vec<f64> = (0..80).map(|at| f64::from(at * at % 17) / 17.0).collect();
        let one = mean(&values, 1.0, 0.95, 2000, 7);
        assert_eq!(one, mean(&values, 1.0, 0.95, 2000, 7));
        assert_ne!(one, mean(&values, 1.0, 0.95, 2000, 8));
        assert!(one.low < one.value && one.value < one.high);
        let wider = mean(&values, 1.0, 0.99, 2000, 7);
        assert!(wider.low < one.low && one.high < wider.high);
        let deviation = (values.iter().map(|v| (v - one.value).powi(2)).sum::<f64>() / 80.0).sqrt() / 80f64.sqrt();
        assert!((one.high - one.low - 2.0 * 1.96 * deviation).abs() < 0.15 * deviation, "{one:?} {deviation}");
    }

    #[test]
    fn no_spread_is_no_certainty() {
        let same = mean(&[0.0; 48], 1.0, 0.95, 1000, 1);
        assert!(same.low < -0.05 && same.high > 0.05 && same.value == 0.0, "{same:?}");
        let ones = mean(&[1.0; 48], 1.0, 0.95, 1000, 1);
        assert!(ones.high == 1.0 && ones.low < 0.95, "{ones:?}");
        assert_eq!(mean(&[], 1.0, 0.95, 10, 1), Interval { value: 0.0, low: -1.0, high: 1.0 });
    }
}
