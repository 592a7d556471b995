//! Micro models that can converse.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use aios_engine::gguf::{Gguf, TensorSpec, Writer};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

/// A copy of a micro model with a chat template.
pub fn templated(micro: &str, folder: &Path) -> PathBuf {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let bytes = fs::read(models.join(format!("{micro}.gguf"))).unwrap();
    let header = Gguf::parse(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.set("tokenizer.chat_template", TEMPLATE);
    let specs: Vec<TensorSpec> = header.tensors.iter().map(TensorSpec::from).collect();
    let path = folder.join(format!("{micro}.gguf"));
    let out = BufWriter::new(File::create(&path).unwrap());
    let mut writer = Writer::new(out, &metadata, &specs).unwrap();
    for tensor in &header.tensors {
        writer.tensor(&tensor.name, tensor.data(&bytes).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    path
}
