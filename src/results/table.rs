//! A table, as Markdown for people and as CSV for programs.

use std::fmt::Write as _;
use std::io;

use crate::data::csv;
use crate::statistics::Estimate;

/// A table of results.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The name of its file.
    pub name: &'static str,
    /// What stands above it.
    pub title: &'static str,
    /// What its figures are, and are not.
    pub note: &'static str,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Its rows, each with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name in CSV, with the unit last.
    pub name: &'static str,
    /// The name for people.
    pub title: &'static str,
    /// Whether its cells are figures with intervals, which are three columns of CSV.
    pub interval: bool,
}

/// What a table holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Words.
    Text(String),
    /// How many.
    Count(u64),
    /// A figure, and the digits after its point for people.
    Number(f64, usize),
    /// A figure with its interval, and the digits.
    Estimate(Estimate, usize),
    /// There was nothing to measure.
    None,
}

impl Column {
    /// A column of plain cells.
    pub const fn plain(name: &'static str, title: &'static str) -> Self {
        Self { name, title, interval: false }
    }

    /// A column of figures with intervals.
    pub const fn interval(name: &'static str, title: &'static str) -> Self {
        Self { name, title, interval: true }
    }
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A figure with its interval, if there is one.
    pub fn estimate(estimate: Option<Estimate>, digits: usize) -> Self {
        estimate.map_or(Self::None, |estimate| Self::Estimate(estimate, digits))
    }

    fn markdown(&self) -> String {
        match self {
            Self::Text(text) => escape(text),
            Self::Count(n) => n.to_string(),
            Self::Number(x, digits) => format!("{x:.digits$}"),
            Self::Estimate(Estimate { value, low, high }, digits) => {
                format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]")
            }
            Self::None => "–".to_owned(),
        }
    }

    /// The fields of CSV; figures have all their digits.
    fn fields(&self, interval: bool) -> Vec<Option<String>> {
        match self {
            Self::Text(text) => vec![Some(text.clone())],
            Self::Count(n) => vec![Some(n.to_string())],
            Self::Number(x, _) => vec![Some(x.to_string())],
            Self::Estimate(Estimate { value, low, high }, _) => {
                [value, low, high].map(|x| Some(x.to_string())).to_vec()
            }
            Self::None => vec![None; if interval { 3 } else { 1 }],
        }
    }
}

/// Names come from files: they must not end a cell or a line.
fn escape(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('`', "\\`")
}

impl Table {
    /// The table under a heading of `level`; empty if it has no rows.
    pub fn markdown(&self, level: usize) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut out = format!("{} {}\n\n", "#".repeat(level), self.title);
        if !self.note.is_empty() {
            out += &format!("{}\n\n", self.note);
        }
        let line = |cells: &mut dyn Iterator<Item = String>| {
            cells.fold("|".to_owned(), |mut line, cell| {
                // Writing to a text does not fail.
                let _ = write!(line, " {cell} |");
                line
            })
        };
        let titles = self.columns.iter().map(|column| column.title.to_owned());
        out += &line(&mut { titles });
        out += "\n|";
        let is_text = |index: usize| matches!(self.rows[0].get(index), Some(Cell::Text(_)));
        for index in 0..self.columns.len() {
            out += if is_text(index) { "---|" } else { "---:|" };
        }
        for row in &self.rows {
            out.push('\n');
            out += &line(&mut row.iter().map(Cell::markdown));
        }
        out + "\n\n"
    }

    /// The names of the columns of CSV, after `first`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn csv_head(&self, first: &[&str], out: &mut dyn io::Write) -> io::Result<()> {
        let names = self.columns.iter().flat_map(|column| match column.interval {
            true => ["", "_low", "_high"].map(|end| format!("{}{end}", column.name)).to_vec(),
            false => vec![column.name.to_owned()],
        });
        let names: Vec<String> = first.iter().map(ToString::to_string).chain(names).collect();
        csv::line(out, names.iter().map(|name| csv::Field::Text(name)))
    }

    /// The rows of CSV, each after `first`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn csv_rows(&self, first: &[&str], out: &mut dyn io::Write) -> io::Result<()> {
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns);
            let fields = cells.flat_map(|(cell, column)| cell.fields(column.interval));
            let fields: Vec<Option<String>> =
                first.iter().map(|text| Some((*text).to_owned())).chain(fields).collect();
            let shown = fields.iter().map(Option::as_deref);
            csv::line(out, shown.map(|text| text.map_or(csv::Field::Null, csv::Field::Text)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown_and_csv() {
        let estimate = Estimate { value: 0.5, low: 0.25, high: 0.75 };
        let table = Table {
            name: "t",
            title: "A table",
            note: "",
            columns: vec![Column::plain("name", "Name"), Column::interval("share", "Share")],
            rows: vec![
                vec![Cell::text("a|b\n"), Cell::Estimate(estimate, 1)],
                vec![Cell::text("c,"), Cell::None],
            ],
        };
        let wanted = "## A table\n\n| Name | Share |\n|---|---:|\n\
                      | a\\|b  | 0.5 [0.2, 0.8] |\n| c, | – |\n\n";
        assert_eq!(table.markdown(2), wanted);
        let mut csv = Vec::new();
        table.csv_head(&["mode"], &mut csv).unwrap();
        table.csv_rows(&["real"], &mut csv).unwrap();
        let wanted = "mode,name,share,share_low,share_high\r\nreal,\"a|b\n\",0.5,0.25,0.75\r\n\
                      real,\"c,\",,,\r\n";
        assert_eq!(String::from_utf8(csv).unwrap(), wanted);
        assert_eq!(Table { rows: vec![], ..table }.markdown(2), "");
    }
}
