//! The state of training in a file, from which it resumes after the process was killed.
//!
//! The file is in the safetensors format. Its metadata holds the [`Position`] as JSON, which names the run that it
//! belongs to; the tensors are `weights/NAME`, `first/NAME`, `second/NAME` and, once there is one, `best/NAME`.

use super::{
    optimizer::State,
    parameters::{Parameter, Weights},
};
use crate::{framework::PassError, statistics::write_tensors};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The place within a training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Identifies model, teacher, samples and options.
    pub run: u64,
    /// Rates that were tried, with their drift.
    pub trials: Vec<(f64, f64)>,
    /// The rate and the number of steps of the run, once it has begun.
    pub schedule: Option<(f64, u64)>,
    /// Steps made, in a file; the [`State`] counts them.
    pub steps: u64,
    /// The least drift so far.
    pub best: Option<f64>,
    /// Evaluations since then.
    pub since: u64,
}

/// A file of the state, written now and then.
pub struct Checkpoint {
    path: Option<PathBuf>,
    /// The end of the last write, and the time that it took.
    written: Instant,
    cost: Duration,
}

/// The state and the best weights so far.
#[derive(Debug)]
pub struct Saved {
    pub position: Position,
    pub state: State,
    pub best: Option<Weights>,
}

/// Writing takes at most one in this many parts of the time.
const SHARE: u32 = 20;
const KEY: &str = "pare distill 1";

impl Checkpoint {
    /// A checkpoint at this path; none if it is empty.
    pub fn new(path: &str) -> Self {
        let path = (!path.is_empty()).then(|| PathBuf::from(path));
        Self { path, written: Instant::now(), cost: Duration::ZERO }
    }

    /// Returns true if the last state is old enough.
    pub fn is_due(&self) -> bool {
        self.path.is_some() && self.written.elapsed() >= self.cost * SHARE
    }

    /// Writes the state atomically.
    pub fn write(
        &mut self,
        parameters: &[Parameter],
        position: &Position,
        state: &State,
        best: Option<&Weights>,
    ) -> Result<(), PassError> {
        let Some(path) = &self.path else { return Ok(()) };
        let start = Instant::now();
        let failed = |why: String| PassError::refused(format!("`{}`: {why}", path.display()));
        let sets = [("weights", &state.weights.values), ("first", &state.first), ("second", &state.second)];
        let sets = sets.into_iter().chain(best.map(|best| ("best", &best.values)));
        let tensors = sets.flat_map(|(set, values)| {
            parameters.iter().zip(values).map(move |(parameter, values)| {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (format!("{set}/{}", parameter.name), Dtype::F32, parameter.shape.clone(), bytes)
            })
        });
        let position = Position { steps: state.steps, ..position.clone() };
        let text = serde_json::to_string(&position).map_err(|e| failed(e.to_string()))?;
        write_tensors(path, &tensors.collect::<Vec<_>>(), (KEY, text)).map_err(failed)?;
        (self.written, self.cost) = (Instant::now(), start.elapsed());
        Ok(())
    }

    /// Reads the state of this run. `None` if there is no file.
    ///
    /// # Errors
    /// If the file is damaged, or belongs to another run.
    pub fn read(&self, run: u64, parameters: &[Parameter]) -> Result<Option<Saved>, PassError> {
        let Some(path) = self.path.as_deref().filter(|path| path.exists()) else { return Ok(None) };
        let failed = |why: &str| PassError::refused(format!("`{}`: {why}", path.display()));
        let bytes = fs::read(path).map_err(|e| failed(&e.to_string()))?;
        let not_a_state = || failed("it is not a state of training");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|_| not_a_state())?;
        let text = metadata.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(not_a_state)?;
        let position: Position = serde_json::from_str(text).map_err(|_| not_a_state())?;
        if position.run != run {
            return Err(failed("it belongs to another model, other samples or other options"));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|_| not_a_state())?;
        let read = |set: &str| {
            let of = |p: &Parameter| {
                let tensor = file.tensor(&format!("{set}/{}", p.name)).ok()?;
                let fits = tensor.dtype() == Dtype::F32 && tensor.shape() == p.shape;
                let values = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                fits.then(|| values.collect::<Vec<_>>())
            };
            parameters.iter().map(of).collect::<Option<Vec<_>>>()
        };
        let sets = read("weights").zip(read("first")).zip(read("second"));
        let ((values, first), second) = sets.ok_or_else(|| failed("it is damaged"))?;
        let state = State { weights: Weights { values }, first, second, steps: position.steps };
        let best = read("best").map(|values| Weights { values });
        Ok(Some(Saved { position, state, best }))
    }

    /// Removes the file after the training ended.
    pub fn remove(&self) {
        if let Some(path) = &self.path {
            // A run that finds it resumes to the same weights.
            let _ = fs::remove_file(path);
        }
    }
}

/// A number that identifies a run: FNV-1a over everything that determines it.
pub fn fingerprint<'b>(parts: impl IntoIterator<Item = &'b [u8]>) -> u64 {
    let bytes = parts.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote() {
        let path = std::env::temp_dir().join(format!("pare-checkpoint-{}.safetensors", std::process::id()));
        let mut checkpoint = Checkpoint::new(path.to_str().unwrap());
        let parameters = [Parameter { name: "w".into(), shape: vec![2], free: None, codes: None }];
        let mut state = State::new(Weights { values: vec![vec![1.0, -2.0]] });
        (state.steps, state.first[0][1]) = (7, 0.5);
        let position = Position { run: 5, trials: vec![(0.1, 0.3)], steps: 7, ..Position::default() };
        assert!(checkpoint.read(5, &parameters).unwrap().is_none());
        checkpoint.write(&parameters, &position, &state, None).unwrap();
        let saved = checkpoint.read(5, &parameters).unwrap().unwrap();
        assert_eq!((saved.position, saved.state, saved.best), (position, state, None));
        let other = checkpoint.read(6, &parameters).unwrap_err().to_string();
        assert!(other.ends_with("it belongs to another model, other samples or other options"), "{other}");
        fs::write(&path, b"nothing").unwrap();
        assert!(checkpoint.read(5, &parameters).is_err());
        checkpoint.remove();
        assert!(!path.exists());
    }
}
