//! The catalogue page: every model at hand on one row, made from compliance reports and the JSON
//! of baselines. What a baseline lacks is not measured, and says so.

use super::render::{NOT_MEASURED, number, projection, text, text_of};
use super::{ComplianceReport, HardwareProfile};
use crate::baseline::SCHEMA_VERSION;
use aios_contract::requirements::{Finding, Measure, Requirement, Value, Verdict};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// How much of a reason is shown, in characters.
const REASON_CHARS_MAX: usize = 400;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Something else, or a baseline of a version that this program does not write.
    #[error("no baseline of schema {SCHEMA_VERSION}, as aios baseline writes it")]
    NoBaseline,
    /// A baseline cannot be read.
    #[error("not a baseline: {0}")]
    Baseline(#[from] serde_json::Error),
    /// Two baselines are of one model.
    #[error("two baselines are of the model with SHA-256 {0:?}; give one of them")]
    TwoBaselines(String),
    /// Two reports are of one model and one hardware profile.
    #[error("two compliance reports are of {0:?}; give one of them")]
    TwoReports(String),
    /// Real and synthetic figures would stand on one row.
    #[error("the baseline of {0:?} is of synthetic weights and the report is not, or the reverse")]
    MixedWeights(String),
}

/// What the page takes from a baseline: MB of DRAM read per token and speed, where they were
/// measured and whether they are steady. Other fields are not looked at.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Baseline {
    schema_version: Option<u32>,
    model: BaselineModel,
    synthetic: Option<bool>,
    processor: Option<String>,
    environment: Option<BaselineEnvironment>,
    passes: Option<bool>,
    #[serde(default)]
    failures: Vec<String>,
    mb_per_token: Option<BytesPerToken>,
    tokens_per_s: Option<Mean>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct BaselineModel {
    sha256: String,
    synthetic: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct BaselineEnvironment {
    version: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct BytesPerToken {
    counted: Option<Mean>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Mean {
    mean: Option<f64>,
}

impl Baseline {
    /// Reads the JSON of a baseline.
    ///
    /// # Errors
    /// [`CatalogError::NoBaseline`], [`CatalogError::Baseline`].
    pub fn from_json(text: &str) -> Result<Self, CatalogError> {
        let baseline: Self = serde_json::from_str(text)?;
        // Another report with a model and a version has no such figures.
        let whole = baseline.mb_per_token.is_some() && baseline.tokens_per_s.is_some();
        let same = baseline.schema_version == Some(SCHEMA_VERSION);
        if whole && same { Ok(baseline) } else { Err(CatalogError::NoBaseline) }
    }

    /// Whether its weights are synthetic, where it says so, for the whole or of the model.
    fn is_synthetic(&self) -> Option<bool> {
        self.synthetic.or(self.model.synthetic)
    }

    fn counted_mb(&self) -> Option<f64> {
        self.mb_per_token.as_ref()?.counted.as_ref()?.mean.filter(|mean| mean.is_finite())
    }

    fn tokens_per_s(&self) -> Option<f64> {
        self.tokens_per_s.as_ref()?.mean.filter(|mean| mean.is_finite())
    }

    fn version(&self) -> Option<&str> {
        self.environment.as_ref()?.version.as_deref()
    }

    /// Whether it says that it did not pass.
    fn is_unsteady(&self) -> bool {
        self.passes == Some(false)
    }
}

/// The catalogue page of `reports`, in Markdown: models of real weights first, by size.
///
/// # Errors
/// [`CatalogError`].
pub fn catalog(
    reports: &[ComplianceReport],
    baselines: &[Baseline],
) -> Result<String, CatalogError> {
    let baselines = by_digest(baselines)?;
    let mut reports: Vec<&ComplianceReport> = reports.iter().collect();
    reports.sort_by(|a, b| key(a).cmp(&key(b)));
    for pair in reports.windows(2) {
        if key(pair[0]) == key(pair[1]) {
            return Err(CatalogError::TwoReports(pair[0].model.name.clone()));
        }
    }
    let mut page = String::from(HEAD);
    for synthetic in [false, true] {
        let own = reports.iter().filter(|report| report.synthetic == synthetic);
        let rows = own
            .map(|report| row(report, baselines.get(report.model.sha256.as_str()).copied()))
            .collect::<Result<Vec<_>, _>>()?;
        if !rows.is_empty() {
            page += if synthetic { SYNTHETIC } else { REAL };
            page += TABLE_HEAD;
            page.extend(rows);
        }
    }
    page += &unsteady(&reports, &baselines);
    page += CONFIGURATIONS;
    for report in &reports {
        let _ = writeln!(page, "| {} |", configuration(report));
    }
    Ok(page)
}

const HEAD: &str = "\
# Models and the Model Contract

Generated from compliance reports and baselines; do not edit. SPEC.md, chapter R, says what each
requirement asks for. *Unknown* is not a pass. Reductions are the contract's projections for a
tier, not measurements; what the exact levers save here, by counted bytes, stands beside them, 0 %
where no lever had anything to save with. MB per token are counted: weights and cache that a
decoded token reads. Tokens per second are of the machine and the version of aios on the row.
";

const REAL: &str = "\n## Trained models\n\n";
const SYNTHETIC: &str = "\n## Synthetic models\n
Random weights of published shapes: sizes and bytes are meant, answers are not.\n\n";

const TABLE_HEAD: &str = "\
| model | file, MB | tier | R1 | R2 | R3 | R4 | R5 | reduction, projected | reduction, counted \
| MB per token | tokens per s | machine | aios |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

const UNSTEADY: &str = "\n## Baselines that did not pass\n
Their figures are not steady enough to be compared with others.\n\n";

/// What marks a row of [`UNSTEADY`].
const UNSTEADY_MARK: &str = " (did not pass)";

const CONFIGURATIONS: &str = "
## Recommended configurations

| model | hardware | options | weights come from | cache, MB |
|---|---|---|---|---|
";

/// What the page is sorted by, and what must be unique.
fn key(report: &ComplianceReport) -> (u64, &str, &str, &str) {
    let model = &report.model;
    (model.bytes, &model.name, &model.sha256, &report.hardware.name)
}

fn by_digest(baselines: &[Baseline]) -> Result<BTreeMap<&str, &Baseline>, CatalogError> {
    let mut found = BTreeMap::new();
    for baseline in baselines {
        let digest = baseline.model.sha256.as_str();
        if found.insert(digest, baseline).is_some() {
            return Err(CatalogError::TwoBaselines(digest.to_owned()));
        }
    }
    Ok(found)
}

fn row(report: &ComplianceReport, baseline: Option<&Baseline>) -> Result<String, CatalogError> {
    let mixed = |synthetic: bool| synthetic != report.synthetic;
    if baseline.and_then(Baseline::is_synthetic).is_some_and(mixed) {
        return Err(CatalogError::MixedWeights(report.model.name.clone()));
    }
    let shown = |value: Option<f64>| match value {
        Some(value) => number((value * 100.0).round() / 100.0),
        None => NOT_MEASURED.to_owned(),
    };
    let mut row = format!(
        "| {} | {} | {} |",
        text(&report.model.name),
        shown(Some(report.model.bytes as f64 / 1e6)),
        report.tier.name()
    );
    for requirement in Requirement::ALL {
        row += &format!(" {} |", cell(report, requirement));
    }
    let reduction = match &report.measured_reduction {
        Some(reduction) => format!("{} %", shown(Some(reduction.percent))),
        None => NOT_MEASURED.to_owned(),
    };
    let named = |of: Option<&str>| match (baseline, of) {
        (_, Some(name)) => text(name),
        (Some(_), None) => "unknown".to_owned(),
        (None, None) => NOT_MEASURED.to_owned(),
    };
    row += &format!(
        " {} | {reduction} | {} | {}{} | {} | {} |\n",
        projection(report.projected_reduction),
        shown(baseline.and_then(Baseline::counted_mb)),
        shown(baseline.and_then(Baseline::tokens_per_s)),
        if baseline.is_some_and(Baseline::is_unsteady) { UNSTEADY_MARK } else { "" },
        named(baseline.and_then(|baseline| baseline.processor.as_deref())),
        named(baseline.and_then(Baseline::version)),
    );
    Ok(row)
}

/// Why baselines of `reports` did not pass, each model once; empty if all did.
fn unsteady(reports: &[&ComplianceReport], baselines: &BTreeMap<&str, &Baseline>) -> String {
    let mut section = String::new();
    let mut told = BTreeSet::new();
    for model in reports.iter().map(|report| &report.model) {
        let Some(baseline) = baselines.get(model.sha256.as_str()) else { continue };
        if baseline.is_unsteady() && told.insert(&model.sha256) {
            let reasons: Vec<String> =
                baseline.failures.iter().map(|reason| text_of(reason, REASON_CHARS_MAX)).collect();
            let _ = writeln!(section, "- {}: {}", text(&model.name), reasons.join("; "));
        }
    }
    if section.is_empty() { section } else { format!("{UNSTEADY}{section}") }
}

/// The verdict on a requirement, and the number that it rests on if there is one.
fn cell(report: &ComplianceReport, requirement: Requirement) -> String {
    let own = report.findings.iter().find(|finding| finding.requirement == requirement);
    let Some(finding) = own else { return Verdict::Unknown.name().to_owned() };
    let verdict = finding.verdict.name();
    match deciding(finding) {
        Some((amount, "")) if requirement == Requirement::R1 => {
            format!("{verdict} ({} zeros)", rounded(amount))
        }
        Some((amount, "")) => format!("{verdict} ({})", rounded(amount)),
        Some((amount, unit)) => format!("{verdict} ({} {})", rounded(amount), text(unit)),
        None => verdict.to_owned(),
    }
}

fn rounded(amount: f64) -> String {
    number((amount * 1000.0).round() / 1000.0)
}

/// The first number of a finding with a unit, or else the first one.
fn deciding(finding: &Finding) -> Option<(f64, &str)> {
    let numbers = finding.measures.iter().filter_map(|measure: &Measure| match measure.value {
        Some(Value::Number(amount)) => Some((amount, measure.unit.as_str())),
        _ => None,
    });
    let numbers: Vec<_> = numbers.collect();
    numbers.iter().find(|(_, unit)| !unit.is_empty()).or(numbers.first()).copied()
}

fn configuration(report: &ComplianceReport) -> String {
    let advice = &report.recommended;
    let HardwareProfile { name, assumed, .. } = &report.hardware;
    let assumed = if *assumed { " (assumed)" } else { "" };
    let from = advice.weights_from.map_or("unknown", super::WeightsFrom::name);
    let reserved = number((advice.cache_reserved_bytes as f64 / 1e4).round() / 100.0);
    format!(
        "{} | {}{assumed} | {} | {from} | {reserved}",
        text(&report.model.name),
        text(name),
        text(&advice.options)
    )
}
