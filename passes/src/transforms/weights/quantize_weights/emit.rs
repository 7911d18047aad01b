//! The nodes that read the integers.
//!
//! | | `ort` | `standard` |
//! |---|---|---|
//! | `x·W + b` | `MatMulNBits(x, q, s, z) + b` | `x·DequantizeLinear(q, s, z) + b` |
//! | `Gather(T, i)`, 4 bits | `GatherBlockQuantized(q, i, s, z)` | `Gather(DequantizeLinear(q, s, z), i)` |
//! | `Gather(T, i)`, 8 bits | `GatherBlockQuantized(q, i, s, z)` | `DequantizeLinear` of the gathered `q`, `s`, `z` |
//!
//! `Gather` has no form for integers of four bits.

use super::{Kind, QuantizeWeights, Target, blocks::Blocks};
use crate::framework::PassError;
use pare_graph::{DataType, Graph, Node, NodeRef, Patch, Ref, Tensor, TensorError, pack_bits};
use serde::{Deserialize, Serialize};

/// The operators that read quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightForm {
    /// Those of ONNX Runtime.
    Ort,
    /// Those of the standard.
    Standard,
}

/// Replaces the node of a target.
pub fn replace(graph: &mut Graph, target: &Target, pass: &QuantizeWeights) -> Result<(), PassError> {
    let at = graph.at(target.node);
    let (Ok(input), Ok(output)) = (at.input(0), at.output()) else {
        return Err(PassError::refused(format!("{} has no output", at.describe())));
    };
    let mut patch = Patch::at(at);
    let constants = Constants { blocks: &target.blocks, name: &target.name };
    let new = match (target.kind, pass.form) {
        (Kind::Matrix, form) => {
            let product = match form {
                WeightForm::Ort => constants.product(&mut patch, output.name(), input.into(), pass),
                WeightForm::Standard => {
                    let weight = constants.dequantized(&mut patch, true).map_err(PassError::from_error)?;
                    Ok(patch.node(output.name(), Node::new("MatMul"), &[input.into(), weight]))
                }
            };
            with_bias(&mut patch, at, product.map_err(PassError::from_error)?)?
        }
        (Kind::Table, form) => {
            let Ok(indices) = at.input(1) else {
                return Err(PassError::refused(format!("{} has no indices", at.describe())));
            };
            match form {
                WeightForm::Ort => constants.gather(&mut patch, output.name(), indices.into()),
                WeightForm::Standard if target.blocks.bits == 4 => {
                    constants.dequantized(&mut patch, false).map(|table| {
                        patch.node(
                            output.name(),
                            Node::new("Gather").with("axis", 0_i64),
                            &[table, indices.into()],
                        )
                    })
                }
                WeightForm::Standard => constants.dequantized_rows(&mut patch, indices.into()),
            }
            .map_err(PassError::from_error)?
        }
    };
    patch.replace(output, new);
    graph.apply(patch).map(drop).map_err(PassError::from_error)
}

/// Adds the bias of a `Gemm` to the product.
fn with_bias(patch: &mut Patch, at: NodeRef<'_>, product: Ref) -> Result<Ref, PassError> {
    let beta = at.float("beta", 1.0);
    let Some(bias) = at.optional(2).filter(|_| at.is("Gemm") && beta != 0.0) else { return Ok(product) };
    let bias = if beta == 1.0 {
        bias.into()
    } else {
        let scaled = bias.constant().ok().and_then(|tensor| tensor.scaled(tensor.len().max(1), &[beta]).ok());
        let Some(scaled) = scaled else {
            return Err(PassError::refused(format!("{} scales a computed bias", at.describe())));
        };
        patch.constant(bias.name(), scaled)
    };
    Ok(patch.node("product", Node::new("Add"), &[product, bias]))
}

/// The constants of a matrix `[rows, width]`.
struct Constants<'t> {
    blocks: &'t Blocks,
    name: &'t str,
}

impl Constants<'_> {
    fn add(&self, patch: &mut Patch, what: &str, tensor: Tensor) -> Ref {
        patch.constant(&format!("{}_{what}", self.name), tensor)
    }

    /// Rows of bytes, each with `count` integers of few bits, up to `padded` integers.
    fn packed(&self, codes: &[u8], count: usize, padded: usize) -> Vec<u8> {
        let pad = |row: &[u8]| {
            let mut row = row.to_vec();
            row.resize(padded, 0);
            pack_bits(self.blocks.bits, &row)
        };
        codes.chunks(count.max(1)).flat_map(pad).collect()
    }

    /// `MatMulNBits`.
    fn product(
        &self,
        patch: &mut Patch,
        name: &str,
        x: Ref,
        pass: &QuantizeWeights,
    ) -> Result<Ref, TensorError> {
        let &Blocks { rows, width, block, bits, symmetric, .. } = self.blocks;
        let per_row = self.blocks.per_row();
        let codes = self.packed(&self.blocks.codes, width, per_row * block);
        let shape = [rows, per_row, block * bits as usize / 8];
        let mut inputs = vec![
            x,
            self.add(patch, "quantized", Tensor::new(DataType::Uint8, &shape, codes)?),
            self.add(patch, "scale", Tensor::from_slice(&[rows, per_row], &self.blocks.scales())?),
        ];
        if !symmetric {
            let zeros = self.packed(&self.blocks.zeros(), per_row, per_row);
            let shape = [rows, zeros.len() / rows.max(1)];
            inputs.push(self.add(patch, "zero_point", Tensor::new(DataType::Uint8, &shape, zeros)?));
        }
        let mut node = Node::new("MatMulNBits")
            .with("K", width as i64)
            .with("N", rows as i64)
            .with("bits", i64::from(bits))
            .with("block_size", block as i64);
        if pass.accuracy_level != 0 {
            node = node.with("accuracy_level", pass.accuracy_level);
        }
        node.domain = Some("com.microsoft".into());
        Ok(patch.node(name, node, &inputs))
    }

    /// `GatherBlockQuantized`.
    fn gather(&self, patch: &mut Patch, name: &str, indices: Ref) -> Result<Ref, TensorError> {
        let &Blocks { rows, width, block, bits, symmetric, .. } = self.blocks;
        let per_row = self.blocks.per_row();
        let codes = self.packed(&self.blocks.codes, width, width);
        let shape = [rows, codes.len() / rows.max(1)];
        let mut inputs = vec![
            self.add(patch, "quantized", Tensor::new(DataType::Uint8, &shape, codes)?),
            indices,
            self.add(patch, "scale", Tensor::from_slice(&[rows, per_row], &self.blocks.scales())?),
        ];
        if !symmetric {
            let zeros = self.packed(&self.blocks.zeros(), per_row, per_row);
            let shape = [rows, zeros.len() / rows.max(1)];
            inputs.push(self.add(patch, "zero_point", Tensor::new(DataType::Uint8, &shape, zeros)?));
        }
        let mut node = Node::new("GatherBlockQuantized")
            .with("bits", i64::from(bits))
            .with("block_size", block as i64)
            .with("gather_axis", 0_i64)
            .with("quantize_axis", 1_i64);
        node.domain = Some("com.microsoft".into());
        Ok(patch.node(name, node, &inputs))
    }

    /// Integers, scales and zero points for `DequantizeLinear`, of the matrix or its transpose.
    fn standard(&self, patch: &mut Patch, transposed: bool) -> Result<Vec<Ref>, TensorError> {
        let &Blocks { rows, width, bits, symmetric, .. } = self.blocks;
        let per_row = self.blocks.per_row();
        let signed = if symmetric { 1_u8 << (bits - 1) } else { 0 };
        let dtype = match (bits, symmetric) {
            (4, true) => DataType::Int4,
            (4, false) => DataType::Uint4,
            (_, true) => DataType::Int8,
            (_, false) => DataType::Uint8,
        };
        let shape = |width: usize| if transposed { [width, rows] } else { [rows, width] };
        // Symmetric integers are signed, with a zero point of zero.
        let integers = |codes: &[u8], width: usize| {
            let codes = ordered(codes, rows, width, transposed);
            let codes: Vec<_> = codes.into_iter().map(|q| q.wrapping_sub(signed)).collect();
            Tensor::new(dtype, &shape(width), pack_bits(bits, &codes))
        };
        let scales = ordered(&self.blocks.scales(), rows, per_row, transposed);
        let mut inputs = vec![
            self.add(patch, "quantized", integers(&self.blocks.codes, width)?),
            self.add(patch, "scale", Tensor::from_slice(&shape(per_row), &scales)?),
        ];
        if !symmetric {
            inputs.push(self.add(patch, "zero_point", integers(&self.blocks.zeros(), per_row)?));
        }
        Ok(inputs)
    }

    fn dequantize(&self, axis: i64) -> Node {
        Node::new("DequantizeLinear").with("axis", axis).with("block_size", self.blocks.block as i64)
    }

    /// The matrix in float, or its transpose.
    fn dequantized(&self, patch: &mut Patch, transposed: bool) -> Result<Ref, TensorError> {
        let inputs = self.standard(patch, transposed)?;
        let name = format!("{}_dequantized", self.name);
        Ok(patch.node(&name, self.dequantize(i64::from(!transposed)), &inputs))
    }

    /// The gathered rows in float.
    fn dequantized_rows(&self, patch: &mut Patch, indices: Ref) -> Result<Ref, TensorError> {
        let gathered: Vec<_> = self
            .standard(patch, false)?
            .into_iter()
            .map(|data| patch.node("gathered", Node::new("Gather").with("axis", 0_i64), &[data, indices]))
            .collect();
        Ok(patch.node("rows", self.dequantize(-1), &gathered))
    }
}

/// The elements of a matrix, or of its transpose, row-major.
fn ordered<T: Copy>(values: &[T], rows: usize, width: usize, transposed: bool) -> Vec<T> {
    if !transposed {
        return values.to_vec();
    }
    (0..width).flat_map(|j| (0..rows).map(move |i| values[i * width + j])).collect()
}
