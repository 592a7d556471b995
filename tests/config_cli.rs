//! `aios config`, `aios models` and `/model` as a person and a script see them (SPEC O).

mod templated;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use templated::templated;

struct Home(tempfile::TempDir);

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn usual(&self) -> PathBuf {
        self.0.path().join("aios/aios.toml")
    }

    fn write(&self, text: &str) -> PathBuf {
        let path = self.usual();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn aios(&self, args: &[&str]) -> Said {
        self.piped(args, "")
    }

    fn piped(&self, args: &[&str], stdin: &str) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aios"));
        for name in ["RUST_LOG", "AIOS_CATALOG", "AIOS_CONFIG", "AIOS_MODEL_DIR"] {
            command.env_remove(name);
        }
        command.env("XDG_CONFIG_HOME", self.0.path()).env("AIOS_CACHE_DIR", self.0.path());
        let output = command.args(args).write_stdin(stdin).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap();
        Said { code, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

fn micro(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models").join(format!("{name}.gguf"))
}

fn model(name: &str, micro_name: &str, family: &str, role: &str) -> String {
    let file = micro(micro_name);
    format!("[[model]]\nname = {name:?}\nfile = {file:?}\nfamily = {family:?}\nrole = {role:?}\n")
}

#[test]
fn a_file_is_written_checked_and_shown() {
    let home = Home::new();
    let check = home.aios(&["config", "check"]);
    assert_eq!((check.code, check.err.as_str()), (0, ""));
    assert!(check.out.contains("the defaults are in force: main smollm2-135m-instruct"));
    let init = home.aios(&["config", "init"]);
    assert_eq!((init.code, init.out.trim()), (0, home.usual().to_str().unwrap()));
    let again = home.aios(&["config", "init"]);
    assert!(again.code == 1 && again.err.contains("--force replaces it"), "{}", again.err);
    assert_eq!(home.aios(&["config", "init", "--force"]).code, 0);
    let check = home.aios(&["config", "check"]);
    assert!(check.code == 0 && check.out.contains("is sound: main"), "{}{}", check.out, check.err);
    let show = home.aios(&["config", "show"]);
    assert!(show.out.contains("model[0].family = \"LLaMA\""), "{}", show.out);
    let shown: Value = serde_json::from_str(&home.aios(&["config", "show", "--json"]).out).unwrap();
    assert_eq!(shown["path"], home.usual().to_str().unwrap());
    let settings = shown["settings"].as_array().unwrap();
    let name = settings.iter().find(|setting| setting["key"] == "model[0].name").unwrap();
    assert_eq!(name["value"], "smollm2-135m-instruct");
    assert!(name["line"].as_u64().unwrap() > 1);
}

#[test]
fn a_wrong_file_names_line_and_key_for_every_command_that_reads_it() {
    let home = Home::new();
    let text = model("m", "micro-llama-q4km", "LLaMA", "main");
    let path = home.write(&format!("{text}contxt = 1\n"));
    let want = format!("{}:6: model[0].contxt: unknown key 'contxt'; did you", path.display());
    for args in [&["config", "check"][..], &["config", "show"], &["models"], &["chat", "-p", "x"]] {
        let said = home.aios(args);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{args:?}");
        assert!(said.err.starts_with("error: ") && said.err.contains(&want), "{}", said.err);
        assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    }
    let other = home.0.path().join("other.toml");
    fs::write(&other, text).unwrap();
    for args in [
        ["config", "check", other.to_str().unwrap()],
        ["--config", other.to_str().unwrap(), "models"],
    ] {
        assert_eq!(home.aios(&args).code, 0, "{args:?}");
    }
    assert_eq!(home.aios(&["config"]).code, 2);
}

#[test]
fn models_are_opened_when_asked() {
    let home = Home::new();
    let right = model("m", "micro-llama-q4km", "LLaMA", "main");
    home.write(&right);
    let said = home.aios(&["config", "check", "--models"]);
    assert!(said.code == 0 && said.out.contains("m: llama, Q4_K_M, real"), "{}", said.out);
    home.write(&format!("{right}{}", model("q", "micro-qwen2-q4km", "Phi", "small")));
    let said = home.aios(&["config", "check", "--models"]);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("'q' is declared as Phi"), "{}", said.out);
    assert!(said.err.contains("1 of 2 models cannot be used"), "{}", said.err);
}

#[test]
fn models_lists_the_registry_too() {
    let home = Home::new();
    let catalogue = "[[model]]\nname = \"small\"\ncatalogue = \"gemma-3-270m\"\n\
                     family = \"Gemma\"\nrole = \"small\"\n";
    home.write(&format!("{}{catalogue}", model("m", "micro-llama-q4km", "LLaMA", "main")));
    let said = home.aios(&["models"]);
    assert!(said.out.contains("In the registry (") && said.out.contains("catalogue: gemma-3-270m"));
    let listed: Value =
        serde_json::from_str(&home.aios(&["models", "--registry", "--json"]).out).unwrap();
    let states: Vec<&str> =
        listed.as_array().unwrap().iter().map(|of| of["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["present", "absent"]);
    let all: Value = serde_json::from_str(&home.aios(&["models", "--json"]).out).unwrap();
    let gemma = all.as_array().unwrap().iter().find(|of| of["name"] == "gemma-3-270m").unwrap();
    assert_eq!(gemma["registry"], serde_json::json!(["small"]));
}

#[test]
fn a_conversation_says_which_model_cannot_be_had() {
    let home = Home::new();
    home.write(&model("m", "micro-llama-q4km", "Qwen", "main"));
    let said = home.aios(&["chat", "-p", "x"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("'m' is declared as Qwen"), "{}", said.err);
    let said = home.aios(&["chat", "-m", "mm", "-p", "x"]);
    assert!(
        said.err.contains("there is no file and no catalogue model called 'mm'"),
        "{}",
        said.err
    );
    assert!(said.err.contains("did you mean 'm'?"), "{}", said.err);
}

#[test]
fn a_conversation_changes_models_and_goes_on() {
    let home = Home::new();
    let [a, b] =
        ["micro-llama-q4km", "micro-qwen2-q4km"].map(|name| templated(name, home.0.path()));
    let entry = |name: &str, file: &Path, family: &str, role: &str| {
        format!(
            "[[model]]\nname = {name:?}\nfile = {file:?}\nfamily = {family:?}\nrole = {role:?}\n"
        )
    };
    let wrong = entry("wrong", &b, "Falcon", "small");
    home.write(&format!(
        "{}{}{wrong}",
        entry("a", &a, "LLaMA", "main"),
        entry("b", &b, "Qwen", "small")
    ));
    let options = ["chat", "-n", "4", "--temp", "0", "-c", "128", "--ignore-eos", "--spec", "off"];
    let said = home.piped(&options, "Hi\n/model\n/model b\nAnd you?\n/model\n/stats\n");
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("* a      main      LLaMA   loaded"), "{}", said.err);
    assert!(said.err.contains("(b answers from now on: qwen2, Q4_K_M"), "{}", said.err);
    assert!(said.err.contains("* b      small     Qwen    loaded"), "{}", said.err);
    assert!(said.err.contains("answers so far: 2"), "{}", said.err);
    // The second answer is what b says to the whole conversation, and not what it says to its end.
    let alone = home.piped(&[&options[..], &["-m", "b"]].concat(), "And you?\n");
    assert_eq!(alone.code, 0, "{}", alone.err);
    let prompt = |err: &str, at: usize| {
        err.lines().filter(|line| line.starts_with("[prompt ")).nth(at).unwrap().to_owned()
    };
    let tokens = |line: String| -> u64 { line.split(' ').nth(1).unwrap().parse().unwrap() };
    assert!(tokens(prompt(&said.err, 1)) > tokens(prompt(&alone.err, 0)), "the history is kept");
    // One that cannot be had: the error says which model is left, and ends a pipe.
    let said = home.piped(&options, "Hi\n/model wrong\n");
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("error: a still answers: model 'wrong' cannot be loaded"),
        "{}",
        said.err
    );
    let said = home.piped(&options, "/model bb\n");
    assert!(said.err.contains("a still answers"), "{}", said.err);
    // A file of no entry will do as well.
    let said = home.piped(&options, &format!("/model {}\nHi\n", b.display()));
    assert!(said.code == 0 && said.err.contains("answers from now on: qwen2"), "{}", said.err);
}
