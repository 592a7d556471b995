//! Records for tests, stamped `mock`: no figure of them is of a model.

use std::path::{Path, PathBuf};

use super::golden::Goldens;
use crate::provenance::{
    Bench, ExecutionMode, Figure, Layer, Log, Request, Retrieval, Routing, SpecDecode,
};

/// A request as a log holds one.
pub(crate) fn request() -> Request {
    let text = include_str!("../../testdata/provenance/request.json");
    let request: Request = serde_json::from_str(text).unwrap();
    Request { execution_mode: ExecutionMode::Mock, ..request }
}

/// Every case of two families once cold and twice warm, with figures that a formula gives.
pub(crate) fn requests(families: &[&str]) -> Vec<Request> {
    let goldens = Goldens::read(None).unwrap();
    let mut requests = Vec::new();
    for (f, family) in families.iter().enumerate() {
        for (l, layer) in ["luna", "basic"].into_iter().enumerate() {
            for (b, backend) in ["carma", "simple_rag"].into_iter().enumerate() {
                for (p, golden) in goldens.prompts().iter().enumerate() {
                    for (warm, repeat) in [(false, 0), (true, 0), (true, 1)] {
                        let bench = Bench {
                            run: "test".to_owned(),
                            prompt: golden.id.clone(),
                            family: Some((*family).to_owned()),
                            expected_tier: Some(golden.tier),
                            repeat,
                            warm: Some(warm),
                        };
                        let cold_ms = if warm { 0.0 } else { 200.0 };
                        let layer_ms = [30.0, 0.0][l] + [2.0, 0.0][b];
                        let prompt_ms = 10.0 * (p as f64) + f64::from(repeat as u32);
                        requests.push(Request {
                            latency_ms: Some(100.0 + cold_ms + layer_ms + prompt_ms),
                            ..one(bench, layer, backend, (f, p))
                        });
                    }
                }
            }
        }
    }
    requests
}

fn one(bench: Bench, layer: &str, backend: &str, (f, p): (usize, usize)) -> Request {
    let mut request = request();
    request.router_tier = bench.expected_tier;
    request.router = Some(Routing {
        scorer_version: "0".to_owned(),
        score: None,
        margin: None,
        features: Default::default(),
        budget: None,
        reason: None,
        forced: false,
    });
    let found = (p % 4) as u64 + u64::from(backend == "simple_rag");
    request.retrieval = Some(Retrieval {
        backend: backend.to_owned(),
        fragments_found: Some(found),
        fragments_relevant: Some(found.saturating_sub(1)),
        dense: Some(true),
        fragments: vec![],
        ms: Some(1.0),
        degraded: None,
    });
    request.layer = Some(Layer { name: layer.to_owned(), persona: None, dropped_messages: None });
    request.models.insert("main".to_owned(), format!("model-{f}"));
    request.phases.decode_ms = Some(40.0 + p as f64);
    request.mb_per_token = Some(Figure::counted(80.0 + 10.0 * f as f64));
    request.spec_decode = Some(SpecDecode {
        mode: "lookup".to_owned(),
        drafted: p as u64,
        accepted: p as u64 / 2,
        accept_rate: (p > 0).then(|| (p / 2) as f64 / p as f64),
        ..SpecDecode::default()
    });
    request.bench = Some(bench);
    request
}

/// A log of `requests` in `folder`.
pub(crate) fn log(folder: &Path, requests: Vec<Request>) -> PathBuf {
    let path = folder.join("provenance.ndjson");
    let mut log = Log::open(&path, 64 << 20).unwrap();
    requests.into_iter().for_each(|request| {
        log.append(request).unwrap();
    });
    path
}
