//! The benchmark of families as a person runs it: answers, their records, the results made of
//! these, a manuscript, and the proof of every record (SPEC J, O15).

#[path = "templated/mod.rs"]
mod templated;

use std::fs;
use std::path::{Path, PathBuf};

use aios_kernels::Isa;
use serde_json::Value;
use sha2::{Digest, Sha256};
use templated::templated;

const LABELS: &str = r#"{"id": "t", "text": "Hello, how are you today?", "tier": "trivial"}
{"id": "m", "text": "Explain why the sky is blue.", "tier": "moderate"}
"#;

const PAPER: &str = "# Paper\n\nOn [MODEL_NOTE].\n\n## Routing\n\n\
| Family | Trivial | Moderate |\n|---|---|---|\n\
| LLaMA | [AUTO-GENERATED] | [AUTO-GENERATED] |\n\
| Gemma | [AUTO-GENERATED] | [AUTO-GENERATED] |\n\n\
## Latency\n\n| Layer | Backend | LLaMA | Gemma |\n|---|---|---|---|\n\
| Luna | CARMA | [AUTO-GENERATED] | [AUTO-GENERATED] |\n\
| Basic | Simple_RAG | [AUTO-GENERATED] | [AUTO-GENERATED] |\n";

/// A folder with a catalogue of micro models, which are fetched, and a memory.
struct House(tempfile::TempDir);

impl House {
    fn new() -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        let folder = house.0.path();
        let llama = templated("micro-llama-q4km", folder);
        // It has no template: the family's is built in.
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
        let gemma = models.join("micro-gemma3-q4km.gguf");
        let catalogue = entry("smollm2-135m-instruct", &llama) + &entry("gemma-3-270m", &gemma);
        fs::write(folder.join("catalogue.toml"), catalogue).unwrap();
        let encoder = folder.join("encoder.gguf");
        let micro = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/encoder");
        fs::copy(micro.join("micro-bert-mean.gguf"), &encoder).unwrap();
        let settings = "[[model]]\nname = \"main\"\ncatalogue = \"smollm2-135m-instruct\"\n\
                        family = \"LLaMA\"\nrole = \"main\"\n\n[[model]]\nname = \"encoder\"\n\
                        file = \"encoder.gguf\"\nrole = \"embedder\"\n\n\
                        [memory]\nstore = \"m.db\"\n";
        fs::write(folder.join("aios.toml"), settings).unwrap();
        fs::write(folder.join("sky.md"), "# Sky\n\nThe sky is blue: air scatters blue.\n").unwrap();
        fs::write(folder.join("labels.jsonl"), LABELS).unwrap();
        fs::write(folder.join("paper.md"), PAPER).unwrap();
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What a command in the folder prints and says, and its exit code.
    fn aios(&self, args: &[&str]) -> (String, String, i32) {
        let mut aios = assert_cmd::Command::new(env!("CARGO_BIN_EXE_aios"));
        aios.env_remove("RUST_LOG").current_dir(self.0.path());
        aios.env("AIOS_CATALOG", self.path("catalogue.toml"));
        for (name, folder) in [("CACHE", "cache"), ("DATA", "data"), ("MODEL", "models")] {
            aios.env(format!("AIOS_{name}_DIR"), self.path(folder));
        }
        aios.env("AIOS_CONFIG", self.path("aios.toml"));
        let output = aios.args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.code().unwrap())
    }

    fn ok(&self, args: &[&str]) -> String {
        let (out, said, code) = self.aios(args);
        assert_eq!(code, 0, "{args:?}: {said}");
        out
    }

    fn bench(&self, more: &[&str]) -> (String, String, i32) {
        let bench = ["bench-arch", "--provenance", "p.ndjson", "--labels", "labels.jsonl"];
        let small = ["--repeats", "1", "-n", "4", "--families", "llama,gemma"];
        self.aios(&[&bench[..], &small, more].concat())
    }
}

/// The entry of a catalogue for the file at `path`.
fn entry(name: &str, path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "[[model]]\nname = \"{name}\"\nfile = \"{name}.gguf\"\nabout = \"small\"\nbytes = {}\n\
         sha256 = \"{digest}\"\nlicence = \"MIT\"\nterms = \"https://example.org\"\n\
         [[model.source]]\npath = {path:?}\n\n",
        bytes.len()
    )
}

#[test]
fn families_are_asked_recorded_tabled_and_proved() {
    let house = House::new();
    let (_, said, code) = house.bench(&[]);
    assert_eq!(code, 1);
    assert!(said.contains("LLaMA is left out: 'aios pull smollm2-135m-instruct'"), "{said}");
    for name in ["smollm2-135m-instruct", "gemma-3-270m"] {
        house.ok(&["pull", name]);
    }
    let (_, said, code) = house.bench(&[]);
    assert!(code == 1 && said.contains("aios memory import"), "{said}");
    house.ok(&["memory", "import", "sky.md"]);
    // Two families, two layers, two memories, two prompts, each cold and warm.
    let (out, said, code) = house.bench(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(out.starts_with("32 answers, and 0 from before"), "{out}");
    let (out, ..) = house.bench(&[]);
    assert!(out.starts_with("0 answers, and 32 from before"), "{out}");

    let lines = fs::read_to_string(house.path("p.ndjson")).unwrap();
    let records: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |family: &str, field: &str| -> Vec<&Value> {
        let own = records.iter().filter(|record| record["bench"]["family"] == family);
        own.map(|record| &record[field]).collect()
    };
    let templates = ["LLaMA", "Gemma"].map(|family| of(family, "chat_template_sha256"));
    assert!(templates.iter().all(|all| all.len() == 16 && all.iter().all(|t| *t == all[0])));
    assert!(templates[0][0].is_string() && templates[0][0] != templates[1][0]);
    assert!(records.iter().all(|record| record["deterministic"] == true));
    let warmth = |warm| records.iter().filter(|r| r["bench"]["warm"] == warm).count();
    assert_eq!((warmth(true), warmth(false)), (16, 16));

    let results = ["results", "--input", "p.ndjson", "--labels", "labels.jsonl", "--outdir", "out"];
    let paper = ["--manuscript", "paper.md", "--set", "MODEL_NOTE=micro models"];
    house.ok(&[&results[..], &paper].concat());
    let filled = fs::read_to_string(house.path("out/manuscript.md")).unwrap();
    assert!(!filled.contains("AUTO-GENERATED") && filled.contains("On micro models."), "{filled}");
    let report = fs::read_to_string(house.path("out/RESULTS.md")).unwrap();
    assert!(report.contains("LLaMA") && report.contains("Gemma"), "{report}");

    for isa in Isa::available() {
        let proved = ["provenance", "replay", "p.ndjson", "--isa", isa.name().name()];
        assert!(house.ok(&proved).contains("32 of 32 records proved"), "{isa:?}");
    }
}
