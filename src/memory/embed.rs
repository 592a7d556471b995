//! What turns texts into vectors, as memory sees it.

use aios_engine::Encoder;

/// A model that gives texts of like meaning vectors that point alike.
pub trait Embedder: Send + Sync {
    /// What the embedder is called, for people.
    fn name(&self) -> &str;

    /// A digest of everything that the vectors depend on. Vectors are compared only with those of
    /// the same digest (SPEC.md, V7).
    fn digest(&self) -> &str;

    /// The length of a vector.
    fn dim(&self) -> usize;

    /// One vector for each text, of [`Embedder::dim`] numbers and of length 1.
    ///
    /// # Errors
    /// Whatever keeps the model from running; memory then answers by BM25 alone (SPEC.md, V11).
    fn embed(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>>;
}

/// An encoder of the engine.
pub struct Encoding {
    name: String,
    encoder: Encoder,
}

impl Encoding {
    /// `encoder`, which people call `name`.
    pub fn new(name: impl Into<String>, encoder: Encoder) -> Self {
        Self { name: name.into(), encoder }
    }
}

impl Embedder for Encoding {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> &str {
        self.encoder.digest()
    }

    fn dim(&self) -> usize {
        self.encoder.dim()
    }

    fn embed(&self, texts: &[&str]) -> anyhow::Result<Vec<Vec<f32>>> {
        Ok(self.encoder.embed(texts)?)
    }
}
