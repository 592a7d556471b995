//! SPEC O6 to O11, on scripted backends and on micro models.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;

use super::*;
use crate::chat::Responder;
use crate::config::Family;

/// A backend of a given size that answers nothing.
struct Scripted {
    name: String,
    held: Held,
    alive: Arc<AtomicUsize>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Scripted {
    fn describe(&self) -> Description {
        Description {
            name: self.name.clone(),
            role: ModelRole::Main,
            backend: "scripted",
            execution_mode: ExecutionMode::Mock,
            family: None,
            architecture: String::new(),
            quantisation: String::new(),
            files: Vec::new(),
            context: 0,
        }
    }
    fn held(&self) -> Held {
        self.held
    }
    fn sha256(&self) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
    fn open(&self, _options: &SessionOptions) -> anyhow::Result<Box<dyn Responder + Send>> {
        bail!("it answers nothing")
    }
}

/// Loads entries whose file is `ID-BYTES`; any other cannot be loaded.
#[derive(Default)]
struct Script {
    alive: Arc<AtomicUsize>,
    loads: Arc<AtomicUsize>,
}

impl Source for Script {
    fn load(&self, entry: &ModelEntry) -> anyhow::Result<Box<dyn Backend>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let file = entry.file.as_ref().and_then(|file| file.to_str()).unwrap();
        let Some((id, bytes)) = file.split_once('-') else { bail!("{file} is damaged") };
        let held = Held { id: id.parse()?, bytes: bytes.parse()? };
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (name, alive) = (entry.name.clone(), Arc::clone(&self.alive));
        Ok(Box::new(Scripted { name, held, alive }))
    }
}

struct Bench {
    registry: Registry,
    alive: Arc<AtomicUsize>,
    loads: Arc<AtomicUsize>,
}

fn bench(models: &[(&str, &str)], budget: Option<u64>) -> Bench {
    let script = Script::default();
    let (alive, loads) = (Arc::clone(&script.alive), Arc::clone(&script.loads));
    let entry = |(name, file): &(&str, &str)| ModelEntry::of_file(name, ModelRole::Main, file);
    let entries: Vec<ModelEntry> = models.iter().map(entry).collect();
    let options = Options { memory: budget.map(Bytes) };
    let registry = Registry::new(&entries, &options, Box::new(script)).unwrap();
    Bench { registry, alive, loads }
}

impl Bench {
    fn loaded(&self) -> Vec<String> {
        let loaded = self.registry.list().into_iter().filter(|of| of.uses.is_some());
        loaded.map(|of| of.entry.name).collect()
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    fn said(&self) -> Vec<String> {
        self.registry.events(0).into_iter().map(|(_, event)| event.to_string()).collect()
    }
}

#[test]
fn a_model_is_loaded_once_and_counted() {
    let bench = bench(&[("a", "1-10"), ("b", "2-10")], None);
    assert_eq!(bench.registry.serving(ModelRole::Main).as_deref(), Some("a"));
    let one = bench.registry.acquire(ModelRole::Main).unwrap();
    let two = bench.registry.acquire_named("a").unwrap();
    let three = two.clone();
    assert_eq!((one.name(), three.describe().name.as_str()), ("a", "a"));
    assert_eq!(bench.registry.list()[0].uses, Some(3));
    assert_eq!(bench.loads.load(Ordering::SeqCst), 1);
    drop((one, two, three));
    assert_eq!(bench.registry.list()[0].uses, Some(0));
    assert_eq!(bench.loaded(), ["a"], "an unused model stays loaded");
    assert_eq!(bench.registry.unload("a").unwrap(), Unloaded::Now);
    assert_eq!(bench.registry.unload("a").unwrap(), Unloaded::NotLoaded);
    assert_eq!(bench.alive(), 0);
    let unknown = bench.registry.unload("c").unwrap_err().to_string();
    assert!(unknown.contains("it has: a, b"), "{unknown}");
    let none = bench.registry.acquire(ModelRole::Small).unwrap_err().to_string();
    assert!(none.contains("role 'small'"), "{none}");
    let twice = bench.registry.add(ModelEntry::of_file("a", ModelRole::Draft, "x"));
    assert!(matches!(twice, Err(RegistryError::Duplicate { .. })));
}

#[test]
fn a_model_in_use_outlives_its_unloading() {
    let bench = bench(&[("a", "1-10")], None);
    let lease = bench.registry.acquire(ModelRole::Main).unwrap();
    assert_eq!(bench.registry.unload("a").unwrap(), Unloaded::After { sessions: 1 });
    assert_eq!((bench.loaded().len(), bench.alive()), (0, 1));
    assert_eq!(lease.describe().name, "a");
    // Who asks now has it loaded anew.
    let fresh = bench.registry.acquire(ModelRole::Main).unwrap();
    assert_eq!(bench.alive(), 2);
    drop(lease);
    assert_eq!(bench.alive(), 1);
    drop(fresh);
    assert_eq!(bench.loaded(), ["a"]);
}

#[test]
fn a_swap_changes_who_serves_and_leaves_sessions_alone() {
    let bench = bench(&[("a", "1-10"), ("b", "2-10"), ("c", "damaged")], None);
    let old = bench.registry.acquire(ModelRole::Main).unwrap();
    let new = bench.registry.swap(ModelRole::Main, "b").unwrap();
    assert_eq!((old.name(), new.name()), ("a", "b"));
    assert_eq!(bench.registry.acquire(ModelRole::Main).unwrap().name(), "b");
    // One that cannot be loaded, one that is refused on trial and one that is unknown.
    let error = bench.registry.swap(ModelRole::Main, "c").unwrap_err();
    assert_eq!(sentence(&error), "model 'c' cannot be loaded: damaged is damaged");
    let refused = bench.registry.swap_with(ModelRole::Main, "a", |lease| -> anyhow::Result<()> {
        assert_eq!(lease.name(), "a");
        bail!("no template")
    });
    assert!(matches!(refused, Err(RegistryError::Refused { .. })));
    assert!(bench.registry.swap(ModelRole::Main, "bb").is_err());
    assert_eq!(bench.registry.acquire(ModelRole::Main).unwrap().name(), "b");
    let said = bench.said();
    assert_eq!(said[2], "b serves as main instead of a");
    let kept = "b still serves as main: c cannot: model 'c' cannot be loaded: damaged is damaged";
    assert!(said.contains(&kept.to_owned()), "{said:?}");
}

#[test]
fn the_budget_lets_go_of_the_unused_model_that_was_used_longest_ago() {
    let models = [("a", "1-40"), ("b", "2-40"), ("c", "3-40"), ("d", "4-101"), ("e", "2-40")];
    let bench = bench(&models, Some(100));
    bench.registry.load("a").unwrap();
    bench.registry.load("b").unwrap();
    drop(bench.registry.acquire_named("a").unwrap());
    let c = bench.registry.acquire_named("c").unwrap();
    assert_eq!(bench.loaded(), ["a", "c"], "b was used longer ago than a");
    assert!(bench.said().contains(&"b is unloaded: c needs its 0.0 MB".to_owned()));
    // What cannot fit evicts nothing.
    let error = bench.registry.load("d").unwrap_err().to_string();
    assert!(error.contains("registry.memory") && error.contains(" by c"), "{error}");
    assert_eq!(bench.loaded(), ["a", "c"]);
    let b = bench.registry.acquire_named("b").unwrap();
    assert_eq!(bench.loaded(), ["b", "c"]);
    // The weights of b once more cost nothing; a does not fit beside models in use.
    let e = bench.registry.acquire_named("e").unwrap();
    assert!(bench.said().contains(&"e is loaded; it shares the weights of b".to_owned()));
    assert!(matches!(bench.registry.load("a"), Err(RegistryError::Memory { .. })));
    // One of two that share frees nothing, so that neither goes.
    drop(b);
    assert!(matches!(bench.registry.load("a"), Err(RegistryError::Memory { .. })));
    assert_eq!(bench.loaded(), ["b", "c", "e"]);
    drop(e);
    bench.registry.load("a").unwrap();
    assert_eq!(bench.loaded(), ["a", "c"]);
    drop(c);
}

#[test]
fn a_model_that_leaves_makes_room_for_the_one_that_comes() {
    let bench = bench(&[("a", "1-80"), ("b", "2-80"), ("c", "3-80")], Some(100));
    let session = bench.registry.acquire(ModelRole::Main).unwrap();
    assert!(matches!(bench.registry.load("b"), Err(RegistryError::Memory { .. })));
    // A trial that fails leaves what was there.
    let refuse = |_: &Lease<dyn Backend>| -> anyhow::Result<()> { bail!("no") };
    assert!(bench.registry.swap_with(ModelRole::Main, "b", refuse).is_err());
    assert_eq!((bench.loaded(), bench.alive()), (vec!["a".to_owned()], 1));
    let new = bench.registry.swap(ModelRole::Main, "b").unwrap();
    assert_eq!(bench.loaded(), ["b"]);
    assert_eq!((session.name(), bench.alive()), ("a", 2));
    // Until its last session ends the memory of a is not free.
    drop(new);
    assert!(matches!(bench.registry.load("c"), Err(RegistryError::Memory { .. })));
    drop(session);
    assert_eq!((bench.loaded(), bench.alive()), (vec!["b".to_owned()], 1));
    bench.registry.load("c").unwrap();
    assert_eq!(bench.loaded(), ["c"]);
}

fn micro(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models").join(format!("{name}.gguf"))
}

fn local(entries: &[ModelEntry], digests: &Path) -> Registry {
    let source = Local::new(Direct, Some(digests.to_owned()));
    Registry::new(entries, &Options::default(), Box::new(source)).unwrap()
}

#[test]
fn identical_bytes_are_mapped_once() {
    let folder = tempfile::tempdir().unwrap();
    let [link, copy, other] = ["link", "copy", "other"].map(|name| folder.path().join(name));
    let original = micro("micro-llama-q4km");
    std::os::unix::fs::symlink(&original, &link).unwrap();
    fs::copy(&original, &copy).unwrap();
    // As long, and one byte differs.
    let mut bytes = fs::read(&original).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&other, bytes).unwrap();
    let entries = [("a", &original), ("b", &link), ("c", &copy), ("d", &other)]
        .map(|(name, file)| ModelEntry::of_file(name, ModelRole::Main, file));
    let registry = local(&entries, folder.path());
    let leases = entries.each_ref().map(|entry| registry.acquire_named(&entry.name).unwrap());
    let models = leases.each_ref().map(|lease| lease.local().unwrap().model());
    assert!(Arc::ptr_eq(models[0], models[1]) && Arc::ptr_eq(models[0], models[2]));
    assert!(!Arc::ptr_eq(models[0], models[3]));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let times =
        |path: &Path| maps.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count();
    assert_eq!((times(&original), times(&copy), times(&other)), (1, 0, 1));
    let digests = leases.each_ref().map(|lease| lease.sha256().unwrap().unwrap());
    assert!(digests[0] == digests[2] && digests[0] != digests[3]);
    assert_eq!(digests[0].len(), 64);
    // A file that was replaced is another one.
    fs::remove_file(&other).unwrap();
    fs::copy(micro("micro-qwen2-q4km"), &other).unwrap();
    registry.unload("d").unwrap();
    let again = registry.acquire_named("d").unwrap();
    assert_eq!(again.describe().architecture, "qwen2");
    assert_eq!(leases[3].describe().architecture, "llama");
}

#[test]
fn a_model_says_what_it_is_and_another_family_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let llama = ModelEntry {
        family: Some(Family::Llama),
        context: Some(64),
        threads: Some(1),
        ..ModelEntry::of_file("l", ModelRole::Main, micro("micro-llama-q4km"))
    };
    let wrong = ModelEntry { name: "w".to_owned(), family: Some(Family::Qwen), ..llama.clone() };
    let missing = ModelEntry::of_file("m", ModelRole::Main, folder.path().join("none.gguf"));
    let registry = local(&[llama, wrong, missing], folder.path());
    let lease = registry.acquire(ModelRole::Main).unwrap();
    let found = lease.describe();
    assert_eq!((found.family, found.architecture.as_str()), (Some(Family::Llama), "llama"));
    assert_eq!((found.quantisation.as_str(), found.context), ("Q4_K_M", 64));
    assert_eq!(found.execution_mode, ExecutionMode::Real);
    let options = lease.local().unwrap().executor_options(&SessionOptions::default());
    assert_eq!((options.context, options.threads, options.ram), (64, 1, None));
    let asked = SessionOptions { context: Some(0), threads: Some(2), ram: Some(5) };
    let options = lease.local().unwrap().executor_options(&asked);
    let trained = lease.local().unwrap().model().config().context;
    assert_eq!((options.context, options.threads, options.ram), (trained, 2, Some(5)));
    let error = sentence(&registry.acquire_named("w").unwrap_err());
    assert!(error.contains("LLaMA, and 'w' is declared as Qwen"), "{error}");
    let error = sentence(&registry.acquire_named("m").unwrap_err());
    assert!(error.contains("none.gguf does not exist"), "{error}");
}

#[test]
fn a_stamped_file_is_synthetic() {
    use aios_validation::synth::{Quant, Recipe, Shape};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.gguf");
    let shape = Shape::named("llama-3.2-1b").unwrap();
    let recipe = Recipe {
        shape,
        quant: Quant::Q4_0,
        seed: 1,
        layers: Some(1),
        vocab: Some(512),
        activation: None,
    };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    recipe.plan().unwrap().create(&path, false, go_on).unwrap();
    let registry = local(&[ModelEntry::of_file("s", ModelRole::Main, path)], folder.path());
    let lease = registry.acquire(ModelRole::Main).unwrap();
    assert_eq!(lease.execution_mode(), ExecutionMode::Synthetic);
    assert_eq!(lease.describe().quantisation, "Q4_0");
}
