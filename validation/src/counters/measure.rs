//! Measures the memory traffic of decoding: idle, tokens, idle (SPEC B7, B10, B11).

use std::time::Duration;

use serde::Serialize;

use super::arithmetic::{Count, CountError, Rates, Window, net_of_idle};
use super::discover::{Traffic, Uncore, discover};
use super::machine::Machine;
use super::perf::{Opener, Reader, System};
use super::resctrl::Resctrl;
use super::{Diagnosis, ResctrlError};

/// Why a measurement came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// A counter cannot be read.
    #[error("cannot read {device}: {source}")]
    Unreadable {
        /// The device.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// A counter's readings come to nothing.
    #[error("{device}: {source}")]
    Useless {
        /// The device.
        device: String,
        /// Why.
        source: CountError,
    },
    /// No counter saw a read while tokens were decoded, which no machine manages.
    #[error(
        "nothing moved while tokens were decoded ({counters}): what was read does not count; see \
         what stands in its place"
    )]
    StandsStill {
        /// What was read.
        counters: String,
    },
    /// Less was read while tokens were decoded than in as much time at rest.
    #[error(
        "the machine read more at rest than while tokens were decoded ({counters}): other programs \
         were busy before or after; stop them and measure again"
    )]
    Restless {
        /// What was read.
        counters: String,
    },
    /// The steps were not idle, then start and stop as often as wanted, then idle.
    #[error(
        "cannot {step} now: a measurement is idle, then start and stop as often as wanted, then \
         idle again"
    )]
    Order {
        /// What was asked for.
        step: &'static str,
    },
}

/// One open counter.
struct Tap {
    device: String,
    write: bool,
    bytes_per_count: f64,
    reader: Box<dyn Reader>,
}

/// What the counters tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Reads.
    Reads,
    /// Reads and writes, each by itself.
    ReadsAndWritesApart,
    /// Reads and writes as one sum, which stands for the reads.
    ReadsAndWritesTogether,
}

/// Open counters of all memory traffic of the machine.
pub struct DramMeter {
    source: String,
    counted: Counted,
    taps: Vec<Tap>,
    idle_before: Option<Window>,
    decode: Option<Window>,
    idle_after: Option<Window>,
    /// The readings at the start of the tokens that are being decoded.
    started: Option<Vec<Count>>,
}

impl DramMeter {
    /// Opens every memory controller's counters, or resctrl's where there are none of the former
    /// or this process may not use them.
    ///
    /// # Errors
    /// Why nothing can be measured.
    pub fn open(machine: &Machine) -> Result<Self, Diagnosis> {
        Self::open_with(machine, &System)
    }

    /// As [`DramMeter::open`], with something else in the system's place.
    ///
    /// # Errors
    /// Why nothing can be measured.
    pub fn open_with(machine: &Machine, opener: &dyn Opener) -> Result<Self, Diagnosis> {
        let opened = discover(machine).and_then(|found| Self::of_uncore(machine, &found, opener));
        match opened {
            // What is broken is not worked around: whoever set the machine up should know.
            Err(diagnosis) if !diagnosis.is_broken() => {
                let found = Resctrl::find(machine)?;
                found.map_or(Err(diagnosis), |found| Ok(Self::of_resctrl(&found)?))
            }
            opened => opened,
        }
    }

    fn of_uncore(
        machine: &Machine,
        found: &Uncore,
        opener: &dyn Opener,
    ) -> Result<Self, Diagnosis> {
        let tap = |counter: &super::Counter| {
            let reader = opener.open(&counter.event).map_err(|source| {
                let environment = machine.environment();
                Diagnosis::of_refusal(&environment, &counter.device, counter.cpu, source)
            })?;
            let (device, bytes_per_count) = (counter.device.clone(), counter.bytes_per_count);
            let write = counter.traffic == Traffic::Write;
            Ok(Tap { device, write, bytes_per_count, reader })
        };
        let taps: Result<Vec<Tap>, Diagnosis> = found.counters.iter().map(tap).collect();
        let counted =
            if found.counts_writes() { Counted::ReadsAndWritesApart } else { Counted::Reads };
        Ok(Self::of(found.summary(), counted, taps?))
    }

    fn of_resctrl(found: &Resctrl) -> Result<Self, ResctrlError> {
        let tap = |reader| {
            let device = "resctrl mbm_total_bytes".to_owned();
            Tap { device, write: false, bytes_per_count: 1.0, reader }
        };
        let taps = found.start()?.into_iter().map(tap).collect();
        let source = format!(
            "resctrl mbm_total_bytes, {} of L3 domains and groups (reads and writes together)",
            found.files()
        );
        Ok(Self::of(source, Counted::ReadsAndWritesTogether, taps))
    }

    fn of(source: String, counted: Counted, taps: Vec<Tap>) -> Self {
        let (idle_before, decode, idle_after, started) = (None, None, None, None);
        Self { source, counted, taps, idle_before, decode, idle_after, started }
    }

    /// What is read, in short.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Reads every counter.
    fn snapshot(&mut self) -> Result<Vec<Count>, MeterError> {
        let read = |tap: &mut Tap| {
            let unreadable = |source| MeterError::Unreadable { device: tap.device.clone(), source };
            tap.reader.read().map_err(unreadable)
        };
        self.taps.iter_mut().map(read).collect()
    }

    /// What was counted since a snapshot.
    fn since(&mut self, earlier: &[Count]) -> Result<Window, MeterError> {
        let now = self.snapshot()?;
        let mut window = Window::EMPTY;
        for ((tap, now), earlier) in self.taps.iter().zip(now).zip(earlier) {
            now.since(*earlier)
                .and_then(|delta| window.add(delta, tap.bytes_per_count, tap.write))
                .map_err(|source| MeterError::Useless { device: tap.device.clone(), source })?;
        }
        Ok(window)
    }

    /// Watches the machine while this thread sleeps, to learn what moves without us. Some tenths of
    /// a second are enough; other threads of this process must rest, too.
    ///
    /// # Errors
    /// [`MeterError`]; `Order` while tokens are being decoded.
    pub fn idle(&mut self, duration: Duration) -> Result<(), MeterError> {
        if self.started.is_some() {
            return Err(MeterError::Order { step: "idle" });
        }
        let before = self.snapshot()?;
        std::thread::sleep(duration);
        let window = self.since(&before)?;
        let side = if self.decode.is_none() { &mut self.idle_before } else { &mut self.idle_after };
        *side = Some(side.unwrap_or(Window::EMPTY).and(window));
        Ok(())
    }

    /// To be called right before a token, or several.
    ///
    /// # Errors
    /// [`MeterError`]; `Order` without an idle stretch before, after the one that closes the
    /// measurement, or if it has started already.
    pub fn start(&mut self) -> Result<(), MeterError> {
        let ready = self.idle_before.is_some() && self.idle_after.is_none();
        if !ready || self.started.is_some() {
            return Err(MeterError::Order { step: "start" });
        }
        self.started = Some(self.snapshot()?);
        Ok(())
    }

    /// To be called right after the tokens; what they moved is added to what was measured before.
    ///
    /// # Errors
    /// [`MeterError`]; `Order` without a start.
    pub fn stop(&mut self) -> Result<(), MeterError> {
        let started = self.started.take().ok_or(MeterError::Order { step: "stop" })?;
        let window = self.since(&started)?;
        self.decode = Some(self.decode.unwrap_or(Window::EMPTY).and(window));
        Ok(())
    }

    /// What was measured.
    ///
    /// # Errors
    /// `Order` if a part is missing: idle before, tokens, idle after; `StandsStill` and `Restless`
    /// for figures of which nothing is left.
    pub fn finish(self) -> Result<DramReading, MeterError> {
        let (Some(before), Some(decode), Some(after), None) =
            (self.idle_before, self.decode, self.idle_after, &self.started)
        else {
            return Err(MeterError::Order { step: "finish" });
        };
        let counters = || self.source.clone();
        if decode.read_bytes == 0.0 {
            return Err(MeterError::StandsStill { counters: counters() });
        }
        let (idle_before, idle_after) = (before.rates(), after.rates());
        let net = |gross, before, after| net_of_idle(gross, decode.seconds, before, after);
        let (read_bytes, idle_exceeds) =
            net(decode.read_bytes, idle_before.read_bytes_per_s, idle_after.read_bytes_per_s);
        if idle_exceeds {
            return Err(MeterError::Restless { counters: counters() });
        }
        let (write_bytes, _) =
            net(decode.write_bytes, idle_before.write_bytes_per_s, idle_after.write_bytes_per_s);
        let scheduled = [before, decode, after].map(|window| window.scheduled_fraction);
        Ok(DramReading {
            source: format!("measured: {}", self.source),
            counted: self.counted,
            seconds: decode.seconds,
            gross_read_bytes: decode.read_bytes,
            read_bytes,
            write_bytes: (self.counted == Counted::ReadsAndWritesApart).then_some(write_bytes),
            idle_before,
            idle_after,
            scheduled_fraction: scheduled.into_iter().fold(1.0, f64::min),
        })
    }
}

/// The memory traffic of the machine while tokens were decoded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DramReading {
    /// `measured`, and the devices that were read.
    pub source: String,
    /// What they count; `read_bytes` is the sum of both directions where they do not tell it apart.
    pub counted: Counted,
    /// The length of the tokens' decoding.
    pub seconds: f64,
    /// Bytes read in that time by the whole machine.
    pub gross_read_bytes: f64,
    /// Of these, what is left without the machine's idle traffic; not below 0.
    pub read_bytes: f64,
    /// Bytes written, without the idle traffic, where they are counted.
    pub write_bytes: Option<f64>,
    /// The machine's traffic before.
    pub idle_before: Rates,
    /// The machine's traffic after.
    pub idle_after: Rates,
    /// The smallest fraction of the time that a counter ran; below 1 figures are extrapolated.
    pub scheduled_fraction: f64,
}

impl DramReading {
    /// Bytes read for a token; `None` of no tokens.
    pub fn read_bytes_per_token(&self, tokens: u64) -> Option<f64> {
        (tokens > 0).then(|| self.read_bytes / tokens as f64)
    }

    /// Bytes written for a token; `None` of no tokens, or where they are not counted.
    pub fn write_bytes_per_token(&self, tokens: u64) -> Option<f64> {
        self.write_bytes.filter(|_| tokens > 0).map(|bytes| bytes / tokens as f64)
    }

    /// Holds the bytes read for a token against the floor.
    ///
    /// # Errors
    /// [`BelowFloor`], also of no tokens.
    pub fn check_floor(&self, tokens: u64, floor: Floor) -> Result<(), BelowFloor> {
        let measured = self.read_bytes_per_token(tokens).unwrap_or(f64::NAN);
        check_floor(measured, floor).map_err(|error| BelowFloor {
            source_read: Some(self.source.clone()),
            for_want_of_idle: self.gross_read_bytes >= floor.bytes() * tokens as f64,
            ..error
        })
    }
}

/// What a token must read from memory at the least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// Bytes of weights and cache that the ledger counted for a token.
    pub counted_bytes_per_token: f64,
    /// Bytes that may have stayed in the caches since the token before: all instances of the last
    /// level together, and those of the private ones before it unless it is known to contain them;
    /// 0 where unknown.
    pub cache_bytes: u64,
}

impl Floor {
    /// Bytes for a token. No order of replacement keeps more than the caches hold.
    pub fn bytes(self) -> f64 {
        (self.counted_bytes_per_token - self.cache_bytes as f64).max(0.0)
    }
}

/// A measurement that cannot be true.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", self.message())]
pub struct BelowFloor {
    /// Bytes for a token as measured.
    pub measured_bytes_per_token: f64,
    /// What is the least.
    pub floor: Floor,
    /// What was read, where it is known.
    pub source_read: Option<String>,
    /// Whether it would reach the floor if no idle traffic had been taken off.
    pub for_want_of_idle: bool,
}

impl BelowFloor {
    fn message(&self) -> String {
        let mb = |bytes: f64| bytes / 1e6;
        let (measured, floor) = (self.measured_bytes_per_token, self.floor.bytes());
        let counted = mb(self.floor.counted_bytes_per_token);
        let mut message = format!(
            "the measured {:.1} MB of DRAM read per token are below the floor of {:.1} MB (counted \
             {counted:.1} MB, of which the caches can keep at most {:.1} MB): the measurement \
             misses traffic and is no result",
            mb(measured),
            mb(floor),
            mb(self.floor.cache_bytes as f64)
        );
        if let Some(source) = &self.source_read {
            message.push_str(&format!("; {source}"));
        }
        if self.for_want_of_idle {
            message.push_str(
                "; without the idle baseline it would reach the floor: the machine was not at rest \
                 before or after, measure again",
            );
        } else {
            message.push_str(&format!(
                "; it is {:.2} of the floor: see whether every memory controller of every package \
                 is read. An example: the published 2340 MB per token (MiB, in fact) of Falcon-7B \
                 Q4_K_M on a Core Ultra 7 265K were those of uncore_imc_free_running_0 alone; that \
                 processor has two controllers, and the file's weights come to about 4.8 GB per \
                 token",
                measured / floor
            ));
        }
        message
    }
}

/// Holds bytes measured for a token against the floor.
///
/// # Errors
/// [`BelowFloor`], also of what is no number.
pub fn check_floor(measured_bytes_per_token: f64, floor: Floor) -> Result<(), BelowFloor> {
    // A comparison with NaN is false, and NaN is below any floor.
    if measured_bytes_per_token >= floor.bytes() {
        return Ok(());
    }
    Err(BelowFloor { measured_bytes_per_token, floor, source_read: None, for_want_of_idle: false })
}
