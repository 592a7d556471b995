//! The report of levers as Markdown.

use super::{Figures, Finding, LeverReport, Quality};
use std::fmt::Write;

impl LeverReport {
    /// The report for people.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.render(&mut out);
        out
    }

    fn render(&self, out: &mut String) -> std::fmt::Result {
        let (model, environment) = (&self.model, &self.environment);
        writeln!(out, "# Levers of {}\n", model.name)?;
        if model.synthetic {
            writeln!(out, "**Synthetic weights: no figure says anything of a real model.**\n")?;
        }
        writeln!(
            out,
            "Each line: the same {} tokens decoded behind {} positions without the lever and with \
             it, in turns. Counted by the ledger, simulated behind {}, time measured.\n",
            self.generated, self.depth, self.cache
        )?;
        writeln!(
            out,
            "| lever | setting | counted MB/token | simulated MB/token | disk MB/token | ms/token \
             | results |\n|---|---|---:|---:|---:|---:|---|"
        )?;
        for lever in &self.levers {
            let (name, setting) = (lever.name, &lever.setting);
            let Finding::Measured { off, on, quality } = &lever.finding else { continue };
            let part = |of: fn(&Figures) -> f64| format!("{} → {}", mb(of(off)), mb(of(on)));
            writeln!(
                out,
                "| {name} | {setting} | {} | {} | {} | {} | {} |",
                part(|figures| figures.counted_bytes_per_token),
                part(|figures| figures.simulated_bytes_per_token),
                part(|figures| figures.disk_bytes_per_token),
                times(off, on),
                results(quality)
            )?;
        }
        self.nothing(out)?;
        self.activations(out)?;
        writeln!(out, "\n## Environment\n")?;
        writeln!(out, "- model: {} bytes, SHA-256 {}", model.bytes, model.sha256)?;
        writeln!(out, "- aios {}, {}", environment.version, environment.platform)?;
        writeln!(out, "- instruction set {}, {} threads", environment.isa, environment.threads)?;
        let [k, v] = environment.cache_types;
        writeln!(out, "- cache {k}/{v}")
    }

    /// The levers of which there was nothing to measure.
    fn nothing(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        for lever in &self.levers {
            if let Finding::Nothing { reason } = &lever.finding {
                writeln!(out, "- {}: {reason}.", lever.name)?;
            }
        }
        Ok(())
    }

    /// What reading a prompt in passes of fewer tokens does to the traffic of activations.
    fn activations(&self, out: &mut String) -> std::fmt::Result {
        let mut chunks = self.levers.iter().filter_map(|lever| match &lever.finding {
            Finding::Measured { off, on, .. } if lever.name.starts_with("prompt") => {
                Some((&lever.setting, off, on))
            }
            _ => None,
        });
        let Some(first) = chunks.next() else { return Ok(()) };
        writeln!(
            out,
            "\nActivations of a prompt of {} tokens, simulated, in MB per token of the prompt:\n",
            self.prompt
        )?;
        writeln!(out, "| tokens a pass | one pass | in chunks |\n|---|---:|---:|")?;
        for (setting, off, on) in std::iter::once(first).chain(chunks) {
            let of = |figures: &Figures| mb(figures.simulated_activation_bytes_per_token);
            writeln!(out, "| {setting} | {} | {} |", of(off), of(on))?;
        }
        Ok(())
    }
}

fn mb(bytes: f64) -> String {
    format!("{:.3}", bytes / 1e6)
}

fn times(off: &Figures, on: &Figures) -> String {
    let (off, on) = (off.ms_per_token, on.ms_per_token);
    format!("{off:.3} → {on:.3} (× {:.2})", on / off)
}

fn results(quality: &Quality) -> String {
    match quality {
        Quality::Identical { tokens } => format!("identical over {tokens} tokens"),
        Quality::Changed { kl, perplexity, positions } => format!(
            "KL {:.5} ± {:.5}, perplexity {:.3} → {perplexity:.3}, {positions} positions",
            kl.mean, kl.standard_error, kl.base_perplexity
        ),
        Quality::NotMeasured => "not measured".to_owned(),
    }
}
