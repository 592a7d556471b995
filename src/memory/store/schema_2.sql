-- Each pair of fragments that belong together stands once, the lower number first.
CREATE TABLE links (
    a INTEGER NOT NULL REFERENCES fragments (id) ON DELETE CASCADE,
    b INTEGER NOT NULL REFERENCES fragments (id) ON DELETE CASCADE,
    similarity REAL NOT NULL DEFAULT 0,
    co_use INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (a, b),
    CHECK (a < b)
) WITHOUT ROWID;
CREATE INDEX links_b ON links (b);
