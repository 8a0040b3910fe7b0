//! What a family of tests is corrected by.

use super::{benjamini_hochberg, holm};
use s3_config::Correction;

/// Corrected p-values, in the given order.
pub fn adjust(by: Correction, p_values: &[f64]) -> Vec<f64> {
    match by {
        Correction::None => p_values.to_vec(),
        Correction::Holm => holm::adjust(p_values),
        Correction::BenjaminiHochberg => benjamini_hochberg::adjust(p_values),
    }
}

/// As tables name it.
pub fn name(by: Correction) -> &'static str {
    match by {
        Correction::None => "uncorrected",
        Correction::Holm => "Holm",
        Correction::BenjaminiHochberg => "Benjamini–Hochberg",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_its_own() {
        let p = [0.01, 0.04, 0.03];
        assert_eq!(adjust(Correction::None, &p), p);
        assert_eq!(adjust(Correction::Holm, &p), holm::adjust(&p));
        assert_eq!(adjust(Correction::BenjaminiHochberg, &p), benjamini_hochberg::adjust(&p));
        assert!(adjust(Correction::Holm, &p)[0] > adjust(Correction::BenjaminiHochberg, &p)[0] - 1e-12);
    }
}
