//! Zeros among the weights of the fixtures: masks transferred between models, and neurons without weights.

use crate::support::{after, bytes, root, same_interface, same_outputs};
use pare_graph::{Model, Patch, Tensor, ValueId, onnx};
use pare_passes::{Effect, Pipeline, transforms::weights::Mask};

fn fixture(name: &str) -> Model {
    onnx::read(root().join(format!("fixtures/{name}.onnx")), &onnx::ReadOptions::default()).unwrap()
}

fn weights(model: &Model, name: &str) -> Vec<f32> {
    model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().to_vec().unwrap()
}

/// A lottery ticket: the weights at initialization, kept where the trained network has its largest weights.
#[test]
fn mask_of_the_trained_network_applies_to_its_initialization() {
    let (trained, init) = (fixture("digits-cnn"), fixture("digits-init"));
    let pipeline: Pipeline = "sparsify{ratio=0.8,cascade=false}".parse().unwrap();
    let mask = Mask::between(&trained, &after(&pipeline, &trained).unwrap().0).unwrap();
    let mask = Mask::from_bytes(&mask.to_bytes().unwrap()).unwrap();
    let (all, stay) = mask.counts();
    assert!(mask.tensors.len() > 10 && (stay as f64 / all as f64 - 0.2).abs() < 0.01, "{stay} of {all}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mask.safetensors");
    std::fs::write(&file, mask.to_bytes().unwrap()).unwrap();
    let pipeline: Pipeline = format!("apply-mask{{file=\"{}\"}}", file.display()).parse().unwrap();
    let (ticket, _) = after(&pipeline, &init).unwrap();
    for id in init.graph.initializers() {
        let value = init.graph.value(id);
        let Some(old) = value.tensor().filter(|t| t.dtype() == pare_graph::DataType::Float) else { continue };
        let (old, new) = (old.to_vec::<f32>().unwrap(), weights(&ticket, &value.name));
        for (k, (old, new)) in old.iter().zip(&new).enumerate() {
            let stays = mask.tensors.get(&value.name).is_none_or(|mask| mask.keep[k]);
            let wanted = if stays { old.to_bits() } else { 0 };
            assert_eq!(new.to_bits(), wanted, "`{}`, element {k}", value.name);
        }
    }

    let other = after(&pipeline, &fixture("digits-vit")).unwrap_err();
    let listed = mask.tensors.keys().filter(|name| other.contains(&format!("`{name}`"))).count();
    assert_eq!(listed, mask.tensors.len(), "{other}");
}

/// Sets rows of a tensor along an axis to zero.
fn zero(model: &mut Model, id: ValueId, axis: usize, units: &[usize]) {
    let tensor = model.graph.value(id).tensor().unwrap().clone();
    let mut values = tensor.to_vec::<f32>().unwrap();
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let size = tensor.shape()[axis];
    values
        .iter_mut()
        .enumerate()
        .filter(|(k, _)| units.contains(&(k / inner % size)))
        .for_each(|(_, v)| *v = 0.0);
    let mut patch = Patch::anchored(model.graph.users(id)[0].0);
    patch.set_data(id, Tensor::from_slice(tensor.shape(), &values).unwrap());
    model.graph.apply(patch).unwrap();
}

/// Neurons whose weights are all zero are removed, and their constant output is kept.
#[test]
fn removes_neurons_without_weights() {
    for name in ["digits-cnn", "digits-fold", "digits-vit", "cifar-mbv2"] {
        let pruned =
            after(&"safe,sparsify{ratio=0.5,cascade=false}".parse().unwrap(), &fixture(name)).unwrap().0;
        let mut dead = pruned.clone();
        dead.infer().unwrap();
        // Every fourth output of a layer; its bias is kept.
        let mut zeroed = 0;
        for &node in pruned.graph.nodes().iter() {
            let at = pruned.graph.at(node);
            let Ok(weight) = at.input(1) else { continue };
            let Some(tensor) = weight.value().tensor().filter(|t| t.rank() >= 2) else { continue };
            let axis = match at.op() {
                "Conv" => 0,
                "Gemm" if at.int("transB", 0) != 0 => 0,
                "Gemm" | "MatMul" => 1,
                _ => continue,
            };
            let units: Vec<_> = (0..tensor.shape()[axis]).step_by(4).collect();
            if at.output().is_ok_and(|y| !y.value().is_output()) && pruned.graph.use_count(weight.id) == 1 {
                zero(&mut dead, weight.id, axis, &units);
                zeroed += 1;
            }
        }
        // digits-fold has four layers, and the last one produces the output.
        assert!(zeroed >= 3, "{name}");
        let (small, report) = after(&"safe,drop-dead-channels,safe".parse().unwrap(), &dead).unwrap();
        let (before, now) = (bytes(&dead).unwrap().len(), bytes(&small).unwrap().len());
        assert!(now < before, "{name}: {before} bytes became {now}: {report:?}");
        same_interface(&dead, &small).unwrap();
        same_outputs(&dead, &small, Effect::Rounding, 1).unwrap();
    }
}
