//! Optimizes a model at build time, without an engine: `safe` needs none.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let model = "../../fixtures/digits-fold.onnx";
    println!("cargo::rerun-if-changed={model}");
    let small: onnx_pare::Optimized = onnx_pare::optimize(&fs::read(model)?, "safe")?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("model.onnx");
    fs::write(path, small.to_bytes()?)?;
    Ok(())
}
