//! What changes a store. Every change is one transaction, synced before it is acknowledged.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Store;
use crate::memory::vectors::Int8Vector;
use crate::memory::{Embedder, Error};

/// A passage to be stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The headings above it; may be empty.
    pub title: String,
    /// The passage; must have a character that is no white space.
    pub text: String,
}

/// A document to be stored with its chunks.
#[derive(Clone, Debug)]
pub struct Document<'a> {
    /// Where it comes from.
    pub source: &'a str,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Text, Markdown, HTML or code.
    pub kind: &'static str,
    /// The encoding that it was read in.
    pub encoding: &'static str,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A fragment that was stored, or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    /// Its number.
    pub id: i64,
    /// Whether it was there already.
    pub known: bool,
}

/// A document that was stored, or was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its fragments in order; none if the document was known.
    pub fragments: Vec<Added>,
    /// The source under which the same content was known.
    pub known_as: Option<String>,
    /// How many fragments of earlier versions there are.
    pub earlier: usize,
    /// How many fragments of earlier versions were forgotten.
    pub replaced: usize,
}

/// What to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The fragments of these numbers, all of which must be there.
    Ids(Vec<i64>),
    /// All fragments of a source.
    Source(String),
    /// Everything.
    All,
}

impl Store {
    /// Stores passages of one source that belong to no document. `vectors` has one for each.
    ///
    /// # Errors
    /// [`Error::EmptyFragment`], and those of the database; then nothing is stored.
    pub fn add(
        &mut self,
        source: &str,
        chunks: &[Chunk],
        vectors: Option<(&dyn Embedder, &[Int8Vector])>,
        now_ms: i64,
    ) -> Result<Vec<Added>, Error> {
        refuse_empty(chunks)?;
        self.transact("store a fragment", |work| {
            insert_chunks(work, (None, source), chunks, vectors, now_ms)
        })
    }

    /// Stores a document, unless its content is known. With `replace`, fragments of earlier
    /// versions of the same source are forgotten in the same transaction.
    ///
    /// # Errors
    /// As for [`Store::add`].
    pub fn add_document(
        &mut self,
        document: &Document<'_>,
        chunks: &[Chunk],
        vectors: Option<(&dyn Embedder, &[Int8Vector])>,
        replace: bool,
        now_ms: i64,
    ) -> Result<Imported, Error> {
        refuse_empty(chunks)?;
        let imported = self.transact("store a document", |work| {
            if let Some(source) = known_source(work, &document.digest)? {
                let known_as = Some(source);
                return Ok(Imported { fragments: vec![], known_as, earlier: 0, replaced: 0 });
            }
            let earlier: i64 = work.query_row(
                "SELECT count(*) FROM fragments WHERE source = ?1 AND document IS NOT NULL",
                [document.source],
                |row| row.get(0),
            )?;
            let mut replaced = 0;
            if replace {
                replaced = work.execute(
                    "DELETE FROM fragments WHERE source = ?1 AND document IS NOT NULL",
                    [document.source],
                )?;
                work.execute("DELETE FROM documents WHERE source = ?1", [document.source])?;
            }
            let id = insert_document(work, document, now_ms)?;
            let place = (Some(id), document.source);
            let fragments = insert_chunks(work, place, chunks, vectors, now_ms)?;
            let earlier = usize::try_from(earlier).unwrap_or(0);
            Ok(Imported { fragments, known_as: None, earlier, replaced })
        })?;
        if imported.replaced > 0 {
            self.shorten_log()?;
        }
        Ok(imported)
    }

    /// The source under which a document of this SHA-256 is stored.
    ///
    /// # Errors
    /// Those of the database.
    pub fn known_document(&self, digest: &[u8; 32]) -> Result<Option<String>, Error> {
        known_source(&self.connection, digest).map_err(self.sql("look for a document"))
    }

    /// Adds vectors of fragments that are there; those that are not any more are passed over.
    ///
    /// # Errors
    /// Those of the database; then none is stored.
    pub fn add_vectors(
        &mut self,
        embedder: &dyn Embedder,
        vectors: &[(i64, Int8Vector)],
    ) -> Result<(), Error> {
        self.transact("store vectors", |work| {
            let embedder = embedder_id(work, embedder)?;
            for (id, vector) in vectors {
                let there = "SELECT 1 FROM fragments WHERE id = ?1";
                if work.query_row(there, [id], |_| Ok(())).optional()?.is_some() {
                    insert_vector(work, *id, embedder, vector)?;
                }
            }
            Ok(())
        })
    }

    /// Notes how near fragments are to each other: pairs and their cosine.
    ///
    /// # Errors
    /// Those of the database; then none is noted.
    pub fn link_similar(&mut self, pairs: &[(i64, i64, f32)]) -> Result<(), Error> {
        self.transact("link fragments", |work| {
            let mut insert = work.prepare(
                "INSERT INTO links (a, b, similarity) VALUES (?1, ?2, ?3)
                 ON CONFLICT (a, b) DO UPDATE SET similarity = excluded.similarity",
            )?;
            for &(x, y, cosine) in pairs.iter().filter(|(x, y, _)| x != y) {
                insert.execute(params![x.min(y), x.max(y), f64::from(cosine)])?;
            }
            Ok(())
        })
    }

    /// Notes that these fragments served one answer together. Numbers that are gone are passed
    /// over.
    ///
    /// # Errors
    /// Those of the database; then nothing is noted.
    pub fn record_use(&mut self, ids: &[i64], now_ms: i64) -> Result<(), Error> {
        self.transact("record a use", |work| {
            let mut there = Vec::new();
            for &id in ids {
                let update = "UPDATE fragments SET uses = uses + 1, used_ms = ?2 WHERE id = ?1";
                if !there.contains(&id) && work.execute(update, params![id, now_ms])? > 0 {
                    there.push(id);
                }
            }
            let mut insert = work.prepare(
                "INSERT INTO links (a, b, co_use) VALUES (?1, ?2, 1)
                 ON CONFLICT (a, b) DO UPDATE SET co_use = co_use + 1",
            )?;
            for (at, &x) in there.iter().enumerate() {
                for &y in &there[at + 1..] {
                    insert.execute([x.min(y), x.max(y)])?;
                }
            }
            Ok(())
        })
    }

    /// Forgets what is selected and says how many fragments that were. Their bytes are overwritten.
    ///
    /// # Errors
    /// [`Error::UnknownFragment`] for a number that is not there; then nothing is forgotten.
    pub fn forget(&mut self, selection: &Selection) -> Result<usize, Error> {
        let mut unknown = None;
        let forgotten = self.transact("forget fragments", |work| {
            let mut gone = 0;
            match selection {
                Selection::Ids(ids) => {
                    for &id in ids {
                        let deleted = work.execute("DELETE FROM fragments WHERE id = ?1", [id])?;
                        if deleted == 0 {
                            unknown = Some(id);
                            return Err(rusqlite::Error::QueryReturnedNoRows);
                        }
                        gone += deleted;
                    }
                }
                Selection::Source(source) => {
                    gone = work.execute("DELETE FROM fragments WHERE source = ?1", [source])?;
                }
                Selection::All => gone = work.execute("DELETE FROM fragments", [])?,
            }
            // A document without fragments could not be imported again.
            work.execute(
                "DELETE FROM documents WHERE id NOT IN
                 (SELECT document FROM fragments WHERE document IS NOT NULL)",
                [],
            )?;
            Ok(gone)
        });
        if let Some(id) = unknown {
            return Err(Error::UnknownFragment { id });
        }
        let forgotten = forgotten?;
        self.shorten_log()?;
        Ok(forgotten)
    }

    /// Moves the log into the file and empties it, so that what was forgotten is not in it. Where a
    /// reader holds it back, the log is emptied by whoever closes the store last.
    fn shorten_log(&self) -> Result<(), Error> {
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(self.sql("shorten the log"))
    }

    fn transact<T>(
        &mut self,
        action: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let path = self.path.clone();
        let work = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        work.and_then(|work| {
            let done = change(&work)?;
            work.commit()?;
            Ok(done)
        })
        .map_err(|cause| Error::sql(action, &path, cause))
    }
}

fn refuse_empty(chunks: &[Chunk]) -> Result<(), Error> {
    let empty = chunks.iter().any(|chunk| chunk.text.trim().is_empty());
    if empty { Err(Error::EmptyFragment) } else { Ok(()) }
}

fn known_source(work: &Connection, digest: &[u8; 32]) -> rusqlite::Result<Option<String>> {
    let find = "SELECT source FROM documents WHERE digest = ?1";
    work.query_row(find, [&digest[..]], |row| row.get(0)).optional()
}

fn insert_document(
    work: &Connection,
    document: &Document<'_>,
    now_ms: i64,
) -> rusqlite::Result<i64> {
    work.execute(
        "INSERT INTO documents (source, digest, kind, encoding, bytes, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            document.source,
            &document.digest[..],
            document.kind,
            document.encoding,
            i64::try_from(document.bytes).unwrap_or(i64::MAX),
            now_ms
        ],
    )?;
    Ok(work.last_insert_rowid())
}

/// SHA-256 over title and text, each with its length before it.
fn chunk_digest(chunk: &Chunk) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&chunk.title, &chunk.text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

fn insert_chunks(
    work: &Connection,
    (document, source): (Option<i64>, &str),
    chunks: &[Chunk],
    vectors: Option<(&dyn Embedder, &[Int8Vector])>,
    now_ms: i64,
) -> rusqlite::Result<Vec<Added>> {
    let embedder = vectors.map(|(embedder, _)| embedder_id(work, embedder)).transpose()?;
    let mut find = work.prepare_cached(
        "SELECT id FROM fragments WHERE digest = ?1 AND coalesce(document, 0) = ?2",
    )?;
    let mut insert = work.prepare_cached(
        "INSERT INTO fragments (document, ordinal, source, title, text, digest, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut added = Vec::with_capacity(chunks.len());
    for (ordinal, chunk) in chunks.iter().enumerate() {
        let digest = &chunk_digest(chunk)[..];
        let known = find.query_row(params![digest, document.unwrap_or(0)], |row| row.get(0));
        let known: Option<i64> = known.optional()?;
        let id = match known {
            Some(id) => id,
            None => insert.insert(params![
                document,
                i64::try_from(ordinal).unwrap_or(i64::MAX),
                source,
                chunk.title,
                chunk.text,
                digest,
                now_ms
            ])?,
        };
        if let (Some(embedder), Some((_, vectors))) = (embedder, vectors) {
            insert_vector(work, id, embedder, &vectors[ordinal])?;
        }
        added.push(Added { id, known: known.is_some() });
    }
    Ok(added)
}

fn embedder_id(work: &Connection, embedder: &dyn Embedder) -> rusqlite::Result<i64> {
    work.execute(
        "INSERT INTO embedders (name, digest, dim) VALUES (?1, ?2, ?3)
         ON CONFLICT (digest) DO NOTHING",
        params![
            embedder.name(),
            embedder.digest(),
            i64::try_from(embedder.dim()).unwrap_or(i64::MAX)
        ],
    )?;
    let find = "SELECT id FROM embedders WHERE digest = ?1";
    work.query_row(find, [embedder.digest()], |row| row.get(0))
}

fn insert_vector(
    work: &Connection,
    fragment: i64,
    embedder: i64,
    vector: &Int8Vector,
) -> rusqlite::Result<()> {
    let mut insert = work.prepare_cached(
        "INSERT OR REPLACE INTO embeddings (fragment, embedder, scale, vector)
         VALUES (?1, ?2, ?3, ?4)",
    )?;
    insert.execute(params![fragment, embedder, f64::from(vector.scale), vector.bytes()])?;
    Ok(())
}
