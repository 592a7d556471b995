-- What was imported as a whole. The same content is kept once, whatever it was called.
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    encoding TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
);
CREATE INDEX documents_source ON documents (source);

-- Numbers are never given twice, so that a record of an answer can name them for good.
CREATE TABLE fragments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER REFERENCES documents (id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    source TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    digest BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    used_ms INTEGER,
    uses INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX fragments_digest ON fragments (digest, coalesce(document, 0));
CREATE INDEX fragments_document ON fragments (document);
CREATE INDEX fragments_source ON fragments (source);

CREATE VIRTUAL TABLE fragments_fts USING fts5 (
    title, text,
    content = 'fragments', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
-- What is deleted leaves the index at once, not with the next merge of its parts.
INSERT INTO fragments_fts (fragments_fts, rank) VALUES ('secure-delete', 1);
CREATE TRIGGER fragments_inserted AFTER INSERT ON fragments BEGIN
    INSERT INTO fragments_fts (rowid, title, text) VALUES (new.id, new.title, new.text);
END;
CREATE TRIGGER fragments_deleted AFTER DELETE ON fragments BEGIN
    INSERT INTO fragments_fts (fragments_fts, rowid, title, text)
    VALUES ('delete', old.id, old.title, old.text);
END;

CREATE TABLE embedders (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    dim INTEGER NOT NULL
);

CREATE TABLE embeddings (
    fragment INTEGER NOT NULL REFERENCES fragments (id) ON DELETE CASCADE,
    embedder INTEGER NOT NULL REFERENCES embedders (id),
    scale REAL NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (fragment, embedder)
) WITHOUT ROWID;
