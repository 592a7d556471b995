//! What readings of counters come to, without reading any (SPEC B10).

use serde::Serialize;

/// What a counter said at one time, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Events.
    pub value: u64,
    /// Nanoseconds that it should have counted.
    pub enabled_ns: u64,
    /// Nanoseconds that it did: less where counters share the hardware in turns.
    pub running_ns: u64,
}

/// Readings that come to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// The later reading is the smaller one. The kernel extends the hardware's counters to 64 bits,
    /// so that no counter wraps around.
    #[error("it went backwards, from {earlier} to {later}")]
    WentBackwards {
        /// The first reading.
        earlier: u64,
        /// The second one.
        later: u64,
    },
    /// The kernel had no room for it.
    #[error(
        "it was never scheduled: other programs use the same counters; \
         stop them (perf, pcm, a monitoring agent) and measure again"
    )]
    NeverScheduled,
}

impl Count {
    /// What was counted since an earlier reading.
    ///
    /// # Errors
    /// [`CountError::WentBackwards`], also of the times.
    pub fn since(self, earlier: Self) -> Result<Self, CountError> {
        let less = |later: u64, earlier: u64| {
            later.checked_sub(earlier).ok_or(CountError::WentBackwards { earlier, later })
        };
        Ok(Self {
            value: less(self.value, earlier.value)?,
            enabled_ns: less(self.enabled_ns, earlier.enabled_ns)?,
            running_ns: less(self.running_ns, earlier.running_ns)?,
        })
    }

    /// The fraction of the time that it counted, from 0 to 1.
    pub fn scheduled_fraction(self) -> f64 {
        (self.running_ns as f64 / self.enabled_ns.max(1) as f64).min(1.0)
    }

    /// The events of the whole time, if they came as they did while it counted.
    ///
    /// # Errors
    /// [`CountError::NeverScheduled`].
    pub fn scaled(self) -> Result<f64, CountError> {
        if self.running_ns == 0 {
            return Err(CountError::NeverScheduled);
        }
        Ok(self.value as f64 / self.scheduled_fraction())
    }
}

/// What all counters together saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Its length.
    pub seconds: f64,
    /// Bytes read (or all traffic, where the counters do not tell it apart).
    pub read_bytes: f64,
    /// Bytes written; 0 where they are not counted.
    pub write_bytes: f64,
    /// The smallest fraction of the time that a counter ran.
    pub scheduled_fraction: f64,
}

impl Window {
    /// No time at all.
    pub const EMPTY: Self =
        Self { seconds: 0.0, read_bytes: 0.0, write_bytes: 0.0, scheduled_fraction: 1.0 };

    /// This stretch and another one.
    pub fn and(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            read_bytes: self.read_bytes + other.read_bytes,
            write_bytes: self.write_bytes + other.write_bytes,
            scheduled_fraction: self.scheduled_fraction.min(other.scheduled_fraction),
        }
    }

    /// Adds what one counter saw in the same stretch.
    ///
    /// # Errors
    /// Those of [`Count::scaled`].
    pub fn add(
        &mut self,
        count: Count,
        bytes_per_count: f64,
        write: bool,
    ) -> Result<(), CountError> {
        let bytes = count.scaled()? * bytes_per_count;
        *(if write { &mut self.write_bytes } else { &mut self.read_bytes }) += bytes;
        self.seconds = self.seconds.max(count.enabled_ns as f64 / 1e9);
        self.scheduled_fraction = self.scheduled_fraction.min(count.scheduled_fraction());
        Ok(())
    }

    /// Its traffic by the second; 0 of no time.
    pub fn rates(self) -> Rates {
        let rate = |bytes: f64| if self.seconds > 0.0 { bytes / self.seconds } else { 0.0 };
        Rates { read_bytes_per_s: rate(self.read_bytes), write_bytes_per_s: rate(self.write_bytes) }
    }
}

/// Traffic by the second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Bytes read in a second.
    pub read_bytes_per_s: f64,
    /// Bytes written in a second.
    pub write_bytes_per_s: f64,
}

/// What is left of `gross` bytes in `seconds` if the machine would have moved the mean of the rates
/// `before` and `after` (bytes a second) anyway, and whether that was more than all.
pub fn net_of_idle(gross: f64, seconds: f64, before: f64, after: f64) -> (f64, bool) {
    let net = gross - seconds * f64::midpoint(before, after);
    (net.max(0.0), net < 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(value: u64, enabled_ns: u64, running_ns: u64) -> Count {
        Count { value, enabled_ns, running_ns }
    }

    #[test]
    fn a_difference_is_scaled_by_the_time_it_ran() {
        let delta = count(1100, 5000, 3000).since(count(100, 1000, 1000)).expect("forward");
        assert_eq!(delta, count(1000, 4000, 2000));
        assert_eq!((delta.scaled(), delta.scheduled_fraction()), (Ok(2000.0), 0.5));
        assert_eq!(count(7, 10, 10).scaled(), Ok(7.0));
        // Times are taken one after the other and may be off by some nanoseconds.
        assert_eq!(count(7, 10, 11).scaled(), Ok(7.0));
        assert_eq!(count(0, 10, 0).scaled(), Err(CountError::NeverScheduled));
        assert_eq!(count(0, 0, 0).scaled(), Err(CountError::NeverScheduled));
    }

    #[test]
    fn counters_do_not_go_backwards() {
        let error = count(5, 9, 9).since(count(6, 0, 0));
        assert_eq!(error, Err(CountError::WentBackwards { earlier: 6, later: 5 }));
        assert!(count(9, 5, 9).since(count(0, 6, 0)).is_err());
        assert!(count(9, 9, 5).since(count(0, 0, 6)).is_err());
        let all = count(u64::MAX, 1, 1).since(count(0, 0, 0)).expect("forward");
        assert_eq!(all.value, u64::MAX);
        // Past 48 bits, where the hardware's own counters wrap around.
        let far = count((1 << 48) + 5, 2, 2).since(count((1 << 48) - 5, 1, 1)).expect("forward");
        assert_eq!(far.value, 10);
    }

    #[test]
    fn counters_of_a_stretch_add_up_and_stretches_follow_each_other() {
        let mut window = Window::EMPTY;
        window.add(count(10, 2_000_000_000, 2_000_000_000), 64.0, false).expect("scheduled");
        window.add(count(10, 2_000_000_000, 1_000_000_000), 64.0, false).expect("scheduled");
        window.add(count(1, 1_900_000_000, 1_900_000_000), 32.0, true).expect("scheduled");
        let expected =
            Window { seconds: 2.0, read_bytes: 1920.0, write_bytes: 32.0, scheduled_fraction: 0.5 };
        assert_eq!(window, expected);
        let rates = Rates { read_bytes_per_s: 960.0, write_bytes_per_s: 16.0 };
        assert_eq!(window.rates(), rates);
        assert_eq!(window.and(window).rates(), rates);
        assert_eq!(window.and(Window::EMPTY), window);
        assert_eq!(Window::EMPTY.rates().read_bytes_per_s, 0.0);
        assert!(window.add(count(1, 1, 0), 64.0, false).is_err());
    }

    #[test]
    fn idle_traffic_is_taken_off_but_never_too_much() {
        assert_eq!(net_of_idle(1000.0, 2.0, 100.0, 200.0), (700.0, false));
        assert_eq!(net_of_idle(1000.0, 2.0, 0.0, 0.0), (1000.0, false));
        assert_eq!(net_of_idle(300.0, 2.0, 150.0, 150.0), (0.0, false));
        assert_eq!(net_of_idle(299.0, 2.0, 100.0, 200.0), (0.0, true));
    }
}
