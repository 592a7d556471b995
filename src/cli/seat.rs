//! A place at a model: a session set up as the command line says, which answers and is recorded.

use aios_engine::Session;
use anyhow::Context;
use clap::Args;

use super::speculation::KnownCosts;
use super::{ContextArgs, Named, RecordArgs, SpecArgs, SpecMode, ThreadArgs, WeightArgs};
use crate::chat::{Conversation, Format};
use crate::interrupt::Interrupt;
use crate::provenance::SharedLog;
use crate::registry::{Backend, Lease, SessionOptions};

/// How a session is set up.
#[derive(Args, Clone, Debug)]
pub struct SeatArgs {
    #[command(flatten)]
    pub(super) weights: WeightArgs,
    #[command(flatten)]
    pub(super) context: ContextArgs,
    #[command(flatten)]
    pub(super) threads: ThreadArgs,
    #[command(flatten)]
    pub(super) speculation: SpecArgs,
    #[command(flatten)]
    pub(super) record: RecordArgs,
}

/// A session, and the right to its model.
pub(super) struct Seat {
    pub(super) conversation: Conversation,
    costs: Option<KnownCosts>,
    pub(super) lease: Lease<dyn Backend>,
}

impl Seat {
    /// Sets a session up with the model of `lease`, whose answers are those of `core` in records,
    /// in the format that is given, or else the model's.
    ///
    /// # Errors
    /// A model that cannot converse, and what cannot be set up.
    pub(super) fn open(
        args: &SeatArgs,
        core: &str,
        log: Option<SharedLog>,
        lease: &Lease<dyn Backend>,
        (format, interrupt): (Option<Format>, &Interrupt),
    ) -> anyhow::Result<Self> {
        let local = lease.local().context("it is not run by this engine")?;
        let model = local.model();
        let format = format.map_or_else(|| local.format(), Ok)?;
        let entry = local.executor_options(&SessionOptions::default());
        let mut options = args.context.over(entry, &args.threads, model.config().context);
        args.speculation.make_room(&mut options, interrupt)?;
        let mut session = Session::new(model.clone(), options)?;
        let costs = args.speculation.set_up(&mut session, &args.weights, interrupt)?;
        let models = Named {
            main: lease.name(),
            draft: args.speculation.drafting(costs.as_ref()),
            spec: args.speculation.spec,
            chat_template_sha256: Some(format.sha256().to_owned()),
        };
        let recorder = args.record.recorder(log, core, &mut session, models, interrupt)?;
        let conversation = Conversation::new(session, format.template().clone())?;
        let conversation = conversation.with_clock(args.record.clock()).with_recorder(recorder);
        Ok(Self { conversation, costs, lease: lease.clone() })
    }

    /// Keeps what was learned of the cost of passes.
    pub(super) fn keep_costs(&self) {
        if let Some(costs) = &self.costs {
            costs.keep(self.conversation.session());
        }
    }
}

impl SeatArgs {
    /// How weights are loaded.
    pub(super) fn weights(&self) -> WeightArgs {
        self.weights.within(self.context.memory.ram)
    }

    /// The same, drafting with the model called `draft` where drafts may come from a model.
    pub(super) fn drafting_with(&self, draft: &str) -> Self {
        let mut args = self.clone();
        if args.speculation.model_draft.is_none() && args.speculation.spec == SpecMode::Auto {
            args.speculation.model_draft = Some(draft.to_owned());
        }
        args
    }
}
