//! What the measurements come to: for each lever the bytes of a token saved, and a sentence.

use super::cache::ScoredCache;
use super::report::Parts;
use super::scores::{Cost, Skip};
use super::sparsity::Curve;
use super::{activations, lookup};
use serde::Serialize;

/// The KL divergence, in nats, that counts as a small loss.
pub const KL_MAX: f64 = 0.001;
/// The perplexity, over that of the unmodified run, that counts as a small loss.
pub const PERPLEXITY_RATIO_MAX: f64 = 1.005;
/// A part of the neurons below which skipping them is as good as nothing.
const NOTHING: f64 = 0.001;

/// A way to read fewer bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeverName {
    /// Neighbouring layers share blocks that are nearly equal.
    Aliasing,
    /// Blocks and rows that are stored twice are read once.
    Duplicates,
    /// Columns of the down projection whose neuron is 0 are not read.
    FfnZeros,
    /// Neurons whose gate is small are not computed.
    GateFirst,
    /// Columns of the down projection that would add little are not read.
    DownSkip,
    /// Neurons that added little on the calibration prompts are never computed.
    StaticMap,
    /// A sketch of the head decides which of its rows are read.
    Head,
    /// Keys and values are kept in 8 bits.
    Cache,
    /// Tokens found in the text so far are verified together.
    Lookup,
}

/// Bytes of a token that a lever saves. A figure that was not measured is `None`.
///
/// The savings do not add up: two levers may save the same bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Lever {
    /// Which.
    pub name: LeverName,
    /// The bytes that it works on.
    pub at_stake: u64,
    /// Saved with no bit of the logits changed.
    pub saved_no_loss: Option<u64>,
    /// Saved at a mean KL below [`KL_MAX`], its standard error added.
    pub saved_kl_0_001: Option<u64>,
    /// Saved at a perplexity of at most [`PERPLEXITY_RATIO_MAX`] times that of the unmodified run,
    /// the ratio's standard error added.
    pub saved_perplexity_0_5_percent: Option<u64>,
    /// What this means, in a sentence.
    pub verdict: String,
}

/// Weight bytes that a token reads, as the levers need them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenBytes {
    /// All of them.
    pub total: u64,
    /// The attention's matrices.
    pub attention: u64,
    /// The feed-forward matrices.
    pub ffn: u64,
    /// The up projections, which the feed-forward bytes include.
    pub up: u64,
    /// The down projections, which the feed-forward bytes include.
    pub down: u64,
    /// The head.
    pub head: u64,
}

impl LeverName {
    /// The name in reports.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Aliasing => "aliasing",
            Self::Duplicates => "duplicates",
            Self::FfnZeros => "FFN zeros",
            Self::GateFirst => "gate-first skip",
            Self::DownSkip => "down-projection skip",
            Self::StaticMap => "static map",
            Self::Head => "screened head",
            Self::Cache => "q8_0 cache",
            Self::Lookup => "speculation by look-up",
        }
    }
}

/// Whether a divergence is small, its standard error counted against it.
fn small_kl(cost: &Cost) -> bool {
    cost.kl + cost.kl_standard_error < KL_MAX
}

/// Whether the perplexity is as good as kept, its standard error counted against it: what a small
/// sample cannot show is not claimed.
fn small_perplexity(cost: &Cost) -> bool {
    cost.perplexity_ratio + cost.perplexity_ratio_standard_error <= PERPLEXITY_RATIO_MAX
}

/// All levers.
pub(super) fn levers(bytes: &TokenBytes, parts: &Parts) -> Vec<Lever> {
    let mut list = vec![aliasing(bytes, parts), duplicates(bytes, parts), zeros(bytes, parts)];
    list.extend(parts.sparsity.curves.iter().map(|curve| skip(bytes, curve)));
    list.extend([head(bytes, parts), cache(parts), lookup(bytes, parts)]);
    list
}

/// The same saving whatever loss is allowed.
fn lossless(name: LeverName, at_stake: u64, saved: u64, verdict: String) -> Lever {
    let saved = Some(saved);
    Lever {
        name,
        at_stake,
        saved_no_loss: saved,
        saved_kl_0_001: saved,
        saved_perplexity_0_5_percent: saved,
        verdict,
    }
}

fn aliasing(bytes: &TokenBytes, parts: &Parts) -> Lever {
    let similarity = &parts.similarity;
    let at_stake = bytes.attention + bytes.ffn;
    let alike = similarity.alike_bytes;
    let verdict = similarity.verdict();
    if alike == 0 {
        return lossless(LeverName::Aliasing, at_stake, 0, verdict);
    }
    Lever {
        saved_kl_0_001: None,
        saved_perplexity_0_5_percent: None,
        ..lossless(LeverName::Aliasing, alike, 0, verdict)
    }
}

fn duplicates(bytes: &TokenBytes, parts: &Parts) -> Lever {
    let found = &parts.duplicates;
    let (small, rows) = (found.blocks[0], found.head_rows);
    let saved = small.read_bytes + rows.bytes;
    let what = format!(
        "{} of {} blocks of 4 KB occur twice, and {} of the head's {} rows",
        small.repeated, small.blocks, rows.repeated, rows.rows
    );
    let verdict = if saved == 0 {
        format!("give nothing: {what}")
    } else {
        format!("save at most {} a token: {what}", part(saved, bytes.total))
    };
    lossless(LeverName::Duplicates, bytes.total, saved, verdict)
}

fn zeros(bytes: &TokenBytes, parts: &Parts) -> Lever {
    let zeros = &parts.activations;
    // What is 0 once quantised adds nothing to an integer sum.
    let fraction = zeros.mean_quantised_zero_fraction.unwrap_or(zeros.mean_zero_fraction);
    let saved = share(bytes.down, fraction);
    let exact = percent(zeros.mean_zero_fraction);
    let verdict = match zeros.mean_quantised_zero_fraction {
        _ if saved == 0 => format!("give nothing: {exact} of the inner values are 0"),
        None => format!(
            "save {} a token: {exact} of the inner values are exactly 0, and their columns of the \
             down projection add nothing",
            part(saved, bytes.total)
        ),
        Some(quantised) => format!(
            "save {} a token: {exact} of the inner values are exactly 0, {} once quantised, and \
             their columns of the down projection add nothing. It asks for a down projection \
             stored by columns",
            part(saved, bytes.total),
            percent(quantised)
        ),
    };
    lossless(LeverName::FfnZeros, bytes.down, saved, verdict)
}

fn skip(bytes: &TokenBytes, curve: &Curve) -> Lever {
    let (name, at_stake) = match curve.skip {
        Skip::GateFirst => (LeverName::GateFirst, bytes.up + bytes.down),
        Skip::Down => (LeverName::DownSkip, bytes.down),
        Skip::Static => (LeverName::StaticMap, bytes.ffn),
    };
    // The last point up to which every one is good: later luck is none.
    let best = |good: fn(&Cost) -> bool| {
        let last = curve.points.iter().take_while(|point| good(&point.cost)).last();
        last.map_or(curve.zero_fraction, |point| point.sparsity.max(curve.zero_fraction))
    };
    let (by_kl, by_perplexity) = (best(small_kl), best(small_perplexity));
    let saved = |fraction| Some(share(at_stake, fraction));
    let least = curve.points.first();
    let at = |fraction: f64| part(share(at_stake, fraction), bytes.total);
    let verdict = match least {
        Some(least) if by_kl < NOTHING => format!(
            "gives nothing at a KL below {KL_MAX}: the least that was tried, {} of the neurons, \
             costs {:.4}. It saves {} at a perplexity of + 0.5 % ({})",
            percent(least.sparsity),
            least.cost.kl,
            at(by_perplexity),
            percent(by_perplexity)
        ),
        _ => format!(
            "saves {} a token at a KL below {KL_MAX} ({} of the neurons), {} at a perplexity of \
             + 0.5 % ({})",
            at(by_kl),
            percent(by_kl),
            at(by_perplexity),
            percent(by_perplexity)
        ),
    };
    Lever {
        name,
        at_stake,
        saved_no_loss: saved(curve.zero_fraction),
        saved_kl_0_001: saved(by_kl),
        saved_perplexity_0_5_percent: saved(by_perplexity),
        verdict,
    }
}

fn head(bytes: &TokenBytes, parts: &Parts) -> Lever {
    let read = parts.head.and_then(|head| Some((head, head.bytes_per_token()?)));
    if let Some((head, read)) = read {
        let saved = bytes.head.saturating_sub(read);
        let whole = format!("whole for {} of {} tokens", head.whole, head.tokens);
        let verdict = match saved {
            0 => format!("gives nothing: sketch and rows are no less than the head, {whole}"),
            _ => format!(
                "saves {} a token decoded greedily: {} of the head's bytes are read, {whole}",
                part(saved, bytes.total),
                percent(read as f64 / bytes.head.max(1) as f64)
            ),
        };
        return lossless(LeverName::Head, bytes.head, saved, verdict);
    }
    Lever {
        name: LeverName::Head,
        at_stake: bytes.head,
        saved_no_loss: None,
        saved_kl_0_001: None,
        saved_perplexity_0_5_percent: None,
        verdict: format!(
            "is not measured without a plan that has sketches of it (`aios profile`): the head is \
             {} of a token's weight bytes",
            part(bytes.head, bytes.total)
        ),
    }
}

fn cache(parts: &Parts) -> Lever {
    cache_at(&parts.sparsity.scored_cache, parts.sparsity.q8_0_cache)
}

/// The bytes are those of the positions at which the cost was scored: what a longer context would
/// save is another figure, at a cost that is not known.
fn cache_at(scored: &ScoredCache, cost: Option<Cost>) -> Lever {
    let ScoredCache { positions, f16, q8_0 } = *scored;
    let saving = q8_0.map_or(0, |q8_0| f16.saturating_sub(q8_0));
    let if_good = |good: fn(&Cost) -> bool| cost.as_ref().map(|c| if good(c) { saving } else { 0 });
    let verdict = match (q8_0, cost) {
        (None, _) => "is not possible: the heads are no whole blocks of 32 elements".to_owned(),
        (_, None) => "is not measured: the unmodified run has one".to_owned(),
        (Some(_), Some(cost)) => {
            let costs =
                format!("costs a KL of {:.5} (perplexity × {:.4})", cost.kl, cost.perplexity_ratio);
            let depth = format!("the {positions:.0} positions that were scored on average");
            if small_kl(&cost) {
                format!("saves {} a token at {depth} and {costs}", megabytes(saving))
            } else {
                format!("gives nothing at a KL below {KL_MAX}: at {depth} it {costs}")
            }
        }
    };
    Lever {
        name: LeverName::Cache,
        at_stake: f16,
        saved_no_loss: Some(0),
        saved_kl_0_001: if_good(small_kl),
        saved_perplexity_0_5_percent: if_good(small_perplexity),
        verdict,
    }
}

fn lookup(bytes: &TokenBytes, parts: &Parts) -> Lever {
    let rates = parts.lookup.drafts.iter().filter_map(|d| Some((d.draft, d.tokens_per_pass()?)));
    let Some((draft, rate)) = rates.max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Lever {
            saved_no_loss: None,
            saved_kl_0_001: None,
            saved_perplexity_0_5_percent: None,
            ..lossless(
                LeverName::Lookup,
                bytes.total,
                0,
                "is not measured: no continuation has two tokens".to_owned(),
            )
        };
    };
    let saved = share(bytes.total, 1.0 - 1.0 / rate);
    let per_pass = format!("{rate:.2} tokens a pass with {draft} proposed by {}", lookup::NGRAM);
    let verdict = if saved == 0 {
        format!("gives nothing: {per_pass} tokens of context")
    } else {
        format!("saves {} a token: {per_pass} tokens of context", part(saved, bytes.total))
    };
    lossless(LeverName::Lookup, bytes.total, saved, verdict)
}

/// A fraction of bytes.
fn share(bytes: u64, fraction: f64) -> u64 {
    (bytes as f64 * fraction.clamp(0.0, 1.0)) as u64
}

pub(super) fn megabytes(bytes: u64) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        2..1_000 => format!("{bytes} bytes"),
        1_000..100_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

pub(super) fn percent(fraction: f64) -> String {
    let percent = 100.0 * fraction;
    let digits = match percent.abs() {
        size if size >= 0.95 || size == 0.0 => 1,
        size if size >= 0.095 => 2,
        _ => 3,
    };
    format!("{percent:.digits$} %")
}

fn part(bytes: u64, of: u64) -> String {
    format!("{} ({})", megabytes(bytes), percent(bytes as f64 / of.max(1) as f64))
}

/// What the active sets say about keeping neurons near.
pub(super) fn stability(zeros: &activations::Zeros) -> String {
    let Some(jaccard) = zeros.mean_jaccard else {
        return "The active sets were not compared: no prompt has two tokens.".to_owned();
    };
    let chance = zeros.chance_jaccard;
    let keeps = if jaccard < 0.5 { "The active set moves" } else { "The active set stays" };
    format!(
        "{keeps}: the {} of the neurons with the largest magnitudes and those of the next token \
         have a Jaccard index of {jaccard:.2}, where chance gives {chance:.2}.",
        percent(zeros.active)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headroom::sparsity::Point;

    fn cost(kl: f64, perplexity_ratio: f64) -> Cost {
        Cost {
            positions: 10,
            kl,
            kl_standard_error: 0.0,
            kl_median: kl,
            kl_top_percent: 0.1,
            kl_opening: None,
            kl_later: Some(kl),
            perplexity_ratio,
            perplexity_ratio_standard_error: 0.0,
            base_perplexity: 9.0,
        }
    }

    #[test]
    fn what_the_sample_does_not_show_is_not_claimed() {
        let sure = cost(0.0009, 1.004);
        assert!(small_kl(&sure) && small_perplexity(&sure));
        let error = 0.002;
        let unsure = Cost { perplexity_ratio_standard_error: error, ..sure };
        assert!(small_kl(&unsure) && !small_perplexity(&unsure));
        assert!(!small_kl(&Cost { kl_standard_error: error, ..sure }));
    }

    fn curve(skip: Skip, points: &[(f64, f64, f64)]) -> Curve {
        let point =
            |&(sparsity, kl, ratio)| Point { target: sparsity, sparsity, cost: cost(kl, ratio) };
        Curve { skip, zero_fraction: 0.0, points: points.iter().map(point).collect() }
    }

    #[test]
    fn a_skip_saves_up_to_the_last_good_point() {
        let bytes = TokenBytes { total: 4000, up: 1000, down: 500, ..TokenBytes::default() };
        let points = [(0.1, 0.0005, 1.0), (0.2, 0.002, 1.004), (0.3, 0.0001, 1.2)];
        let down = skip(&bytes, &curve(Skip::Down, &points));
        assert_eq!((down.at_stake, down.saved_no_loss), (500, Some(0)));
        assert_eq!(down.saved_kl_0_001, Some(50));
        assert_eq!(down.saved_perplexity_0_5_percent, Some(100));
        let gate = skip(&bytes, &curve(Skip::GateFirst, &points[1..]));
        assert_eq!((gate.at_stake, gate.saved_kl_0_001), (1500, Some(0)));
        assert_eq!(gate.saved_perplexity_0_5_percent, Some(300));
        let wanted = "gives nothing at a KL below 0.001: the least that was tried, 20.0 %";
        assert!(gate.verdict.starts_with(wanted), "{}", gate.verdict);
    }

    #[test]
    fn a_cache_is_priced_at_the_positions_that_were_scored() {
        let scored = ScoredCache { positions: 64.4, f16: 64_000, q8_0: Some(34_000) };
        let good = cache_at(&scored, Some(cost(0.0001, 1.2)));
        assert_eq!((good.at_stake, good.saved_no_loss), (64_000, Some(0)));
        assert_eq!(
            (good.saved_kl_0_001, good.saved_perplexity_0_5_percent),
            (Some(30_000), Some(0))
        );
        let wanted = "saves 30.0 KB a token at the 64 positions that were scored on average";
        assert!(good.verdict.starts_with(wanted), "{}", good.verdict);
        let bad = cache_at(&scored, Some(cost(0.01, 1.0)));
        assert_eq!(bad.saved_kl_0_001, Some(0));
        assert!(bad.verdict.contains("at the 64 positions"), "{}", bad.verdict);
        assert_eq!(cache_at(&scored, None).saved_kl_0_001, None);
        let none = cache_at(&ScoredCache { q8_0: None, ..scored }, None);
        assert!(none.verdict.starts_with("is not possible"), "{}", none.verdict);
    }

    #[test]
    fn figures_for_people() {
        assert_eq!((megabytes(0), megabytes(2_340_000)), ("0.0 MB".into(), "2.3 MB".into()));
        assert_eq!((megabytes(34_560), megabytes(12)), ("34.6 KB".into(), "12 bytes".into()));
        assert_eq!(
            (percent(0.0), percent(0.302), percent(0.0004)),
            ("0.0 %".into(), "30.2 %".into(), "0.040 %".into())
        );
    }
}
