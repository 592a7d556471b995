//! The schema of a store, and how an older one becomes the present one.

use rusqlite::{Connection, TransactionBehavior};

/// "AIOS" as SQLite's `application_id`.
pub(super) const APPLICATION_ID: i64 = 0x4149_4F53;

/// What each version adds to the one before it. A step that was released is never changed.
const STEPS: [&str; 2] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];

/// The version of the schema that this program writes.
pub const SCHEMA_VERSION: i64 = STEPS.len() as i64;

/// What the header of a database says of itself.
pub(super) struct Stamp {
    pub(super) application_id: i64,
    pub(super) version: i64,
    /// Whether nothing was ever made in it.
    pub(super) blank: bool,
}

/// Reads the stamp without writing anything.
pub(super) fn stamp(connection: &Connection) -> rusqlite::Result<Stamp> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application_id, version) = (pragma("application_id")?, pragma("user_version")?);
    Ok(Stamp { application_id, version, blank: objects == 0 && application_id == 0 })
}

/// Brings a blank or older store up to `version` in one transaction. What another process has done
/// meanwhile is not done again.
pub(super) fn migrate(connection: &mut Connection, version: i64) -> rusqlite::Result<()> {
    let work = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let present = stamp(&work)?.version;
    for (number, step) in (1..).zip(STEPS) {
        if number > present && number <= version {
            work.execute_batch(step)?;
        }
    }
    work.pragma_update(None, "application_id", APPLICATION_ID)?;
    work.pragma_update(None, "user_version", version.max(present))?;
    work.commit()
}
