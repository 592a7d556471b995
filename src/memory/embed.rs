//! What turns texts into vectors, as memory sees it.

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
