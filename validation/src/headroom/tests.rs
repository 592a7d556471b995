//! The whole of it on micro models, whose weights are random.

use super::*;
use crate::profile::{self, ProfileOptions};
use crate::prompts::Prompts;
use crate::synth::{Recipe, SHAPES, SYNTHETIC_KEY};
use aios_engine::ScreenLimits;
use aios_engine::gguf::{Gguf, TensorSpec, Writer};
use aios_residency::plan::{Hardware, Plan as AdoptedPlan};
use std::ops::ControlFlow;
use std::path::Path;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models")
}

fn prompts() -> Prompts {
    let texts = [
        "The river runs to the sea, and the sea is never full.",
        "fn main() { let x = 1; let y = 1; let x = 1; let y = 1; }",
        "one two three four one two three four one two three",
        "Why is the sky blue? Answer in one sentence.",
        "A list: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    ];
    let prompt = |(i, text): (usize, &&str)| Prompt {
        line: i + 1,
        text: (*text).to_owned(),
        category: (i == 1).then(|| "code".to_owned()),
    };
    Prompts { prompts: texts.iter().enumerate().map(prompt).collect(), sha256: [7; 32] }
}

fn plan() -> Plan {
    Plan { prompts: 5, tokens: 24, continued: 2, generate: 12, with: Vec::new() }
}

fn measure(path: &Path, plan: &Plan, threads: usize) -> HeadroomReport {
    let model = Model::load(path).expect("a micro model");
    let mut options = ExecutorOptions::new(1);
    (options.threads, options.threads_batch) = (threads, threads);
    run(&model, &options, &prompts(), plan, &mut |_, _, _| true).expect("a report")
}

#[test]
fn a_report_is_complete_and_the_same_with_any_number_of_threads() {
    for (name, curves) in [("llama", 3), ("falcon", 2), ("gemma3", 3), ("phi3", 3)] {
        let path = models().join(format!("micro-{name}-q4km.gguf"));
        let report = measure(&path, &plan(), 1);
        assert_eq!(report.sparsity.curves.len(), curves, "{name}");
        for curve in &report.sparsity.curves {
            let kl: Vec<f64> = curve.points.iter().map(|point| point.cost.kl).collect();
            assert!(kl.iter().all(|kl| *kl > -1e-6) && kl[0] < kl[5], "{name}: {kl:?}");
            for point in &curve.points {
                let off = (point.sparsity - point.target).abs();
                assert!(off < 0.08, "{name}: {} for {}", point.sparsity, point.target);
            }
        }
        let bytes = report.bytes_per_token;
        assert!(bytes.up > 0 && bytes.down > 0 && bytes.up + bytes.down <= bytes.ffn);
        assert!(bytes.head > 0 && bytes.attention + bytes.ffn + bytes.head <= bytes.total);
        let zeros = &report.activations;
        assert_eq!(zeros.prompts, 5);
        assert!(zeros.mean_zero_fraction < 0.05 && zeros.mean_jaccard.is_some(), "{zeros:?}");
        assert!(report.similarity.block_largest.is_some_and(|cosine| cosine < 0.9), "{name}");
        assert_eq!(report.lookup.prompts, 2);
        assert_eq!(report.levers.len(), 6 + curves);
        assert!(!report.model.synthetic && report.reread_ratio.is_none());
        // Prompts 2 and 4 are scored, cut to 24 tokens: at most 23 positions each, from 1 on.
        let scored = report.sparsity.scored_cache;
        assert!(scored.positions > 1.0 && scored.positions <= 12.0, "{name}: {scored:?}");
        assert!(scored.f16 > 0 && scored.f16 <= report.cache[0].f16, "{name}: {scored:?}");
        let lever = report.levers.iter().find(|lever| lever.name == levers::LeverName::Cache);
        assert_eq!(lever.map(|lever| lever.at_stake), Some(scored.f16), "{name}");
        let mut again = measure(&path, &plan(), 2);
        again.environment.threads = 1;
        assert_eq!(again.json(), report.json(), "{name}");
    }
}

#[test]
fn a_report_is_written_as_json_text_and_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = measure(&models().join("micro-qwen2-q4km.gguf"), &plan(), 1);
    let written = report.write(&folder.path().join("new")).expect("written");
    let names = written.iter().map(|path| path.file_name().and_then(|name| name.to_str()));
    let names: Vec<&str> = names.map(|name| name.expect("a name")).collect();
    assert_eq!(names[..2], ["headroom.json", "headroom.md"]);
    assert_eq!(names[2..], ["headroom-sparsity.svg", "headroom-layers.svg", "headroom-cache.svg"]);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&written[0]).expect("read")).expect("JSON");
    assert_eq!(json["schema_version"], 2);
    assert_eq!(json["model"]["synthetic"], false);
    assert_eq!(json["model"]["sha256"].as_str().map(str::len), Some(64));
    assert!(json["levers"][0]["saved_no_loss"].is_u64());
    assert!(json["reread_ratio"].is_null() && json["reread_behind"].is_null());
    let text = std::fs::read_to_string(&written[1]).expect("read");
    for wanted in [
        "# Headroom of micro-qwen2-q4km.gguf",
        "Aliasing gives nothing: the most alike 64 KB blocks of layers that could share them",
        "of layers that could share them have a cosine of 0.",
        "Screened head is not measured without a plan",
        "DRAM reads over the bytes of all lines that a token touches (simulated): not measured.",
        "| gate first (up and down) |",
        "![What skipping neurons costs](headroom-sparsity.svg)",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(!text.contains("SYNTHETIC") && !text.contains("NaN") && !text.contains("inf"));
}

/// The sketches of a plan change no token, and what they and the rows took is counted.
#[test]
fn a_plans_sketches_are_judged_by_what_the_continuations_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = models().join("micro-qwen2-q4km.gguf");
    let without = measure(&path, &plan(), 1);
    assert!(without.head.is_none());
    let model = Model::load(&path).expect("a micro model");
    let hardware = Hardware { cpu: None, isa: "any".to_owned(), processors: 1, llc_bytes: None };
    let of = ProfileOptions { generate: 6, tokens: 24, ..ProfileOptions::new(hardware.clone()) };
    let compute = ExecutorOptions::new(1);
    profile::run(&model, &compute, None, &of, folder.path(), &mut |_, _, _| true).expect("a plan");
    let (_, stamp) = model.identity().expect("files");
    let opened = AdoptedPlan::open(folder.path(), &stamp, &hardware).expect("sound");
    model.adopt(opened, ScreenLimits::all(profile::POSITIONS_MOST)).expect("adopted");
    let report = run(&model, &compute, &prompts(), &plan(), &mut |_, _, _| true);
    let report = report.expect("a report");
    let head = report.head.expect("counted");
    // The last token of a continuation is read only where an end token may follow it.
    let (lookup, tokens) = (&report.lookup, head.tokens as usize);
    assert!((lookup.generated - lookup.prompts..=lookup.generated).contains(&tokens), "{head:?}");
    assert!(head.bytes_per_token().is_some_and(|bytes| bytes > 1000), "{head:?}");
    let lever = |report: &HeadroomReport| {
        let of = report.levers.iter().find(|lever| lever.name == levers::LeverName::Head);
        of.map(|lever| (lever.saved_no_loss, lever.verdict.clone())).expect("a line")
    };
    let read = head.bytes_per_token().expect("tokens");
    let saved = report.bytes_per_token.head.saturating_sub(read);
    assert_eq!(lever(&report).0, Some(saved));
    assert_eq!(lever(&without).0, None);
    let drafts = |report: &HeadroomReport| format!("{:?}", report.lookup);
    assert_eq!(drafts(&report), drafts(&without));
}

#[test]
fn synthetic_weights_are_stamped_on_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("made.gguf");
    let shape = SHAPES.iter().min_by_key(|shape| shape.d_model).expect("a shape");
    let quant = "Q4_0".parse().expect("a quant");
    let recipe =
        Recipe { shape, quant, seed: 1, layers: Some(2), vocab: Some(300), activation: None };
    let synthetic = recipe.plan().expect("a plan");
    synthetic.create(&path, false, |_| ControlFlow::Continue(())).expect("a file");
    let plan = Plan { prompts: 2, tokens: 4, continued: 1, generate: 2, ..plan() };
    let report = measure(&path, &plan, 2);
    assert!(report.model.synthetic, "{SYNTHETIC_KEY}");
    let pictures = report.pictures().expect("pictures");
    assert!(report.markdown(&pictures).contains("**SYNTHETIC WEIGHTS"));
    assert!(pictures.iter().all(|picture| picture.svg.contains("SYNTHETIC WEIGHTS")));
}

/// The file at `from` with the bytes of some tensors replaced by those of others.
fn copy_with(from: &Path, to: &Path, replaced: &[(&str, &str)]) {
    let bytes = std::fs::read(from).expect("a model");
    let header = Gguf::parse(&bytes).expect("a header");
    let specs: Vec<TensorSpec> = header.tensors.iter().map(TensorSpec::from).collect();
    let file = std::fs::File::create(to).expect("a file");
    let mut writer = Writer::new(file, &header.metadata, &specs).expect("a writer");
    for info in &header.tensors {
        let source = replaced.iter().find(|(name, _)| *name == info.name);
        let source = source.map_or(info, |(_, by)| header.tensor(by).expect("a tensor"));
        let data = source.data(&bytes).expect("data");
        writer.tensor(&info.name, data).expect("written");
    }
    writer.finish().expect("finished");
}

#[test]
fn layers_that_are_copies_are_alike_and_duplicates() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (models().join("micro-llama-q4km.gguf"), folder.path().join("copies.gguf"));
    copy_with(&from, &to, &[("blk.1.ffn_up.weight", "blk.0.ffn_up.weight")]);
    let mut quiet = |_: &str, _: u64, _: u64| true;
    let measure = |path: &Path, other: &Path, progress: &mut Progress<'_>| {
        let (file, other) = (GgufFile::open(path), GgufFile::open(other));
        let (file, other) = (file.expect("a file"), other.expect("a file"));
        let similarity = similarity::measure(&file, 2, progress).expect("compared");
        (similarity, duplicates::measure(&file, &[other], progress).expect("searched"))
    };
    let (plain, none) = measure(&from, &to, &mut quiet);
    assert_eq!((plain.alike_bytes, none.tensors, none.blocks[0].repeated), (0, 0, 0));
    let file = GgufFile::open(&to).expect("a file");
    let up = file.matrix(aios_contract::Role::FfnUp, 1).expect("a matrix").data.len();
    let (alike, found) = measure(&to, &from, &mut quiet);
    assert_eq!(alike.alike_bytes, up as u64);
    assert!((alike.tensor_largest.expect("pairs") - 1.0).abs() < 1e-9);
    assert_eq!(found.tensors, 1);
    assert_eq!(found.blocks[0].repeated, up / 4096);
    assert_eq!(found.blocks[0].read_bytes, (up / 4096 * 4096) as u64);
    // Every block of the changed file occurs in the other one, whose own copy was not replaced.
    let shared = &found.others[0];
    assert_eq!(shared.blocks[0].repeated, shared.blocks[0].blocks);
    assert!(none.others[0].blocks[0].repeated < none.others[0].blocks[0].blocks);
}

#[test]
fn too_few_prompts_and_a_wish_to_stop_end_it() {
    let model = Model::load(&models().join("micro-llama-q4km.gguf")).expect("a micro model");
    let options = ExecutorOptions::new(1);
    let one = Plan { prompts: 1, ..plan() };
    let error = run(&model, &options, &prompts(), &one, &mut |_, _, _| true);
    let error = error.expect_err("too few").to_string();
    assert!(error.starts_with("1 of the prompts have 2 tokens"), "{error}");
    for stop in 1..20 {
        let mut steps = 0;
        let mut progress = |_: &str, done: u64, total: u64| {
            assert!(done <= total);
            steps += 1;
            steps < stop
        };
        let stopped = run(&model, &options, &prompts(), &plan(), &mut progress);
        assert!(matches!(stopped, Err(HeadroomError::Interrupted)), "{stop}");
    }
}

#[test]
fn zeros_can_be_measured_by_themselves() {
    let model = Model::load(&models().join("micro-llama-q4km.gguf")).expect("a micro model");
    let mut executor = Executor::new(model, ExecutorOptions::new(32)).expect("an executor");
    let prompts = prompts();
    let mut calls = 0;
    let zeros = measure_zeros(&mut executor, &prompts.spread(3), 10, &mut |_, _, total| {
        calls += 1;
        total == 3
    });
    let zeros = zeros.expect("measured");
    assert_eq!((zeros.prompts, calls), (3, 3));
    assert!(zeros.tokens <= 30 && zeros.tokens > 10);
}

#[test]
fn the_re_read_ratio_names_its_caches() {
    use crate::simulate::{Behind, preset};
    let mut report = measure(&models().join("micro-qwen2-q4km.gguf"), &plan(), 1);
    let preset = preset("desktop-36mb").expect("a preset");
    let name = preset.name.to_owned();
    let behind = Behind { name, caches: preset.design, threads: 1, depth: 24 };
    (report.reread_ratio, report.reread_behind) = (Some(1.25), Some(behind));
    let text = report.markdown(&[]);
    let wanted = "a token touches (simulated): 1.250, behind desktop-36mb: 2048 KiB of 16 ways \
                  before 36864 KiB of 12 ways, lines of 64 bytes, independent; 1 thread, 24 \
                  positions.";
    assert!(text.contains(wanted), "{text}");
    let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
    let behind = &json["reread_behind"];
    assert_eq!((&behind["name"], &behind["threads"]), (&"desktop-36mb".into(), &1.into()));
    assert_eq!(behind["caches"]["shared"]["bytes"], 36 << 20);
    assert_eq!((&behind["caches"]["shared"]["ways"], &behind["depth"]), (&12.into(), &24.into()));
}
