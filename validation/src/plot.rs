//! Line charts as SVG, for reports.

use plotters::prelude::*;
use std::fmt::Display;
use std::ops::Range;

const SIZE: (u32, u32) = (760, 460);
/// Colours that differ also for eyes that do not tell red from green (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
/// Room that is left beyond the outermost points, as a part of their range.
const MARGIN: f64 = 0.05;

/// A chart of several lines.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// What stands above it.
    pub title: &'a str,
    /// The horizontal axis.
    pub x: Axis<'a>,
    /// The vertical axis.
    pub y: Axis<'a>,
    /// The lines.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What it shows, with its unit.
    pub label: &'a str,
    /// Whether its steps are factors. Points that are not above 0 are then left out.
    pub log: bool,
}

/// A line and its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// The name.
    pub name: String,
    /// The points, in the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// Why a chart could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the chart {title:?} cannot be drawn: {problem}")]
pub struct PlotError {
    title: String,
    problem: String,
}

impl PlotError {
    pub(crate) fn new(title: &str, problem: String) -> Self {
        Self { title: title.to_owned(), problem }
    }
}

impl Axis<'_> {
    /// Where a value stands; `None` if this axis has no place for it.
    fn place(self, value: f64) -> Option<f64> {
        let place = if self.log { libm::log10(value) } else { value };
        place.is_finite().then_some(place)
    }

    /// The label of a place.
    fn mark(self, place: f64) -> String {
        let value = if self.log { libm::exp10(place) } else { place };
        let digits = match value.abs() {
            size if size != 0.0 && !(1e-3..1e6).contains(&size) => return format!("{value:.1e}"),
            size if size >= 10.0 => return format!("{value:.0}"),
            size if size >= 0.1 => 2,
            _ => 4,
        };
        let text = format!("{value:.digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

impl Chart<'_> {
    /// The chart as an SVG document; `None` if no point has a place in it. The same chart gives the
    /// same bytes.
    ///
    /// # Errors
    /// [`PlotError`].
    pub fn svg(&self) -> Result<Option<String>, PlotError> {
        let place = |&(x, y): &(f64, f64)| Some((self.x.place(x)?, self.y.place(y)?));
        let lines: Vec<(&str, Vec<(f64, f64)>)> = (self.series.iter())
            .map(|series| (&*series.name, series.points.iter().filter_map(place).collect()))
            .collect();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let (Some(x), Some(y)) = (range(points().map(|p| p.0)), range(points().map(|p| p.1)))
        else {
            return Ok(None);
        };
        let mut svg = String::new();
        self.draw(&lines, x, y, &mut svg).map_err(|problem| PlotError::new(self.title, problem))?;
        Ok(Some(svg))
    }

    fn draw(
        &self,
        lines: &[(&str, Vec<(f64, f64)>)],
        x: Range<f64>,
        y: Range<f64>,
        svg: &mut String,
    ) -> Result<(), String> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(text)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(70)
            .build_cartesian_2d(x, y)
            .map_err(text)?;
        chart
            .configure_mesh()
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .x_label_formatter(&|place| self.x.mark(*place))
            .y_label_formatter(&|place| self.y.mark(*place))
            .max_light_lines(1)
            .bold_line_style(BLACK.mix(0.12))
            .draw()
            .map_err(text)?;
        for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            let line = LineSeries::new(points.iter().copied(), style).point_size(3);
            let key = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
            chart.draw_series(line).map_err(text)?.label(*name).legend(key);
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(text)?;
        area.present().map_err(text)
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The range of values with a margin; one value gets a range around it.
fn range(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let span = high - low;
    let margin = if span > 0.0 { span * MARGIN } else { 0.5 };
    (low <= high).then_some(low - margin..high + margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(title: &str, points: Vec<(f64, f64)>) -> Chart<'_> {
        Chart {
            title,
            x: Axis { label: "share", log: false },
            y: Axis { label: "KL", log: true },
            series: vec![Series { name: "a line".to_owned(), points }],
        }
    }

    #[test]
    fn a_chart_has_its_texts_and_is_the_same_each_time() {
        let points = vec![(0.05, 0.0001), (0.1, 0.001), (0.2, 0.0), (0.3, f64::NAN), (0.4, 0.1)];
        let chart = chart("what <is> & isn't", points);
        let svg = chart.svg().expect("drawn").expect("points");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for wanted in ["a line", "share", "KL", "what &lt;is&gt; &amp; isn"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(chart.svg().expect("drawn").expect("points"), svg);
    }

    #[test]
    fn a_chart_without_points_is_none_and_one_point_is_enough() {
        assert!(chart("empty", vec![(1.0, 0.0)]).svg().expect("drawn").is_none());
        assert!(chart("one", vec![(1.0, 1.0)]).svg().expect("drawn").is_some());
    }

    #[test]
    fn labels_are_short() {
        let log = Axis { label: "", log: true };
        assert_eq!((log.mark(-4.0), log.mark(2.0)), ("1.0e-4".to_owned(), "100".to_owned()));
        let linear = Axis { log: false, ..log };
        assert_eq!(
            [0.25, 0.05, 5.0, 0.0, 16384.0].map(|x| linear.mark(x)).join(" "),
            "0.25 0.05 5 0 16384"
        );
    }
}
