//! Contains a model that the build script optimized.

const MODEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model.onnx"));

fn main() {
    println!("the model has {} bytes", MODEL.len());
}
