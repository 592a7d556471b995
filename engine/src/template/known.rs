//! The formats of families of models, for files that have no template of their own.

/// The names of the formats that are built in.
pub const KNOWN: [&str; 4] = ["chatml", "gemma", "llama3", "phi3"];

/// The template of the format `name`, if it is one of [`KNOWN`].
pub fn known(name: &str) -> Option<&'static str> {
    Some(match name {
        "chatml" => include_str!("known/chatml.jinja"),
        "gemma" => include_str!("known/gemma.jinja"),
        "llama3" => include_str!("known/llama3.jinja"),
        "phi3" => include_str!("known/phi3.jinja"),
        _ => return None,
    })
}
