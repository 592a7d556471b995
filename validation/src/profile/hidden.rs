//! Hidden states: what a model's output matrix is multiplied with while it reads texts.

use super::{ProfileError, Progress, step};
use aios_engine::{Executor, Observer, Want};
use aios_residency::Phase;
use std::sync::{Arc, Mutex};

/// Rows of hidden states.
#[derive(Clone, Debug, Default)]
pub(super) struct Hidden {
    /// \[rows\]\[len\]
    pub x: Vec<f32>,
    pub len: usize,
}

impl Hidden {
    /// How many.
    pub fn rows(&self) -> usize {
        self.x.len() / self.len.max(1)
    }
}

/// Keeps what it sees.
#[derive(Debug)]
struct Keeper(Arc<Mutex<Vec<f32>>>);

impl Observer for Keeper {
    fn head(&mut self, rows: &[f32]) {
        self.0.lock().expect("no panic before").extend_from_slice(rows);
    }
}

/// The hidden states of every position of `texts`.
pub(super) fn capture(
    executor: &mut Executor,
    texts: &[&[u32]],
    doing: &'static str,
    progress: &mut Progress<'_>,
) -> Result<Hidden, ProfileError> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let before = executor.observe(Some(Box::new(Keeper(Arc::clone(&kept)))));
    let mut read = || {
        for (i, ids) in texts.iter().enumerate() {
            step(progress, doing, i, texts.len())?;
            executor.truncate(0);
            executor.forward(ids, Phase::Prefill, Want::All, &mut |_, _| Ok(()))?;
        }
        Ok(())
    };
    let outcome: Result<(), ProfileError> = read();
    executor.observe(before);
    outcome?;
    let x = std::mem::take(&mut *kept.lock().expect("no panic before"));
    Ok(Hidden { x, len: executor.model().config().d_model })
}
