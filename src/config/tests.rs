//! SPEC O1 to O5: what a configuration may say, and what is said of one that is wrong.

use std::ffi::OsString;

use super::*;

const MAIN: &str =
    "[[model]]\nname = \"a\"\nfile = \"a.gguf\"\nfamily = \"llama\"\nrole = \"main\"\n";

fn fault(text: &str) -> Fault {
    parse(text, Path::new("/etc/aios")).expect_err(text)
}

#[test]
fn the_file_that_init_writes_is_the_default_and_so_are_its_comments() {
    let (config, _) = parse(DEFAULT_FILE, Path::new("/")).unwrap();
    assert_eq!(config, Config::default());
    // With every example in force but one that excludes another, it is still sound.
    let lines = DEFAULT_FILE.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting,
        _ => line,
    });
    let shown: Vec<&str> = lines.filter(|line| !line.starts_with("catalogue")).collect();
    let (config, _) = parse(&shown.join("\n"), Path::new("/")).unwrap();
    assert_eq!(config.models[0].ram, Some(Bytes(2_600_000_000)));
    assert_eq!(config.registry.memory, Some(Bytes(4_000_000_000)));
}

#[test]
fn a_configuration_is_read_and_relative_paths_start_at_its_folder() {
    let text = format!(
        "{MAIN}context = 0\nthreads = 2\nram = 1500000\n[[model]]\nname = \"b\"\n\
         catalogue = \"gemma-3-270m\"\nfamily = \"Gemma\"\nrole = \"small\"\n\
         [[model]]\nname = \"e\"\nfile = \"/models/e.gguf\"\nrole = \"embedder\"\n\
         [registry]\nmemory = \"1.5Gi\"\n"
    );
    let (config, lines) = parse(&text, Path::new("/etc/aios")).unwrap();
    let [a, b, e] = &config.models[..] else { panic!("three models") };
    assert_eq!(a.file.as_deref(), Some(Path::new("/etc/aios/a.gguf")));
    assert_eq!((a.family, a.role), (Some(Family::Llama), ModelRole::Main));
    assert_eq!((a.context, a.threads, a.ram), (Some(0), Some(2), Some(Bytes(1_500_000))));
    assert_eq!((b.catalogue.as_deref(), b.role), (Some("gemma-3-270m"), ModelRole::Small));
    assert_eq!((e.file.as_deref(), e.family), (Some(Path::new("/models/e.gguf")), None));
    assert_eq!(config.registry.memory, Some(Bytes(3 << 29)));
    assert_eq!((lines.line("model[1].name"), lines.line("registry.memory")), (Some(10), Some(19)));
    assert_eq!(parse("", Path::new("/")).unwrap().0, Config::default());
}

#[test]
fn each_fault_names_its_line_and_key_and_the_nearest_word() {
    let long = format!("{MAIN}[[model]]\nname = \"{}\"\n", "x".repeat(65));
    let mut wrong = Vec::new();
    let with = |line: &str| format!("{MAIN}{line}\n");
    for (text, line, key, want) in [
        (with("contxt = 1"), 6, "model[0].contxt", "did you mean 'context'?"),
        (with("context = -1"), 6, "model[0].context", "integer"),
        (with("context = \"4096\""), 6, "model[0].context", "invalid type"),
        (with("context = 99999999"), 6, "model[0].context", "from 0 to 16777216"),
        (with("threads = 0"), 6, "model[0].threads", "from 1 to 1024"),
        (with("ram = \"3GB\""), 6, "model[0].ram", "must be bytes like 2600M"),
        (with("ram = -3"), 6, "model[0].ram", "negative"),
        (with("ram = [1]"), 6, "model[0].ram", "expected bytes"),
        (with("ram = 0"), 6, "model[0].ram", "more than 0"),
        (with("catalogue = \"x\""), 6, "model[0].catalogue", "not both"),
        (with("[registri]"), 6, "registri", "did you mean 'registry'?"),
        (with("[system]\ntier = 1"), 6, "system", "unknown key 'system'"),
        (with("[router]\ntier = 1"), 7, "router.tier", "there are trivial, moderate, high"),
        (with("[registry]\nmemroy = \"1G\""), 7, "registry.memroy", "did you mean 'memory'?"),
        (with("[registry]\nmemory = 0"), 7, "registry.memory", "more than 0"),
        (with("[[registry]]"), 6, "registry", "write [registry]"),
        ("registry = []".to_owned(), 1, "registry", "write [registry]"),
        ("model = [[\"a\", \"b\"]]".to_owned(), 1, "model[0]", "write [[model]]"),
        (with(&MAIN.replace("a.gguf", "b.gguf")), 7, "model[1].name", "the model in line 2"),
        (MAIN.replace("llama", "lama"), 4, "model[0].family", "did you mean LLaMA?"),
        (MAIN.replace("main", "mian"), 5, "model[0].role", "did you mean 'main'?"),
        (MAIN.replace("main", "small"), 1, "model", "no model has the role 'main'"),
        (MAIN.replace("\"a\"", "\"../a\""), 2, "model[0].name", "no name for a model"),
        (MAIN.replace("\"a\"", "\"\""), 2, "model[0].name", "no name for a model"),
        (MAIN.replace("\"a\"", "\"a.GGUF\""), 2, "model[0].name", "no name for a model"),
        (MAIN.replace("name", "#"), 1, "model[0]", "missing field `name`"),
        (MAIN.replace("role", "#"), 1, "model[0]", "missing field `role`"),
        (MAIN.replace("file", "#"), 1, "model[0].file", "has no file"),
        (MAIN.replace("family", "#"), 1, "model[0].family", "one of LLaMA, Qwen"),
        (MAIN.replace("a.gguf", ""), 3, "model[0].file", "empty"),
        ("model = 3".to_owned(), 1, "model", "invalid type"),
        ("model = []".to_owned(), 1, "model", "no model has the role 'main'"),
        (format!("{MAIN}name = \"a\""), 6, "", "duplicate key"),
        (with("x = "), 6, "", ""),
        (long, 6, "model[1]", "missing field `role`"),
    ] {
        let fault = fault(&text);
        let placed = (fault.line, fault.key.as_str()) == (line, key);
        if !placed || !fault.reason.contains(want) || fault.reason.is_empty() {
            wrong.push(format!("{text}\n=> {fault}\nexpected {line}: {key}: {want}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn hostile_files_end_in_one_short_error() {
    let deep = format!("x = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let tables = format!("[{}]\ny = 1", vec!["x"; 50_000].join("."));
    let dotted = format!("{} = 1", vec!["x"; 50_000].join("."));
    let word = format!("{MAIN}{} = 1", "q".repeat(500_000));
    let control = format!("{MAIN}\"\\u001b[2J\" = 1");
    for text in [deep, tables, dotted, word, control] {
        let said = fault(&text).to_string();
        assert!(!said.chars().any(char::is_control), "{said}");
        let start: String = text.chars().take(60).collect();
        assert!(said.len() < 2000, "{} bytes of error for {start}", said.len());
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    let error = |place: &Place| Loaded::load(place).unwrap_err().to_string();
    let named = Place::Named(path.clone());
    assert!(error(&named).contains("aios config init"), "{}", error(&named));
    assert_eq!(Loaded::load(&Place::Usual(path.clone())).unwrap().path, None);
    fs::write(&path, b"[registry]\n# caf\xe9\n").unwrap();
    assert!(error(&named).contains("aios.toml:2: the file is not UTF-8"), "{}", error(&named));
    fs::write(&path, " ".repeat(1 << 20)).unwrap();
    assert_eq!(Loaded::load(&named).unwrap().config, Config::default());
    fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(error(&named).contains("more than 1048576 bytes"), "{}", error(&named));
    let dir = Place::Usual(folder.path().to_owned());
    assert!(error(&dir).contains("not a regular file"), "{}", error(&dir));
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    assert!(error(&Place::Named(pipe)).contains("not a regular file"));
}

#[test]
fn the_place_is_the_first_that_is_named() {
    let from = |option: Option<&str>, set: &[(&str, &str)]| {
        Place::from(option.map(Path::new), |name| {
            let value = set.iter().find(|(key, _)| *key == name);
            value.map(|(_, value)| OsString::from(value))
        })
    };
    let all = [("AIOS_CONFIG", "/e.toml"), ("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")];
    let usual = |path: &str| Place::Usual(path.into());
    assert_eq!(from(Some("o.toml"), &all), Place::Named("o.toml".into()));
    assert_eq!(from(None, &all), Place::Named("/e.toml".into()));
    assert_eq!(from(None, &all[1..]), usual("/x/aios/aios.toml"));
    assert_eq!(from(None, &all[2..]), usual("/h/.config/aios/aios.toml"));
    assert_eq!(from(None, &[("AIOS_CONFIG", ""), ("HOME", "")]), Place::Nowhere);
}

#[test]
fn every_setting_in_force_is_shown_with_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    fs::write(&path, format!("{MAIN}ram = \"2600M\"\n")).unwrap();
    let loaded = Loaded::load(&Place::Named(path)).unwrap();
    let settings = loaded.settings().unwrap();
    let of = |key: &str| settings.iter().find(|setting| setting.key == key).unwrap();
    assert_eq!(of("model[0].ram").value.as_str(), Some("2600M"));
    assert_eq!(of("model[0].ram").origin, Origin::Line(6));
    let builtin = Loaded::builtin().settings().unwrap();
    assert!(builtin.iter().all(|setting| setting.origin == Origin::Default));
    assert!(builtin.iter().any(|setting| setting.key == "model[0].catalogue"));
}

#[test]
fn the_default_file_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/folder/aios.toml");
    write_default(&path, false).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), DEFAULT_FILE);
    fs::write(&path, "mine").unwrap();
    assert!(matches!(write_default(&path, false), Err(ConfigError::Exists { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    write_default(&path, true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), DEFAULT_FILE);
    let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing else is left behind");
}
