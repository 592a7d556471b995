//! `aios run`: completes one text.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::time::Instant;

use aios_engine::Session;
use aios_engine::tokenizer::ParseSpecial;
use anyhow::Context;
use clap::Args;

use super::recording::all_recorded;
use super::{
    ContextArgs, GenerateArgs, ModelArgs, Named, RecordArgs, SamplingArgs, SpecArgs, StatsFormat,
    ThreadArgs, Usage, WeightArgs, model_file,
};
use crate::chat::generate;
use crate::interrupt::{Interrupt, Interrupted};
use crate::provenance::{Options, Prompt};
use crate::stats::{Stats, StopReason};

/// Complete one text, without a chat template.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios run -p 'Once upon a time' -n 64
  aios run -m model.gguf -f prompt.txt --temp 0 --stats json
  head -20 main.rs | aios run -m qwen2.5-coder-0.5b-instruct -n 100

Only the completion is printed to stdout. Special tokens in the prompt are parsed, and the token
that begins a text is put in front if the model asks for it.")]
pub(super) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpecArgs,
    #[command(flatten)]
    record: RecordArgs,
}

/// Runs `aios run`.
pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let interrupt = Interrupt::install().context("cannot catch Ctrl-C")?;
    let prompt = match prompt_of(&args.generate)? {
        Some(prompt) => prompt,
        None if io::stdin().is_terminal() => {
            let remedy = "there is no prompt: give one with -p or -f, or on stdin";
            return Err(Usage(remedy.to_owned()).into());
        }
        None => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("cannot read the prompt from stdin")?;
            text
        }
    };
    let log = args.record.open(&Options::default())?;
    let path = model_file(&args.model.model, &interrupt)?;
    let weights = args.weights.within(args.context.memory.ram);
    let model = weights.load(&path, false, &interrupt)?;
    let mut options = args.context.options(&args.threads, model.config().context);
    args.speculation.make_room(&mut options, &interrupt)?;
    let mut session = Session::new(model.clone(), options)?;
    let costs = args.speculation.set_up(&mut session, &args.weights, &interrupt)?;
    let settings = args.sampling.settings(args.generate.max_tokens());
    let settings = args.record.settings(settings);
    let models = Named {
        main: &args.model.model,
        draft: args.speculation.drafting(costs.as_ref()),
        spec: args.speculation.spec,
        chat_template_sha256: None,
    };
    let mut recorder = args.record.recorder(log, "run", &mut session, models, &interrupt)?;
    let since = Instant::now();
    let tokenizer = model.tokenizer()?;
    let mut ids = tokenizer.encode(&prompt, ParseSpecial::Yes);
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos))
    {
        ids.insert(0, bos);
    }
    let ids = Prompt::new(ids, &prompt, None, since);
    let mut out = io::stdout();
    let mut emit = |piece: &str| {
        out.write_all(piece.as_bytes())?;
        out.flush()
    };
    let flag = interrupt.flag();
    let answer = generate(&mut session, &ids, &settings, flag, &mut emit, recorder.as_mut());
    if let Some(costs) = costs {
        costs.keep(&session);
    }
    writeln!(out)?;
    let stats = answer?.stats.with_mode(args.speculation.spec.name());
    if stats.stop_reason == StopReason::ContextFull {
        eprintln!("(the context is full; -c sets a larger one)");
    }
    eprintln!("{stats}");
    finish(args.generate.stats, Some(&stats))?;
    all_recorded(recorder.as_mut())?;
    if stats.stop_reason == StopReason::Interrupted { Err(Interrupted.into()) } else { Ok(()) }
}

/// The prompt that `-p` or `-f` gives, if one does.
pub(super) fn prompt_of(args: &GenerateArgs) -> anyhow::Result<Option<String>> {
    match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, None) => Ok(None),
        (None, Some(path)) => {
            let read = fs::read_to_string(path);
            Ok(Some(read.with_context(|| format!("cannot read the prompt {}", path.display()))?))
        }
    }
}

/// Ends stderr with the statistics, if they were asked for and there are any.
pub(super) fn finish(format: Option<StatsFormat>, stats: Option<&Stats>) -> anyhow::Result<()> {
    if let (Some(StatsFormat::Json), Some(stats)) = (format, stats) {
        eprintln!("{}", serde_json::to_string(stats)?);
    }
    Ok(())
}
