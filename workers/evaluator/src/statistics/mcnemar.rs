//! The exact `McNemar` test: whether two arms are right equally often on the same questions.

use statrs::distribution::{Binomial, DiscreteCDF};

/// The two-sided exact p-value. `wins`: questions that only the first arm gets right, `losses`: only the
/// second. Under no difference `wins` is binomial with one half of the discordant questions.
pub fn p_value(wins: usize, losses: usize) -> f64 {
    let discordant = (wins + losses) as u64;
    if discordant == 0 {
        return 1.0;
    }
    match Binomial::new(0.5, discordant) {
        Ok(binomial) => (2.0 * binomial.cdf(wins.min(losses) as u64)).min(1.0),
        // one half is a probability: this cannot be reached, and claims nothing
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(p_value(0, 0), 1.0);
        assert_eq!(p_value(3, 3), 1.0);
        // 2 * (1 + 5) / 32
        assert!((p_value(1, 4) - 0.375).abs() < 1e-12);
        // 2 / 2^10
        assert!((p_value(10, 0) - 0.001_953_125).abs() < 1e-12);
        assert_eq!(p_value(4, 9), p_value(9, 4));
        let direct = 2.0 * (0..=5).map(|k| choose(20, k)).sum::<f64>() / f64::from(1 << 20);
        assert!((p_value(5, 15) - direct).abs() < 1e-12);
    }

    fn choose(n: u32, k: u32) -> f64 {
        (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product()
    }
}
