use super::*;
use crate::counters::arithmetic::Count;
use crate::counters::fixtures::{Fake, Tree};
use crate::report::TypeBytes;
use crate::simulate::preset;
use aios_engine::{ExecutorOptions, Model};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

fn executor() -> anyhow::Result<Executor> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let model = Model::load(&models.join("micro-falcon-q4km.gguf"))?;
    Ok(Executor::new(model, ExecutorOptions::new(PLAN.context()))?)
}

const PLAN: Plan = Plan { runs: 3, tokens: 6 };

fn about() -> About {
    let executor = executor().expect("an executor");
    let model = executor.model();
    About {
        model: ModelInfo::new(model, "a|b.gguf", &[7; 32], 1000),
        environment: Surroundings {
            environment: Environment::new(executor.options(), 2),
            kernel: Some("6.1.0-test".to_owned()),
            memory_bytes: Some(16_000_000_000),
            last_level_cache_bytes: None,
        },
        processor: Some("one that counts".to_owned()),
        simulated: Some(SimulatedFigure {
            mb_per_token: 97.2,
            reread_ratio: 1.0,
            cache: "server-32mb".to_owned(),
            caches: preset("server-32mb").expect("a preset").design,
            threads: 1,
            positions: PLAN.positions(),
        }),
        peer: Some(Peer::Missing { reason: "it is not installed".to_owned() }),
    }
}

fn run(tokens_per_s: f64) -> Run {
    Run {
        load_ms: 20.0,
        tokens_per_s,
        counted_mb_per_token: 100.0,
        measured_mb_per_token: None,
        stream_gb_per_s: 20.0,
        resident_bytes: Some(5_000_000),
        layers: vec![40e6, 50e6],
        in_force: InForce { repacked: true, ram_bytes: Some(12_000_000), ..InForce::default() },
    }
}

fn absent() -> Measurement {
    Measurement::Unavailable {
        cause: "no counters".to_owned(),
        remedy: "another machine".to_owned(),
    }
}

#[test]
fn every_run_is_measured_and_counts_the_same() {
    let root = tempfile::tempdir().expect("a folder");
    let machine = Machine::at(root.path());
    let mut stream = 0.0;
    let mut passes = 0;
    let mut bench = Bench {
        load: &mut executor,
        stream: &mut || {
            stream += 10.0;
            Ok(stream)
        },
        counters: Counters::of(&machine),
        cache_bytes: 0,
        between: &mut |done| {
            assert!(done < PLAN.runs);
            passes += 1;
            Ok(())
        },
    };
    let (runs, measured) = measure(PLAN, &mut bench).expect("runs");
    assert_eq!(passes, PLAN.runs * (1 + WARM_UP + PLAN.tokens));
    let streams: Vec<f64> = runs.iter().map(|run| run.stream_gb_per_s).collect();
    assert_eq!(streams, [10.0, 20.0, 30.0]);
    assert!(runs.iter().all(|run| run.tokens_per_s > 0.0 && run.measured_mb_per_token.is_none()));
    let report = BaselineReport::new(PLAN, about(), runs, measured).expect("runs");
    assert!(report.mb_per_token.counted.cv < 1e-12);
    // The layers' weights are all that is counted but the head and the cache.
    let layers: f64 = report.layers.iter().sum();
    let counted = report.mb_per_token.counted.statistics.mean * 1e6;
    assert_eq!(report.layers.len(), report.model.layers);
    assert!(report.layers.iter().all(|bytes| *bytes > 0.0) && layers < counted, "{layers}");
    // A folder without counters is a machine without counters, and why is said.
    assert!(matches!(report.mb_per_token.measured, Measurement::Unavailable { .. }));
    assert!(report.markdown().contains("not measured"));
}

/// The report of runs on a machine with these counters, whose caches keep so many bytes.
fn counted(tree: &Tree, fake: &Fake, cache_bytes: u64) -> BaselineReport {
    let machine = tree.machine();
    let mut bench = Bench {
        load: &mut executor,
        stream: &mut || Ok(10.0),
        counters: Counters { machine: &machine, opener: fake, idle: Duration::ZERO },
        cache_bytes,
        between: &mut |_| Ok(()),
    };
    let (mut runs, measured) = measure(PLAN, &mut bench).expect("runs");
    // How fast this machine happens to be must not decide.
    runs.iter_mut().for_each(|run| run.tokens_per_s = 10.0);
    BaselineReport::new(PLAN, about(), runs, measured).expect("runs")
}

/// Counters that see `lines` of 64 bytes in a run's tokens, whose number is given to it.
fn seeing(lines: impl Fn(usize) -> u64 + Send + Sync + 'static) -> Fake {
    /// Reads and writes of the two controllers of a client.
    const TAPS: usize = 4;
    let opened = AtomicUsize::new(0);
    Fake::new(move |_, reading| {
        if reading == 0 {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        let run = (opened.load(Ordering::Relaxed) - 1) / TAPS;
        let time = 1_000_000_000 * (reading as u64 + 1);
        let value = if reading < 3 { 0 } else { lines(run) };
        Ok(Count { value, enabled_ns: time, running_ns: time })
    })
}

#[test]
fn counters_are_read_in_every_run_and_must_be_steady() {
    let steady = counted(&Tree::client(), &seeing(|_| 1 << 20), 0);
    let Measurement::Measured { mb_per_token, reading } = &steady.mb_per_token.measured else {
        panic!("{:?}", steady.mb_per_token.measured);
    };
    // Two controllers' reads of 64 bytes over the tokens.
    let expected = f64::from(128 << 20) / PLAN.tokens as f64 / 1e6;
    assert_eq!(mb_per_token.statistics.samples.len(), PLAN.runs);
    assert!((mb_per_token.statistics.mean / expected - 1.0).abs() < 1e-12);
    assert!(mb_per_token.cv < 1e-12 && steady.passes, "{:?}", steady.failures);
    assert!(steady.remarks.is_empty(), "{:?}", steady.remarks);
    assert!(reading.source.contains("uncore_imc_free_running_1"), "{}", reading.source);
    let text = steady.markdown();
    assert!(text.contains("| MB/token | 22.4 ± 0.0 | 0.0 % | measured: uncore_imc"), "{text}");
    let shaky = counted(&Tree::client(), &seeing(|run| [90, 100, 110][run] << 20), 0);
    assert_eq!(shaky.failures.len(), 1, "{:?}", shaky.failures);
    assert!(shaky.failures[0].starts_with("measured bytes vary by 10.0 %"), "{:?}", shaky.failures);
}

#[test]
fn what_was_measured_below_the_floor_fails_with_its_explanation() {
    let low = counted(&Tree::client(), &seeing(|_| 100), 0);
    let refused = matches!(&low.mb_per_token.measured, Measurement::Refused { .. });
    assert!(refused && !low.passes, "{:?}", low.mb_per_token.measured);
    for part in ["below the floor", "whether every memory controller", "uncore_imc_free_running_0"]
    {
        assert!(low.failures[0].contains(part), "{part}: {}", low.failures[0]);
    }
    assert!(low.markdown().contains("below the floor"));
    // Caches that can keep all of it leave no floor.
    let kept = counted(&Tree::client(), &seeing(|_| 100), 1 << 30);
    assert!(kept.passes);
    assert!(
        kept.remarks[0].contains("a memory controller that is not counted would look the same")
    );
}

#[test]
fn a_broken_tree_is_a_failure_and_not_a_remark() {
    let tree = Tree::client();
    tree.device_file("uncore_imc_free_running_1/events/data_read.scale", "1e300");
    let report = counted(&tree, &seeing(|_| 1 << 20), 0);
    let Measurement::Refused { reason } = &report.mb_per_token.measured else {
        panic!("{:?}", report.mb_per_token.measured);
    };
    assert!(!report.passes && report.remarks.is_empty());
    assert_eq!(&report.failures, std::slice::from_ref(reason));
    for part in ["uncore_imc_free_running_1/events/data_read.scale", "16 to 4096", "is mounted"] {
        assert!(reason.contains(part) && report.markdown().contains(part), "{part}: {reason}");
    }
    // A controller that is missing is broken as well; a machine without any is not.
    let tree = Tree::server();
    std::fs::remove_file(tree.device_path("uncore_imc_5/events/cas_count_read")).expect("it");
    assert!(!counted(&tree, &seeing(|_| 1 << 20), 0).passes);
    let none = counted(&Tree::new(), &seeing(|_| 1 << 20), 0);
    assert!(none.passes && none.remarks.len() == 1, "{:?}", none.failures);
}

#[test]
fn the_published_figure_is_explained_for_that_model_alone() {
    let types = |own, stand_in, other| {
        let of = |(name, bytes)| TypeBytes { name, bytes };
        [("Q5_0", stand_in), ("Q4_K", own), ("F16", other)].map(of).to_vec()
    };
    let explains = |layers, d_model, tensor_types| {
        let mut about = about();
        (about.model.layers, about.model.d_model) = (layers, d_model);
        about.model.tensor_types = tensor_types;
        let report = BaselineReport::new(PLAN, about, vec![run(10.0), run(10.0)], absent());
        report.expect("runs").markdown().contains("The published figure")
    };
    assert!(explains(32, 4544, types(743, 2500, 1600)));
    assert!(!explains(32, 4096, types(743, 2500, 1600)) && !explains(60, 4544, types(9, 9, 1)));
    assert!(!explains(32, 4544, types(0, 0, 14_000)), "F16 reads three times as much");
    assert!(!explains(32, 4544, types(0, 4800, 0)), "Q5_0 is another mix");
}

#[test]
fn it_passes_only_when_steady() {
    let steady = vec![run(100.0), run(101.0), run(99.0)];
    let report = BaselineReport::new(PLAN, about(), steady, absent()).expect("runs");
    assert!(report.passes, "{:?}", report.failures);
    assert!((report.bandwidth_fraction.statistics.median - 0.5).abs() < 1e-12);
    let shaky = vec![run(100.0), run(120.0), run(80.0)];
    let report = BaselineReport::new(PLAN, about(), shaky, absent()).expect("runs");
    assert!(!report.passes);
    assert!(report.failures[0].contains("vary by 20.0 %"), "{:?}", report.failures);
    let nothing = vec![run(0.0), run(0.0)];
    let report = BaselineReport::new(PLAN, about(), nothing, absent()).expect("runs");
    assert!(!report.passes, "what has no variation that is a number is not steady");
    let refused = Measurement::Refused { reason: "below the floor".to_owned() };
    let report = BaselineReport::new(PLAN, about(), vec![run(1.0), run(1.0)], refused);
    assert!(!report.expect("runs").passes);
    assert!(BaselineReport::new(PLAN, about(), Vec::new(), absent()).is_none());
}

#[test]
fn the_report_tells_it_all_and_has_a_schema() {
    let mut about = about();
    about.model.synthetic = true;
    (about.model.layers, about.model.d_model) = (32, 4544);
    about.model.tensor_types = vec![TypeBytes { name: "Q4_K", bytes: 1000 }];
    let report = BaselineReport::new(PLAN, about, vec![run(10.0), run(10.0)], absent());
    let report = report.expect("runs");
    let text = report.markdown();
    for part in [
        "Synthetic weights",
        "| MB/token | 100.0 ± 0.0 | 0.0 % | counted |",
        "| MB/token | 97.2 | | simulated: server-32mb: 1024 KiB of 8 ways before 32768 KiB of 16 \
         ways, lines of 64 bytes, victim; 1 thread, at 7 positions |",
        "- kernel: 6.1.0-test",
        "- memory: 16000.0 MB; last level of cache: unknown",
        "Not run: it is not installed",
        "not measured: no counters; another machine",
        "two memory controllers",
        "- arithmetic int8; weights repacked, asked for 0 bytes ahead, within 12.0 MB of memory",
        "Both together read 2 × 2454 = 4907 MB",
        "| 10.00 | 20.00 | 20.0 | – |",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["schema_version"], 3);
    assert_eq!(json["in_force"]["ram_bytes"], 12_000_000);
    assert_eq!(json["mb_per_token"]["counted"]["mean"], 100.0);
    assert_eq!(json["mb_per_token"]["measured"]["state"], "unavailable");
    assert_eq!(json["tokens_per_s"]["mean"], 10.0);
    assert_eq!(json["model"]["synthetic"], true);
    assert_eq!(json["model"]["tensor_types"][0]["name"], "Q4_K");
    assert_eq!(json["mb_per_token"]["simulated"]["caches"]["shared"]["ways"], 16);
    assert_eq!(json["mb_per_token"]["simulated"]["threads"], 1);
    assert_eq!(json["layers"], serde_json::json!([40e6, 50e6]));
    assert!(json["runs"][0].get("layers").is_none());
    let environment = &json["environment"];
    assert_eq!(
        (&environment["threads"], &environment["kernel"]),
        (&2.into(), &"6.1.0-test".into())
    );
    assert_eq!(environment["memory_bytes"], 16_000_000_000_u64);
    assert!(environment["last_level_cache_bytes"].is_null());
}

#[test]
fn a_peer_stands_beside_with_its_spread() {
    let run_of_peer = PeerRun {
        version: "1.2".to_owned(),
        features: vec!["AVX2".to_owned(), "FMA".to_owned()],
        threads: 2,
        tokens_per_s: Spread::of(vec![10.0, 20.0]).expect("samples"),
    };
    let about = About { peer: Some(Peer::Ran(run_of_peer)), ..about() };
    let report = BaselineReport::new(PLAN, about, vec![run(30.0), run(30.0)], absent());
    let text = report.expect("runs").markdown();
    for part in [
        "| aios | 30.00 | 30.00 ± 0.00 | 0.0 % | 30.00 | 30.00 |",
        "| llama-cpp-python 1.2 | 15.00 | 15.00 ± 7.07 | 47.1 % | 10.00 | 20.00 |",
        "2.00 times as many",
        "2 threads",
        "built with AVX2 FMA",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}
