//! `aios synth`: a model of a published shape with random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;

use aios_contract::ActivationFn;
use aios_validation::synth::{self, Progress, Quant, Recipe, SHAPES, Shape};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt::{Interrupt, Interrupted};

const TEMPLATE: &str = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, \
                        {decimal_bytes_per_sec}, {eta} left";

/// Make a GGUF file of a published shape with random weights.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  aios synth --shape falcon-7b --quant Q4_K_M falcon-7b-synthetic.gguf
  aios synth --shape llama-3.1-8b --layers 2 --vocab 512 small.gguf
  aios synth --shape smollm2-135m --alias 16 shared.gguf
  aios synth --shape llama-3.2-1b --activation relu zeros.gguf

The file runs as fast as the real model would and says nothing of sense; its metadata marks it as
synthetic. The same arguments give the same bytes.")]
pub struct SynthArgs {
    /// The model whose shape it gets.
    #[arg(long, value_name = "NAME", value_parser = shape_parser())]
    shape: &'static Shape,
    /// What it is quantised to, in llama.cpp's mix of tensor types.
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", ignore_case = true)]
    #[arg(value_parser = quant_parser())]
    quant: Quant,
    /// The seed of the weights.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// So many layers instead of the shape's own number.
    #[arg(long, value_name = "N")]
    layers: Option<u32>,
    /// So many tokens instead of the shape's own number.
    #[arg(long, value_name = "N")]
    vocab: Option<u32>,
    /// The activation of the feed-forward parts instead of the architecture's own. With random
    /// weights half of the neurons of `relu` and `relu2` are zero.
    #[arg(long, value_name = "NAME", value_parser = activation_parser())]
    activation: Option<ActivationFn>,
    /// Share matrices: those of the layers of 40 to 60 % depth are those of the first of them, plus
    /// deltas of this rank, as the Model Contract's R3 has it.
    #[arg(long, value_name = "RANK")]
    alias: Option<u32>,
    /// Replace OUT if it exists.
    #[arg(long)]
    force: bool,
    /// The file to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

fn shape_parser() -> impl TypedValueParser<Value = &'static Shape> {
    PossibleValuesParser::new(SHAPES.iter().map(|shape| shape.name))
        .try_map(|name| Shape::named(&name))
}

fn activation_parser() -> impl TypedValueParser<Value = ActivationFn> {
    PossibleValuesParser::new(ActivationFn::ALL.map(ActivationFn::name))
        .try_map(|name| ActivationFn::from_name(&name).ok_or("unknown activation"))
}

fn quant_parser() -> impl TypedValueParser<Value = Quant> {
    PossibleValuesParser::new(Quant::all().map(Quant::name)).try_map(|name| name.parse::<Quant>())
}

/// Runs `aios synth`: makes the file and prints its path on stdout.
///
/// # Errors
/// Those of [`Recipe::plan`] and [`synth::Plan::create`]; [`Interrupted`] on Ctrl-C.
pub fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let &SynthArgs { shape, quant, seed, layers, vocab, activation, .. } = args;
    let mut plan = Recipe { shape, quant, seed, layers, vocab, activation }.plan()?;
    if let Some(rank) = args.alias {
        plan = plan.with_aliases(rank)?;
    }
    let interrupt = Interrupt::install()?;
    let bar = progress_bar(plan.data_bytes());
    let outcome = plan.create(&args.out, args.force, |Progress { done_bytes, .. }| {
        bar.set_position(done_bytes);
        if interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    match outcome {
        Ok(()) => {
            println!("{}", args.out.display());
            Ok(())
        }
        Err(synth::Error::Interrupted) => Err(Interrupted.into()),
        Err(error) => Err(error.into()),
    }
}

/// A bar on stderr, if that is a terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    // A template that does not parse leaves indicatif's own.
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message("random weights");
    bar
}
