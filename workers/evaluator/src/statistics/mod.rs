//! Confidence intervals and paired tests, pure and seeded.
//!
//! * Proportions (accuracy, exact match): Wilson score intervals ([`wilson`]).
//! * Means of paired values (gain beyond RAG, F1): bias-corrected and accelerated (`BCa`) bootstrap over
//!   questions ([`bootstrap`]).
//! * Two arms on the same questions: exact `McNemar` test ([`mcnemar`]), corrected over the family of
//!   comparisons ([`correction`]: Holm's method, or Benjamini and Hochberg's).
//! * Before a run: the smallest difference it can be expected to find ([`detectable`]).

pub mod benjamini_hochberg;
pub mod bootstrap;
pub mod correction;
pub mod detectable;
pub mod holm;
pub mod mcnemar;
pub mod percentiles;
mod random;
pub mod wilson;

use serde::{Deserialize, Serialize};

/// An estimate with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The quantile of the standard normal distribution.
fn normal_quantile(p: f64) -> f64 {
    use statrs::distribution::ContinuousCDF;
    statrs::distribution::Normal::standard().inverse_cdf(p)
}

/// The distribution function of the standard normal distribution.
fn normal_cdf(x: f64) -> f64 {
    use statrs::distribution::ContinuousCDF;
    statrs::distribution::Normal::standard().cdf(x)
}

#[cfg(test)]
mod simulation;
