//! Arguments that several subcommands share, with the names and defaults of llama.cpp.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use aios_engine::{ExecutorOptions, KvTiering};
use aios_kernels::{CacheType, Isa, IsaError, IsaName};
use clap::{Args, ValueEnum};

use crate::chat::{Settings, penalty, seed, within};
use crate::models::DEFAULT_MODEL;
use crate::registry::CONTEXT_DEFAULT;

/// Short options of more than one letter, which clap does not know, and their long forms.
const LONG_SHORTS: [(&str, &str); 5] = [
    ("-tb", "--threads-batch"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-sys", "--system-prompt"),
    ("-md", "--model-draft"),
];

/// Options whose value is free text and may look like an option.
const FREE_TEXT: [&str; 4] = ["-p", "--prompt", "-sys", "--system-prompt"];

/// Replaces llama.cpp's multi-letter short options (`-tb`, `-ctk`, `-ctv`, `-sys`, `-md`) by
/// their long forms. Everything after `--`, and the text of a prompt, is left alone.
pub fn spell_out(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut spelled: Vec<OsString> = Vec::new();
    let mut literal = false;
    let mut is_text = false;
    for arg in args {
        literal |= arg == "--";
        let long = LONG_SHORTS.iter().find(|(short, _)| arg == OsStr::new(short));
        let text_follows = !is_text && FREE_TEXT.iter().any(|name| arg == OsStr::new(name));
        spelled.push(match long {
            Some((_, long)) if !literal && !is_text => long.into(),
            _ => arg,
        });
        is_text = text_follows;
    }
    spelled
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A GGUF file, or the name of a catalogue model, which is fetched if it is not there.
    #[arg(short, long, value_name = "FILE|NAME", default_value = DEFAULT_MODEL)]
    pub model: String,
}

/// How many threads.
#[derive(Args, Clone, Debug)]
pub struct ThreadArgs {
    /// Threads that generate [default: one for each core that this process may use].
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = threads)]
    pub threads: Option<Threads>,
    /// Threads that read the prompt (-tb) [default: as --threads].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = threads)]
    pub threads_batch: Option<Threads>,
}

/// A number of threads as the user wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// `-1`: the default.
    Auto,
    /// This many, at least 1.
    Exactly(usize),
}

impl ContextArgs {
    /// The set-up of a session with a model that was trained for `trained` positions.
    pub fn options(&self, threads: &ThreadArgs, trained: usize) -> ExecutorOptions {
        self.over(ExecutorOptions::new(CONTEXT_DEFAULT), threads, trained)
    }

    /// The set-up `options` where these arguments say nothing else.
    pub fn over(
        &self,
        mut options: ExecutorOptions,
        threads: &ThreadArgs,
        trained: usize,
    ) -> ExecutorOptions {
        options.context = match self.ctx_size {
            None => options.context,
            Some(0) => trained,
            Some(asked) => usize::try_from(asked).unwrap_or(usize::MAX),
        };
        (options.threads, options.threads_batch) = threads.resolve(options.threads);
        options.cache_k = self.cache.cache_type_k;
        options.cache_v = self.cache.cache_type_v;
        self.cache.tiers.set(&mut options);
        options.ram = self.memory.ram.or(options.ram);
        options
    }
}

impl ThreadArgs {
    /// The threads for generating and for the prompt, given how many cores this process may use.
    pub fn resolve(&self, cores: usize) -> (usize, usize) {
        let pick = |threads, auto| match threads {
            Some(Threads::Exactly(n)) => n,
            Some(Threads::Auto) | None => auto,
        };
        let decode = pick(self.threads, cores.max(1));
        (decode, pick(self.threads_batch, decode))
    }
}

/// The context window and its cache.
#[derive(Args, Clone, Debug)]
pub struct ContextArgs {
    /// Tokens of context; 0 takes the length that the model was trained with [default: 4096].
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<u32>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub cache: CacheArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub memory: MemoryArgs,
}

/// How much memory a model may take.
#[derive(Args, Clone, Debug)]
pub struct MemoryArgs {
    /// Memory for weights, cache and activations, such as 2600M or 3G: what does not fit is read
    /// from disk for each pass, with the same results [default: weights are mapped].
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    pub ram: Option<u64>,
}

/// How keys and values are kept.
#[derive(Args, Clone, Debug)]
pub struct CacheArgs {
    /// The type of the cached keys (-ctk).
    #[arg(long, value_name = "TYPE", default_value_t = CacheType::F16)]
    pub cache_type_k: CacheType,
    /// The type of the cached values (-ctv).
    #[arg(long, value_name = "TYPE", default_value_t = CacheType::F16)]
    pub cache_type_v: CacheType,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub tiers: TierArgs,
}

/// How older keys and values are kept.
#[derive(Args, Clone, Debug)]
pub struct TierArgs {
    /// Keep older keys and values in fewer bits, all but the first 64 positions and the newest
    /// 128 to 191: warm has keys in 8 bits and values in 4; cold also, from some 1,000 positions
    /// back, keys in 4 bits and values in 3. It changes results a little [default: off, with
    /// --kv-budget the first of them that keeps to it].
    #[arg(long, value_name = "off|warm|cold")]
    pub kv_tiers: Option<KvTiering>,
    /// The most memory for keys and values, such as 40M: an error says if it is not enough; what
    /// tiers leave of it lets a conversation go back farther without reading it again.
    #[arg(long, value_name = "BYTES", value_parser = aios_residency::parse_bytes)]
    pub kv_budget: Option<u64>,
}

impl TierArgs {
    fn set(&self, options: &mut ExecutorOptions) {
        options.kv_tiers = self.kv_tiers.unwrap_or_default();
        options.kv_budget = self.kv_budget;
        options.kv_by_budget = self.kv_tiers.is_none() && self.kv_budget.is_some();
    }
}

/// How a measurement computes. The cache's type depends on whether it is exact.
#[derive(Args, Clone, Debug)]
pub struct ComputeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub threads: ThreadArgs,
    /// Compute with this instruction set: scalar, avx2, avx512 or amx [default: the best there is].
    #[arg(long, value_name = "NAME")]
    pub isa: Option<IsaName>,
    /// Compute with dequantised f32 weights and unquantised activations; slow.
    #[arg(long)]
    pub exact: bool,
    /// The type of the cached keys (-ctk) [default: f16, or f32 with --exact].
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<CacheType>,
    /// The type of the cached values (-ctv) [default: f16, or f32 with --exact].
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<CacheType>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub tiers: TierArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "see the type")]
    pub memory: MemoryArgs,
}

impl ComputeArgs {
    /// The set-up of an executor for `context` positions.
    ///
    /// # Errors
    /// [`IsaError::Unsupported`] if this processor lacks the instruction set.
    pub fn options(&self, context: usize) -> Result<ExecutorOptions, IsaError> {
        let mut options = ExecutorOptions::new(context);
        (options.threads, options.threads_batch) = self.threads.resolve(options.threads);
        options.isa = self.isa.map_or(Ok(options.isa), Isa::request)?;
        options.exact = self.exact;
        let cache = if self.exact { CacheType::F32 } else { CacheType::F16 };
        options.cache_k = self.cache_type_k.unwrap_or(cache);
        options.cache_v = self.cache_type_v.unwrap_or(cache);
        options.ram = self.memory.ram;
        self.tiers.set(&mut options);
        Ok(options)
    }
}

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = within::<0, 1000>)]
    pub temp: f32,
    /// Choose among this many likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub top_k: u32,
    /// Choose among the likeliest tokens that make up this probability; 1 for all.
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = within::<0, 1>)]
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest one; 0 for none.
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = within::<0, 1>)]
    pub min_p: f32,
    /// Weaken the last 64 tokens by this factor; 1 for not at all.
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = penalty)]
    pub repeat_penalty: f32,
    /// The seed of the random choice; -1 takes a new one each time.
    #[arg(short, long, default_value_t = -1, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..))]
    pub seed: i64,
    /// Go on after the model's end token.
    #[arg(long)]
    pub ignore_eos: bool,
}

impl SamplingArgs {
    /// The settings of a conversation with at most `max_tokens` in each answer. A seed of -1
    /// becomes a fresh random one here, so that it can be reported and used again.
    pub fn settings(&self, max_tokens: Option<u32>) -> Settings {
        Settings {
            temp: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: seed(self.seed),
            max_tokens,
            ignore_eos: self.ignore_eos,
        }
    }
}

/// What is generated, and what is said about it.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// The prompt.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from this file.
    #[arg(short, long, value_name = "PATH", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Generate at most this many tokens; -1 until the model ends or the context is full.
    #[arg(short = 'n', long, default_value_t = -1, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub predict: i64,
    /// End stderr with one line of statistics.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub stats: Option<StatsFormat>,
}

impl GenerateArgs {
    /// The most tokens to generate, if there is a limit.
    pub fn max_tokens(&self) -> Option<u32> {
        u32::try_from(self.predict).ok()
    }
}

/// The form of the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// One JSON object.
    Json,
}

fn threads(text: &str) -> Result<Threads, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(Threads::Auto),
        Ok(n @ 1..=1024) => Ok(Threads::Exactly(usize::try_from(n).unwrap_or(1))),
        _ => Err("must be from 1 to 1024, or -1 for one per core".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct All {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        threads: ThreadArgs,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        sampling: SamplingArgs,
        #[command(flatten)]
        generate: GenerateArgs,
    }

    fn parse(args: &[&str]) -> Result<All, String> {
        let args = std::iter::once("aios").chain(args.iter().copied()).map(OsString::from);
        All::try_parse_from(spell_out(args)).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_llama_cpp() {
        let all = parse(&[]).unwrap();
        assert_eq!(all.model.model, DEFAULT_MODEL);
        assert_eq!((all.generate.predict, all.generate.max_tokens()), (-1, None));
        assert_eq!(all.context.options(&all.threads, 8192).context, 4096);
        let trained = parse(&["-c", "0"]).unwrap();
        assert_eq!(trained.context.options(&all.threads, 8192).context, 8192);
        assert_eq!(all.context.cache.cache_type_k, CacheType::F16);
        assert_eq!(all.context.memory.ram, None);
        let sampling = &all.sampling;
        assert_eq!((sampling.temp, sampling.top_k, sampling.top_p), (0.8, 40, 0.95));
        assert_eq!((sampling.min_p, sampling.repeat_penalty, sampling.seed), (0.05, 1.0, -1));
        assert_eq!(all.threads.resolve(6), (6, 6));
        let settings = parse(&["-s", "9"]).unwrap().sampling.settings(Some(3));
        assert_eq!((settings.seed, settings.max_tokens, settings.top_k), (9, Some(3), 40));
    }

    #[test]
    fn multi_letter_shorts_and_negative_numbers_are_understood() {
        let all =
            parse(&["-tb", "3", "-t", "-1", "-ctk", "f32", "-n", "-1", "-s", "-1", "-p", "-tb"])
                .unwrap();
        assert_eq!(all.threads.resolve(2), (2, 3));
        assert_eq!(all.context.cache.cache_type_k, CacheType::F32);
        assert_eq!(all.generate.prompt.as_deref(), Some("-tb"));
        assert_eq!(parse(&["-t", "5"]).unwrap().threads.resolve(2), (5, 5));
        let literal = spell_out(["x", "--", "-tb"].map(OsString::from));
        assert_eq!(literal, ["x", "--", "-tb"]);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (args, want) in [
            (["-t", "0"], "from 1 to 1024"),
            (["-tb", "99999"], "from 1 to 1024"),
            (["--temp", "-1"], ""),
            (["--temp", "nan"], "from 0 to 1000"),
            (["--temp", "inf"], "from 0 to 1000"),
            (["--top-p", "1.5"], "from 0 to 1"),
            (["-n", "-2"], "-1..="),
            (["-s", "-2"], "-2"),
            (["-c", "-1"], "-1"),
            (["-ctk", "q2"], "known are f32, f16"),
            (["--stats", "xml"], "possible values: json"),
            (["--ram", "3GB"], "must be bytes like 2600M"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(want), "{args:?}: {error}");
        }
        assert!(parse(&["-p", "x", "-f", "y"]).unwrap_err().contains("cannot be used with"));
    }
}
