//! A compliance report for people (Markdown) and for programs (JSON).

use super::{ComplianceReport, HardwareProfile, SCHEMA};
use aios_contract::requirements::{Bound, Measure, Projection, Value};
use aios_engine::gguf::Escaped;
use serde::Deserialize;
use std::fmt::Write as _;

/// What stands for a value that nobody has measured.
pub(super) const NOT_MEASURED: &str = "not measured";

/// How much of a text from a file is shown, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Appends a line to a page; writing to a string cannot fail.
macro_rules! line {
    ($page:expr, $($text:tt)*) => {
        let _ = writeln!($page, $($text)*);
    };
}

/// Why a report could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is no compliance report.
    #[error("not a compliance report: {0}")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error(
        "a compliance report of schema {0}, this program reads {SCHEMA}: assess the model again"
    )]
    Schema(u64),
}

/// The part of a report that says whether the rest can be read.
#[derive(Deserialize)]
struct Header {
    schema: u64,
}

impl ComplianceReport {
    /// The report as a JSON object, indented.
    ///
    /// # Errors
    /// None that a report of [`super::assess`] could cause.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// Reads a report back.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        let Header { schema } = serde_json::from_str(text)?;
        if schema != u64::from(SCHEMA) {
            return Err(ReportError::Schema(schema));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The report as Markdown.
    pub fn to_markdown(&self) -> String {
        let mut page = String::new();
        self.write_head(&mut page);
        self.write_findings(&mut page);
        self.write_recommended(&mut page);
        page
    }

    fn write_head(&self, page: &mut String) {
        let model = &self.model;
        line!(page, "# Compliance of {}\n", text(&model.name));
        line!(
            page,
            "Model Contract {}; {} MB; SHA-256 `{}`.\n",
            text(&self.contract_version),
            number(model.bytes as f64 / 1e6),
            text(&model.sha256)
        );
        if self.synthetic {
            line!(
                page,
                "**Synthetic weights.** Sizes are those of the published shape; nothing here says \
                 how a trained model behaves.\n"
            );
        }
        line!(
            page,
            "Tier: **{}**. Reduction of DRAM bytes per token: {}; {}.\n",
            self.tier.name(),
            projection(self.projected_reduction),
            measured(self)
        );
    }

    fn write_findings(&self, page: &mut String) {
        line!(page, "| | requirement | measure | value | bound | source | verdict |");
        line!(page, "|---|---|---|---|---|---|---|");
        for finding in &self.findings {
            let (name, title) = (finding.requirement.name(), finding.requirement.title());
            let verdict = finding.verdict.name();
            line!(page, "| **{name}** | {title} | | | | | **{verdict}** |");
            for measure in &finding.measures {
                line!(
                    page,
                    "| | | {} | {} | {} | {} | {} |",
                    text(&measure.what),
                    value(measure),
                    bound(measure),
                    measure.source.name(),
                    measure.verdict.name()
                );
            }
        }
        page.push('\n');
        for finding in &self.findings {
            let evidence = text_of(&finding.evidence, usize::MAX);
            line!(page, "- {}: {evidence}", finding.requirement.name());
        }
    }

    fn write_recommended(&self, page: &mut String) {
        let advice = &self.recommended;
        line!(page, "\n## Recommended configuration\n");
        line!(page, "For {}:\n", hardware(&self.hardware));
        line!(page, "    {}\n", advice.options.escape_debug());
        line!(
            page,
            "- cache: {} MB reserved for {} positions; R2 counts {} MB at 4096 tokens",
            number(advice.cache_reserved_bytes as f64 / 1e6),
            advice.context,
            number(advice.kv_bytes_at_4096 as f64 / 1e6)
        );
        let from = advice.weights_from.map_or("unknown", super::WeightsFrom::name);
        line!(page, "- weights come from: {from}");
        if let Some(bound) = advice.tokens_per_s_at_most {
            let bound = (bound * 10.0).round() / 10.0;
            line!(
                page,
                "- at most {} tokens per second by the streaming read (a projection)",
                number(bound)
            );
        }
        for reason in &advice.reasons {
            line!(page, "- {}", text_of(reason, usize::MAX));
        }
    }
}

fn hardware(profile: &HardwareProfile) -> String {
    let known = |bytes: Option<u64>, unit: f64, name: &str| match bytes {
        Some(bytes) => format!("{} {name}", number(bytes as f64 / unit)),
        None => "unknown".to_owned(),
    };
    let stream = profile.stream_gb_per_s.map_or_else(
        || "streaming read unknown".to_owned(),
        |gb| format!("streaming read {} GB/s", number((gb * 10.0).round() / 10.0)),
    );
    let mib = f64::from(1 << 20);
    format!(
        "{} ({}{} cores, memory {}, L2 {}, last-level cache {}, {stream})",
        text(&profile.name),
        if profile.assumed { "assumed: " } else { "" },
        profile.cores,
        known(profile.memory_bytes, 1e9, "GB"),
        known(profile.l2_bytes, mib, "MiB"),
        known(profile.l3_bytes, mib, "MiB"),
    )
}

/// The words for a projected reduction, which say that it is one.
pub(super) fn projection(projection: Projection) -> String {
    format!("{}–{} % projected", projection.low_percent, projection.high_percent)
}

/// The words for the measured reduction.
fn measured(report: &ComplianceReport) -> String {
    match &report.measured_reduction {
        None => NOT_MEASURED.to_owned(),
        Some(reduction) => {
            let percent = number((reduction.percent * 10.0).round() / 10.0);
            format!("{percent} % measured ({})", text(&reduction.of))
        }
    }
}

fn value(measure: &Measure) -> String {
    match measure.value {
        None => NOT_MEASURED.to_owned(),
        Some(Value::Flag(holds)) => (if holds { "yes" } else { "no" }).to_owned(),
        Some(Value::Number(amount)) => with_unit(amount, &measure.unit),
    }
}

fn bound(measure: &Measure) -> String {
    match measure.bound {
        Bound::Holds => "yes".to_owned(),
        Bound::AtMost(limit) => format!("at most {}", with_unit(limit, &measure.unit)),
        Bound::AtLeast(limit) => format!("at least {}", with_unit(limit, &measure.unit)),
        Bound::Below(limit) => format!("below {}", with_unit(limit, &measure.unit)),
    }
}

fn with_unit(amount: f64, unit: &str) -> String {
    let amount = number(amount);
    if unit.is_empty() { amount } else { format!("{amount} {}", text(unit)) }
}

/// A number with up to six decimals, so that what is a hair beyond a bound shows it.
pub(super) fn number(amount: f64) -> String {
    let text = format!("{amount:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that may come from a file, fit for a cell of a table: escaped, shortened, and without
/// meaning for Markdown.
pub(super) fn text(text: &str) -> String {
    text_of(text, SHOWN_CHARS_MAX)
}

pub(super) fn text_of(text: &str, chars_max: usize) -> String {
    let mut shown = String::new();
    for c in Escaped::shortened(text, chars_max).to_string().chars() {
        if matches!(c, '|' | '`' | '*' | '_' | '[' | ']' | '<' | '>') {
            shown.push('\\');
        }
        shown.push(c);
    }
    shown
}
