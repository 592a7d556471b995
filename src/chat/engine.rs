//! The responder that is a model: a chat template, its tokenizer, a session of the engine.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use aios_engine::template::{Limits as TemplateLimits, RenderInput, Template};
use aios_engine::tokenizer::Tokenizer;
use aios_engine::{
    EngineError, GenerationStats, Limits, Model, PrefixShelf, SamplerOptions, Session,
};
use aios_validation::report::is_synthetic;
use anyhow::Context;
use jiff::civil::DateTime;
use serde_json::json;

use super::{Answer, ChatError, Message, Responder, Role, Settings};
use crate::provenance::{Outcome, Prompt, Recorder};
use crate::stats::{SpecDecode, Stats, StopReason, megabytes_per_token};

/// A model that converses in the format of a template. What consecutive prompts have in
/// common is computed once: it stays in the session's cache.
pub struct Conversation {
    session: Session,
    template: Template,
    recorder: Option<Recorder>,
    clock: Option<DateTime>,
    /// What is to see the session once it has answered, so that others can begin as it did.
    shelf: Option<Arc<PrefixShelf>>,
}

impl Conversation {
    /// A conversation in `session`, in the format of `template`.
    ///
    /// # Errors
    /// If the model has no usable tokenizer.
    pub fn new(session: Session, template: Template) -> anyhow::Result<Self> {
        session.executor().model().tokenizer()?;
        Ok(Self { session, template, recorder: None, clock: None, shelf: None })
    }

    /// Tells the template this time instead of the present one.
    #[must_use]
    pub fn with_clock(self, clock: Option<DateTime>) -> Self {
        Self { clock, ..self }
    }

    /// Shows the session to `shelf` after the first answer: what the template and the system
    /// messages make of its prompt's start. System messages count as the program's own, the same
    /// whoever asks; what others say never reaches the shelf.
    #[must_use]
    pub fn with_shelf(self, shelf: Arc<PrefixShelf>) -> Self {
        Self { shelf: Some(shelf), ..self }
    }

    /// Has every answer recorded.
    #[must_use]
    pub fn with_recorder(self, recorder: Option<Recorder>) -> Self {
        Self { recorder, ..self }
    }

    /// What records the answers, if something does.
    pub const fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// The session that answers.
    pub const fn session(&self) -> &Session {
        &self.session
    }
}

/// The ids of a conversation up to where the answer begins, by the template of `model`.
///
/// # Errors
/// Those of the template and of the tokenizer.
pub fn prompt_ids(
    model: &Model,
    template: &Template,
    messages: &[Message],
) -> anyhow::Result<Vec<u32>> {
    Ok(render(model, template, messages, jiff::Zoned::now().datetime())?.ids)
}

/// A conversation up to where the answer begins, by the template of `model`, which is told that it
/// is `now`.
///
/// # Errors
/// Those of the template and of the tokenizer.
pub fn render(
    model: &Model,
    template: &Template,
    messages: &[Message],
    now: DateTime,
) -> anyhow::Result<Prompt> {
    let since = Instant::now();
    let tokenizer = model.tokenizer()?;
    let spelled = |id: Option<u32>| id.map(|id| tokenizer.spelling(id).map(str::to_owned));
    let messages = messages.iter().map(|m| json!({"role": m.role.name(), "content": m.content}));
    let mut input = RenderInput::new(messages.collect(), now);
    input.add_generation_prompt = true;
    input.bos_token = spelled(tokenizer.bos()).transpose()?;
    input.eos_token = spelled(tokenizer.eos()).transpose()?;
    let spellings: Vec<String> = tokenizer.control_spellings().map(str::to_owned).collect();
    let rendered = template.render(&input, &spellings, &TemplateLimits::default())?;
    let ids = framed(tokenizer, tokenizer.encode_rendered(&rendered.text, &rendered.plain));
    Ok(Prompt::new(ids, &rendered.text, Some(now), since))
}

/// The first tokens of every conversation that begins with the system messages of this one: what it
/// has in common with itself if something else is said. Nothing of what was said is in them.
fn before_talk(
    model: &Model,
    template: &Template,
    messages: &[Message],
    now: DateTime,
) -> anyhow::Result<Vec<u32>> {
    let system = messages.iter().take_while(|message| message.role == Role::System);
    let saying = |what: &str| -> anyhow::Result<Vec<u32>> {
        let said = system.clone().cloned().chain([Message::new(Role::User, what)]);
        Ok(render(model, template, &said.collect::<Vec<_>>(), now)?.ids)
    };
    let (mut one, other) = (saying("a")?, saying("0")?);
    one.truncate(one.iter().zip(&other).take_while(|(a, b)| a == b).count());
    Ok(one)
}

/// Puts BOS in front if the file asks for it and the template has not done so.
pub fn framed(tokenizer: &Tokenizer, ids: Vec<u32>) -> Vec<u32> {
    match tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        Some(bos) if ids.first() != Some(&bos) => [vec![bos], ids].concat(),
        _ => ids,
    }
}

impl Responder for Conversation {
    fn respond(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError> {
        let model = self.session.executor().model();
        let now = self.clock.unwrap_or_else(|| jiff::Zoned::now().datetime());
        let prompt = render(model, &self.template, messages, now)?;
        let recorder = self.recorder.as_mut();
        let answer = generate(&mut self.session, &prompt, settings, cancel, emit, recorder)?;
        if let Some(shelf) = self.shelf.take() {
            match before_talk(self.session.executor().model(), &self.template, messages, now) {
                Ok(before) => {
                    // The last of them may be joined with what is said.
                    let common = before.iter().zip(&prompt.ids).take_while(|(a, b)| a == b);
                    shelf.show(&self.session, common.count());
                }
                Err(error) => tracing::warn!("no prefix is shared: {error:#}"),
            }
        }
        Ok(answer)
    }

    fn remark(&mut self) -> Option<String> {
        self.recorder.as_mut()?.complaint()
    }

    fn forget(&mut self) {
        self.session.clear();
    }
}

/// Generates what follows `prompt` in `session`, see [`Responder::respond`], and has it recorded,
/// failed or not. That a record cannot be kept does not fail the answer: the recorder says so.
///
/// # Errors
/// [`ChatError`]; the session stays usable.
pub fn generate(
    session: &mut Session,
    prompt: &Prompt,
    settings: &Settings,
    cancel: &AtomicBool,
    emit: &mut dyn FnMut(&str) -> io::Result<()>,
    recorder: Option<&mut Recorder>,
) -> Result<Answer, ChatError> {
    let sampling = SamplerOptions {
        temperature: settings.temp,
        top_k: usize::try_from(settings.top_k).unwrap_or(usize::MAX),
        top_p: settings.top_p,
        min_p: settings.min_p,
        repeat_penalty: settings.repeat_penalty,
        seed: settings.seed,
        ..SamplerOptions::default()
    };
    let limits = Limits {
        max_tokens: settings.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        stop: Vec::new(),
        ignore_eos: settings.ignore_eos,
    };
    let mut outcome = Outcome::default();
    let mut text = String::new();
    let answered =
        answer(session, prompt, (sampling, limits), (cancel, emit), &mut outcome, &mut text);
    let synthetic = is_synthetic(session.executor().model().metadata());
    let answered = answered.and_then(|()| {
        let stats = outcome.stats.as_ref().and_then(|of| stats(of, settings.seed, synthetic));
        Ok(stats.context("the answer has not ended")?)
    });
    match &answered {
        Ok(stats) => outcome.stop_reason = Some(stats.stop_reason.name().to_owned()),
        Err(error) => outcome.error = Some(error.to_string()),
    }
    if let Some(recorder) = recorder {
        let most = settings.max_tokens.map(u64::from);
        recorder.record(session, prompt, (&sampling, most, settings.ignore_eos), &outcome);
    }
    Ok(Answer { text, stats: answered? })
}

/// What takes the text of an answer.
type Emit<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Generates, and puts down in `outcome` and `text` what came of it, also where it fails.
fn answer(
    session: &mut Session,
    prompt: &Prompt,
    (sampling, limits): (SamplerOptions, Limits),
    (cancel, emit): (&AtomicBool, &mut Emit<'_>),
    outcome: &mut Outcome,
    text: &mut String,
) -> Result<(), ChatError> {
    let full = |error| match error {
        EngineError::PromptTooLong { tokens, context } => {
            ChatError::ContextFull { needed: tokens, size: context }
        }
        error => ChatError::Engine(error.into()),
    };
    let mut generation = session.generate(&prompt.ids, sampling, limits).map_err(full)?;
    let ended = loop {
        match generation.next_text(cancel) {
            Ok(None) => break Ok(()),
            Ok(Some(piece)) => {
                if !piece.is_empty() && outcome.first_text.is_none() {
                    outcome.first_text = Some(prompt.since.elapsed());
                }
                text.push_str(&piece);
                if let Err(error) = emit(&piece) {
                    break Err(error.into());
                }
            }
            Err(error) => break Err(full(error)),
        }
    };
    outcome.output = generation.tokens().to_vec();
    outcome.stats = Some(generation.stats());
    ended
}

/// The engine's account of an answer that has ended.
fn stats(of: &GenerationStats, seed: u64, synthetic: bool) -> Option<Stats> {
    let stop_reason = match of.stop? {
        aios_engine::StopReason::EndOfText => StopReason::End,
        aios_engine::StopReason::StopText => StopReason::StopString,
        aios_engine::StopReason::MaxTokens => StopReason::Length,
        aios_engine::StopReason::ContextFull => StopReason::ContextFull,
        aios_engine::StopReason::Interrupted => StopReason::Interrupted,
    };
    Some(Stats {
        synthetic,
        prompt_tokens: of.prompt_tokens as u64,
        reused_tokens: of.reused_tokens as u64,
        generated_tokens: of.generated_tokens as u64,
        decoded_tokens: of.decoded_tokens as u64,
        prefill_ms: of.prefill.as_secs_f64() * 1e3,
        decode_ms: of.decode.as_secs_f64() * 1e3,
        bytes_per_token: of.bytes_per_token(),
        disk_bytes_per_token: of.disk_bytes_per_token(),
        mb_per_token: megabytes_per_token(of.bytes_per_token()),
        bytes: of.bytes.clone(),
        residency: Some(of.residency.clone()),
        screen: of.screen,
        zeros: of.zeros,
        spec_decode: of.speculation.clone().map(SpecDecode::of),
        stop_reason,
        seed,
        peak_resident_bytes: aios_residency::peak_resident_bytes(),
    })
}
