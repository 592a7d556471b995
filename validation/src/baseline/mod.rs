//! The baseline of a model on a machine: MB of DRAM read per generated token, by every source that
//! there is, and how fast it goes, over several runs that each begin with loading (SPEC E).

mod markdown;
mod peer;
#[cfg(test)]
mod tests;

use crate::bench::{Statistics, generate_tokens};
use crate::counters::perf::{Opener, System};
use crate::counters::{Diagnosis, DramMeter, DramReading, Floor, Machine, MeterError};
use crate::report::{Environment, InForce, ModelInfo};
use crate::simulate::Design;
use aios_engine::{EngineError, Executor};
use aios_residency::Phase;
use serde::Serialize;
use std::time::{Duration, Instant};

pub use peer::{Peer, PeerPlan, PeerRun};

/// The version of the JSON: a key that changes its meaning or goes raises it.
pub const SCHEMA_VERSION: u32 = 3;

/// The most that a steady figure may vary: its standard deviation over its mean.
pub const CV_MAX: f64 = 0.05;

/// How long the machine is watched at rest, before and after the tokens.
const IDLE: Duration = Duration::from_millis(300);

/// Tokens that are generated before the measured ones.
const WARM_UP: usize = 4;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Runs, each from loading on.
    pub runs: usize,
    /// Tokens decoded in each, one a pass; which ones does not matter to the bytes of the weights.
    pub tokens: usize,
}

impl Plan {
    /// Positions that the context must hold.
    pub const fn context(&self) -> usize {
        self.tokens + WARM_UP
    }

    /// Positions that a token of the runs finds in the context, on average.
    pub const fn positions(&self) -> usize {
        WARM_UP + self.tokens / 2
    }
}

/// Why there is no baseline.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] anyhow::Error),
    /// It could not be run.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Milliseconds to load the model and allocate its cache.
    pub load_ms: f64,
    /// Generated tokens per second.
    pub tokens_per_s: f64,
    /// MB per token, counted by the ledger.
    pub counted_mb_per_token: f64,
    /// MB per token, read off the memory controllers.
    pub measured_mb_per_token: Option<f64>,
    /// A streaming read just before, GB/s.
    pub stream_gb_per_s: f64,
    /// Memory that the process had resident after it, bytes.
    pub resident_bytes: Option<u64>,
    /// Weight bytes per token of each layer, counted by the ledger. The report has them once.
    #[serde(skip)]
    pub layers: Vec<f64>,
    /// How weights were read. The report has it once.
    #[serde(skip)]
    pub in_force: InForce,
}

/// A figure over all runs.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The statistics.
    #[serde(flatten)]
    pub statistics: Statistics,
    /// The coefficient of variation: standard deviation over mean.
    pub cv: f64,
}

impl Spread {
    /// Of samples; `None` if there are none.
    pub fn of(samples: Vec<f64>) -> Option<Self> {
        let statistics = Statistics::of(samples)?;
        let cv = statistics.sd / statistics.mean;
        Some(Self { statistics, cv })
    }
}

/// What the memory controllers said.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Measurement {
    /// They were read in every run.
    Measured {
        /// MB per token.
        mb_per_token: Spread,
        /// The last run's reading.
        reading: DramReading,
    },
    /// What they said cannot be, or what the kernel says of them is broken.
    Refused {
        /// Why not.
        reason: String,
    },
    /// There is nothing here to read, or this process may not.
    Unavailable {
        /// Why.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
}

/// What a model of a cache says.
#[derive(Clone, Debug, Serialize)]
pub struct SimulatedFigure {
    /// MB read from DRAM per token.
    pub mb_per_token: f64,
    /// Bytes read over the different bytes that a token touches.
    pub reread_ratio: f64,
    /// The name of the caches.
    pub cache: String,
    /// Their sizes, ways and lines, and how they relate.
    pub caches: Design,
    /// Threads that were simulated, each with a private cache; the runs may have more.
    pub threads: usize,
    /// Positions in the context before the token; those of the runs have as many on average.
    pub positions: usize,
}

/// MB per token by source.
#[derive(Clone, Debug, Serialize)]
pub struct MegabytesPerToken {
    /// By the ledger: exact, the least that a token must read.
    pub counted: Spread,
    /// By a model of a cache.
    pub simulated: Option<SimulatedFigure>,
    /// By the memory controllers.
    pub measured: Measurement,
}

/// On what the runs were made.
#[derive(Clone, Debug, Serialize)]
pub struct Surroundings {
    /// With what the model was run.
    #[serde(flatten)]
    pub environment: Environment,
    /// The release of the kernel.
    pub kernel: Option<String>,
    /// The main memory, bytes.
    pub memory_bytes: Option<u64>,
    /// The last level of cache, all instances together, bytes.
    pub last_level_cache_bytes: Option<u64>,
}

/// The baseline.
#[derive(Clone, Debug, Serialize)]
pub struct BaselineReport {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The model.
    pub model: ModelInfo,
    /// With what it was measured, and where.
    pub environment: Surroundings,
    /// How weights were read.
    pub in_force: InForce,
    /// The processor, as it names itself.
    pub processor: Option<String>,
    /// What was run.
    pub plan: Plan,
    /// MB per token.
    pub mb_per_token: MegabytesPerToken,
    /// Weight bytes per token of each layer in decoding, by the ledger. What belongs to no layer,
    /// such as the head, and the cache are not among them.
    pub layers: Vec<f64>,
    /// Generated tokens per second.
    pub tokens_per_s: Spread,
    /// Bytes counted per second, GB/s.
    pub read_gb_per_s: Spread,
    /// A streaming read in the same run, GB/s.
    pub stream_gb_per_s: Spread,
    /// The former over the latter.
    pub bandwidth_fraction: Spread,
    /// Milliseconds to load.
    pub load_ms: Spread,
    /// Memory resident after the last run, bytes; mapped files included.
    pub resident_bytes: Option<u64>,
    /// Another engine on the same file.
    pub peer: Option<Peer>,
    /// Whether the figures are steady enough to be compared with others.
    pub passes: bool,
    /// Why not.
    pub failures: Vec<String>,
    /// What else is to be known.
    pub remarks: Vec<String>,
    /// The runs.
    pub runs: Vec<Run>,
}

/// The counters of a machine, and how they are read.
pub struct Counters<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Opens them.
    pub opener: &'a dyn Opener,
    /// How long the machine is watched at rest, before and after the tokens.
    pub idle: Duration,
}

impl<'a> Counters<'a> {
    /// Those of `machine`, opened by the system.
    pub const fn of(machine: &'a Machine) -> Self {
        Self { machine, opener: &System, idle: IDLE }
    }

    /// Opens them and watches the machine at rest, so that tokens can be decoded next.
    fn start(&self) -> Result<DramMeter, Box<Measurement>> {
        let opened = DramMeter::open_with(self.machine, self.opener);
        let mut meter = opened.map_err(|diagnosis| Box::new(diagnosis.into()))?;
        let ready = meter.idle(self.idle).and_then(|()| meter.start());
        ready.map_err(|error| Box::new(refused(&error)))?;
        Ok(meter)
    }
}

impl From<Diagnosis> for Measurement {
    /// Without counters there is nothing to judge, but what is broken must not pass for that.
    fn from(diagnosis: Diagnosis) -> Self {
        if diagnosis.is_broken() {
            return Self::Refused { reason: diagnosis.to_string() };
        }
        Self::Unavailable { cause: diagnosis.cause(), remedy: diagnosis.remedy().to_owned() }
    }
}

/// What the runs are made with.
pub struct Bench<'a> {
    /// Loads the model and allocates its cache.
    pub load: &'a mut dyn FnMut() -> anyhow::Result<Executor>,
    /// Measures a streaming read with as many threads as decode, GB/s.
    pub stream: &'a mut dyn FnMut() -> anyhow::Result<f64>,
    /// The counters that are read.
    pub counters: Counters<'a>,
    /// The bytes that the machine's caches can keep from token to token (SPEC B11); 0 if unknown.
    pub cache_bytes: u64,
    /// Called between tokens with the number of runs done; what it returns ends the measurement.
    pub between: &'a mut dyn FnMut(usize) -> Result<(), EngineError>,
}

/// Carries out the runs of `plan`, and what the counters came to in them.
///
/// # Errors
/// [`BaselineError`]. Counters that cannot be read are no error.
pub fn measure(
    plan: Plan,
    bench: &mut Bench<'_>,
) -> Result<(Vec<Run>, Measurement), BaselineError> {
    let mut runs = Vec::with_capacity(plan.runs);
    let mut readings = Vec::with_capacity(plan.runs);
    let mut absent = None;
    for done in 0..plan.runs {
        (bench.between)(done)?;
        let stream_gb_per_s = (bench.stream)()?;
        let started = Instant::now();
        let mut executor = (bench.load)()?;
        let load_ms = started.elapsed().as_secs_f64() * 1e3;
        generate_tokens(&mut executor, WARM_UP, &mut || (bench.between)(done))?;
        executor.reset_ledger();
        let mut meter = bench.counters.start().map_err(|why| absent = Some(*why)).ok();
        let started = Instant::now();
        generate_tokens(&mut executor, plan.tokens, &mut || (bench.between)(done))?;
        // A clock may be coarser than a tiny model's pass.
        let seconds = started.elapsed().as_secs_f64().max(1e-9);
        let counted = executor.ledger().phase(Phase::Decode).read_per_token();
        let reading = meter.take().map(|meter| close(meter, plan.tokens as u64, counted, bench));
        let reading = match reading {
            Some(Ok(reading)) => Some(reading),
            Some(Err(reason)) => {
                absent = Some(Measurement::Refused { reason });
                None
            }
            None => None,
        };
        let bytes = reading.as_ref().and_then(|one| one.read_bytes_per_token(plan.tokens as u64));
        runs.push(Run {
            load_ms,
            tokens_per_s: plan.tokens as f64 / seconds,
            counted_mb_per_token: counted / 1e6,
            measured_mb_per_token: bytes.map(|bytes| bytes / 1e6),
            stream_gb_per_s,
            resident_bytes: aios_residency::resident_bytes(),
            layers: layers(&executor),
            in_force: InForce::of(&executor),
        });
        readings.extend(reading);
    }
    let measured: Option<Vec<f64>> = runs.iter().map(|run| run.measured_mb_per_token).collect();
    let spread = measured.and_then(Spread::of).zip(readings.pop());
    let measurement = match (absent, spread) {
        (None, Some((mb_per_token, reading))) => Measurement::Measured { mb_per_token, reading },
        (Some(absent), _) => absent,
        (None, None) => Measurement::Refused { reason: "there was no run".to_owned() },
    };
    Ok((runs, measurement))
}

/// What is to be known of a measured figure that is below the counted one, and above the floor.
fn below_counted(measured: &Measurement, runs: &[Run]) -> Option<String> {
    let Measurement::Measured { mb_per_token, .. } = measured else { return None };
    let counted = runs.iter().map(|run| run.counted_mb_per_token).sum::<f64>() / runs.len() as f64;
    let measured = mb_per_token.statistics.mean;
    (measured < counted).then(|| {
        format!(
            "the {measured:.1} MB measured are {:.2} of the {counted:.1} MB counted: the caches of \
             this machine are large enough to keep the rest from token to token, but a memory \
             controller that is not counted would look the same; a model much larger than the \
             caches tells them apart",
            measured / counted
        )
    })
}

fn refused(error: &MeterError) -> Measurement {
    Measurement::Refused { reason: error.to_string() }
}

/// Weight bytes that a decoded token read of each layer.
fn layers(executor: &Executor) -> Vec<f64> {
    let ledger = executor.ledger();
    let tokens = ledger.phase(Phase::Decode).tokens.max(1) as f64;
    let of = |layer| ledger.layer(Phase::Decode, layer) as f64 / tokens;
    (0..executor.model().config().layers).map(of).collect()
}

/// Ends a measurement and holds it against what must have been read.
fn close(
    mut meter: DramMeter,
    tokens: u64,
    counted_bytes_per_token: f64,
    bench: &Bench<'_>,
) -> Result<DramReading, String> {
    let ended =
        meter.stop().and_then(|()| meter.idle(bench.counters.idle)).and_then(|()| meter.finish());
    let reading = ended.map_err(|error| error.to_string())?;
    let floor = Floor { counted_bytes_per_token, cache_bytes: bench.cache_bytes };
    reading.check_floor(tokens, floor).map_err(|error| error.to_string())?;
    Ok(reading)
}

/// What is known besides the runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The model.
    pub model: ModelInfo,
    /// With what it was run, and where.
    pub environment: Surroundings,
    /// The processor.
    pub processor: Option<String>,
    /// What a model of a cache says.
    pub simulated: Option<SimulatedFigure>,
    /// Another engine, if it was asked for.
    pub peer: Option<Peer>,
}

impl BaselineReport {
    /// The report of `runs`; `None` if there are none.
    pub fn new(plan: Plan, about: About, runs: Vec<Run>, measured: Measurement) -> Option<Self> {
        let of = |value: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(value).collect());
        let read = |run: &Run| run.tokens_per_s * run.counted_mb_per_token / 1e3;
        let tokens_per_s = of(&|run| run.tokens_per_s)?;
        let (mut failures, mut remarks) = (Vec::new(), Vec::new());
        let mut steady = |what: &str, cv: f64| {
            // Of a mean of 0 it is no number.
            if cv.is_nan() || cv >= CV_MAX {
                let (cv, most) = (cv * 100.0, CV_MAX * 100.0);
                failures.push(format!(
                    "{what} vary by {cv:.1} % from run to run, less than {most:.0} % would do: the \
                     machine is not quiet enough"
                ));
            }
        };
        steady("tokens per second", tokens_per_s.cv);
        match &measured {
            Measurement::Measured { mb_per_token, .. } => steady("measured bytes", mb_per_token.cv),
            Measurement::Refused { reason } => failures.push(reason.clone()),
            Measurement::Unavailable { cause, remedy } => {
                remarks.push(format!("not measured: {cause}; {remedy}"));
            }
        }
        let last = runs.last()?;
        if last.in_force.zeros_sha256.is_some() {
            remarks.push(
                "which neurons are zero depends on the text, and the tokens here are any: aios \
                 levers measures them on prompts"
                    .to_owned(),
            );
        }
        remarks.extend(below_counted(&measured, &runs));
        let (resident_bytes, layers) = (last.resident_bytes, last.layers.clone());
        Some(Self {
            schema_version: SCHEMA_VERSION,
            plan,
            mb_per_token: MegabytesPerToken {
                counted: of(&|run| run.counted_mb_per_token)?,
                simulated: about.simulated,
                measured,
            },
            layers,
            in_force: last.in_force.clone(),
            tokens_per_s,
            read_gb_per_s: of(&read)?,
            stream_gb_per_s: of(&|run| run.stream_gb_per_s)?,
            bandwidth_fraction: of(&|run| read(run) / run.stream_gb_per_s)?,
            load_ms: of(&|run| run.load_ms)?,
            resident_bytes,
            model: about.model,
            environment: about.environment,
            processor: about.processor,
            peer: about.peer,
            passes: failures.is_empty(),
            failures,
            remarks,
            runs,
        })
    }

    /// The report for people.
    pub fn markdown(&self) -> String {
        markdown::render(self)
    }
}
