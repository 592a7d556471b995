//! What reads a store and changes nothing.

use std::collections::HashMap;
use std::fs;

use rusqlite::{OptionalExtension, Row};
use serde::Serialize;

use super::{Fragment, SCHEMA_VERSION, Store};
use crate::memory::vectors::{Int8Vector, VectorIndex};
use crate::memory::{Embedder, Error};

const COLUMNS: &str = "id, source, title, text, created_ms, used_ms, uses";

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// The file.
    pub path: String,
    /// The version of its schema.
    pub schema_version: i64,
    /// Documents that were imported.
    pub documents: u64,
    /// Fragments in all.
    pub fragments: u64,
    /// Characters in all fragments.
    pub chars: u64,
    /// Fragments that served at least one answer.
    pub used_fragments: u64,
    /// Answers that fragments served, summed over fragments.
    pub uses: u64,
    /// Pairs of fragments that are linked.
    pub links: u64,
    /// When the oldest and the newest fragment were stored, in milliseconds since 1970.
    pub created_ms: Option<(i64, i64)>,
    /// Bytes of the file and of its log.
    pub bytes: u64,
    /// For each embedder, how many fragments have a vector of it.
    pub embedders: Vec<EmbedderStats>,
    /// The ten sources with the most fragments.
    pub largest_sources: Vec<SourceStats>,
}

/// What a store holds of one embedder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbedderStats {
    /// What it is called.
    pub name: String,
    /// Which it is.
    pub digest: String,
    /// The length of its vectors.
    pub dim: u64,
    /// Fragments that have one.
    pub vectors: u64,
}

/// What a store holds of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceStats {
    /// The path, address or name.
    pub source: String,
    /// How many fragments it has.
    pub fragments: u64,
}

/// What a look at every page found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// One line for each fault; none is a sound store.
    pub faults: Vec<String>,
}

fn fragment(row: &Row<'_>) -> rusqlite::Result<Fragment> {
    Ok(Fragment {
        id: row.get(0)?,
        source: row.get(1)?,
        title: row.get(2)?,
        text: row.get(3)?,
        created_ms: row.get(4)?,
        used_ms: row.get(5)?,
        uses: row.get(6)?,
    })
}

impl Store {
    /// The fragment of this number, if there is one.
    ///
    /// # Errors
    /// Those of the database.
    pub fn fragment(&self, id: i64) -> Result<Option<Fragment>, Error> {
        let find = format!("SELECT {COLUMNS} FROM fragments WHERE id = ?1");
        self.connection
            .prepare_cached(&find)
            .and_then(|mut find| find.query_row([id], fragment).optional())
            .map_err(self.sql("read a fragment"))
    }

    /// Hands every fragment to `see`, in the order of their numbers.
    ///
    /// # Errors
    /// Those of the database and of `see`, which ends it.
    pub fn each_fragment<E: From<Error>>(
        &self,
        see: &mut dyn FnMut(Fragment) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = self.sql("read fragments");
        let all = format!("SELECT {COLUMNS} FROM fragments ORDER BY id");
        let mut all = self.connection.prepare(&all).map_err(&sql)?;
        let mut rows = all.query([]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            see(fragment(row).map_err(&sql)?)?;
        }
        Ok(())
    }

    /// How many fragments there are.
    ///
    /// # Errors
    /// Those of the database.
    pub fn count(&self) -> Result<u64, Error> {
        self.number("SELECT count(*) FROM fragments").map_err(self.sql("count fragments"))
    }

    /// A number that changes when another process has written.
    ///
    /// # Errors
    /// Those of the database.
    pub(in crate::memory) fn data_version(&self) -> Result<u64, Error> {
        self.number("PRAGMA data_version").map_err(self.sql("look for changes"))
    }

    /// Puts all vectors of `embedder` into `index`.
    ///
    /// # Errors
    /// Those of the database, and [`Error::Damaged`] for a vector of the wrong length.
    pub(in crate::memory) fn load_vectors(
        &self,
        embedder: &dyn Embedder,
        index: &mut dyn VectorIndex,
    ) -> Result<(), Error> {
        let sql = self.sql("read vectors");
        let mut all = self
            .connection
            .prepare_cached(
                "SELECT fragment, scale, vector FROM embeddings
                 WHERE embedder = (SELECT id FROM embedders WHERE digest = ?1) ORDER BY fragment",
            )
            .map_err(&sql)?;
        let mut rows = all.query([embedder.digest()]).map_err(&sql)?;
        while let Some(row) = rows.next().map_err(&sql)? {
            let (id, scale): (i64, f64) =
                row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(&sql)?;
            let bytes = row.get_ref(2).map_err(&sql)?.as_blob().unwrap_or_default();
            if bytes.len() != embedder.dim() || !scale.is_finite() {
                let found = format!("the vector of fragment {id} has {} numbers", bytes.len());
                return Err(Error::Damaged { path: self.path.clone(), found });
            }
            index.insert(id, &Int8Vector::from_bytes(scale as f32, bytes));
        }
        Ok(())
    }

    /// Up to `limit` fragments without a vector of `embedder`, by number, from `from` on.
    ///
    /// # Errors
    /// Those of the database.
    pub fn without_vector(
        &self,
        embedder: &dyn Embedder,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Fragment>, Error> {
        let find = format!(
            "SELECT {COLUMNS} FROM fragments f WHERE id >= ?2 AND NOT EXISTS
             (SELECT 1 FROM embeddings e JOIN embedders m ON m.id = e.embedder
              WHERE e.fragment = f.id AND m.digest = ?1) ORDER BY id LIMIT ?3"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(&find)
            .and_then(|mut find| {
                let rows = find.query_map((embedder.digest(), from, limit), fragment)?;
                rows.collect()
            })
            .map_err(self.sql("look for missing vectors"))
    }

    /// The numbers of fragments that contain a term, up to `limit` of them.
    ///
    /// # Errors
    /// Those of the database.
    pub(in crate::memory) fn with_term(&self, term: &str, limit: usize) -> Result<Vec<i64>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached("SELECT rowid FROM fragments_fts WHERE fragments_fts MATCH ?1 LIMIT ?2")
            .and_then(|mut find| find.query_map((term, limit), |row| row.get(0))?.collect())
            .map_err(self.sql("search"))
    }

    /// The best fragments for a query of FTS5 by BM25, the best first, with scores that are larger
    /// for better ones.
    ///
    /// # Errors
    /// Those of the database.
    pub(in crate::memory) fn by_bm25(
        &self,
        query: &str,
        limit: usize,
    ) -> Result<Vec<(i64, f64)>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(
                "SELECT rowid, -bm25(fragments_fts) AS score FROM fragments_fts
                 WHERE fragments_fts MATCH ?1 ORDER BY score DESC, rowid LIMIT ?2",
            )
            .and_then(|mut find| {
                find.query_map((query, limit), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
            .map_err(self.sql("search"))
    }

    /// The fragments that are linked to `id`, with similarity and co-use.
    ///
    /// # Errors
    /// Those of the database.
    pub fn links(&self, id: i64) -> Result<Vec<(i64, f64, i64)>, Error> {
        self.connection
            .prepare_cached(
                "SELECT b, similarity, co_use FROM links WHERE a = ?1
                 UNION ALL SELECT a, similarity, co_use FROM links WHERE b = ?1 ORDER BY 1",
            )
            .and_then(|mut find| {
                find.query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
            })
            .map_err(self.sql("read links"))
    }

    /// When each of these fragments was stored, and how often it was used.
    ///
    /// # Errors
    /// Those of the database.
    pub(in crate::memory) fn ages(&self, ids: &[i64]) -> Result<HashMap<i64, (i64, i64)>, Error> {
        let read = || {
            let mut find = self.connection.prepare_cached(
                "SELECT max(created_ms, coalesce(used_ms, 0)), uses FROM fragments WHERE id = ?1",
            )?;
            let mut ages = HashMap::new();
            for &id in ids {
                let age = find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                ages.extend(age.map(|age| (id, age)));
            }
            Ok(ages)
        };
        read().map_err(self.sql("read fragments"))
    }

    /// What the store holds.
    ///
    /// # Errors
    /// Those of the database.
    pub fn stats(&self) -> Result<Stats, Error> {
        self.read_stats().map_err(self.sql("count"))
    }

    fn read_stats(&self) -> rusqlite::Result<Stats> {
        let number = |sql| self.number(sql);
        let created_ms = self.connection.query_row(
            "SELECT min(created_ms), max(created_ms) FROM fragments",
            [],
            |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?)),
        )?;
        let mut embedders = self.connection.prepare(
            "SELECT name, digest, dim, (SELECT count(*) FROM embeddings WHERE embedder = m.id)
             FROM embedders m ORDER BY m.id",
        )?;
        let embedders = embedders.query_map([], |row| {
            Ok(EmbedderStats {
                name: row.get(0)?,
                digest: row.get(1)?,
                dim: row.get::<_, i64>(2)?.unsigned_abs(),
                vectors: row.get::<_, i64>(3)?.unsigned_abs(),
            })
        })?;
        let mut sources = self.connection.prepare(
            "SELECT source, count(*) FROM fragments GROUP BY source
             ORDER BY count(*) DESC, source LIMIT 10",
        )?;
        let sources = sources.query_map([], |row| {
            let fragments = row.get::<_, i64>(1)?.unsigned_abs();
            Ok(SourceStats { source: row.get(0)?, fragments })
        })?;
        let length = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            fs::metadata(path).map_or(0, |meta| meta.len())
        };
        Ok(Stats {
            path: self.path.display().to_string(),
            schema_version: SCHEMA_VERSION,
            documents: number("SELECT count(*) FROM documents")?,
            fragments: number("SELECT count(*) FROM fragments")?,
            chars: number("SELECT coalesce(sum(length(text)), 0) FROM fragments")?,
            used_fragments: number("SELECT count(*) FROM fragments WHERE uses > 0")?,
            uses: number("SELECT coalesce(sum(uses), 0) FROM fragments")?,
            links: number("SELECT count(*) FROM links")?,
            created_ms,
            bytes: length("") + length("-wal"),
            embedders: embedders.collect::<rusqlite::Result<_>>()?,
            largest_sources: sources.collect::<rusqlite::Result<_>>()?,
        })
    }

    fn number(&self, sql: &str) -> rusqlite::Result<u64> {
        let number: i64 = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        Ok(number.unsigned_abs())
    }

    /// Looks at every page, and whether fragments, search index and vectors agree.
    ///
    /// # Errors
    /// Those of the database that are not faults of the file.
    pub fn check(&self) -> Result<Check, Error> {
        let mut faults = Vec::new();
        for look in [Self::check_pages, Self::check_search, Self::check_vectors] {
            match look(self) {
                Ok(found) => faults.extend(found),
                Err(cause) => match Error::sql("check the memory", &self.path, cause) {
                    Error::Damaged { found, .. } => faults.push(found),
                    other => return Err(other),
                },
            }
        }
        Ok(Check { faults })
    }

    fn check_pages(&self) -> rusqlite::Result<Vec<String>> {
        let mut check = self.connection.prepare("PRAGMA integrity_check(20)")?;
        let lines: Vec<String> =
            check.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let mut faults: Vec<String> = lines.into_iter().filter(|line| line != "ok").collect();
        let mut orphans = self.connection.prepare("PRAGMA foreign_key_check")?;
        let orphans = orphans.query_map([], |row| row.get::<_, String>(0))?;
        for table in orphans {
            faults.push(format!("a row of {} belongs to nothing", table?));
        }
        Ok(faults)
    }

    fn check_search(&self) -> rusqlite::Result<Vec<String>> {
        // With 1 it also compares the index with the text of the fragments.
        self.connection.execute(
            "INSERT INTO fragments_fts (fragments_fts, rank) VALUES ('integrity-check', 1)",
            [],
        )?;
        Ok(Vec::new())
    }

    fn check_vectors(&self) -> rusqlite::Result<Vec<String>> {
        let bad = self.number(
            "SELECT count(*) FROM embeddings e JOIN embedders m ON m.id = e.embedder
             WHERE length(e.vector) <> m.dim",
        )?;
        Ok(if bad == 0 { vec![] } else { vec![format!("{bad} vectors have the wrong length")] })
    }
}
