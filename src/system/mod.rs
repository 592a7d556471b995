//! The system above the engine (SPEC O12): a request is routed to the smallest model that can serve
//! it, memory is asked, the prompt is assembled, the model answers, and a record is kept.
//!
//! ```text
//! request -> Scorer -> Retriever -> persona::assemble -> model of the tier -> answer, record
//! ```
//!
//! A [`System`] is a [`Responder`], so that a conversation with it is like one with a model. Its
//! parts fail alone: a memory that cannot be read, or a small model that cannot be loaded, is said
//! in a remark and in the record, and the answer comes without.

mod notes;
mod recall;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;

pub use recall::Recall;

use crate::chat::{Answer, ChatError, Conversation, Message, Responder, Role, Settings};
use crate::config::ModelRole;
use crate::memory::Retrieval;
use crate::persona::{self, Assembled, Exchange, Layer, Passage, Persona};
use crate::provenance::{Bench, Notes, Record};
use crate::registry::{Backend, Lease, Registry, RegistryError};
use crate::router::{Route, Scorer, Tier};

/// A conversation with a model that is kept loaded for it.
pub trait Seated {
    /// The conversation.
    fn conversation(&mut self) -> &mut Conversation;

    /// Keeps what was learned from it. It is over.
    ///
    /// # Errors
    /// What was lost of its records.
    fn close(self: Box<Self>) -> anyhow::Result<()>;
}

/// Sets conversations up.
pub trait Open {
    /// A conversation with the model of `lease`, which answers as `role`.
    ///
    /// # Errors
    /// What keeps it from conversing.
    fn open(&self, lease: &Lease<dyn Backend>, role: ModelRole) -> anyhow::Result<Box<dyn Seated>>;

    /// The name in `registry` of what a person calls `text`, which may be added for it.
    ///
    /// # Errors
    /// If there is no such model.
    fn find(&self, registry: &Registry, text: &str) -> anyhow::Result<String>;
}

/// How requests are served.
pub struct Choices {
    /// How much is put around a request.
    pub layer: Layer,
    /// Who answers.
    pub persona: Persona,
    /// The tier of every request, where the user has chosen one.
    pub tier: Option<Tier>,
    /// What is remembered.
    pub recall: Recall,
}

/// What became of the last request.
#[derive(Clone, Debug)]
pub struct Told {
    /// Where it went and why.
    pub route: Route,
    /// The model that answered.
    pub model: String,
    /// What was found for it; `None` without a memory.
    pub retrieval: Option<Retrieval>,
    /// Passages that the prompt quoted.
    pub passages: usize,
    /// What was not as it should be, for people.
    pub remarks: Vec<String>,
}

/// Models, memory and persona that answer together.
pub struct System {
    registry: Registry,
    scorer: Scorer,
    choices: Choices,
    opener: Box<dyn Open>,
    seats: BTreeMap<String, Box<dyn Seated>>,
    bench: Option<Bench>,
    told: Option<Told>,
    record: Option<Record>,
    lost: Option<anyhow::Error>,
}

impl System {
    /// A system of these parts. No model is loaded yet.
    pub fn new(
        registry: Registry,
        scorer: Scorer,
        choices: Choices,
        opener: Box<dyn Open>,
    ) -> Self {
        let seats = BTreeMap::new();
        let (bench, told, record, lost) = (None, None, None, None);
        Self { registry, scorer, choices, opener, seats, bench, told, record, lost }
    }

    /// Serves the requests that follow as `layer` says.
    pub const fn set_layer(&mut self, layer: Layer) {
        self.choices.layer = layer;
    }

    /// Has the requests that follow remember by `recall`.
    pub fn set_recall(&mut self, recall: Recall) {
        self.choices.recall = recall;
    }

    /// Says which case of a benchmark the next request is.
    pub fn set_bench(&mut self, bench: Bench) {
        self.bench = Some(bench);
    }

    /// What became of the last request, if there was one.
    pub const fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    /// The record of the last answer, if one was kept.
    pub const fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Ends every conversation and unloads every model.
    ///
    /// # Errors
    /// What was lost of records.
    pub fn unload(&mut self) -> anyhow::Result<()> {
        let outcome = self.close();
        for listing in self.registry.list() {
            self.registry.unload(&listing.entry.name)?;
        }
        outcome
    }

    /// Ends every conversation.
    ///
    /// # Errors
    /// What was lost of records.
    pub fn close(&mut self) -> anyhow::Result<()> {
        let mut lost = self.lost.take();
        for seat in std::mem::take(&mut self.seats).into_values() {
            lost = lost.or(seat.close().err());
        }
        lost.map_or(Ok(()), Err)
    }

    /// Has a conversation with the model that serves `role` at hand, and returns the model's name.
    /// Where no model is small, or the small one cannot be used, the main one is.
    fn seat(&mut self, role: ModelRole, remarks: &mut Vec<String>) -> anyhow::Result<String> {
        if role == ModelRole::Small && self.registry.serving(role).is_some() {
            match self.seat_of(role) {
                Ok(name) => return Ok(name),
                Err(error) => {
                    remarks.push(format!("the small model cannot answer, so main does: {error:#}"));
                }
            }
        }
        self.seat_of(ModelRole::Main)
    }

    fn seat_of(&mut self, role: ModelRole) -> anyhow::Result<String> {
        let name = self.registry.serving(role).ok_or(RegistryError::NoRole { role })?;
        if !self.seats.contains_key(&name) {
            let lease = self.registry.acquire_named(&name)?;
            let seat = self.opener.open(&lease, role)?;
            self.seats.insert(name.clone(), seat);
        }
        Ok(name)
    }

    fn serve(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError> {
        let since = Instant::now();
        let (instructions, history, user) = taken_apart(messages)?;
        let route = self.scorer.route_as(user, self.choices.tier);
        let mut remarks = Vec::new();
        let name = self.seat(route.model, &mut remarks)?;
        let seat = self.seats.get_mut(&name).context("its conversation is gone")?;
        let conversation = seat.conversation();
        let model = conversation.session().executor().model().clone();
        let context = conversation.session().executor().options().context;
        let tokenizer = model.tokenizer().map_err(anyhow::Error::from)?;
        let room = Room::of(&route, settings, context);
        let looked_since = Instant::now();
        let retrieval = self.choices.recall.ask(user, &route, room.passages, tokenizer);
        let retrieval_time = looked_since.elapsed();
        let found = retrieval.as_ref().map_or(&[][..], |of| &of.fragments);
        let passages: Vec<Passage<'_>> =
            found.iter().map(|hit| Passage { source: &hit.source, text: &hit.text }).collect();
        let request = persona::Request {
            layer: self.choices.layer,
            persona: &self.choices.persona,
            tier: route.tier,
            instructions,
            passages: &passages,
            passage_tokens: room.passages,
            history: &history,
            history_tokens: room.history,
            user,
        };
        let assembled = persona::assemble(&request, tokenizer);
        let notes = Notes {
            since: Some(since),
            bench: self.bench.take(),
            ..notes::of(&self.choices, &route, retrieval.as_ref(), retrieval_time, &assembled)
        };
        if let Some(recorder) = conversation.recorder() {
            recorder.annotate(notes);
        }
        let settings = Settings { max_tokens: Some(room.answer), ..settings.clone() };
        let answered = conversation.respond(&assembled.messages, &settings, cancel, emit);
        self.record = conversation.recorder().and_then(|recorder| recorder.last()).cloned();
        remarks.extend(conversation.remark());
        remarks.extend(retrieval.as_ref().and_then(|of| of.note.clone()));
        remarks.extend(assembled.note.clone());
        if answered.is_ok() {
            let used =
                found[..assembled.passages_used].iter().map(|hit| hit.id).collect::<Vec<_>>();
            remarks.extend(self.choices.recall.note_use(&used));
        }
        let passages = assembled.passages_used;
        self.told = Some(Told { route, model: name, retrieval, passages, remarks });
        answered
    }
}

/// How many tokens the parts of a request may take.
struct Room {
    answer: u32,
    history: usize,
    passages: usize,
}

impl Room {
    /// The answer gets what the tier allows, the history its share of the context, and passages
    /// half of what then is left, so that instructions and the request fit.
    fn of(route: &Route, settings: &Settings, context: usize) -> Self {
        let allowed = route.budget.max_tokens;
        let answer = settings.max_tokens.map_or(allowed, |most| most.min(allowed));
        let history = (context as f64 * route.budget.history_share) as usize;
        let rest = context.saturating_sub(history + answer as usize);
        Self { answer, history, passages: rest / 2 }
    }
}

/// The user's own instructions, the conversation so far, and the turn that is to be answered.
type Parts<'a> = (Option<&'a str>, Vec<Exchange<'a>>, &'a str);

fn taken_apart(messages: &[Message]) -> anyhow::Result<Parts<'_>> {
    let Some((last, before)) = messages.split_last() else {
        anyhow::bail!("there is nothing to answer");
    };
    let (mut instructions, mut history, mut asked) = (None, Vec::new(), None);
    for message in before {
        match message.role {
            Role::System => instructions = Some(&*message.content),
            Role::User => asked = Some(&message.content),
            Role::Assistant => {
                if let Some(user) = asked.take() {
                    history.push(Exchange { user, assistant: &message.content });
                }
            }
        }
    }
    Ok((instructions, history, &last.content))
}

impl Responder for System {
    fn respond(
        &mut self,
        messages: &[Message],
        settings: &Settings,
        cancel: &AtomicBool,
        emit: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Answer, ChatError> {
        (self.told, self.record) = (None, None);
        self.serve(messages, settings, cancel, emit)
    }

    fn forget(&mut self) {
        self.seats.values_mut().for_each(|seat| seat.conversation().forget());
    }

    fn remark(&mut self) -> Option<String> {
        let told = self.told.as_ref()?;
        let tier = told.route.tier.name();
        let mut text = format!("{tier}, answered by {}", told.model.escape_debug());
        if let Some(retrieval) = &told.retrieval {
            let (quoted, found) = (told.passages, retrieval.fragments_found);
            text += &format!("; {quoted} of {found} fragments of memory quoted");
        }
        for remark in &told.remarks {
            text += "; ";
            text += remark;
        }
        Some(text)
    }

    fn models(&self) -> Vec<String> {
        self.registry.lines(self.registry.serving(ModelRole::Main).as_deref())
    }

    fn use_model(&mut self, name: &str) -> anyhow::Result<String> {
        let old = self.registry.serving(ModelRole::Main);
        let name = self.opener.find(&self.registry, name)?;
        let opener = &self.opener;
        let open = |lease: &Lease<dyn Backend>| opener.open(lease, ModelRole::Main);
        let seat = self.registry.swap_with(ModelRole::Main, &name, open)?;
        // The model that was main may serve another role yet; a conversation is opened again then.
        let outgoing = old.and_then(|old| self.seats.remove(&old));
        let left = outgoing.into_iter().chain(self.seats.insert(name.clone(), seat));
        for seat in left {
            self.lost = self.lost.take().or(seat.close().err());
        }
        Ok(format!("{} is the main model from now on", name.escape_debug()))
    }
}
