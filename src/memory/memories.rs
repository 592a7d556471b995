//! A store that is open together with its embedder and the index of its vectors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::{Added, Chunk, Document, Imported, Selection, Store};
use super::vectors::{FlatIndex, Int8Vector, VectorIndex};
use super::{Embedder, Error, Options};

/// How many texts the embedder is given at a time.
const BATCH: usize = 16;
/// Links by similarity: to how many fragments, and from which cosine on (SPEC.md, V13).
const LINKS: usize = 3;
const LINK_COSINE_MIN: f32 = 0.6;

/// Fragments that can be added to and searched, by several threads at once.
pub struct Memory {
    state: Mutex<State>,
    embedder: Option<Arc<dyn Embedder>>,
    options: Options,
}

/// What a change or a search has to itself.
pub(super) struct State {
    pub(super) store: Store,
    pub(super) index: Option<Box<dyn VectorIndex>>,
    seen: u64,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Memory {
    /// Joins a store and an embedder, whose vectors are read into memory.
    ///
    /// # Errors
    /// A setting out of its range, and those of the database.
    pub fn new(
        store: Store,
        embedder: Option<Arc<dyn Embedder>>,
        options: Options,
    ) -> Result<Self, Error> {
        options.check()?;
        let mut state = State { store, index: None, seen: 0 };
        if let Some(embedder) = &embedder {
            state.load(&**embedder)?;
        }
        Ok(Self { state: Mutex::new(state), embedder, options })
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The embedder, if there is one.
    pub fn embedder(&self) -> Option<&dyn Embedder> {
        self.embedder.as_deref()
    }

    /// Runs `look` with the store.
    ///
    /// # Errors
    /// Those of `look`.
    pub fn with_store<T, E>(&self, look: impl FnOnce(&Store) -> Result<T, E>) -> Result<T, E> {
        look(&self.locked().store)
    }

    /// Stores passages that belong to no document, with their vectors and links.
    ///
    /// # Errors
    /// [`Error::EmptyFragment`], [`Error::Embedder`], and those of the database.
    pub fn add(&self, source: &str, chunks: &[Chunk], now_ms: i64) -> Result<Vec<Added>, Error> {
        let vectors = self.vectors(chunks, &mut |_| Ok(()))?;
        let mut state = self.fresh()?;
        let pair = self.embedder.as_deref().zip(vectors.as_deref());
        let added = state.store.add(source, chunks, pair, now_ms)?;
        state.index_and_link(&added, vectors.as_deref())?;
        Ok(added)
    }

    /// Stores a document and its chunks, unless its content is known (SPEC.md, V4). `embedded` is
    /// told how many chunks have vectors so far and may end the work.
    ///
    /// # Errors
    /// As for [`Memory::add`].
    pub fn add_document(
        &self,
        document: &Document<'_>,
        chunks: &[Chunk],
        (replace, now_ms): (bool, i64),
        embedded: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<Imported, Error> {
        if let Some(source) = self.locked().store.known_document(&document.digest)? {
            let known_as = Some(source);
            return Ok(Imported { fragments: vec![], known_as, earlier: 0, replaced: 0 });
        }
        let vectors = self.vectors(chunks, embedded)?;
        let mut state = self.fresh()?;
        let pair = self.embedder.as_deref().zip(vectors.as_deref());
        let imported = state.store.add_document(document, chunks, pair, replace, now_ms)?;
        if imported.replaced > 0 {
            self.reload(&mut state)?;
        }
        if imported.known_as.is_none() {
            state.index_and_link(&imported.fragments, vectors.as_deref())?;
        }
        Ok(imported)
    }

    /// Gives vectors to fragments that have none of this embedder, and says how many those were.
    /// `embedded` is told how many are done and may end the work; what is done is kept.
    ///
    /// # Errors
    /// [`Error::Embedder`], and those of the database and of `embedded`.
    pub fn embed_missing(
        &self,
        embedded: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<usize, Error> {
        let Some(embedder) = self.embedder.as_deref() else { return Ok(0) };
        let (mut from, mut done) = (0, 0);
        loop {
            let missing = self.locked().store.without_vector(embedder, from, BATCH)?;
            let Some(last) = missing.last() else { return Ok(done) };
            from = last.id + 1;
            let texts: Vec<String> = missing.iter().map(|f| passage(&f.title, &f.text)).collect();
            let vectors = embed(embedder, &texts)?;
            let ids = missing.iter().map(|fragment| fragment.id);
            let vectors: Vec<(i64, Int8Vector)> = ids.zip(vectors).collect();
            let mut state = self.fresh()?;
            state.store.add_vectors(embedder, &vectors)?;
            let added: Vec<Added> =
                vectors.iter().map(|(id, _)| Added { id: *id, known: false }).collect();
            let vectors: Vec<Int8Vector> = vectors.into_iter().map(|(_, vector)| vector).collect();
            state.index_and_link(&added, Some(&vectors))?;
            done += added.len();
            embedded(done)?;
        }
    }

    /// Notes that these fragments served one answer together (SPEC.md, V13).
    ///
    /// # Errors
    /// Those of the database.
    pub fn record_use(&self, ids: &[i64], now_ms: i64) -> Result<(), Error> {
        self.locked().store.record_use(ids, now_ms)
    }

    /// Forgets what is selected and says how many fragments that were.
    ///
    /// # Errors
    /// Those of [`Store::forget`].
    pub fn forget(&self, selection: &Selection) -> Result<usize, Error> {
        let mut state = self.locked();
        let forgotten = state.store.forget(selection)?;
        self.reload(&mut state)?;
        Ok(forgotten)
    }

    /// The state, with the vectors that other processes have stored meanwhile.
    pub(super) fn fresh(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.locked();
        if self.embedder.is_some() && state.store.data_version()? != state.seen {
            self.reload(&mut state)?;
        }
        Ok(state)
    }

    fn reload(&self, state: &mut State) -> Result<(), Error> {
        match self.embedder.as_deref() {
            Some(embedder) => state.load(embedder),
            None => Ok(()),
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // The store's changes are transactions, so that a thread that panicked left none half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vectors of chunks, if there is an embedder.
    fn vectors(
        &self,
        chunks: &[Chunk],
        embedded: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<Option<Vec<Int8Vector>>, Error> {
        let Some(embedder) = self.embedder.as_deref() else { return Ok(None) };
        let mut vectors = Vec::with_capacity(chunks.len());
        for batch in chunks.chunks(BATCH) {
            let texts: Vec<String> =
                batch.iter().map(|chunk| passage(&chunk.title, &chunk.text)).collect();
            vectors.extend(embed(embedder, &texts)?);
            embedded(vectors.len())?;
        }
        Ok(Some(vectors))
    }
}

impl State {
    fn load(&mut self, embedder: &dyn Embedder) -> Result<(), Error> {
        // The version first: what is written after it is seen by the next look.
        self.seen = self.store.data_version()?;
        let mut index = FlatIndex::new(embedder.dim());
        self.store.load_vectors(embedder, &mut index)?;
        self.index = Some(Box::new(index));
        Ok(())
    }

    /// Takes new vectors into the index and links their fragments to the nearest.
    fn index_and_link(
        &mut self,
        added: &[Added],
        vectors: Option<&[Int8Vector]>,
    ) -> Result<(), Error> {
        let (Some(vectors), Some(index)) = (vectors, &mut self.index) else { return Ok(()) };
        for (added, vector) in added.iter().zip(vectors) {
            index.insert(added.id, vector);
        }
        let mut pairs = Vec::new();
        for (added, vector) in added.iter().zip(vectors).filter(|(added, _)| !added.known) {
            let values: Vec<f32> =
                vector.quants.iter().map(|&quant| f32::from(quant) * vector.scale).collect();
            let near = index.nearest(&values, LINKS + 1);
            let others = near.into_iter().filter(|(id, _)| *id != added.id).take(LINKS);
            let linked = others.filter(|(_, cosine)| *cosine >= LINK_COSINE_MIN);
            pairs.extend(linked.map(|(id, cosine)| (added.id, id, cosine)));
        }
        if pairs.is_empty() { Ok(()) } else { self.store.link_similar(&pairs) }
    }
}

/// What the embedder reads of a fragment.
fn passage(title: &str, text: &str) -> String {
    if title.is_empty() { text.to_owned() } else { format!("{title}\n{text}") }
}

fn embed(embedder: &dyn Embedder, texts: &[String]) -> Result<Vec<Int8Vector>, Error> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = embed_checked(embedder, &texts)?;
    Ok(vectors.iter().map(|vector| Int8Vector::quantise(vector)).collect())
}

/// The vectors of `texts`, held against what an embedder promises.
pub(super) fn embed_checked(
    embedder: &dyn Embedder,
    texts: &[&str],
) -> Result<Vec<Vec<f32>>, Error> {
    let fail = |cause| Error::Embedder { name: embedder.name().to_owned(), cause };
    let vectors = embedder.embed(texts).map_err(|error| fail(format!("{error:#}")))?;
    if vectors.len() != texts.len() {
        return Err(fail(format!("{} vectors for {} texts", vectors.len(), texts.len())));
    }
    for vector in &vectors {
        let square: f32 = vector.iter().map(|value| value * value).sum();
        // A NaN is in no range.
        if vector.len() != embedder.dim() || !(0.99..=1.01).contains(&square) {
            return Err(fail(format!(
                "a vector of {} numbers and length² {square} where {} and 1 are due",
                vector.len(),
                embedder.dim()
            )));
        }
    }
    Ok(vectors)
}
