//! Reports of known models, their Markdown as a whole, recommendations, and that what is missing
//! or synthetic is never taken for more.

use super::catalog::{Baseline, CatalogError, catalog};
use super::*;
use crate::baseline::SCHEMA_VERSION;
use crate::levers::SCHEMA as LEVERS;
use aios_contract::requirements::{Requirement, Value, Verdict};
use aios_contract::{FfnConfig, ModelConfig, RoleGroup};
use aios_engine::Model;
use std::path::{Path, PathBuf};

fn micro(name: &str) -> ModelConfig {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let model =
        Model::load(&models.join(format!("micro-{name}-q4km.gguf"))).expect("a micro model");
    model.config().clone()
}

/// A configuration of SmolLM2-135M's sizes.
fn smollm2() -> ModelConfig {
    let mut config = micro("llama");
    (config.layers, config.d_model, config.context) = (30, 576, 8192);
    (config.attention.heads, config.attention.kv_heads) = (9, 3);
    (config.attention.key_len, config.attention.value_len) = (64, 64);
    config.attention.window = None;
    config.ffn = FfnConfig { len: 1536, ..config.ffn };
    config
}

fn group(group: RoleGroup, stored: u64, read_per_token: u64) -> GroupBytes {
    GroupBytes { group, stored, read_per_token }
}

fn inputs(config: &ModelConfig) -> Inputs<'_> {
    let model = ModelIdentity {
        name: "smollm2-135m".to_owned(),
        sha256: "ab".repeat(32),
        bytes: 105_454_432,
    };
    Inputs {
        model,
        synthetic: false,
        config,
        bytes: vec![
            group(RoleGroup::Embedding, 30_000_000, 600),
            group(RoleGroup::Ffn, 70_000_000, 70_000_000),
            group(RoleGroup::Head, 0, 30_000_000),
        ],
        sparsity: None,
        aliases: Probe::Absent,
        manifest: Probe::Absent,
        profiler_start_s: None,
        reduction: None,
        hardware: HardwareProfile::preset("desktop-36mb").expect("a preset"),
    }
}

const MARKDOWN: &str = "\
# Compliance of smollm2-135m

Model Contract 1.0; 105.454432 MB; SHA-256 `DIGEST`.

Tier: **Compatible**. Reduction of DRAM bytes per token: 45–55 % projected; not measured.

| | requirement | measure | value | bound | source | verdict |
|---|---|---|---|---|---|---|
| **R1** | activations with true zeros | | | | | **fail** |
| | | true zeros | no | yes | computed | fail |
| | | mean zero fraction | not measured | at least 0.7 | missing | unknown |
| | | calibration prompts | not measured | at least 1000 | missing | unknown |
| **R2** | small KV cache | | | | | **fail** |
| | | KV cache at 4096 tokens | 94.37184 MB | at most 64 MB | computed | fail |
| | | KV heads | 3 | at most 2 | computed | fail |
| **R3** | canonical and delta weights | | | | | **fail** |
| | | aliases in the file | no | yes | declared | fail |
| | | aliasing ratio | 0 | at least 0.7 | computed | fail |
| | | largest delta norm | not measured | below 0.1 of canonical | missing | unknown |
| **R4** | small activation footprint | | | | | **pass** |
| | | activations of a layer | 14.592 KB | at most 200 KB | computed | pass |
| **R5** | frequency-ordered file | | | | | **fail** |
| | | ordered file with a manifest | no | yes | declared | fail |
| | | profiler start | not measured | below 60 s | missing | unknown |

- R1: The activation is SiLU, which is 0 at single points only.
- R2: 30 layers, 3 KV heads of 64 + 64 elements of 2 bytes.
- R3: The file has no aliased tensors.
- R4: (2 · 576 + 4 · 1536) · 2 bytes at batch 1.
- R5: There is no manifest. The profiler's start was not timed.

## Recommended configuration

For desktop-36mb (assumed: 24 cores, memory 32 GB, L2 32 MiB, last-level cache 36 MiB, \
streaming read 89.6 GB/s):

    -c 8192 -ctk f16 -ctv f16 -t 24

- cache: 188.74368 MB reserved for 8192 positions; R2 counts 94.37184 MB at 4096 tokens
- weights come from: memory
- at most 896 tokens per second by the streaming read (a projection)
";

#[test]
fn a_report_as_markdown_and_as_json() {
    let config = smollm2();
    let report = assess(inputs(&config));
    assert_eq!(report.to_markdown(), MARKDOWN.replace("DIGEST", &"ab".repeat(32)));
    let json = report.to_json().expect("JSON");
    assert_eq!(ComplianceReport::from_json(&json).expect("its own report"), report);
    assert!(json.contains("\"projection\": true") && json.contains("\"synthetic\": false"));
    let later = json.replacen("\"schema\": 1", "\"schema\": 2", 1);
    assert!(matches!(ComplianceReport::from_json(&later), Err(ReportError::Schema(2))));
    let more = json.replacen("\"schema\": 1", "\"schema\": 1, \"more\": 1", 1);
    assert!(matches!(ComplianceReport::from_json(&more), Err(ReportError::Json(_))));
}

#[test]
fn what_is_not_examined_is_unknown_and_lifts_nothing() {
    let mut config = smollm2();
    config.attention.kv_heads = 2;
    let unknown = Inputs {
        aliases: Probe::NotExamined,
        manifest: Probe::NotExamined,
        profiler_start_s: Some(1.0),
        ..inputs(&config)
    };
    let report = assess(unknown);
    let verdicts: Vec<Verdict> = report.findings.iter().map(|finding| finding.verdict).collect();
    use Verdict::{Fail, Pass, Unknown};
    assert_eq!(verdicts, [Fail, Pass, Unknown, Pass, Unknown]);
    assert_eq!(report.tier, Tier::Compatible);
    let names: Vec<Requirement> = report.findings.iter().map(|found| found.requirement).collect();
    assert_eq!(names, Requirement::ALL);
}

#[test]
fn zeros_of_synthetic_weights_are_dropped_and_the_report_is_stamped() {
    let config = smollm2();
    let sparsity = Some(Sparsity { prompts: 2000, zero_fraction: 0.9, ..Sparsity::default() });
    let real = assess(Inputs { sparsity: sparsity.clone(), ..inputs(&config) });
    assert_eq!(real.findings[0].measures[1].value, Some(Value::Number(0.9)));
    let synthetic = assess(Inputs { sparsity, synthetic: true, ..inputs(&config) });
    assert_eq!(synthetic.findings[0].measures[1].value, None);
    assert!(synthetic.synthetic && synthetic.to_markdown().contains("**Synthetic weights.**"));
    assert!(synthetic.findings[0].evidence.contains("dropped"));
}

#[test]
fn text_from_a_file_cannot_break_the_page() {
    let config = smollm2();
    let mut hostile = inputs(&config);
    hostile.model.name = "a|b\n# <x> `y` \u{202e}".to_owned();
    hostile.aliases = Probe::Broken("tensor \"x|y\"".to_owned());
    let page = assess(hostile).to_markdown();
    assert!(page.starts_with("# Compliance of a\\|b\\n# \\<x\\> \\`y\\` \\u{202e}\n"), "{page}");
    assert!(!page.contains('\u{202e}'));
    assert!(page.contains("x\\|y"));
}

fn advice(memory_bytes: Option<u64>, weights: u64) -> Recommendation {
    let hardware = HardwareProfile {
        memory_bytes,
        stream_gb_per_s: Some(10.0),
        ..HardwareProfile::this_machine(2)
    };
    recommend(&smollm2(), &[group(RoleGroup::Ffn, weights, weights)], &hardware)
}

#[test]
fn the_context_is_what_fits_and_loss_comes_last() {
    // Half precision takes 23,040 bytes a position: 94 MB at 4096, 189 MB at 8192.
    let ample = advice(Some(10_000_000_000), 100_000_000);
    assert_eq!((ample.context, &*ample.cache_type_k), (8192, "f16"));
    assert_eq!(ample.cache_reserved_bytes, 8192 * 23_040);
    assert_eq!(ample.weights_from, Some(WeightsFrom::Memory));
    assert_eq!(ample.tokens_per_s_at_most, Some(100.0));
    // Four fifths of 250 MB leave 100 MB.
    let half = advice(Some(250_000_000), 100_000_000);
    assert_eq!((half.context, &*half.cache_type_k), (4096, "f16"));
    // 60 MB hold 2048 positions in half precision and 4096 in 8 bits.
    let tight = advice(Some(200_000_000), 100_000_000);
    assert_eq!((tight.context, &*tight.cache_type_k), (4096, "q8_0"));
    assert!(tight.reasons.iter().any(|reason| reason.contains("8 bits")));
    let tiny = advice(Some(131_000_000), 100_000_000);
    assert_eq!((tiny.context, tiny.weights_from), (512, Some(WeightsFrom::Memory)));
    let unknown = advice(None, 100_000_000);
    assert_eq!((unknown.context, unknown.weights_from), (4096, None));
    assert_eq!(unknown.tokens_per_s_at_most, None);
}

#[test]
fn weights_that_do_not_fit_stream_from_disk_without_a_second_copy() {
    let disk = advice(Some(1_000_000_000), 900_000_000);
    assert_eq!((disk.weights_from, disk.repack), (Some(WeightsFrom::Disk), false));
    assert!(disk.options.ends_with("--no-repack") && disk.tokens_per_s_at_most.is_none());
    let fits = advice(Some(1_000_000_000), 700_000_000);
    assert_eq!((fits.weights_from, fits.repack), (Some(WeightsFrom::Memory), true));
    assert!(!advice(Some(1_000_000_000), 15_999_999).repack);
    let bytes = [group(RoleGroup::Ffn, 90_000_000, 90_000_000)];
    let stacked = HardwareProfile::preset("stacked-96mb").expect("a preset");
    let cached = recommend(&smollm2(), &bytes, &stacked);
    assert_eq!(cached.weights_from, Some(WeightsFrom::Cache));
    assert_eq!(cached.tokens_per_s_at_most, None);
}

#[test]
fn presets_are_found_by_name_and_stamped_as_assumed() {
    let names: Vec<_> = HardwareProfile::presets().collect();
    assert_eq!(names, ["desktop-36mb", "server-32mb", "stacked-96mb", "server-384mb"]);
    for name in names {
        let preset = HardwareProfile::preset(name).expect("a preset");
        assert!(preset.assumed && preset.name == name);
        let cache = preset.l3_bytes.expect("a cache") >> 20;
        assert!(name.contains(&format!("-{cache}mb")), "{name} {cache}");
    }
    let error = HardwareProfile::preset("toaster").expect_err("no such thing");
    assert!(error.to_string().contains("this-machine, desktop-36mb, server-32mb"), "{error}");
    assert!(!HardwareProfile::this_machine(4).assumed);
}

/// A baseline that says what each has to say, unless `rest` does, and `rest`.
fn baseline_json(sha256: &str, schema: u32, rest: &str) -> String {
    let given = |key: &str| rest.contains(key);
    let mut json = format!("{{\"schema_version\": {schema}");
    json += &format!(", \"model\": {{\"sha256\": \"{sha256}\"}}{rest}");
    for key in ["\"mb_per_token\"", "\"tokens_per_s\""] {
        json += &if given(key) { String::new() } else { format!(", {key}: {{}}") };
    }
    json + "}"
}

fn baseline(sha256: &str, rest: &str) -> Baseline {
    Baseline::from_json(&baseline_json(sha256, SCHEMA_VERSION, rest)).expect("a baseline")
}

#[test]
fn another_report_is_no_baseline() {
    let read = |json: &str| Baseline::from_json(json).map(drop).map_err(|e| e.to_string());
    read(&baseline_json("ab", SCHEMA_VERSION, "")).expect("a baseline");
    let newer = read(&baseline_json("ab", 99, "")).expect_err("of another version");
    assert_eq!(newer, "no baseline of schema 3, as aios baseline writes it");
    let bare = format!("{{\"schema_version\": {SCHEMA_VERSION}, \"model\": {{\"sha256\": \"\"}}}}");
    assert_eq!(read(&bare).expect_err("without figures"), newer);
}

#[test]
fn the_catalogue_shows_what_is_measured_and_what_is_not() {
    let config = smollm2();
    let mut small = assess(inputs(&config));
    let digest = small.model.sha256.clone();
    let mut relu = config.clone();
    relu.ffn.activation = aios_contract::ActivationFn::Relu;
    let reduction = Some(MeasuredReduction { percent: 25.5, of: "a run".to_owned() });
    let sparsity = Some(Sparsity { prompts: 10, zero_fraction: 0.98, ..Sparsity::default() });
    let mut large =
        assess(Inputs { profiler_start_s: Some(2.5), sparsity, reduction, ..inputs(&relu) });
    (large.model.name, large.model.sha256) = ("z_large".to_owned(), "cd".repeat(32));
    large.model.bytes = 4_000_000_000;
    let mut random = assess(Inputs { synthetic: true, ..inputs(&config) });
    (random.model.name, random.model.sha256) = ("synthetic-x".to_owned(), "ef".repeat(32));
    let figures = ", \"mb_per_token\": {\"counted\": {\"mean\": 101.234, \"n\": 3}}, \
                    \"tokens_per_s\": {\"mean\": 55.5}, \"other\": []";
    let unsteady = ", \"passes\": false, \"failures\": [\"tokens vary | by 9 %\", \"and so on\"], \
                     \"tokens_per_s\": {\"mean\": 3.0}, \"processor\": \"A <b> CPU\", \
                     \"environment\": {\"version\": \"9.8.7\", \"isa\": \"x\"}";
    let baselines = [baseline(&digest, figures), baseline(&"cd".repeat(32), unsteady)];
    let page = catalog(&[random, large.clone(), small.clone()], &baselines).expect("a page");
    let row =
        |name: &str| page.lines().find(|line| line.starts_with(&format!("| {name}"))).unwrap();
    assert_eq!(
        row("smollm2-135m"),
        "| smollm2-135m | 105.45 | Compatible | fail | fail (94.372 MB) | fail (0) | \
         pass (14.592 KB) | fail | 45–55 % projected | not measured | 101.23 | 55.5 | unknown | \
         unknown |"
    );
    let large_row = row("z\\_large");
    assert!(
        large_row.ends_with(
            "| fail (2.5 s) | 45–55 % projected | 25.5 % | not measured | 3 (did not pass) | \
             A \\<b\\> CPU | 9.8.7 |"
        ),
        "{large_row}"
    );
    assert!(large_row.contains("| unknown (0.98 zeros) | fail (94.372 MB) |"), "{large_row}");
    assert!(row("synthetic-x").ends_with("| not measured | not measured | not measured |"));
    assert!(page.contains("\n- z\\_large: tokens vary \\| by 9 %; and so on\n"), "{page}");
    assert_eq!(page.matches("- z\\_large: ").count(), 1);
    let steady = catalog(&[small.clone()], &baselines[..1]).expect("a page");
    assert!(!steady.contains("did not pass"), "{steady}");
    let place = |what: &str| page.find(what).expect(what);
    assert!(place("| smollm2-135m") < place("| z\\_large"));
    assert!(place("| z\\_large") < place("## Synthetic models"));
    assert!(place("## Synthetic models") < place("| synthetic-x"));
    let duplicate = catalog(&[small.clone(), small.clone()], &[]);
    assert!(matches!(duplicate, Err(CatalogError::TwoReports(_))));
    let twice = [baseline(&digest, ""), baseline(&digest, figures)];
    assert!(matches!(catalog(&[], &twice), Err(CatalogError::TwoBaselines(_))));
    let mixed = [baseline(&digest, ", \"synthetic\": true")];
    assert!(matches!(catalog(&[small.clone()], &mixed), Err(CatalogError::MixedWeights(_))));
    small.synthetic = true;
    assert!(catalog(&[small], &mixed).is_ok());
    assert!(Baseline::from_json("{\"model\": {}}").is_err());
}

/// A report of levers with the lines `lines`.
fn levers(schema: u32, sha256: &str, lines: &str) -> Result<MeasuredLevers, LeversError> {
    MeasuredLevers::from_json(&format!(
        "{{\"schema\": {schema}, \"model\": {{\"name\": \"x\", \"sha256\": \"{sha256}\", \
         \"bytes\": 7}}, \"depth\": 240, \"levers\": [{lines}], \"cache\": \"small\"}}"
    ))
}

#[test]
fn the_measured_reduction_is_that_of_all_exact_levers_of_this_model() {
    let line = |name: &str, off: f64, on: f64| {
        format!(
            "{{\"name\": \"{name}\", \"setting\": \"\", \"state\": \"measured\", \
             \"quality\": {{}}, \"off\": {{\"counted_bytes_per_token\": {off}, \"samples\": 3}}, \
             \"on\": {{\"counted_bytes_per_token\": {on}}}}}"
        )
    };
    let config = smollm2();
    let model = inputs(&config).model;
    let together = |off, on| line(crate::levers::TOGETHER, off, on);
    let lines = format!("{}, {}", line("screened head", 8e6, 1e6), together(8e6, 6e6));
    let found = levers(LEVERS, &model.sha256, &lines).expect("a report");
    let reduction = Some(found.reduction_of(&model).expect("of this model"));
    let report = assess(Inputs { reduction: reduction.clone(), ..inputs(&config) });
    assert_eq!(report.measured_reduction, reduction);
    let shown = "45–55 % projected; 25 % measured (from 8.000 to 6.000 MB counted, exact levers \
                 together, 240 positions).";
    assert!(report.to_markdown().contains(shown), "{}", report.to_markdown());
    assert!(report.to_json().expect("JSON").contains("\"percent\": 25.0"));

    let nothing = "{\"name\": \"exact levers together\", \"setting\": \"\", \
                   \"state\": \"nothing\", \"reason\": \"no plan has any\"}";
    let nothing = levers(LEVERS, &model.sha256, nothing).expect("a report");
    let nothing = nothing.reduction_of(&model).expect("of this model");
    assert_eq!((nothing.percent, nothing.of.contains("no plan has any")), (0.0, true));

    let other = levers(LEVERS, &"cd".repeat(32), &lines).expect("a report").reduction_of(&model);
    let said = other.expect_err("another model").to_string();
    assert!(said.contains(&model.sha256) && said.contains("run `aios levers`"), "{said}");
    let fault = |schema, lines: &str| levers(schema, &model.sha256, lines).expect_err("refused");
    assert!(matches!(fault(1, &lines), LeversError::Schema(1)));
    assert!(matches!(fault(LEVERS, &line("screened head", 8e6, 1e6)), LeversError::Line));
    assert!(matches!(fault(LEVERS, &together(0.0, 0.0)), LeversError::Figures { .. }));
    assert!(matches!(fault(LEVERS, "{}"), LeversError::Json(_)));
}

/// What `aios levers` writes can be read back.
#[test]
fn a_report_of_levers_is_read_by_the_names_that_it_is_written_with() {
    use crate::levers::{Figures, Finding, Lever, Quality, TOGETHER};
    let figures = |counted_bytes_per_token| Figures {
        counted_bytes_per_token,
        simulated_bytes_per_token: 1.0,
        simulated_activation_bytes_per_token: 1.0,
        disk_bytes_per_token: 0.0,
        ms_per_token: 1.0,
        samples: 1,
    };
    let config = smollm2();
    let model = inputs(&config).model;
    let quality = Quality::Identical { tokens: 5 };
    let measured = Finding::Measured { off: figures(4e6), on: figures(1e6), quality };
    let nothing = Finding::Nothing { reason: "none".to_owned() };
    for (finding, percent) in [(measured, 75.0), (nothing, 0.0)] {
        let lever = Lever { name: TOGETHER, setting: "all".to_owned(), finding };
        let line = serde_json::to_string(&lever).expect("JSON");
        let found = levers(LEVERS, &model.sha256, &line).expect("a report");
        assert_eq!(found.reduction_of(&model).expect("of this model").percent, percent);
    }
}

/// The verdicts of a real model, if it is on this machine.
fn real(name: &str) -> Option<Vec<Verdict>> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let path = home.join(".cache/aios/models").join(format!("{name}.gguf"));
    let model = Model::load(&path).ok()?;
    let bytes = group_bytes(model.tensors(), &model.bytes_per_token());
    let report = assess(Inputs { bytes, ..inputs(model.config()) });
    assert_eq!(report.tier, Tier::Compatible, "{name}");
    Some(report.findings.iter().map(|finding| finding.verdict).collect())
}

/// R2 and R4 of the four real models, where they are: smollm2-135m-instruct,
/// qwen2.5-coder-0.5b-instruct, qwen2.5-coder-1.5b-instruct and gemma-3-270m.
#[test]
#[ignore = "reads the four real models of the catalogue"]
fn real_models_are_judged_by_their_own_headers() {
    use Verdict::{Fail, Pass};
    for (name, r2) in [
        ("smollm2-135m-instruct", Fail),
        ("qwen2.5-coder-0.5b-instruct", Pass),
        ("qwen2.5-coder-1.5b-instruct", Fail),
        ("gemma-3-270m", Pass),
    ] {
        match real(name) {
            Some(found) => assert_eq!(found, [Fail, r2, Fail, Pass, Fail], "{name}"),
            None => eprintln!("skipped: {name} is not here"),
        }
    }
}
