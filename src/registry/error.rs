//! What can go wrong between a name and a model in use.

use crate::config::ModelRole;

/// Why a model cannot be used. Whatever was loaded stays so.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such model.
    #[error(
        "the registry has no model '{}'{hint}; it has: {}",
        name.escape_debug(), known.join(", ")
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Unknown { name: String, hint: String, known: Vec<String> },
    /// Two models have one name.
    #[error("the registry has a model '{name}' already")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Duplicate { name: String },
    /// No model has this role.
    #[error("no model has the role '{role}'; give it to a [[model]] of aios.toml")]
    #[expect(missing_docs, reason = "the message names the fields")]
    NoRole { role: ModelRole },
    /// The model cannot be loaded.
    #[error("model '{name}' cannot be loaded")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Load { name: String, source: anyhow::Error },
    /// The model was loaded and then refused by who asked for it.
    #[error("model '{name}' cannot be used")]
    #[expect(missing_docs, reason = "the message names the fields")]
    Refused { name: String, source: anyhow::Error },
    /// The budget does not hold it.
    #[error(
        "model '{name}' has {:.1} MB of weights, and of the {:.1} MB of registry.memory {:.1} MB \
         are in use{}; raise registry.memory, or end a session",
        megabytes(*bytes), megabytes(*budget), megabytes(*used), by(users)
    )]
    #[expect(missing_docs, reason = "the message names the fields")]
    Memory { name: String, bytes: u64, budget: u64, used: u64, users: Vec<String> },
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn by(users: &[String]) -> String {
    if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) }
}
