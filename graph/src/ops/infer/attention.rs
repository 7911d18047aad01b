//! Attention of the standard and of com.microsoft. B: batch, S: queries, L: keys, P: past keys, T = P + L, N:
//! heads, H: head size.

use super::{
    cx::{Cx, Facts, one, tensor},
    dims::{times, unknowns},
};
use crate::Dim;

fn quotient(dim: &Dim, by: i64) -> Dim {
    if by > 0 { dim.floor_div(&Dim::from(by)) } else { Dim::unknown() }
}

/// `Attention`: Q, K, V, mask, past K, past V; `[B,N,S,H]`, or `[B,S,N·H]` with the number of heads as
/// attributes.
pub(super) fn attention(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let (Some(q), Some(k), Some(v)) = (cx.shape(0), cx.shape(1), cx.shape(2)) else {
        let unknown = tensor(dtype, None);
        return Ok(vec![
            tensor(dtype, cx.rank(0).and_then(unknowns)),
            unknown.clone(),
            tensor(cx.dtype(2), None),
            unknown,
        ]);
    };
    let heads = |name| cx.at.int(name, 0);
    let split = |x: &[Dim], heads: i64| match x {
        [b, n, s, h] => Some([b.clone(), n.clone(), s.clone(), h.clone()]),
        [b, s, d] => Some([b.clone(), Dim::from(heads), s.clone(), quotient(d, heads)]),
        _ => None,
    };
    let (Some([b, n, s, h]), Some([_, n_kv, l, h_k]), Some([_, _, _, h_v])) =
        (split(q, heads("q_num_heads")), split(k, heads("kv_num_heads")), split(v, heads("kv_num_heads")))
    else {
        return Err(format!("{} does not have rank 3 or 4", cx.name(0)));
    };
    if h.unify(&h_k).is_none() {
        return Err(format!("{} and {} differ in the head size", cx.name(0), cx.name(1)));
    }
    let total = if cx.input(4).is_some() { &cx.dim(4, 2) + &l } else { l };
    let y = match q.len() {
        3 => vec![b.clone(), s.clone(), &n * &h_v],
        _ => vec![b.clone(), n.clone(), s.clone(), h_v.clone()],
    };
    let present = |h| Some(vec![b.clone(), n_kv.clone(), total.clone(), h]);
    Ok(vec![
        tensor(dtype, Some(y)),
        tensor(cx.dtype(1), present(h)),
        tensor(cx.dtype(2), present(h_v)),
        tensor(dtype, Some(vec![b.clone(), n, s, total.clone()])),
    ])
}

/// com.microsoft `Attention`: input `[B,S,·]`, weights `[·,3·N·H]`, bias, mask, past `[2,B,N,P,H]`.
pub(super) fn fused(cx: &Cx) -> Facts {
    let dtype = cx.dtype_of([0]);
    let sizes = cx.at.ints("qkv_hidden_sizes").filter(|s| s.len() == 3);
    let hidden = match sizes {
        Some(sizes) => Dim::from(sizes[2]),
        None if cx.rank(1) == Some(2) => quotient(&cx.dim(1, 1), 3),
        None => quotient(&cx.dim(2, 0), 3),
    };
    let heads = cx.at.int("num_heads", 0);
    let (b, s) = (cx.dim(0, 0), cx.dim(0, 1));
    let total = if cx.input(4).is_some() { &cx.dim(4, 3) + &s } else { s.clone() };
    let total = if cx.at.int("past_present_share_buffer", 0) != 0 { Dim::unknown() } else { total };
    let present = vec![Dim::from(2_i64), b.clone(), Dim::from(heads), total, quotient(&hidden, heads)];
    Ok(vec![tensor(dtype, Some(vec![b, s, hidden])), tensor(dtype, Some(present))])
}

/// com.microsoft `QAttention`: as `Attention`, with scales and zero points.
pub(super) fn quantized(cx: &Cx) -> Facts {
    let hidden = quotient(&cx.dim(1, 1), 3);
    let output = tensor(cx.dtype(3), Some(vec![cx.dim(0, 0), cx.dim(0, 1), hidden]));
    Ok(vec![output, tensor(cx.dtype(3), unknowns(5))])
}

/// com.microsoft `MultiHeadAttention`: query, key, value (packed or not), bias, mask, attention bias, past
/// key, past value.
pub(super) fn multi_head(cx: &Cx) -> Facts {
    let (dtype, heads) = (cx.dtype(0), cx.at.int("num_heads", 0));
    let n = Dim::from(heads);
    let (b, s) = (cx.dim(0, 0), cx.dim(0, 1));
    let (l, h, h_v) = match (cx.shape(0), cx.shape(1), cx.shape(2)) {
        // Query, key and value packed: [B,S,N,3,H].
        (Some([_, s, _, _, h]), _, _) => (s.clone(), h.clone(), h.clone()),
        // Key and value packed: [B,L,N,2,H].
        (_, Some([_, l, _, _, h]), _) => (l.clone(), h.clone(), h.clone()),
        // Cross attention: [B,N,L,H].
        (_, Some([_, _, l, h]), v) => {
            (l.clone(), h.clone(), v.and_then(<[Dim]>::last).cloned().unwrap_or_else(|| h.clone()))
        }
        (Some([_, _, d]), Some([_, l, _]), Some([_, _, d_v])) => {
            (l.clone(), quotient(d, heads), quotient(d_v, heads))
        }
        _ => (Dim::unknown(), Dim::unknown(), Dim::unknown()),
    };
    let total = if cx.input(6).is_some() { Dim::unknown() } else { l };
    let width = match cx.shape(2) {
        Some([_, _, d_v]) => d_v.clone(),
        _ => &n * &h_v,
    };
    let present = |h| tensor(dtype, Some(vec![b.clone(), n.clone(), total.clone(), h]));
    let scores = tensor(dtype, Some(vec![b.clone(), n.clone(), s.clone(), total.clone()]));
    Ok(vec![tensor(dtype, Some(vec![b.clone(), s, width])), present(h), present(h_v), scores])
}

/// com.microsoft `GroupQueryAttention`: query (packed with key and value, or not), key, value, past key, past
/// value, sequence lengths.
pub(super) fn group_query(cx: &Cx) -> Facts {
    let (dtype, n, n_kv) = (cx.dtype(0), cx.at.int("num_heads", 0), cx.at.int("kv_num_heads", 0));
    let packed = cx.input(1).is_none();
    let width = cx.dim(0, 2);
    let h = quotient(&width, if packed { n.saturating_add(n_kv.saturating_mul(2)) } else { n });
    let y = if packed { times(&h, n) } else { width };
    let (b, s) = (cx.dim(0, 0), cx.dim(0, 1));
    // The length is that of the past buffer or of all keys, depending on values at run time.
    let present = |slot| {
        tensor(cx.dtype(slot).or(dtype), Some(vec![b.clone(), Dim::from(n_kv), Dim::unknown(), h.clone()]))
    };
    Ok(vec![tensor(dtype, Some(vec![b.clone(), s, y])), present(3), present(4)])
}

/// The first output is like the first input; further outputs are unknown.
pub(super) fn first_like(cx: &Cx) -> Facts {
    one(cx.dtype(0), cx.dims(0))
}

/// com.microsoft `RelativePositionBias`: table `[buckets,N]`, query length, key length, to `[1,N,S,L]`.
pub(super) fn position_bias(cx: &Cx) -> Facts {
    let length = |slot| cx.content(slot).and_then(|c| c.first().cloned()).unwrap_or_else(Dim::unknown);
    one(cx.dtype(0), Some(vec![Dim::from(1_i64), cx.dim(0, 1), length(1), length(2)]))
}

/// `FlexAttention`: Q `[B,N,S,H]`, V `[B,·,L,Hv]` to `[B,N,S,Hv]`.
pub(super) fn flex(cx: &Cx) -> Facts {
    cx.expect_rank(0, 4)?;
    one(cx.dtype(0), Some(vec![cx.dim(0, 0), cx.dim(0, 1), cx.dim(0, 2), cx.dim(2, 3)]))
}
