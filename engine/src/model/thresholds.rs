//! How large the output of a neuron must be to count, which a plan of a quality below exact brings
//! (SPEC D18).

use super::{AdoptError, Model};
use aios_residency::plan::{NUMBERS, Plan, Table, TableKind};
use std::sync::Arc;

/// For each neuron of each layer the magnitude below which its output is taken as zero.
#[derive(Clone, Debug, PartialEq)]
pub struct FfnThresholds {
    /// Neurons of a layer.
    len: usize,
    /// \[layer\]\[neuron\]
    least: Vec<f32>,
    /// That of the table that they come from.
    sha256: Option<String>,
}

impl FfnThresholds {
    /// Those that are given, \[layer\]\[neuron\], finite and not negative.
    ///
    /// # Errors
    /// [`AdoptError::Thresholds`].
    pub fn of(model: &Model, least: Vec<f32>) -> Result<Self, AdoptError> {
        let config = model.config();
        if least.len() != config.layers * config.ffn.len {
            return Err(AdoptError::Thresholds("are not as many as the model's neurons"));
        }
        if least.iter().any(|least| !least.is_finite() || least.is_sign_negative()) {
            return Err(AdoptError::Thresholds("are not all magnitudes"));
        }
        Ok(Self { len: config.ffn.len, least, sha256: None })
    }

    /// Those that `table` holds for `model`.
    ///
    /// # Errors
    /// [`AdoptError::Thresholds`].
    pub fn new(model: &Model, table: &Table) -> Result<Self, AdoptError> {
        if *table.numbers() != Self::numbers(model) {
            return Err(AdoptError::Thresholds("were made for another model"));
        }
        let (words, rest) = table.body().as_chunks::<4>();
        if !rest.is_empty() {
            return Err(AdoptError::Thresholds("are not whole numbers of 4 bytes"));
        }
        let least = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        Ok(Self { sha256: Some(table.sha256().to_owned()), ..Self::of(model, least)? })
    }

    /// The numbers of the table of such thresholds of `model`.
    pub fn numbers(model: &Model) -> [u64; NUMBERS] {
        let config = model.config();
        let mut numbers = [0; NUMBERS];
        numbers[..2].copy_from_slice(&[config.layers as u64, config.ffn.len as u64]);
        numbers
    }

    /// The body of the table of these.
    pub fn bytes(&self) -> Vec<u8> {
        self.least.iter().flat_map(|least| least.to_le_bytes()).collect()
    }

    /// Those of a layer.
    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        &self.least[layer * self.len..(layer + 1) * self.len]
    }

    /// The SHA-256 of their table; `None` if they come from none.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }
}

impl Model {
    /// Has the executors that are made from now on leave out neurons below the thresholds of
    /// `plan`, which was opened for this model. This changes results.
    ///
    /// # Errors
    /// [`AdoptError`]; nothing has changed then.
    pub fn adopt_thresholds(&self, plan: &Plan) -> Result<(), AdoptError> {
        let thresholds = self.thresholds_of(plan)?;
        // A second plan changes nothing: what runs already stays as it is.
        let _ = self.thresholds.set(Arc::new(thresholds));
        Ok(())
    }

    /// The thresholds of `plan`.
    pub(super) fn thresholds_of(&self, plan: &Plan) -> Result<FfnThresholds, AdoptError> {
        let mut tables = plan.tables.iter();
        let table = tables.find(|table| table.kind() == TableKind::FfnThresholds);
        FfnThresholds::new(self, table.ok_or(AdoptError::Thresholds("are not in the plan"))?)
    }

    /// The thresholds that it has adopted, if it has.
    pub fn ffn_thresholds(&self) -> Option<&Arc<FfnThresholds>> {
        self.thresholds.get()
    }
}
