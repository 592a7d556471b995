//! From the text of `aios.toml` to a [`Config`], or to the line and the key that are wrong.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use aios_engine::template::known;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::{Config, Fault, ModelRole};

/// Where the values of a file stand.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// For each key, such as `model[0].name`, the bytes of its name and of its value.
    places: Vec<(String, Range<usize>, Range<usize>)>,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str, table: &DeTable<'_>) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        let mut lines = Self { places: Vec::new(), starts: starts.collect() };
        lines.enter("", table);
        lines
    }

    fn enter(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = key.get_ref();
            let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
            self.value(path, key.span(), value.span(), value.get_ref());
        }
    }

    fn value(&mut self, path: String, key: Range<usize>, span: Range<usize>, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.enter(&path, table),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    self.value(path, item.span(), item.span(), item.get_ref());
                }
            }
            _ => {}
        }
        self.places.push((path, key, span));
    }

    /// The line of the byte `at`, counted from 1.
    fn at(&self, at: usize) -> usize {
        self.starts.partition_point(|&start| start <= at).max(1)
    }

    /// The line of `key`, counted from 1, if the file sets it.
    pub fn line(&self, key: &str) -> Option<usize> {
        let place = self.places.iter().find(|(path, ..)| path == key);
        place.map(|(_, name, _)| self.at(name.start))
    }

    /// The key whose name or value is the shortest that holds `span`.
    fn key_around(&self, span: &Range<usize>) -> Option<&str> {
        let holds = |of: &Range<usize>| of.start <= span.start && span.end <= of.end;
        let around = self.places.iter().flat_map(|(path, name, value)| {
            [name, value].into_iter().filter(|of| holds(of)).map(move |of| (of.len(), path))
        });
        around.min_by_key(|(len, _)| *len).map(|(_, path)| path.as_str())
    }

    /// The fault of `section` that `reason` speaks of, at the key that it names, if the file has
    /// that key, and else where the section begins.
    fn fault(&self, section: &str, reason: String) -> Fault {
        let word = |key: &str| {
            let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            reason.split(|c| !in_word(c)).any(|word| word == key)
        };
        let inside = self.places.iter().find_map(|(path, ..)| {
            let key = path.strip_prefix(section)?.strip_prefix('.')?;
            word(key.rsplit('.').next()?).then_some(path.as_str())
        });
        let key = inside.unwrap_or(section);
        Fault { line: self.line(key).unwrap_or(1), key: key.to_owned(), reason }
    }
}

/// Parses and checks a configuration whose relative paths start at `folder`.
///
/// # Errors
/// The first [`Fault`].
pub fn parse(text: &str, folder: &Path) -> Result<(Config, Lines), Fault> {
    let plain = |error: &toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = 1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count();
        Fault { line, key: String::new(), reason: one_line(error.message()) }
    };
    let table = DeTable::parse(text).map_err(|error| plain(&error))?;
    let lines = Lines::of(text, table.get_ref());
    check_shapes(table.get_ref(), &lines)?;
    let mut config: Config = toml::from_str(text).map_err(|error| {
        let Fault { line, reason, .. } = plain(&error);
        let key = error.span().and_then(|span| lines.key_around(&span)).unwrap_or_default();
        Fault { line, key: key.to_owned(), reason: with_hint(&reason) }
    })?;
    check_models(&config, &lines)?;
    for (section, checked) in config.sections() {
        checked.map_err(|reason| lines.fault(section, reason))?;
    }
    let parts = [&mut config.memory.store, &mut config.persona.file, &mut config.provenance.path];
    let built_in = |named: &Path| named.to_str().and_then(known).is_some();
    let files = config.models.iter_mut().flat_map(|model| {
        let template = &mut model.chat_template;
        let named = template.as_deref().is_some_and(built_in);
        [Some(&mut model.file), Some(template).filter(|_| !named)].into_iter().flatten()
    });
    let files = files.chain(parts);
    for file in files.flatten() {
        *file = resolved(file, folder);
    }
    Ok((config, lines))
}

/// A list in the place of a section would be read as its values in order, which nobody means.
fn check_shapes(table: &DeTable<'_>, lines: &Lines) -> Result<(), Fault> {
    let fault = |key: String, brackets: &str| {
        let reason = format!("this is no section; write {brackets} and its keys below that");
        Err(Fault { line: lines.line(&key).unwrap_or(1), key, reason })
    };
    for (section, _) in Config::default().sections() {
        if table.get(section).is_some_and(|value| !value.get_ref().is_table()) {
            return fault(section.to_owned(), &format!("[{section}]"));
        }
    }
    let models = table.get("model").and_then(|models| models.get_ref().as_array());
    let odd = models.and_then(|models| models.iter().position(|of| !of.get_ref().is_table()));
    odd.map_or(Ok(()), |at| fault(format!("model[{at}]"), "[[model]]"))
}

fn check_models(config: &Config, lines: &Lines) -> Result<(), Fault> {
    let mut names: HashMap<&str, usize> = HashMap::new();
    for (i, model) in config.models.iter().enumerate() {
        let fault = |key: &str, reason: String| {
            let key = format!("model[{i}].{key}");
            let line = lines.line(&key).or_else(|| lines.line(&format!("model[{i}]")));
            Fault { line: line.unwrap_or(1), key, reason }
        };
        model.check().map_err(|(key, reason)| fault(key, reason))?;
        if let Some(first) = names.insert(&model.name, i) {
            let first = lines.line(&format!("model[{first}].name")).unwrap_or(1);
            let reason = format!("'{}' is the name of the model in line {first}", model.name);
            return Err(fault("name", reason));
        }
    }
    if config.models.iter().any(|model| model.role == ModelRole::Main) {
        return Ok(());
    }
    let (key, line) = ("model".to_owned(), lines.line("model[0]").unwrap_or(1));
    let reason = "no model has the role 'main', which answers where no other does; give it to one";
    Err(Fault { line, key, reason: reason.to_owned() })
}

/// The path with `~/` as the home folder, and from `folder` on if it is relative.
fn resolved(file: &Path, folder: &Path) -> PathBuf {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    match file.strip_prefix("~").ok().zip(home()) {
        Some((rest, home)) => home.join(rest),
        None => folder.join(file),
    }
}

/// What serde says of an unknown word, with the word that was probably meant.
fn with_hint(reason: &str) -> String {
    let words = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let is_word = reason.starts_with("unknown field") || reason.starts_with("unknown variant");
    let Some((found, expected)) = reason.split_once(", expected ").filter(|_| is_word) else {
        return reason.to_owned();
    };
    let (found, known) = (words(found), words(expected));
    let [word] = &found[..] else { return reason.to_owned() };
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let what = if reason.starts_with("unknown variant") { "value" } else { "key" };
    let hint = nearest(word, &known).map(|near| format!("; did you mean '{near}'?"));
    let word = super::quoted(word);
    format!("unknown {what} {word}{}; there are {}", hint.unwrap_or_default(), known.join(", "))
}

fn one_line(message: &str) -> String {
    const CHARS_MAX: usize = 400;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect()
}
