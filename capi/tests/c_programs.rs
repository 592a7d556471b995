//! Programs in C that use the library (SPEC I1 to I9): one that exercises all of it from two
//! threads, under a leak checker, and the README's example.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// Flags under which the header and the programs must compile without a word.
const FLAGS: [&str; 6] = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"];
/// Bytes of memory in which a part of the micro model's weights streams.
const RAM: &str = "500000";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The shared and the static library. Cargo builds neither for a test, so that it is asked to,
/// into the folder and with the profile of this one.
fn libraries() -> &'static [PathBuf; 2] {
    static BUILT: OnceLock<[PathBuf; 2]> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = env::current_exe().expect("this program");
        let target = test.ancestors().nth(3).expect("TARGET/PROFILE/deps/TEST");
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--offline", "--package", "aios-capi", "--message-format", "json"]);
        command.arg("--target-dir").arg(target).current_dir(here(""));
        if test.ancestors().nth(2).is_some_and(|folder| folder.ends_with("release")) {
            command.arg("--release");
        }
        let messages = String::from_utf8(run(&mut command).stdout).expect("UTF-8");
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let files: Vec<PathBuf> = messages
            .filter_map(|message| message["filenames"].as_array().cloned())
            .flatten()
            .filter_map(|file| file.as_str().map(PathBuf::from))
            .collect();
        ["libaios.so", "libaios.a"].map(|name| {
            let file = files.iter().find(|file| file.ends_with(name));
            file.unwrap_or_else(|| panic!("no {name} among {files:?}")).clone()
        })
    })
}

/// The compiler of this system.
fn cc() -> String {
    env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

/// Runs a command to its end; what it wrote is shown if it fails.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    output
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Says that a part of a test is left out, which continuous integration does not accept.
fn skip(why: &str) {
    assert!(env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

fn compile(source: &Path, program: &Path, more: &[&str]) {
    let mut command = Command::new(cc());
    command.args(FLAGS).arg("-I").arg(here("include")).arg(source).arg("-o").arg(program);
    run(command.args(more));
}

fn model() -> PathBuf {
    here("../testdata/models/micro-llama-q4km.gguf")
}

/// A folder for programs, with `source` compiled in it.
fn compiled(name: &str, source: &Path, more: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(name);
    compile(source, &program, more);
    (folder, program)
}

/// What links a program with the shared library.
fn dynamic() -> Vec<String> {
    let folder = libraries()[0].parent().expect("a folder").display();
    let flags = [format!("-L{folder}"), format!("-Wl,-rpath,{folder}")];
    flags.into_iter().chain(["-laios", "-pthread", "-lm"].map(str::to_owned)).collect()
}

/// Memcheck, which ends with 9 if it has found something.
fn valgrind(program: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,possible"]);
    command.args(["--error-exitcode=9", "--fair-sched=yes", "--num-callers=40"]);
    let known = here("tests/c/valgrind.supp");
    command.arg(format!("--suppressions={}", known.display())).arg(program).arg(model());
    command
}

#[test]
fn a_program_uses_all_of_it_from_two_threads_and_nothing_leaks() {
    if !is_there(&cc()) {
        return skip("there is no C compiler");
    }
    let link = dynamic();
    let link: Vec<&str> = link.iter().map(String::as_str).collect();
    let (folder, program) = compiled("exercise", &here("tests/c/exercise.c"), &link);
    let copy = folder.path().join("copy.gguf");
    fs::copy(model(), &copy).expect("copied");
    // Digests go to a folder of the test's own.
    let mut plain = Command::new(&program);
    plain.arg(model()).arg(RAM).arg(&copy).env("AIOS_CACHE_DIR", folder.path());
    let plain = run(&mut plain).stdout;
    assert_eq!(plain.split(|byte| *byte == b' ').count(), 9, "eight ids");
    if is_there("valgrind") {
        let mut checked = valgrind(&program);
        checked.arg(RAM).arg(&copy).env("AIOS_CACHE_DIR", folder.path());
        let checked = run(&mut checked).stdout;
        assert_eq!(checked, plain, "the same ids on a processor without AVX-512");
        // The checker finds what it is here for.
        let (_folder, leaky) = compiled("leak", &here("tests/c/leak.c"), &link);
        let found = valgrind(&leaky).output().expect("valgrind runs");
        assert_eq!(found.status.code(), Some(9), "a planted leak is found");
    } else {
        skip("there is no valgrind, so that nobody looked for leaks");
    }
}

#[test]
fn the_readme_example_compiles_and_runs() {
    if !is_there(&cc()) {
        return skip("there is no C compiler");
    }
    let readme = fs::read_to_string(here("../README.md")).expect("README.md");
    let code = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next());
    let code = code.expect("an example in C");
    assert!(code.lines().count() <= 30, "short enough to read");
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("readme.c");
    fs::write(&source, code).expect("written");
    let program = folder.path().join("readme");
    // Statically, as those do who pass one file on.
    let archive = libraries()[1].to_str().expect("UTF-8");
    compile(&source, &program, &[archive, "-pthread", "-ldl", "-lm"]);
    let output = run(Command::new(&program).arg(model())).stdout;
    assert!(!output.is_empty());
}

#[test]
fn the_header_is_that_of_the_code() {
    let header = fs::read_to_string(here("include/aios.h")).expect("include/aios.h");
    // Without a generator, at least every function is there.
    let code = fs::read_to_string(here("src/lib.rs")).expect("src/lib.rs");
    let functions =
        code.split("extern \"C\" fn ").skip(1).filter_map(|rest| rest.split('(').next());
    let mut count = 0;
    for name in functions {
        assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
        count += 1;
    }
    assert!(count > 10);
    let cbindgen = env::var("CBINDGEN").unwrap_or_else(|_| "cbindgen".to_owned());
    if !is_there(&cbindgen) {
        return skip("there is no cbindgen (cargo install cbindgen --version 0.29.2 --locked)");
    }
    let mut command = Command::new(cbindgen);
    let output = run(command.current_dir(here("")).args(["--quiet", "--crate", "aios-capi"]));
    let made = String::from_utf8(output.stdout).expect("UTF-8");
    if env::var_os("AIOS_WRITE_HEADER").is_some() {
        fs::write(here("include/aios.h"), &made).expect("written");
        return;
    }
    assert!(
        made == header,
        "include/aios.h is not current; AIOS_WRITE_HEADER=1 cargo test -p aios-capi writes it"
    );
}
