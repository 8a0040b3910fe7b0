//! Benjamini and Hochberg's step-up correction (JRSS B 57, 1995): keeps the expected share of false claims among
//! all claims below the level.

/// Adjusted p-values, in the given order: compare each with the level.
pub fn adjust(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*b].total_cmp(&p_values[*a]).then(b.cmp(a)));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut running: f64 = 1.0;
    for (from_top, at) in order.into_iter().enumerate() {
        let rank = (p_values.len() - from_top) as f64;
        running = running.min(p_values[at] * p_values.len() as f64 / rank);
        adjusted[at] = running;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // sorted .005 .01 .03 .04 -> 4/1×.005, 4/2×.01, 4/3×.03, 4/4×.04, then each at most the next
        let found = adjust(&[0.01, 0.04, 0.03, 0.005]);
        for (found, wanted) in found.iter().zip([0.02, 0.04, 0.04, 0.02]) {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
        assert!(adjust(&[]).is_empty());
    }
}
