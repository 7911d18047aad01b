use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, Decline, Edge, Model, Node, NodeRef, Patch, ValueRef, expect,
    ops::{ClipView, PadMode, PadView, PoolView, Trait, conv_pads},
};

pass! {
    /// Fold a `Pad` into the padding of the convolution or pooling that reads it.
    ///
    /// `Conv` pads with zeros, `ConvInteger` with its zero point. `AveragePool` pads with zeros if it counts the
    /// padding (`count_include_pad`, from operator set 7), which is enabled if it has no padding of its own.
    /// `MaxPool` pads with a value that is never the maximum: explicit padding by -∞ is removed, and padding by
    /// zeros where no element is negative.
    ///
    /// Declines for other modes and values, for padding of batch or channels, for negative padding, for `auto_pad`
    /// of pools and of convolutions whose input size it depends on and is unknown, and where the padded value has
    /// uses other than convolutions.
    #[pass("merge-pads", Exact, "pad merged", "pads merged")]
    pub struct MergePads {}
}

impl Pass for MergePads {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Conv", "ConvInteger", "AveragePool", "MaxPool"], |at| {
            is_plain(at)?;
            let padded = at.input(0)?;
            let pad = padded.produced_by("Pad")?;
            is_plain(pad)?;
            let view = PadView::of(pad)?;
            let PadMode::Constant(value) = view.mode else { return Err(Decline::Mismatch) };
            let x = pad.input(0)?;
            let kept = |why: &str| Decline::because(format!("{} is kept: {why}", pad.describe()));
            if view.pads.iter().take(2).any(|&p| p != (0, 0)) {
                return Err(kept("it pads batch or channels"));
            }
            let spatial = view.pads.get(2..).ok_or(Decline::Mismatch)?;
            if spatial.iter().any(|p| p.0 < 0 || p.1 < 0) {
                return Err(kept("it crops"));
            }
            if at.is("Conv") {
                only_convolutions(padded)?;
            } else {
                padded.sole_use()?;
            }
            let mut node = at.node().clone();
            let own = match at.op() {
                "Conv" => into_conv(at, value),
                "ConvInteger" => into_integer_conv(at, value),
                "AveragePool" => into_average(at, value, &mut node),
                _ => into_max(at, x, value),
            }
            .map_err(|decline| {
                if decline == Decline::Mismatch { kept("its values differ") } else { decline }
            })?;
            expect(own.len() == spatial.len())?;
            let sums =
                own.iter().zip(spatial).map(|(a, b)| Some((a.0.checked_add(b.0)?, a.1.checked_add(b.1)?)));
            let sums: Vec<_> = sums.collect::<Option<_>>().ok_or(Decline::Mismatch)?;
            if !at.is("Conv") && !at.is("ConvInteger") && !within_windows(at, &sums)? {
                return Err(kept("a window would contain only padding"));
            }
            let pads: Vec<i64> = sums.iter().map(|p| p.0).chain(sums.iter().map(|p| p.1)).collect();
            node.attributes.insert("pads".into(), Attribute::Ints(pads));
            node.attributes.shift_remove("auto_pad");
            let mut inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
            inputs[0] = Some(x.into());
            let mut patch = Patch::at(at);
            let y = at.output()?;
            let made = patch.node_with(node, &inputs, &[Some(y.name())]);
            patch.replace(y, made[0].ok_or(Decline::Mismatch)?);
            Ok(patch)
        })
    }
}

/// Automatic padding depends on the input size, which changes.
fn is_explicit(at: NodeRef<'_>) -> Result<(), Decline> {
    expect(matches!(at.string("auto_pad", "NOTSET"), "NOTSET" | "VALID"))
}

/// Declines unless all users are convolutions, each of which takes over the padding.
fn only_convolutions(padded: ValueRef<'_>) -> Result<(), Decline> {
    let is_conv = |(user, edge): &(NodeRef<'_>, Edge)| {
        user.is("Conv") && *edge == Edge::Input(0) && is_plain(*user).is_ok() && conv_pads(*user).is_ok()
    };
    if !padded.value().is_output() && padded.users().iter().all(is_conv) {
        return Ok(());
    }
    padded.sole_use()
}

/// `ConvInteger` pads with its zero point, which represents the number 0.
fn into_integer_conv(at: NodeRef<'_>, value: f64) -> Result<Vec<(i64, i64)>, Decline> {
    let zero_point = at.optional(2).map_or(Ok(0.0), ValueRef::scalar)?;
    expect(value == zero_point)?;
    conv_pads(at)
}

fn into_conv(at: NodeRef<'_>, value: f64) -> Result<Vec<(i64, i64)>, Decline> {
    expect(value == 0.0)?;
    conv_pads(at)
}

fn into_average(at: NodeRef<'_>, value: f64, node: &mut Node) -> Result<Vec<(i64, i64)>, Decline> {
    is_explicit(at)?;
    let view = PoolView::of(at)?;
    let unpadded = view.pads.iter().all(|&p| p == (0, 0));
    // With sizes rounded up, the last window extends beyond the padding and counts differently.
    expect(value == 0.0 && at.opset() >= 7 && !view.ceil && (unpadded || view.counts_padding))?;
    node.attributes.insert("count_include_pad".into(), Attribute::Int(1));
    Ok(view.pads)
}

/// Returns true if every window overlaps the input, as pooling requires.
fn within_windows(at: NodeRef<'_>, pads: &[(i64, i64)]) -> Result<bool, Decline> {
    let kernel = PoolView::of(at)?.kernel;
    Ok(pads.iter().zip(kernel).all(|(p, k)| p.0.max(p.1) < k as i64))
}

fn into_max(at: NodeRef<'_>, x: ValueRef<'_>, value: f64) -> Result<Vec<(i64, i64)>, Decline> {
    is_explicit(at)?;
    at.output()?;
    let view = PoolView::of(at)?;
    expect(!view.ceil && (value == f64::NEG_INFINITY || value == 0.0 && is_never_negative(x)))?;
    // Every window contains an element, which is at least the padding value, unless the window is dilated.
    expect(view.dilations.iter().all(|&d| d == 1))?;
    Ok(view.pads)
}

fn is_never_negative(x: ValueRef<'_>) -> bool {
    x.producer().is_some_and(|at| match at.op() {
        "Relu" | "Clip" => ClipView::of(at).is_ok_and(|view| view.low >= 0.0 && view.high >= 0.0),
        _ => at.has(Trait::NonNegative) && is_plain(at).is_ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    const ZEROS: &str = "int64[8] p = {0,0,1,2,0,0,3,4}";

    #[test]
    fn folds_pad_into_conv() {
        check(
            MergePads::default(),
            &format!("g (float[N,1,8,8] x) => (float[N,2,a,b] y) <{ZEROS}, float[2,1,3,3] w = {{1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}}> {{
                h = Pad(x, p) y = Conv<pads = [1,0,0,1]>(h, w) }}"),
            "g (float[N,1,8,8] x) => (float[N,2,a,b] y) <float[2,1,3,3] w = {1,2,3,4,5,6,7,8,9,9,8,7,6,5,4,3,2,1}> {
                y = Conv<pads = [2,2,3,5]>(x, w) }",
        );
    }

    #[test]
    fn folds_pad_into_automatic_padding() {
        let integers = |conv: &str, data: &str| {
            format!("g (uint8[N,1,5,6] x, uint8[2,1,3,3] w) => (int32[N,2,9,6] y) {data} {{ {conv} }}")
        };
        check(
            MergePads::default(),
            &integers(
                "h = Pad(x, p, \"\", a) y = ConvInteger<auto_pad = \"SAME_UPPER\">(h, w)",
                "<int64[2] p = {2,2}, int64[1] a = {2}>",
            ),
            &integers("y = ConvInteger<pads = [3,1,3,1]>(x, w)", ""),
        );
        let graph = |size: &str, conv: &str, data: &str| {
            format!("g (float[N,1,{size}] x, float[2,1,4] w) => (float[N,2,M] y) {data} {{ {conv} }}")
        };
        let pads = "<int64[6] p = {0,0,1,0,0,2}>";
        for (size, kind, sum) in [
            ("5", "auto_pad = \"SAME_LOWER\"", "pads = [3,3]"),
            ("K", "auto_pad = \"SAME_UPPER\"", "pads = [2,4]"),
            ("6", "auto_pad = \"SAME_UPPER\", strides = [3]", "strides = [3], pads = [1,3]"),
        ] {
            check(
                MergePads::default(),
                &graph(size, &format!("h = Pad(x, p) y = Conv<{kind}>(h, w)"), pads),
                &graph(size, &format!("y = Conv<{sum}>(x, w)"), ""),
            );
        }
        let why = declines(
            MergePads::default(),
            &graph("K", "h = Pad(x, p) y = Conv<auto_pad = \"SAME_UPPER\", strides = [3]>(h, w)", pads),
        );
        assert_eq!(why, ["padding depends on the unknown size of `h`"]);
    }

    #[test]
    fn folds_pad_into_average_pool() {
        check(
            MergePads::default(),
            &format!(
                "g (float[N,1,8,8] x) => (float[N,1,a,b] y) <{ZEROS}> {{
                h = Pad(x, p) y = AveragePool<kernel_shape = [5,5]>(h) }}"
            ),
            "g (float[N,1,8,8] x) => (float[N,1,a,b] y) {
                y = AveragePool<kernel_shape = [5,5], count_include_pad = 1, pads = [1,2,3,4]>(x) }",
        );
        let why = declines(
            MergePads::default(),
            &format!(
                "g (float[N,1,8,8] x) => (float[N,1,a,b] y) <{ZEROS}> {{
                h = Pad(x, p) y = AveragePool<kernel_shape = [5,5], pads = [1,1,1,1]>(h) }}"
            ),
        );
        assert_eq!(why, ["Pad producing `h` is kept: its values differ"]);
    }

    #[test]
    fn folds_zero_pad_into_max_pool_of_non_negative_input() {
        let graph = |op: &str| {
            format!(
                "g (float[N,1,8,8] x) => (float[N,1,a,b] y) <int64[8] p = {{0,0,1,1,0,0,1,1}}> {{
                r = {op}(x) h = Pad(r, p) y = MaxPool<kernel_shape = [3,3]>(h) }}"
            )
        };
        check(
            MergePads::default(),
            &graph("Relu"),
            "g (float[N,1,8,8] x) => (float[N,1,a,b] y) {
                r = Relu(x) y = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(r) }",
        );
        assert_eq!(
            declines(MergePads::default(), &graph("Tanh")),
            ["Pad producing `h` is kept: its values differ"]
        );
    }

    #[test]
    fn keeps_padded_channels_other_values_and_modes() {
        let graph = |pads: &str, pad: &str| {
            format!(
                "g (float[N,1,8,8] x) => (float[N,2,a,b] y) <
                int64[8] p = {{{pads}}}, float c = {{0.5}}, float[2,1,1,1] w = {{1,2}}> {{
                h = {pad} y = Conv(h, w) }}"
            )
        };
        let reflect = graph("0,0,1,1,0,0,1,1", "Pad<mode = \"reflect\">(x, p)");
        assert_eq!(declines(MergePads::default(), &reflect), [""; 0]);
        let half = graph("0,0,1,1,0,0,1,1", "Pad(x, p, c)");
        assert_eq!(declines(MergePads::default(), &half), ["Pad producing `h` is kept: its values differ"]);
        let batch = graph("1,0,1,1,0,0,1,1", "Pad(x, p)");
        assert_eq!(
            declines(MergePads::default(), &batch),
            ["Pad producing `h` is kept: it pads batch or channels"]
        );
        let cut = graph("0,0,-1,1,0,0,1,1", "Pad(x, p)");
        assert_eq!(declines(MergePads::default(), &cut), ["Pad producing `h` is kept: it crops"]);
    }

    #[test]
    fn folds_a_pad_into_several_convolutions() {
        check(
            MergePads::default(),
            "g (float[N,1,4] x, float[2,1,3] w, float[2,1,1] v) => (float[N,2,4] y, float[N,2,6] z) <int64[6] p = {0,0,1,0,0,1}> {
                h = Pad(x, p) y = Conv(h, w) z = Conv(h, v) }",
            "g (float[N,1,4] x, float[2,1,3] w, float[2,1,1] v) => (float[N,2,4] y, float[N,2,6] z) {
                y = Conv<pads = [1,1]>(x, w) z = Conv<pads = [1,1]>(x, v) }",
        );
        let why = declines(
            MergePads::default(),
            "g (float[N,1,4] x, float[2,1,3] w) => (float[N,2,4] y, float[N,1,6] z) <int64[6] p = {0,0,1,0,0,1}> {
                h = Pad(x, p) y = Conv(h, w) z = Relu(h) }",
        );
        assert_eq!(why, ["`h` has 2 uses"]);
    }

    #[test]
    fn folds_zero_points_into_integer_convolution() {
        let graph = |zero: &str, conv: &str| {
            format!(
                "g (uint8[1,1,4] x, uint8[2,1,3] w) => (int32[1,2,4] y) <int64[6] p = {{0,0,1,0,0,1}}, {zero} uint8 q = {{3}}> {{
                    h = Pad(x, p, q) y = {conv} }}"
            )
        };
        check(
            MergePads::default(),
            &graph("", "ConvInteger(h, w, q)"),
            "g (uint8[1,1,4] x, uint8[2,1,3] w) => (int32[1,2,4] y) <uint8 q = {3}> {
                y = ConvInteger<pads = [1,1]>(x, w, q) }",
        );
        let why = declines(MergePads::default(), &graph("uint8 o = {5},", "ConvInteger(h, w, o)"));
        assert_eq!(why, ["Pad producing `h` is kept: its values differ"]);
    }
}
