//! How often two distributions choose the same token.

/// The chances that a token which one distribution chooses is what another does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// If both add the same Gumbel noise to the logarithms of their probabilities, and take the
    /// largest sum: Σᵢ 1 / Σⱼ max(pⱼ/pᵢ, qⱼ/qᵢ).
    pub shared_noise: f64,
    /// By speculative sampling: Σ min(p, q), the most that is possible.
    pub speculative: f64,
}

impl Overlap {
    /// Of two distributions, each a list of tokens and their probabilities.
    pub fn of(p: &[(u32, f64)], q: &[(u32, f64)]) -> Self {
        // Ids are below the size of a vocabulary.
        let ids = p.iter().chain(q).map(|&(id, _)| id as usize + 1).max().unwrap_or(0);
        let mut both = vec![(0.0, 0.0); ids];
        p.iter().for_each(|&(id, share)| both[id as usize].0 += share);
        q.iter().for_each(|&(id, share)| both[id as usize].1 += share);
        both.retain(|&(p, q)| p + q > 0.0);
        let speculative = both.iter().map(|&(p, q): &(f64, f64)| p.min(q)).sum();
        // Among tokens that p favours more than the i-th, pⱼ/pᵢ is the larger; among the others,
        // qⱼ/qᵢ. So in the order of p/q two running sums are all that is needed.
        both.sort_unstable_by(|a, b| (b.0 / b.1).total_cmp(&(a.0 / a.1)));
        let mut p_before = 0.0;
        let mut q_behind: f64 = both.iter().map(|&(_, q)| q).sum();
        let mut shared_noise = 0.0;
        for (p, q) in both {
            p_before += p;
            q_behind = (q_behind - q).max(0.0);
            if p > 0.0 && q > 0.0 {
                shared_noise += 1.0 / (p_before / p + q_behind / q);
            }
        }
        Self { shared_noise, speculative }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(shares: &[f64]) -> Vec<(u32, f64)> {
        (0..).zip(shares.iter().copied()).filter(|one| one.1 > 0.0).collect()
    }

    /// The formula word by word.
    fn literally(p: &[f64], q: &[f64]) -> f64 {
        let term = |i: usize| {
            let sum: f64 = (0..p.len()).map(|j| (p[j] / p[i]).max(q[j] / q[i])).sum();
            1.0 / sum
        };
        (0..p.len()).filter(|&i| p[i] > 0.0 && q[i] > 0.0).map(term).sum()
    }

    #[test]
    fn chances_are_those_of_the_formula() {
        for (p, q) in [
            (vec![0.5, 0.3, 0.2], vec![0.5, 0.3, 0.2]),
            (vec![0.7, 0.2, 0.1], vec![0.1, 0.2, 0.7]),
            (vec![0.6, 0.4, 0.0], vec![0.0, 0.5, 0.5]),
            (vec![1.0, 0.0], vec![0.0, 1.0]),
            (vec![0.25; 4], vec![0.1, 0.2, 0.3, 0.4]),
        ] {
            let found = Overlap::of(&list(&p), &list(&q));
            let apart: f64 = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
            assert!((found.speculative - (1.0 - apart)).abs() < 1e-12, "{p:?} {q:?}");
            assert!((found.shared_noise - literally(&p, &q)).abs() < 1e-12, "{p:?} {q:?}");
            // The bounds of Daliri, Musco and Suresh.
            assert!(found.shared_noise <= 1.0 - apart + 1e-12);
            assert!(found.shared_noise >= (1.0 - apart) / (1.0 + apart) - 1e-12);
        }
    }
}
