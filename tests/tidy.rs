//! The house rules as tests. Each rule is a function from a file to its violations, is applied to
//! every file of the project, and has a test that it finds a planted violation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Lines of a source file, and of a function.
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// Characters of a line.
const LINE_CHARS_MAX: usize = 100;

/// Functions that are longer than the rule allows, with their present length: a ratchet. Nothing
/// may be added or grow, and what has shrunk must be lowered here.
const LONG_FUNCTIONS: [(&str, &str, usize); 2] = [
    ("engine/src/template/filters.rs", "install", 76),
    ("engine/tests/template_child.rs", "hostile_templates_end_in_an_error", 93),
];

/// Where `unsafe` may stand: the two crates that exist for it, the border to C, the system call
/// that opens hardware counters, and tests' counting allocators.
const UNSAFE_ALLOWED: [&str; 6] = [
    "kernels/",
    "residency/",
    "capi/src/",
    "validation/src/counters/perf.rs",
    "engine/tests/gguf_mutation.rs",
    "engine/tests/allocation.rs",
];

/// Methods of std's floats whose results differ between machines.
const INEXACT: [&str; 22] = [
    "exp", "exp2", "exp_m1", "ln", "ln_1p", "log", "log2", "log10", "sin", "cos", "tan", "sin_cos",
    "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "powf", "powi", "cbrt",
];

/// A text file of the project: its path from the root, with `/`, and its content.
struct File {
    path: String,
    text: String,
}

impl File {
    fn new(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their numbers, from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

type Rule = fn(&File) -> Vec<String>;

/// Every text file that somebody has written, golden data aside.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() {
                let hidden = name.starts_with('.') && name != ".ci";
                let foreign = ["target", "testdata", "corpus"].contains(&&*name)
                    || path == root.join("models");
                if !hidden && !foreign {
                    folders.push(path);
                }
            } else if is_written(&name) {
                let relative = path.strip_prefix(root).expect("below the root");
                let relative = relative.to_string_lossy().replace('\\', "/");
                files.push(File::new(&relative, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn is_written(name: &str) -> bool {
    let endings = [".rs", ".py", ".md", ".toml", ".sh"];
    name == "run" || endings.iter().any(|ending| name.ends_with(ending))
}

fn assert_tidy(rule: Rule) {
    let found: Vec<String> = files().iter().flat_map(rule).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Asserts that `rule` finds something in `bad` and nothing in `good`.
fn assert_rule(rule: Rule, path: &str, bad: &str, good: &str) {
    assert!(!rule(&File::new(path, bad)).is_empty(), "not found in {path}: {bad}");
    assert_eq!(rule(&File::new(path, good)), [""; 0]);
}

#[test]
fn the_files_are_found() {
    let files = files();
    for path in ["src/models/mod.rs", "kernels/src/math.rs", "tests/tidy.rs", ".ci/run", "SPEC.md"]
    {
        assert!(files.iter().any(|file| file.path == path), "{path}");
    }
    assert!(files.iter().all(|file| !file.path.starts_with("target/")));
}

fn long_files(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    let long = file.is_rust() && lines > FILE_LINES_MAX;
    long.then(|| file.at(lines, "a source file has at most 600 lines")).into_iter().collect()
}

#[test]
fn files_are_short() {
    assert_tidy(long_files);
    assert_rule(long_files, "a.rs", &"\n".repeat(601), &"\n".repeat(600));
}

fn long_lines(file: &File) -> Vec<String> {
    if file.path.ends_with(".md") || file.path.ends_with(".toml") {
        return Vec::new();
    }
    let long = file.lines().filter(|(_, line)| line.chars().count() > LINE_CHARS_MAX);
    long.map(|(number, _)| file.at(number, "a line has at most 100 characters")).collect()
}

#[test]
fn lines_are_short() {
    assert_tidy(long_lines);
    assert_rule(long_lines, "a.rs", &"é".repeat(101), &"é".repeat(100));
}

/// The name of the function that a line begins, if it begins one.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(scope) => scope.split_once(')')?.1,
            None => after,
        };
        rest = rest.strip_prefix(' ')?;
    }
    for modifier in ["const ", "async ", concat!("un", "safe "), "extern \"C\" "] {
        rest = rest.strip_prefix(modifier).unwrap_or(rest);
    }
    let name = rest.strip_prefix("fn ")?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(&name[..end])
}

/// Name, first line and length of every function, as rustfmt lays them out: a function ends with
/// the next closing brace at its own indentation, or with its signature.
fn functions(file: &File) -> Vec<(&str, usize, usize)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = file.text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let ends = |at: &usize| {
            let this = lines[*at];
            let ends_signature = this.ends_with(';') || this.ends_with("}");
            match *at - start {
                0 => ends_signature,
                _ if indent(this) != indent(line) => false,
                _ => this.trim() == "}" || this.trim_start().starts_with(')') && ends_signature,
            }
        };
        let end = (start..lines.len()).find(ends).unwrap_or(lines.len() - 1);
        found.push((name, start + 1, end - start + 1));
    }
    found
}

fn long_functions(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return Vec::new();
    }
    let long = functions(file).into_iter().filter(|function| function.2 > FUNCTION_LINES_MAX);
    long.filter(|(name, _, lines)| !LONG_FUNCTIONS.contains(&(file.path.as_str(), *name, *lines)))
        .map(|(name, start, lines)| {
            file.at(start, &format!("{name} has {lines} lines; a function has at most 70"))
        })
        .collect()
}

#[test]
fn functions_are_short() {
    assert_tidy(long_functions);
    let function = |lines: usize| {
        format!("    pub(crate) const fn f(\n    ) {{\n{}    }}\n", "x;\n".repeat(lines - 3))
    };
    assert_rule(long_functions, "a.rs", &function(71), &function(70));
    let several = File::new("a.rs", "fn a() {}\nfn b(\n) {\n  }\n}\ntrait T {\n fn c(\n );\n}\n");
    assert_eq!(functions(&several), [("a", 1, 1), ("b", 2, 4), ("c", 7, 2)]);
}

#[test]
fn the_ratchet_is_tight() {
    let files = files();
    for (path, name, lines) in LONG_FUNCTIONS {
        let found = files.iter().filter(|file| file.path == path).flat_map(functions);
        let there = found.into_iter().any(|(found, _, count)| found == name && count == lines);
        assert!(there, "{path}: {name} no longer has {lines} lines; adjust LONG_FUNCTIONS");
    }
}

/// Whether `text` holds `word` with no letter, digit or underscore on either side.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

fn unfinished(file: &File) -> Vec<String> {
    // Written in two parts, so that this file keeps the rule.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let macros = [concat!("to", "do!"), concat!("unimpl", "emented!"), concat!("db", "g!")];
    let bad = |line: &str| {
        words.iter().any(|word| has_word(line, word))
            || macros.iter().any(|name| file.is_rust() && line.contains(name))
    };
    let bad_lines = file.lines().filter(|(_, line)| bad(line));
    bad_lines.map(|(number, _)| file.at(number, "unfinished work belongs in an issue")).collect()
}

#[test]
fn nothing_is_left_unfinished() {
    assert_tidy(unfinished);
    assert_rule(unfinished, "a.md", concat!("TO", "DO: more"), "PHOTODOCS");
    assert_rule(unfinished, "a.rs", concat!("db", "g!(x)"), "debug!(x)");
}

/// A line without its comment. A string that holds `//` is cut short, which loses nothing here.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn stray_unsafe(file: &File) -> Vec<String> {
    if !file.is_rust() || UNSAFE_ALLOWED.iter().any(|allowed| file.path.starts_with(allowed)) {
        return Vec::new();
    }
    let found = file.lines().filter(|(_, line)| has_word(code(line), concat!("un", "safe")));
    found.map(|(n, _)| file.at(n, "only kernels and residency may be trusted with this")).collect()
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    assert_tidy(stray_unsafe);
    let bad = concat!("let x = un", "safe { y };");
    assert_rule(stray_unsafe, "engine/src/a.rs", bad, "#![forbid(unsafe_code)]");
    assert!(stray_unsafe(&File::new("kernels/src/a.rs", bad)).is_empty());
    assert!(!stray_unsafe(&File::new("validation/src/counters/a.rs", bad)).is_empty());
}

fn unforbidden(file: &File) -> Vec<String> {
    let is_root = file.path.ends_with("src/lib.rs") || file.path.ends_with("src/main.rs");
    let exempt = ["kernels/", "residency/", "capi/"].iter().any(|of| file.path.starts_with(of));
    // What is forbidden cannot be allowed for one file, what is denied can.
    let of_one_file = UNSAFE_ALLOWED.iter().any(|allowed| {
        let folder = file.path.trim_end_matches("lib.rs");
        allowed.starts_with(folder) && allowed.ends_with(".rs") && !folder.is_empty()
    });
    let wanted = if of_one_file { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
    let forbids = file.text.lines().any(|line| line == wanted);
    let bad = is_root && !exempt && !forbids;
    bad.then(|| file.at(1, "the crate must forbid what it does not need")).into_iter().collect()
}

#[test]
fn crates_forbid_unsafe_code() {
    assert_tidy(unforbidden);
    let good = "//! A crate.\n#![forbid(unsafe_code)]\n";
    assert_rule(unforbidden, "engine/src/lib.rs", "// #![forbid(unsafe_code)]", good);
    let denied = "#![deny(unsafe_code)]";
    assert_rule(unforbidden, "validation/src/lib.rs", "//! A crate.", denied);
    assert_rule(unforbidden, "engine/src/lib.rs", denied, good);
}

/// The part of a source file before its tests, which stand at its end.
fn product(file: &File) -> &str {
    let marks = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
    let end = marks.iter().filter_map(|mark| file.text.find(mark)).min();
    &file.text[..end.unwrap_or(file.text.len())]
}

fn inexact_math(file: &File) -> Vec<String> {
    let on_token_path =
        file.path.starts_with("kernels/src/") || file.path.starts_with("engine/src/");
    let of_tests = file.path.contains("/tests/") || file.path.ends_with("/tests.rs");
    if !on_token_path || of_tests || file.path.ends_with("/testing.rs") {
        return Vec::new();
    }
    let calls = |line: &str| {
        INEXACT.iter().any(|name| {
            line.contains(&format!(".{name}("))
                || ["f32", "f64"].iter().any(|float| has_word(line, &format!("{float}::{name}")))
        })
    };
    let found = (1..).zip(product(file).lines()).filter(|(_, line)| calls(code(line)));
    found.map(|(n, _)| file.at(n, "std's result differs between machines (SPEC N1)")).collect()
}

#[test]
fn the_token_path_uses_its_own_functions() {
    assert_tidy(inexact_math);
    let good = "libm::exp(x); x.mul_add(y, z); // x.exp()\n#[cfg(test)]\nmod tests {\nx.exp()\n}";
    assert_rule(inexact_math, "kernels/src/a.rs", "let y = x.exp();", good);
    assert_rule(inexact_math, "engine/src/a.rs", "xs.map(f32::tanh)", "f32::tanhs");
    let late = "#[cfg(test)]\nmod tests;\nfn f() { x.powf(2.0) }";
    assert_rule(inexact_math, "engine/src/a.rs", late, "");
}

fn machine_paths(file: &File) -> Vec<String> {
    let folders = [
        concat!("/wo", "rk/"),
        concat!("/tm", "p/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
    ];
    // After a letter or a dot it is the middle of another path.
    let within = |line: &str, at: usize| {
        line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~/".contains(c))
    };
    let bad = |line: &str| {
        folders.iter().any(|folder| line.match_indices(folder).any(|(at, _)| !within(line, at)))
    };
    let found = file.lines().filter(|(_, line)| bad(line));
    found.map(|(n, _)| file.at(n, "a path of one machine means nothing on another")).collect()
}

#[test]
fn no_machine_is_named() {
    assert_tidy(machine_paths);
    let good = concat!("https://example.org/ho", "me/x");
    assert_rule(machine_paths, "a.md", concat!("see /ho", "me/me/x"), good);
}

/// The promises of SPEC.md: every `**X1` in the text, counted by chapter.
fn promises(spec: &str) -> BTreeMap<char, Vec<usize>> {
    let mut chapters: BTreeMap<char, Vec<usize>> = BTreeMap::new();
    for (at, _) in spec.match_indices("**") {
        if let Some((chapter, number)) = promise(&spec[at + 2..]) {
            chapters.entry(chapter).or_default().push(number);
        }
    }
    chapters
}

/// The number of a promise, such as `N10`, at the start of `text`.
fn promise(text: &str) -> Option<(char, usize)> {
    let chapter = text.chars().next().filter(char::is_ascii_uppercase)?;
    let digits = &text[1..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    Some((chapter, digits[..end].parse().ok()?))
}

/// The promises that a comment cites: the numbers that follow the word `SPEC`.
fn citations(text: &str) -> Vec<(char, usize)> {
    let mut cited = Vec::new();
    for (at, word) in text.match_indices("SPEC") {
        let rest = &text[at + word.len()..];
        let rest = rest.strip_prefix(".md").unwrap_or(rest);
        let parts = rest.split([' ', ',', '(']).filter(|part| !part.is_empty());
        cited.extend(parts.map_while(promise));
    }
    cited
}

fn uncounted(spec: &str) -> Vec<String> {
    let chapters = promises(spec).into_iter();
    let counted = |numbers: &[usize]| numbers.iter().copied().eq(1..=numbers.len());
    let bad = chapters.filter(|(_, numbers)| !counted(numbers));
    bad.map(|(chapter, numbers)| format!("SPEC.md: {chapter} counts {numbers:?}")).collect()
}

#[test]
fn promises_are_counted_and_citations_exist() {
    let files = files();
    let spec = files.iter().find(|file| file.path == "SPEC.md").expect("SPEC.md");
    assert_eq!(uncounted(&spec.text), [""; 0]);
    let promises = promises(&spec.text);
    let exists = |(chapter, number): &(char, usize)| {
        promises.get(chapter).is_some_and(|numbers| numbers.contains(number))
    };
    let mut seen = 0;
    for file in files.iter().filter(|file| file.is_rust() && file.path != "tests/tidy.rs") {
        for cited in citations(&file.text) {
            assert!(exists(&cited), "{}: SPEC.md has no {}{}", file.path, cited.0, cited.1);
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} citations were found");
    assert!(!uncounted("**N1** **N3**").is_empty() && uncounted("**N1.** **N2**").is_empty());
    let cited = citations("as SPEC N3, N6 says, not N9 (SPEC.md, N10), see SPEC.md (A2)");
    assert_eq!(cited, [('N', 3), ('N', 6), ('N', 10), ('A', 2)]);
}
