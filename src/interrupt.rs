//! Ctrl-C (and the polite signals to end) as a flag that long work looks at.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Presses that were not answered after which the process ends without further ado.
const PATIENCE: u32 = 3;

static SHARED: OnceLock<Interrupt> = OnceLock::new();

/// The flag that an interrupt sets.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    unanswered: Arc<AtomicU32>,
}

/// The user stopped the work.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Interrupt {
    /// The process's interrupt flag. The first call installs the signal handlers; from then on an
    /// interrupt no longer ends the process, except the third in a row that nothing reacts to.
    ///
    /// # Errors
    /// [`ctrlc::Error`] if the handlers cannot be installed.
    pub fn install() -> Result<Self, ctrlc::Error> {
        if let Some(shared) = SHARED.get() {
            return Ok(shared.clone());
        }
        let interrupt = Self::default();
        let seen = interrupt.clone();
        ctrlc::set_handler(move || {
            seen.flag.store(true, Ordering::Relaxed);
            if seen.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE {
                std::process::exit(130);
            }
        })?;
        Ok(SHARED.get_or_init(|| interrupt).clone())
    }

    /// The flag, for work that looks at it.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Whether there was an interrupt since the last [`Interrupt::reset`].
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Takes note of an interrupt, so that the next piece of work starts afresh.
    pub fn reset(&self) {
        self.flag.store(false, Ordering::Relaxed);
        self.unanswered.store(0, Ordering::Relaxed);
    }
}
