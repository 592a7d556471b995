//! The configuration in force, and where each value came from.

use serde::{Serialize, Serializer};
use toml::Value;

use super::Loaded;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is the program's own.
    Default,
    /// This line of the file, counted from 1.
    Line(usize),
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key, such as `model[0].name`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Where that came from: null is the program's default, else the line.
    #[serde(rename = "line", serialize_with = "line")]
    pub origin: Origin,
}

fn line<S: Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    match origin {
        Origin::Default => serializer.serialize_none(),
        Origin::Line(line) => serializer.serialize_some(line),
    }
}

impl Loaded {
    /// Every setting in force, in the order of the sections. What has no value is left out.
    ///
    /// # Errors
    /// If a part's settings cannot be written as TOML.
    pub fn settings(&self) -> Result<Vec<Setting>, toml::ser::Error> {
        let mut settings = Vec::new();
        self.flatten(String::new(), Value::try_from(&self.config)?, &mut settings);
        Ok(settings)
    }

    fn flatten(&self, key: String, value: Value, settings: &mut Vec<Setting>) {
        match value {
            Value::Table(table) => {
                let dot = if key.is_empty() { "" } else { "." };
                for (name, value) in table {
                    self.flatten(format!("{key}{dot}{name}"), value, settings);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_table) => {
                for (i, item) in items.into_iter().enumerate() {
                    self.flatten(format!("{key}[{i}]"), item, settings);
                }
            }
            value => {
                let origin = self.lines.line(&key).map_or(Origin::Default, Origin::Line);
                settings.push(Setting { key, value, origin });
            }
        }
    }
}
