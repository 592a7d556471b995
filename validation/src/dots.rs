//! Charts of named rows with figures and their intervals, as SVG and PNG.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::plot::{COLOURS, PlotError};
use crate::raster::{Surface, png};

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 26;
/// What is not rows: title, axis and legend.
const FRAME_HEIGHT: u32 = 110;
/// Pixels of a letter of a row's name.
const LETTER_WIDTH: usize = 8;
const LABELS_WIDTH_MAX: usize = 420;
/// Room beyond the largest value, as a part of the range.
const MARGIN: f64 = 0.05;

/// A chart in which every row has a name, and figures from left to right.
#[derive(Clone, Debug, PartialEq)]
pub struct Dots {
    /// What stands above it.
    pub title: String,
    /// What the axis shows, with its unit. It begins at 0.
    pub axis: String,
    /// The names of the kinds of marks.
    pub series: Vec<String>,
    /// The rows, from the top.
    pub rows: Vec<Row>,
}

/// A row of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its marks.
    pub marks: Vec<Mark>,
}

/// A figure with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Which of the series it belongs to.
    pub series: usize,
    /// The figure.
    pub value: f64,
    /// The interval.
    pub interval: (f64, f64),
}

impl Dots {
    /// The chart as an SVG document. The same chart gives the same bytes.
    ///
    /// # Errors
    /// [`PlotError`].
    pub fn svg(&self) -> Result<String, PlotError> {
        let mut svg = String::new();
        self.draw(&SVGBackend::with_string(&mut svg, self.size()).into_drawing_area())
            .map_err(|problem| PlotError::new(&self.title, problem))?;
        Ok(svg)
    }

    /// The chart as a PNG file. The same chart gives the same bytes.
    ///
    /// # Errors
    /// [`PlotError`].
    pub fn png(&self) -> Result<Vec<u8>, PlotError> {
        let size = self.size();
        let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
        self.draw(&Surface::new(&mut pixels, size).into_drawing_area())
            .map_err(|problem| PlotError::new(&self.title, problem))?;
        png(&pixels, size).map_err(|error| PlotError::new(&self.title, text(error)))
    }

    fn size(&self) -> (u32, u32) {
        let rows = u32::try_from(self.rows.len() + self.free_rows()).unwrap_or(u32::MAX);
        (WIDTH, FRAME_HEIGHT.saturating_add(rows.saturating_mul(ROW_HEIGHT)).min(16_000))
    }

    /// Rows that are left free at the top, so that the legend hides no figure.
    fn free_rows(&self) -> usize {
        self.series.len().div_ceil(2) + 1
    }

    /// From 0 to the largest value or end of an interval.
    fn range(&self) -> Range<f64> {
        let marks = self.rows.iter().flat_map(|row| &row.marks);
        let most = marks.map(|mark| mark.value.max(mark.interval.1)).fold(0.0, f64::max);
        0.0..if most > 0.0 { most * (1.0 + MARGIN) } else { 1.0 }
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<(), String> {
        let rows = self.rows.len().max(1) as f64;
        let longest = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let labels = (longest * LETTER_WIDTH + 12).min(LABELS_WIDTH_MAX);
        area.fill(&WHITE).map_err(text)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(u32::try_from(labels).map_err(text)?)
            .build_cartesian_2d(self.range(), rows..-(self.free_rows() as f64))
            .map_err(text)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc(&self.axis)
            .x_label_formatter(&|value| format!("{}", (value * 1e6).round() / 1e6))
            .max_light_lines(1)
            .bold_line_style(BLACK.mix(0.12))
            .draw()
            .map_err(text)?;
        let names = ("sans-serif", 14).into_font().color(&BLACK);
        let names = names.pos(Pos::new(HPos::Right, VPos::Center));
        for (y, row) in (0..).zip(&self.rows) {
            let (x, y) = chart.backend_coord(&(0.0, f64::from(y) + 0.5));
            area.draw(&Text::new(row.name.clone(), (x - 8, y), names.clone())).map_err(text)?;
        }
        for (index, name) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let marks = || self.marks_of(index);
            let line = |(y, mark): (f64, Mark)| {
                let ends = vec![(mark.interval.0, y), (mark.interval.1, y)];
                PathElement::new(ends, colour.stroke_width(2))
            };
            let dot = |(y, mark): (f64, Mark)| Circle::new((mark.value, y), 4, colour.filled());
            let key = move |(x, y)| Circle::new((x + 9, y), 4, colour.filled());
            chart.draw_series(marks().map(line)).map_err(text)?;
            chart.draw_series(marks().map(dot)).map_err(text)?.label(name).legend(key);
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(text)?;
        area.present().map_err(text)
    }

    /// The marks of a series and their heights; several in a row stand above each other.
    fn marks_of(&self, series: usize) -> impl Iterator<Item = (f64, Mark)> {
        let step = 1.0 / (self.series.len() + 1) as f64;
        let rows = (0..).zip(&self.rows);
        rows.flat_map(move |(row, Row { marks, .. })| {
            let y = f64::from(row) + step * (series + 1) as f64;
            marks.iter().filter(move |mark| mark.series == series).map(move |mark| (y, *mark))
        })
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Dots {
        let mark = |series, value| Mark { series, value, interval: (value / 2.0, value * 1.5) };
        Dots {
            title: "what <is>".to_owned(),
            axis: "time, ms".to_owned(),
            series: vec!["p50".to_owned(), "p95".to_owned()],
            rows: vec![
                Row { name: "first · row".to_owned(), marks: vec![mark(0, 10.0), mark(1, 20.0)] },
                Row { name: "second".to_owned(), marks: vec![mark(0, 15.0)] },
            ],
        }
    }

    #[test]
    fn a_chart_has_its_texts_and_a_mark_for_each_figure() {
        let svg = chart().svg().expect("drawn");
        for wanted in ["what &lt;is&gt;", "time, ms", "first · row", "second", "p50", "p95"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        // Two of the legend besides.
        assert_eq!(svg.matches("<circle").count(), 3 + 2);
        assert_eq!(chart().svg().expect("drawn"), svg);
    }

    #[test]
    fn a_picture_of_pixels_shows_the_same_and_is_the_same_each_time() {
        let bytes = chart().png().expect("drawn");
        assert_eq!(chart().png().expect("drawn"), bytes);
        let decoder = png::Decoder::new(std::io::Cursor::new(&bytes));
        let mut reader = decoder.read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        assert_eq!((reader.info().width, reader.info().height), chart().size());
        let count = |colour: RGBColor| {
            pixels.chunks(3).filter(|p| *p == [colour.0, colour.1, colour.2]).count()
        };
        assert!(count(COLOURS[0]) > 50 && count(COLOURS[1]) > 50 && count(BLACK) > 50);
        assert_eq!(count(COLOURS[2]), 0);
        let bare = Dots { series: vec![], rows: vec![], ..chart() };
        assert_ne!(bare.png().expect("drawn"), bytes);
    }
}
