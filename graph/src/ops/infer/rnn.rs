//! Recurrent layers: X `[T,B,in]`, W `[D,gates·H,in]` and R `[D,gates·H,H]` for D directions. Quantized
//! weights are transposed: `[D,in,gates·H]` and `[D,H,gates·H]`.

use super::{
    cx::{Cx, Facts, tensor},
    dims::times,
};
use crate::Dim;

/// `LSTM`, `GRU` and `RNN`: all states `[T,D,B,H]` and the last states `[D,B,H]`.
pub(super) fn rnn(cx: &Cx) -> Facts {
    for slot in [0, 1, 2] {
        cx.expect_rank(slot, 3)?;
    }
    // Quantized weights have another type and layout.
    let quantized = cx.at.op() == "DynamicQuantizeLSTM";
    let dtype = if quantized { cx.dtype(0) } else { cx.same_dtype([0, 1, 2])? };
    let gates = match cx.at.op() {
        "LSTM" | "DynamicQuantizeLSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    let hidden = match cx.at.attr("hidden_size") {
        Some(_) => Dim::from(cx.at.int("hidden_size", 0)),
        None => cx.dim(2, if quantized { 1 } else { 2 }),
    };
    let directions =
        Dim::from(if cx.at.string("direction", "forward") == "bidirectional" { 2_i64 } else { 1 });
    if !quantized {
        let rows = times(&hidden, gates);
        for slot in [1, 2] {
            if rows.unify(&cx.dim(slot, 1)).is_none() || directions.unify(&cx.dim(slot, 0)).is_none() {
                return Err(format!(
                    "{} does not fit {directions} directions of {hidden} units",
                    cx.name(slot)
                ));
            }
        }
        cx.agree((0, 2), (1, 2))?;
    }
    let (time, batch) = (cx.dim(0, 0), cx.dim(0, 1));
    let (all, last) = if cx.at.int("layout", 0) != 0 {
        // Batch first: X is [B,T,in].
        let (batch, time) = (time, batch);
        (vec![batch.clone(), time, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![time, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    let last = tensor(dtype, Some(last));
    Ok(vec![tensor(dtype, Some(all)), last.clone(), last])
}
