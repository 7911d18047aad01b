use crate::{
    analysis::patterns::Parts,
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    DataType, Decline, Edge, Model, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{ConvView, SliceView, axis_of},
};

pass! {
    /// Fuse strided slices and their concatenation into `SpaceToDepth`.
    ///
    /// Every `b`-th row and column from each of the `b²` starts, concatenated along the channels. If the
    /// order differs from that of the operator, the input channels of the following convolution, with one
    /// group and constant weights, are permuted.
    ///
    /// Declines types other than `float` and `double`, and if slices have other uses.
    #[pass("fuse-space-to-depth", Rounding, "rearrangement fused", "rearrangements fused")]
    pub struct FuseSpaceToDepth {}
}

impl Pass for FuseSpaceToDepth {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Concat"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Concat") && axis_of(at)? == 1)?;
    let inputs: Vec<_> = at.inputs().into_iter().collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    let block = inputs.len().isqrt();
    expect(block > 1 && block * block == inputs.len())?;
    // starts[k]: first row and column of slice k.
    let (mut starts, mut x, mut parts): (Vec<usize>, Option<ValueRef<'_>>, _) =
        (vec![], None, Parts(vec![at.id]));
    for input in inputs {
        let slice = input.produced_by("Slice")?;
        let (row, column) = start(slice, block)?;
        expect(x.is_none_or(|x| slice.input(0).is_ok_and(|v| v.id == x.id)))?;
        x = Some(slice.input(0)?);
        starts.push(row * block + column);
        parts.0.push(slice.id);
    }
    let x = x.ok_or(Decline::Mismatch)?;
    expect(matches!(x.dtype(), Some(DataType::Float | DataType::Double)))?;
    parts.are_alone(at, at.id)?;
    let mut all = starts.clone();
    all.sort_unstable();
    expect(all.into_iter().eq(0..block * block))?;
    // The slices have equal sizes, so the block size divides rows and columns.
    let node = Node::new("SpaceToDepth").with("blocksize", block as i64);
    let y = at.output()?;
    if starts.is_sorted() {
        let mut patch = Patch::at(at);
        let rearranged = patch.node(y.name(), node, &[x.into()]);
        patch.replace(y, rearranged);
        return Ok(patch);
    }
    let conv = y.sole_user()?;
    expect(conv.is("Conv") && y.users().first().is_some_and(|u| u.1 == Edge::Input(0)))?;
    let (weight, z) = (conv.input(1)?, conv.output()?);
    expect(ConvView::of(conv)?.group == 1)?;
    weight.sole_use()?;
    let permuted = permuted(weight.constant()?, &starts).ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(conv);
    let rearranged = patch.node(y.name(), node, &[x.into()]);
    let new = patch.constant(weight.name(), permuted);
    patch.replace(weight, new);
    let mut inputs: Vec<Option<Ref>> = conv.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    (inputs[0], inputs[1]) = (Some(rearranged), Some(new));
    let conv = patch.copy(conv, &inputs);
    patch.replace(z, conv);
    Ok(patch)
}

/// The first row and column of a slice with step `block` to the end.
fn start(slice: NodeRef<'_>, block: usize) -> Result<(usize, usize), Decline> {
    let view = SliceView::of(slice)?;
    let shape = slice.input(0)?.shape().ok_or(Decline::Mismatch)?;
    expect(shape.len() == 4 && view.axes.len() == 2)?;
    let mut starts = [None; 2];
    for cut in view.axes {
        let size = shape[cut.axis].size().map_or(i64::from(i32::MAX), |n| n as i64);
        let is_strided = cut.step == block as i64 && cut.end >= size && (0..cut.step).contains(&cut.start);
        expect(is_strided && cut.axis >= 2)?;
        starts[cut.axis - 2] = Some(cut.start as usize);
    }
    starts[0].zip(starts[1]).ok_or(Decline::Mismatch)
}

/// The weight with permuted blocks of input channels: block `k` becomes block `starts[k]`.
fn permuted(weight: &Tensor, starts: &[usize]) -> Option<Tensor> {
    let [outputs, inputs, ..] = *weight.shape() else { return None };
    let block = weight.bytes().len().checked_div(outputs.checked_mul(starts.len())?)?;
    (inputs % starts.len() == 0 && block * outputs * starts.len() == weight.bytes().len()).then_some(())?;
    let mut bytes = vec![0; weight.bytes().len()];
    for (i, piece) in weight.bytes().chunks_exact(block).enumerate() {
        let (output, k) = (i / starts.len(), i % starts.len());
        let offset = (output * starts.len() + starts[k]) * block;
        bytes[offset..offset + block].copy_from_slice(piece);
    }
    Tensor::new(weight.dtype(), weight.shape(), bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    fn graph(order: &str, rest: &str) -> String {
        format!(
            "g (float[1,1,4,4] x) => (float[1,a,2,2] y) <int64[2] a00 = {{0,0}}, int64[2] a01 = {{0,1}},
                int64[2] a10 = {{1,0}}, int64[2] a11 = {{1,1}}, int64[2] e = {{4,9223372036854775807}},
                int64[2] axes = {{2,3}}, int64[2] two = {{2,2}}, float[1,4,1,1] w = {{1,2,3,4}}> {{
                p = Slice(x, a00, e, axes, two) q = Slice(x, a01, e, axes, two)
                r = Slice(x, a10, e, axes, two) s = Slice(x, a11, e, axes, two)
                c = Concat<axis = 1>({order}) {rest} }}"
        )
    }

    #[test]
    fn fuses_slices_and_permutes_the_convolution() {
        check(
            FuseSpaceToDepth::default(),
            &graph("p, q, r, s", "y = Conv(c, w)"),
            "g (float[1,1,4,4] x) => (float[1,a,2,2] y) <float[1,4,1,1] w = {1,2,3,4}> {
                c = SpaceToDepth<blocksize = 2>(x) y = Conv(c, w) }",
        );
        check(
            FuseSpaceToDepth::default(),
            &graph("p, r, q, s", "y = Conv(c, w)"),
            "g (float[1,1,4,4] x) => (float[1,a,2,2] y) <float[1,4,1,1] w = {1,3,2,4}> {
                c_1 = SpaceToDepth<blocksize = 2>(x) y = Conv(c_1, w) }",
        );
    }

    #[test]
    fn declines_other_orders_without_convolution_and_repeated_slices() {
        let without = |order: &str| graph(order, "y = Relu(c)").replace(", float[1,4,1,1] w = {1,2,3,4}", "");
        let none: [&str; 0] = [];
        assert_eq!(declines(FuseSpaceToDepth::default(), &without("p, r, q, s")), none);
        assert_eq!(declines(FuseSpaceToDepth::default(), &without("p, q, r, r")), none);
    }
}
