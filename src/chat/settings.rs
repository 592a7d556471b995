//! How answers are chosen, as the command line and `/set` state it.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The choices behind an answer; names and meanings are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Temperature; 0 always takes the likeliest token.
    pub temp: f32,
    /// Choose among this many likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Choose among the likeliest tokens that make up this probability.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest one.
    pub min_p: f32,
    /// Weaken the last tokens by this factor; 1 for not at all.
    pub repeat_penalty: f32,
    /// The seed of the first answer; each further one takes the next number.
    pub seed: u64,
    /// The most tokens in an answer, if there is a limit.
    pub max_tokens: Option<u32>,
    /// Go on after the model's end token.
    pub ignore_eos: bool,
}

impl Settings {
    /// Every setting that [`Settings::set`] takes, with its value as text.
    pub fn list(&self) -> [(&'static str, String); 8] {
        [
            ("temp", self.temp.to_string()),
            ("top-k", self.top_k.to_string()),
            ("top-p", self.top_p.to_string()),
            ("min-p", self.min_p.to_string()),
            ("repeat-penalty", self.repeat_penalty.to_string()),
            ("seed", self.seed.to_string()),
            ("predict", self.max_tokens.map_or("-1".to_owned(), |n| n.to_string())),
            ("ignore-eos", self.ignore_eos.to_string()),
        ]
    }

    /// Changes one setting.
    ///
    /// # Errors
    /// A sentence that says which names or values there are. Nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let named = |error: String| format!("{name} {error}");
        match name {
            "temp" => self.temp = within::<0, 1000>(value).map_err(named)?,
            "top-k" => self.top_k = whole(value).map_err(named)?,
            "top-p" => self.top_p = within::<0, 1>(value).map_err(named)?,
            "min-p" => self.min_p = within::<0, 1>(value).map_err(named)?,
            "repeat-penalty" => self.repeat_penalty = penalty(value).map_err(named)?,
            "seed" => self.seed = seed(whole(value).map_err(named)?),
            "predict" => {
                let limit: i64 = whole(value).map_err(named)?;
                self.max_tokens = match limit {
                    -1 => None,
                    _ => Some(u32::try_from(limit).map_err(|_| named(NOT_WHOLE.to_owned()))?),
                };
            }
            "ignore-eos" => {
                let truth = value.parse();
                self.ignore_eos = truth.map_err(|_| named("must be true or false".to_owned()))?;
            }
            _ => {
                let names = self.list().map(|(name, _)| name).join(", ");
                return Err(format!("there is no setting '{name}'; there are {names}"));
            }
        }
        Ok(())
    }
}

const NOT_WHOLE: &str = "must be a whole number in range";

fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| NOT_WHOLE.to_owned())
}

/// The seed that a number stands for: itself, or a fresh random one if it is negative.
pub fn seed(number: i64) -> u64 {
    // The standard library keys its hash maps from the system's random source.
    u64::try_from(number).unwrap_or_else(|_| RandomState::new().build_hasher().finish())
}

/// Parses a finite number from `LOW` to `HIGH`.
///
/// # Errors
/// A clause that names the range.
pub fn within<const LOW: i16, const HIGH: i16>(text: &str) -> Result<f32, String> {
    let range = f32::from(LOW)..=f32::from(HIGH);
    match text.parse::<f32>() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {LOW} to {HIGH}")),
    }
}

/// Parses a repeat penalty, which divides and so cannot be 0.
///
/// # Errors
/// A clause that names the range.
pub fn penalty(text: &str) -> Result<f32, String> {
    match within::<0, 1000>(text) {
        Ok(number) if number > 0.0 => Ok(number),
        _ => Err("must be a number above 0, at most 1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            seed: 1,
            max_tokens: None,
            ignore_eos: false,
        }
    }

    #[test]
    fn every_listed_setting_can_be_set_to_what_it_shows() {
        let mut copy = settings();
        for (name, value) in settings().list() {
            copy.set(name, &value).unwrap();
        }
        assert_eq!(copy, settings());
        copy.set("predict", "12").unwrap();
        copy.set("temp", "0").unwrap();
        assert_eq!((copy.max_tokens, copy.temp), (Some(12), 0.0));
    }

    #[test]
    fn a_bad_value_is_refused_and_changes_nothing() {
        let mut copy = settings();
        for (name, value, want) in [
            ("temp", "-1", "temp must be a number from 0 to 1000"),
            ("temp", "NaN", "from 0 to 1000"),
            ("top-k", "4.5", "whole number"),
            ("top-p", "1.01", "from 0 to 1"),
            ("repeat-penalty", "0", "above 0"),
            ("predict", "-2", "whole number"),
            ("ignore-eos", "maybe", "true or false"),
            ("colour", "red", "there is no setting 'colour'"),
        ] {
            let error = copy.set(name, value).unwrap_err();
            assert!(error.contains(want), "{name} {value}: {error}");
        }
        assert_eq!(copy, settings());
    }

    #[test]
    fn a_negative_seed_is_a_fresh_one() {
        assert_eq!(seed(5), 5);
        assert_ne!(seed(-1), seed(-1));
    }
}
