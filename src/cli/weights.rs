//! Loading a model's weights: repacked for speed where that pays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use aios_engine::{Model, RepackError};
use clap::Args;

use super::Terminal;
use crate::interrupt::{Interrupt, Interrupted};
use crate::models::{Observer, cache_folder};

/// Models of fewer bytes are not repacked: they run from the caches of the processor anyway.
const WORTH_BYTES: u64 = 16_000_000;

/// How weights are read.
#[derive(Args, Clone, Debug)]
pub struct WeightArgs {
    /// Read weights as they stand in the model file. Without this they are repacked once, which
    /// takes about as much disk as the model; results are the same.
    #[arg(long)]
    pub no_repack: bool,
}

impl WeightArgs {
    /// Loads the model in the file at `path`. Repacked weights are made on the first use of a
    /// model, which is said on stderr; where they cannot be made, the model runs without them. A
    /// run that is `exact` has no use for them.
    ///
    /// # Errors
    /// Those of loading, and [`Interrupted`].
    pub fn load(
        &self,
        path: &Path,
        exact: bool,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Arc<Model>> {
        // What cannot be looked at is for loading to complain about.
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let Some(folder) =
            panel_folder().filter(|_| !self.no_repack && !exact && bytes >= WORTH_BYTES)
        else {
            return Ok(Model::load(path)?);
        };
        let terminal = Terminal::new();
        let started = Instant::now();
        let (model, repacked) = Model::load_repacked(path, &folder, &mut |done, total| {
            terminal.progress("repacking weights", done, total);
            !interrupt.is_set()
        })?;
        match repacked {
            Ok(repacked) if repacked.made => terminal.notice(&format!(
                "repacked the weights for speed: {:.0} MB more on the disk, {:.1} s, once; in {} \
                 (--no-repack does without)",
                megabytes(repacked.bytes),
                started.elapsed().as_secs_f64(),
                shown(&repacked.path).display(),
            )),
            Ok(_) | Err(RepackError::Nothing) => {}
            Err(RepackError::Stopped) => return Err(Interrupted.into()),
            Err(reason) => terminal.notice(&format!(
                "the weights are not repacked, which costs speed: {reason}; \
                 make room, set AIOS_CACHE_DIR, or pass --no-repack"
            )),
        }
        Ok(model)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The folder of repacked weights, if the environment names one.
pub(super) fn panel_folder() -> Option<PathBuf> {
    cache_folder().map(|folder| folder.join("panels"))
}

/// The path with the home folder as `~`.
pub(super) fn shown(path: &Path) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => Path::new("~").join(rest),
        None => path.to_owned(),
    }
}
