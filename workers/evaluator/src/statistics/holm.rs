//! Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979): keeps the chance of any false
//! claim in a family of tests below the level.

/// Adjusted p-values, in the given order: compare each with the level.
pub fn adjust(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]).then(a.cmp(b)));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut running: f64 = 0.0;
    for (rank, at) in order.into_iter().enumerate() {
        let factor = (p_values.len() - rank) as f64;
        running = running.max((factor * p_values[at]).min(1.0));
        adjusted[at] = running;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // sorted .005 .01 .03 .04 -> 4×.005, 3×.01, 2×.03, then .04 is lifted to .06
        let found = adjust(&[0.01, 0.04, 0.03, 0.005]);
        for (found, wanted) in found.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
        assert_eq!(adjust(&[0.6, 0.9]), [1.0, 1.0]);
        assert!(adjust(&[]).is_empty());
    }
}
