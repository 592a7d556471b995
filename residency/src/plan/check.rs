//! What a manifest must be that its types cannot say: numbers that the profiler can have written.

use super::manifest::{Manifest, Quality, ScreenReport, ThresholdReport};
use super::{AHEAD_MOST, POSITIONS_MOST, TableKind};

/// By how much a divergence may be below 0, for its roundings.
const ROUNDINGS: f64 = 1e-9;

/// Checks them.
///
/// # Errors
/// What is wrong.
pub(super) fn check(manifest: &Manifest) -> Result<(), &'static str> {
    if manifest.prefetch.is_some_and(|prefetch| prefetch.ahead > AHEAD_MOST) {
        return Err("weights are not asked for so far ahead of their use");
    }
    let ffn = manifest.ffn.as_ref();
    if ffn.is_some_and(|ffn| ffn.down_of_ten.max(ffn.up_of_ten) > 10) {
        return Err("more than ten tenths of the neurons are a limit");
    }
    let most = |screen: &ScreenReport| (screen.positions_most, screen.top_40_positions_most);
    let (most, of_40) = manifest.screen.as_ref().map_or((1, 0), most);
    if !(1..=POSITIONS_MOST).contains(&most) || of_40 > POSITIONS_MOST {
        return Err("no head is screened for so many positions of a pass, or for none");
    }
    if !figures(manifest).into_iter().all(is_amount) {
        return Err("a time or a part in it is below 0, or no number");
    }
    let thresholds = |kind: &str| kind == TableKind::FfnThresholds.name();
    let lossy =
        manifest.threshold.is_some() || manifest.tables.iter().any(|table| thresholds(&table.kind));
    if lossy && manifest.quality == Quality::Exact {
        return Err("an exact plan has no thresholds");
    }
    manifest.threshold.as_ref().map_or(Ok(()), |threshold| of_thresholds(threshold, manifest))
}

/// Whether `x` is a time or a part of something.
fn is_amount(x: f64) -> bool {
    x.is_finite() && x >= 0.0
}

/// All times and parts, but those of thresholds.
fn figures(manifest: &Manifest) -> Vec<f64> {
    let mut list = Vec::new();
    if let Some(ScreenReport { along, greedy, top_40, times, .. }) = &manifest.screen {
        list.extend([*along, greedy.fraction, top_40.fraction]);
        list.extend(times.iter().flat_map(|times| [times.whole_ms, times.screened_ms]));
    }
    if let Some(ffn) = &manifest.ffn {
        list.extend([ffn.zero_fraction, ffn.whole_ms, ffn.skipped_ms]);
    }
    if let Some(keep) = &manifest.keep {
        list.extend([keep.simulated_plain, keep.simulated_kept, keep.plain_ms, keep.kept_ms]);
    }
    if let Some(prefetch) = &manifest.prefetch {
        list.extend([prefetch.usual_ms, prefetch.fastest_ms]);
    }
    if let Some(memory) = &manifest.memory {
        list.extend([memory.whole_ms, memory.limited_ms, memory.disk_bytes_per_token]);
    }
    list
}

/// Checks what was measured of thresholds, and that those in force are within the budget.
fn of_thresholds(threshold: &ThresholdReport, manifest: &Manifest) -> Result<(), &'static str> {
    let sound = threshold.tried.iter().all(|point| {
        let amounts = [
            point.target,
            point.kl + ROUNDINGS,
            point.kl_standard_error,
            point.perplexity_ratio_standard_error,
        ];
        let ratio = point.perplexity_ratio;
        amounts.into_iter().all(is_amount) && ratio.is_finite() && ratio > 0.0
    });
    if !sound || !is_amount(threshold.base_perplexity) {
        return Err("a figure of its thresholds is below 0, or no number");
    }
    let Some(chosen) = threshold.chosen else { return Ok(()) };
    let point = threshold.tried.get(chosen).ok_or("the threshold in force was not tried")?;
    match point.is_within(manifest.quality) {
        true => Ok(()),
        false => Err("its thresholds cost more than its quality allows"),
    }
}
