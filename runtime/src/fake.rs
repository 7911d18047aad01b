//! An engine for tests. Its models are named by their bytes and add a number.

use crate::{Engine, EngineError, Feed, LoadOptions, ModelSource, Optimize, Port, PortDim, Session, Value};
use pare_graph::{DataType, Tensor};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A model `y = x + offset`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub offset: f32,
    /// Added to the offset when optimizations are on.
    pub noise: f32,
    /// Added to the offset on another provider than the CPU.
    pub moved: f32,
    /// Does not load on another provider than the CPU.
    pub is_cpu_only: bool,
    /// Fails if the first number is at least this large.
    pub fails_at: Option<f32>,
    /// Fails if optimizations are on.
    pub fails_optimized: bool,
    /// The number of runs so far.
    pub runs: Arc<AtomicUsize>,
}

impl Fake {
    pub fn adding(offset: f32) -> Self {
        Self { offset, ..Self::default() }
    }
}

pub(crate) struct FakeEngine(HashMap<&'static [u8], Fake>);

impl FakeEngine {
    pub fn of<const N: usize>(models: [(&'static str, Fake); N]) -> Self {
        Self::of_bytes(models.map(|(name, model)| (name.as_bytes(), model)))
    }

    pub fn of_bytes<const N: usize>(models: [(&'static [u8], Fake); N]) -> Self {
        Self(models.into_iter().collect())
    }
}

pub(crate) fn feed(name: &str, values: &[f32]) -> Feed {
    vec![(name.to_owned(), Tensor::vector(values).into())]
}

impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn version(&self) -> String {
        "0".to_owned()
    }

    fn check(&self, _: &LoadOptions) -> Result<(), EngineError> {
        Ok(())
    }

    fn load(&self, model: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        let ModelSource::Bytes { bytes, .. } = model else { unreachable!() };
        let Some(found) = self.0.get(&bytes[..]) else {
            let (engine, model) = ("fake".to_owned(), model.to_string());
            return Err(EngineError::Load { engine, model, reason: "it is unknown".to_owned() });
        };
        let mut fake = found.clone();
        if !options.provider.is_cpu() {
            if fake.is_cpu_only {
                let (engine, model) = ("fake".to_owned(), model.to_string());
                return Err(EngineError::Load { engine, model, reason: "it is not supported".to_owned() });
            }
            fake.offset += fake.moved;
        }
        if options.optimize != Optimize::Off {
            fake.offset += fake.noise;
            fake.fails_at = fake.fails_at.or(fake.fails_optimized.then_some(f32::NEG_INFINITY));
        }
        Ok(Box::new(FakeSession(fake, [Port::tensor("x", DataType::Float, &[PortDim::Unknown])])))
    }
}

struct FakeSession(Fake, [Port; 1]);

impl Session for FakeSession {
    fn inputs(&self) -> &[Port] {
        &self.1
    }

    fn outputs(&self) -> &[Port] {
        &self.1
    }

    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError> {
        self.0.runs.fetch_add(1, Ordering::Relaxed);
        let values = feeds[0].1.as_tensor().unwrap().to_vec::<f32>().unwrap();
        if self.0.fails_at.is_some_and(|limit| values[0] >= limit) {
            let reason = "the number is too large".to_owned();
            return Err(EngineError::Run { engine: "fake".to_owned(), reason });
        }
        Ok(feed("y", &values.iter().map(|value| value + self.0.offset).collect::<Vec<_>>()))
    }
}
