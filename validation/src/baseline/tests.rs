use super::*;
use aios_engine::{ExecutorOptions, Model};
use std::path::Path;

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
        environment: Environment::new(executor.options(), 2),
        processor: Some("one that counts".to_owned()),
        simulated: Some(SimulatedFigure {
            mb_per_token: 97.2,
            reread_ratio: 1.0,
            cache: "32 MB".to_owned(),
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
    let mut stream = 0.0;
    let mut passes = 0;
    let mut bench = Bench {
        load: &mut executor,
        stream: &mut || {
            stream += 10.0;
            Ok(stream)
        },
        machine: &Machine::at(root.path()),
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
    // A folder without counters is a machine without counters, and why is said.
    assert!(matches!(report.mb_per_token.measured, Measurement::Unavailable { .. }));
    assert!(report.markdown().contains("not measured"));
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
    about.model.layers = 32;
    let report = BaselineReport::new(PLAN, about, vec![run(10.0), run(10.0)], absent());
    let report = report.expect("runs");
    let text = report.markdown();
    for part in [
        "Synthetic weights",
        "| MB/token | 100.0 ± 0.0 | 0.0 % | counted |",
        "| MB/token | 97.2 | | simulated: 32 MB, at 7 positions |",
        "Not run: it is not installed",
        "not measured: no counters; another machine",
        "two memory controllers",
        "Both together read 2 × 2454 = 4907 MB",
        "| 10.00 | 20.00 | 20.0 | – |",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["schema_version"], 2);
    assert_eq!(json["mb_per_token"]["counted"]["mean"], 100.0);
    assert_eq!(json["mb_per_token"]["measured"]["state"], "unavailable");
    assert_eq!(json["tokens_per_s"]["mean"], 10.0);
    assert_eq!(json["model"]["synthetic"], true);
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
