//! The report's pictures.

use super::HeadroomError;
use super::report::HeadroomReport;
use crate::plot::{Axis, Chart, Series};
use crate::report::Picture;

const SPARSITY: &str = "What skipping neurons costs";
const LAYERS: &str = "Zeros and active sets by layer";
const CACHE: &str = "Cache bytes a token reads";

pub(super) fn draw(report: &HeadroomReport) -> Result<Vec<Picture>, HeadroomError> {
    let linear = |label| Axis { label, log: false };
    let log = |label| Axis { label, log: true };
    let charts = [
        (
            "headroom-sparsity.svg",
            SPARSITY,
            linear("part of the neurons left out"),
            log("mean KL, nats"),
            sparsity(report),
        ),
        ("headroom-layers.svg", LAYERS, linear("layer"), linear("fraction"), layers(report)),
        ("headroom-cache.svg", CACHE, log("context, tokens"), log("MB"), cache(report)),
    ];
    let mut pictures = Vec::new();
    for (file, title, x, y, series) in charts {
        let stamp = if report.model.synthetic { " (SYNTHETIC WEIGHTS)" } else { "" };
        let named = format!("{title}: {}{stamp}", report.model.name);
        let chart = Chart { title: &named, x, y, series };
        pictures.extend(chart.svg()?.map(|svg| Picture { file, title, svg }));
    }
    Ok(pictures)
}

fn sparsity(report: &HeadroomReport) -> Vec<Series> {
    let series = |curve: &super::sparsity::Curve| Series {
        name: curve.skip.text().to_owned(),
        points: curve.points.iter().map(|point| (point.sparsity, point.cost.kl)).collect(),
    };
    report.sparsity.curves.iter().map(series).collect()
}

fn layers(report: &HeadroomReport) -> Vec<Series> {
    let layers = &report.activations.per_layer;
    let of = |name: &str, value: fn(&super::activations::LayerZeros) -> Option<f64>| Series {
        name: name.to_owned(),
        points: layers.iter().filter_map(|l| Some((l.layer as f64, value(l)?))).collect(),
    };
    let list = [
        of("exactly 0", |layer| Some(layer.zero_fraction)),
        of("below 0.001", |layer| Some(layer.small_fraction)),
        of("0 once quantised", |layer| layer.quantised_zero_fraction),
        of("Jaccard index, token to token", |layer| layer.jaccard),
    ];
    list.into_iter().filter(|series| !series.points.is_empty()).collect()
}

fn cache(report: &HeadroomReport) -> Vec<Series> {
    let of = |name: &str, value: fn(&super::cache::CacheBytes) -> Option<u64>| Series {
        name: name.to_owned(),
        points: (report.cache.iter())
            .filter_map(|entry| Some((entry.context as f64, value(entry)? as f64 / 1e6)))
            .collect(),
    };
    let total = report.bytes_per_token.total as f64 / 1e6;
    let weights = Series {
        name: "weights, for comparison".to_owned(),
        points: report.cache.iter().map(|entry| (entry.context as f64, total)).collect(),
    };
    let list = [of("f16", |entry| Some(entry.f16)), of("q8_0", |entry| entry.q8_0), weights];
    list.into_iter().filter(|series| !series.points.is_empty()).collect()
}
