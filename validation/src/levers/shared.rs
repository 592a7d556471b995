//! A prompt whose beginning another session has read (SPEC B24).

use super::measure::Simulated;
use super::{Bench, Figures, Finding, Lever, LeverError, Quality, nothing};
use crate::bench::Statistics;
use crate::simulate::{Hierarchy, reads};
use aios_engine::{EngineError, Limits, Prefix, SamplerOptions, Session, Want};
use aios_residency::Phase;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

const NAME: &str = "shared prefix";
/// The part of the prompt that is shared, in quarters, and the positions of a page.
const SHARED_QUARTERS: usize = 3;
const PAGE: usize = 64;
/// What is said where nothing was shared, so that there is nothing to compare.
const NOT_SHARED: &str = "a session did not begin with the prefix that it was given, so that \
                          nothing was shared; the log (RUST_LOG=warn) says why";

/// What sessions took for the prompt.
#[derive(Default)]
struct Side {
    times: Vec<f64>,
    /// Bytes of the prompt's passes.
    bytes: u64,
    said: Option<Said>,
}

/// The first token of an answer, and the digest of the states before it.
type Said = (Vec<u32>, Option<[u8; 32]>);

impl Bench<'_, '_> {
    /// The prompt in sessions of their own, and in sessions that begin with three quarters of it.
    pub(super) fn shared(&mut self) -> Result<Lever, LeverError> {
        let prompt: Vec<u32> = self.ids.iter().copied().cycle().take(self.plan.prompt).collect();
        let wanted = prompt.len() * SHARED_QUARTERS / 4 / PAGE * PAGE;
        if wanted == 0 {
            return Ok(nothing(NAME, "the prompt is too short to share a page of 64 positions"));
        }
        let mut donor = self.session(None)?;
        let mut sides = [Side::default(), Side::default()];
        self.answer(&mut donor, &prompt, &mut Side::default())?;
        let prefix = match donor.prefix(wanted) {
            Ok(Some(prefix)) if prefix.tokens().len() == wanted => prefix,
            Ok(_) => return Ok(nothing(NAME, "the session had no such prefix to give")),
            Err(error @ EngineError::Prefix(_)) => return Ok(nothing(NAME, error.to_string())),
            Err(error) => return Err(error.into()),
        };
        drop(donor);
        for round in 0..=self.plan.rounds {
            if !(self.progress)(NAME, round as u64, self.plan.rounds as u64 + 1) {
                return Err(LeverError::Interrupted);
            }
            for turn in 0..2 {
                let which = (round + turn) % 2;
                let started = Instant::now();
                let mut session = self.session((which == 1).then_some(&prefix))?;
                if session.sequence().len() != which * wanted {
                    return Ok(nothing(NAME, NOT_SHARED));
                }
                self.answer(&mut session, &prompt, &mut sides[which])?;
                let ms = started.elapsed().as_secs_f64() * 1e3;
                sides[which].times.push(ms / prompt.len() as f64);
            }
            if round == 0 {
                sides.iter_mut().for_each(|side| side.times.clear());
            }
        }
        let [off, on] = sides;
        if off.said != on.said {
            return Err(LeverError::Differs { lever: NAME });
        }
        let tokens = prompt.len();
        let off = off.figures(self.simulated(&prompt, 0)?, tokens);
        let on = on.figures(self.simulated(&prompt, wanted)?, tokens);
        let megabytes = prefix.bytes() as f64 / 1e6;
        let setting = format!("{wanted} of {tokens} tokens, {megabytes:.1} MB once for all");
        let quality = Quality::Identical { tokens };
        Ok(Lever { name: NAME, setting, finding: Finding::Measured { off, on, quality } })
    }

    /// A session whose states are digested.
    fn session(&self, prefix: Option<&Prefix>) -> Result<Session, EngineError> {
        let (model, options) = (Arc::clone(self.model), self.options.clone());
        let mut session = match prefix {
            Some(prefix) => Session::beginning_with(model, options, prefix)?,
            None => Session::new(model, options)?,
        };
        session.trace_states(true);
        Ok(session)
    }

    /// Reads the prompt and chooses a token.
    fn answer(
        &self,
        session: &mut Session,
        prompt: &[u32],
        side: &mut Side,
    ) -> Result<(), EngineError> {
        let limits = Limits { max_tokens: Some(1), ignore_eos: true, ..Limits::default() };
        let mut generation = session.generate(prompt, SamplerOptions::greedy(), limits)?;
        while generation.next_text(&AtomicBool::new(false))?.is_some() {}
        let stats = generation.stats();
        let prefill = stats.bytes.iter().filter(|bytes| bytes.phase == Phase::Prefill);
        side.bytes = prefill.map(|bytes| bytes.weights + bytes.kv_read).sum();
        side.said = Some((generation.tokens().to_vec(), stats.states));
        Ok(())
    }

    /// DRAM reads behind the simulated caches for what is left of the prompt behind `known` tokens.
    fn simulated(&mut self, prompt: &[u32], known: usize) -> Result<Simulated, LeverError> {
        let mut executor = self.off()?;
        executor.skip_to(known)?;
        let hierarchy = Hierarchy::new(self.plan.design, 1)?;
        let groups = reads(&mut executor, hierarchy, &mut |executor, _| {
            executor.forward(&prompt[known..], Phase::Prefill, Want::Last, &mut |_, _| Ok(()))
        })?;
        Ok(Simulated::of(&groups, prompt.len()))
    }
}

impl Side {
    fn figures(&self, simulated: Simulated, tokens: usize) -> Figures {
        let times = Statistics::of(self.times.clone());
        Figures {
            counted_bytes_per_token: self.bytes as f64 / tokens as f64,
            simulated_bytes_per_token: simulated.all,
            simulated_activation_bytes_per_token: simulated.activations,
            disk_bytes_per_token: 0.0,
            ms_per_token: times.map_or(f64::NAN, |times| times.median),
            samples: self.times.len(),
        }
    }
}
