use super::Mask;
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::Model;

pass! {
    /// Set the weights to zero that a mask excludes.
    ///
    /// `w' = m⊙w`. The mask of a trained model, applied to the same model at initialization, gives a lottery
    /// ticket. A mask is a safetensors file of booleans named after initializers. The remaining weights do
    /// not change in any bit.
    ///
    /// Fails if an initializer of the mask is missing in the model or has another shape, and lists these.
    #[pass("apply-mask", Lossy)]
    pub struct ApplyMask {
        /// The path of the mask.
        pub file: String = String::new(),
    }
}

impl Pass for ApplyMask {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.file.is_empty() {
            return Err(PassError::refused_with(
                "it needs a mask",
                "such as `apply-mask{file=mask.safetensors}`",
            ));
        }
        let in_file = |why: &dyn std::fmt::Display| PassError::refused(format!("`{}`: {why}", self.file));
        let bytes = std::fs::read(&self.file).map_err(|e| in_file(&e))?;
        let mask = Mask::from_bytes(&bytes).map_err(|e| in_file(&e))?;
        let Some((patch, zeros)) = mask.patch(model).map_err(|e| in_file(&e))? else { return Ok(()) };
        if cx.apply(&mut model.graph, patch).is_some() {
            let (all, kept) = mask.counts();
            cx.count(Counter::new("weight zeroed", "weights zeroed"), zeros);
            cx.figure("mask density", kept as f64 / all.max(1) as f64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Pipeline, RunOptions, run,
        testing::{model, run_pass},
    };
    use crate::transforms::weights::{MaskError, TensorMask};

    const TRAINED: &str =
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, -0.1, 0.2, 3}> { y = MatMul(x, w) }";
    const INIT: &str =
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {-7, 5, 0.3, -0.01}> { y = MatMul(x, w) }";

    fn mask_of(pipeline: &str) -> Result<Mask, MaskError> {
        let before = model(TRAINED);
        let mut after = before.clone();
        let pipeline: Pipeline = pipeline.parse().unwrap();
        run(&pipeline, &mut after, RunOptions::default(), &mut ()).unwrap();
        Mask::between(&before, &after)
    }

    fn file(mask: &Mask, name: &str) -> String {
        let path = std::env::temp_dir().join(format!("pare-{}-{name}.safetensors", std::process::id()));
        std::fs::write(&path, mask.to_bytes().unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn transfers_zeros_to_another_model() {
        let mask = mask_of("sparsify{ratio=0.5}").unwrap();
        assert_eq!(mask.tensors["w"], TensorMask { shape: vec![2, 2], keep: vec![true, false, false, true] });
        assert_eq!(Mask::from_bytes(&mask.to_bytes().unwrap()).unwrap(), mask);
        let mut ticket = model(INIT);
        let path = file(&mask, "ticket");
        let report = run_pass(ApplyMask { file: path.clone() }, &mut ticket);
        std::fs::remove_file(path).unwrap();
        assert_eq!(report.steps[0].count("weights zeroed"), 2);
        let w =
            ticket.graph.value(ticket.graph.find("w").unwrap()).tensor().unwrap().to_vec::<f32>().unwrap();
        assert_eq!(w, [-7.0, 0.0, 0.0, -0.01]);
    }

    #[test]
    fn lists_mismatched_initializers() {
        let mut mask = mask_of("sparsify{ratio=0.5}").unwrap();
        mask.tensors.insert("v".into(), TensorMask { shape: vec![3], keep: vec![true, true, false] });
        let other = "g (float[N,2] x) => (float[N,4] y) <float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }";
        let why = mask.patch(&model(other)).unwrap_err().to_string();
        let expected = "it does not fit the model\n  `v`: no initializer of this name\n  `w`: the mask is [2, 2], the \
            initializer float[2, 4]";
        assert_eq!(why, expected);
        assert!(Mask::from_bytes(b"no mask").unwrap_err().to_string().starts_with("it is not a mask"));
    }
}
