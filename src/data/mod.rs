//! What the system has kept, as tables: described column by column, or written out for other
//! programs. A store is a [`Table`] by implementing one method.

pub(crate) mod csv;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::provenance::{ProvenanceError, Spread, Verified, verify};

/// Distinct texts of a column that are counted; beyond that only their number is told.
const TEXTS_MOST: usize = 12;

/// A row: values by name. Objects within it are columns of their own, `env.isa`.
pub type Row = Map<String, Value>;

/// Something that has rows, which can be gone through more than once.
pub trait Table {
    /// Hands every row to `each`, in the order in which they came to be.
    ///
    /// # Errors
    /// Those of reading, and of `each`.
    fn rows(&mut self, each: &mut dyn FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()>;
}

/// The records of a log.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    verified: Option<Verified>,
}

impl Records {
    /// Those of the log at `path`, a file or a folder.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, verified: None }
    }

    /// What the log was found to be when it was last gone through.
    pub const fn verified(&self) -> Option<&Verified> {
        self.verified.as_ref()
    }
}

impl Table for Records {
    fn rows(&mut self, each: &mut dyn FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
        // An error of `each` ends the walk, and is what is returned.
        let mut failed = None;
        let verified = verify(&self.path, None, &mut |record, sha256| {
            let value = serde_json::to_value(&record).map_err(ProvenanceError::Form)?;
            let Value::Object(mut row) = value else { return Ok(()) };
            row.insert("sha256".to_owned(), sha256.into());
            each(row).map_err(|error| {
                failed = Some(error);
                ProvenanceError::Output(io::ErrorKind::Other.into())
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.verified = Some(verified?);
        Ok(())
    }
}

/// A row with dotted names and no objects in it, in the row's order.
pub fn flat(row: &Row) -> Vec<(String, &Value)> {
    fn walk<'a>(prefix: &str, row: &'a Row, into: &mut Vec<(String, &'a Value)>) {
        for (name, value) in row {
            let name = format!("{prefix}{name}");
            match value {
                Value::Object(inner) => walk(&format!("{name}."), inner, into),
                value => into.push((name, value)),
            }
        }
    }
    let mut columns = Vec::new();
    walk("", row, &mut columns);
    columns
}

/// What a column holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Column {
    /// Values that are not null.
    pub n: u64,
    /// Numbers, if it has any.
    pub numbers: Option<Spread>,
    /// How often each text or truth stands in it, if there are few of them.
    pub texts: Option<BTreeMap<String, u64>>,
    /// Different texts and truths.
    pub distinct: u64,
}

/// What a table holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Description {
    /// Rows.
    pub rows: u64,
    /// Columns in the order in which they first came up.
    pub columns: Vec<(String, Column)>,
}

/// Describes every column of `table`. Lists count as present and are not looked into.
///
/// # Errors
/// Those of the table.
pub fn describe(table: &mut dyn Table) -> anyhow::Result<Description> {
    #[derive(Default)]
    struct Seen {
        n: u64,
        numbers: Vec<f64>,
        texts: BTreeMap<String, u64>,
    }
    let (mut rows, mut order, mut seen) = (0, Vec::new(), BTreeMap::<String, Seen>::new());
    table.rows(&mut |row| {
        rows += 1;
        for (name, value) in flat(&row) {
            let column = seen.entry(name.clone()).or_insert_with(|| {
                order.push(name);
                Seen::default()
            });
            column.n += u64::from(!value.is_null());
            match value {
                Value::Number(number) => column.numbers.extend(number.as_f64()),
                Value::String(text) => *column.texts.entry(text.clone()).or_default() += 1,
                Value::Bool(truth) => *column.texts.entry(truth.to_string()).or_default() += 1,
                _ => {}
            }
        }
        Ok(())
    })?;
    let mut columns = Vec::new();
    for name in order {
        let Seen { n, numbers, texts } = seen.remove(&name).unwrap_or_default();
        let distinct = texts.len();
        let texts = (1..=TEXTS_MOST).contains(&distinct).then_some(texts);
        let numbers = Spread::of(numbers);
        columns.push((name, Column { n, numbers, texts, distinct: distinct as u64 }));
    }
    Ok(Description { rows, columns })
}

/// Writes `table` as CSV (RFC 4180): a line of names, then a line for each row. Null is an empty
/// field, an empty text is `""`, and a list is its JSON.
///
/// # Errors
/// Those of the table and of `out`.
pub fn write_csv(table: &mut dyn Table, out: &mut dyn Write) -> anyhow::Result<()> {
    let names: Vec<String> = describe(table)?.columns.into_iter().map(|(name, _)| name).collect();
    csv::line(out, names.iter().map(|name| csv::Field::Text(name)))?;
    table.rows(&mut |row| {
        let columns: BTreeMap<String, &Value> = flat(&row).into_iter().collect();
        let fields = names.iter().map(|name| csv::Field::of(columns.get(name).copied()));
        Ok(csv::line(out, fields)?)
    })
}

/// Writes `table` as one JSON array of its rows as they are.
///
/// # Errors
/// Those of the table and of `out`.
pub fn write_json(table: &mut dyn Table, out: &mut dyn Write) -> anyhow::Result<()> {
    out.write_all(b"[")?;
    let mut separator = "\n";
    table.rows(&mut |row| {
        out.write_all(separator.as_bytes())?;
        separator = ",\n";
        Ok(serde_json::to_writer(&mut *out, &row).map_err(io::Error::from)?)
    })?;
    out.write_all(b"\n]\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Rows(Vec<Value>);

    impl Table for Rows {
        fn rows(&mut self, each: &mut dyn FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
            self.0.iter().try_for_each(|row| each(row.as_object().unwrap().clone()))
        }
    }

    fn rows() -> Rows {
        Rows(vec![
            json!({"id": 1, "env": {"isa": "avx2", "gpu": null}, "ids": [1, 2], "text": ""}),
            json!({"id": 2, "env": {"isa": "a,\"b\"\nc"}, "ok": true, "text": null}),
        ])
    }

    #[test]
    fn a_table_becomes_csv_and_json() {
        let mut csv = Vec::new();
        write_csv(&mut rows(), &mut csv).unwrap();
        let want = "id,env.isa,env.gpu,ids,text,ok\r\n1,avx2,,\"[1,2]\",\"\",\r\n\
                    2,\"a,\"\"b\"\"\nc\",,,,true\r\n";
        assert_eq!(String::from_utf8(csv).unwrap(), want);
        let mut json = Vec::new();
        write_json(&mut rows(), &mut json).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&json).unwrap(), rows().0);
        let mut none = Vec::new();
        write_json(&mut Rows(vec![]), &mut none).unwrap();
        assert_eq!(none, b"[\n]\n");
    }

    #[test]
    fn a_description_counts_what_is_there_and_nothing_else() {
        let Description { rows, columns } = describe(&mut rows()).unwrap();
        let column = |name: &str| &columns.iter().find(|(found, _)| found == name).unwrap().1;
        assert_eq!(rows, 2);
        assert_eq!(column("id").numbers.unwrap().mean, 1.5);
        assert_eq!((column("env.gpu").n, column("env.gpu").numbers), (0, None));
        assert_eq!((column("ids").n, column("ok").n, column("env.isa").distinct), (1, 1, 2));
        assert_eq!(column("ok").texts, Some(BTreeMap::from([("true".to_owned(), 1)])));
    }
}
