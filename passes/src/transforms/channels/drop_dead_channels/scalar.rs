//! Elementwise operators on single numbers and on multiples of unknown tensors.

use super::terms::{Interner, Term, Terms, plus};
use pare_graph::{DataType, NodeRef, ops::ClipView};
use statrs::function::erf::erf;

/// Returns the result of an elementwise operator on these operands.
pub fn elementwise(at: NodeRef<'_>, interner: &mut Interner, terms: &mut Terms, xs: &[Term]) -> Term {
    let op = at.op();
    if at.input(0).is_ok_and(|v| v.dtype().is_some_and(|d| !d.is_float())) {
        return terms.fresh();
    }
    let values: Option<Vec<f64>> = xs.iter().map(|x| x.value()).collect();
    let known = |terms: &mut Terms, y: Option<f64>| match y.filter(|y| y.is_finite()) {
        Some(y) => Term::constant(y),
        None => terms.fresh(),
    };
    match (op, xs) {
        ("Dropout", [x, ..]) => *x,
        ("Cast", [x, ..]) => {
            let dtype = at.outputs()[0].and_then(|v| v.dtype());
            if matches!(dtype, Some(DataType::Float | DataType::Double)) { *x } else { terms.fresh() }
        }
        ("Neg", [x]) => x.times(-1.0),
        ("Add", [x, y]) => plus(interner, terms, *x, *y),
        ("Sub", [x, y]) => plus(interner, terms, *x, y.times(-1.0)),
        ("Sum", [first, rest @ ..]) if rest.len() < 2 => {
            rest.iter().fold(*first, |x, y| plus(interner, terms, x, *y))
        }
        ("Mul", [x, y]) => match (x.value(), y.value()) {
            (_, Some(c)) => x.times(c),
            (Some(c), _) => y.times(c),
            _ => interner.term(terms, vec![x.base, y.base], vec![]).times(x.scale * y.scale),
        },
        ("Div", [x, y]) => match y.value() {
            Some(c) if c != 0.0 => x.times(1.0 / c),
            _ if x.value() == Some(0.0) || y.scale == 0.0 => terms.fresh(),
            _ => interner.term(terms, vec![x.base, y.base], vec![]).times(x.scale / y.scale),
        },
        // Positively homogeneous.
        ("Relu" | "LeakyRelu" | "Abs", [x]) => match x.value() {
            Some(v) => known(terms, function(at, op, v)),
            None => interner.term(terms, vec![x.base], vec![x.scale.signum()]).times(x.scale.abs()),
        },
        ("PRelu", [x, slope]) => match (x.value(), slope.value()) {
            (Some(v), _) if v >= 0.0 => *x,
            (Some(v), Some(a)) => Term::constant(v * a),
            (None, _) => {
                let key = vec![x.base, slope.base];
                interner.term(terms, key, vec![x.scale.signum(), slope.scale]).times(x.scale.abs())
            }
            _ => terms.fresh(),
        },
        _ => {
            if let Some(values) = values {
                return known(terms, combine(op, &values).or_else(|| function(at, op, *values.first()?)));
            }
            let key = xs.iter().map(|x| x.base).collect();
            interner.term(terms, key, xs.iter().map(|x| x.scale).collect())
        }
    }
}

fn combine(op: &str, values: &[f64]) -> Option<f64> {
    let all = values.iter().copied();
    match (op, values) {
        ("Max", _) => all.reduce(f64::max),
        ("Min", _) => all.reduce(f64::min),
        ("Sum", _) => Some(all.sum()),
        ("Mean", _) => Some(all.sum::<f64>() / values.len() as f64),
        ("Pow", &[x, y]) => Some(x.powf(y)),
        _ => None,
    }
}

/// Evaluates a unary operator in f64; `None` if it is not known.
fn function(at: NodeRef<'_>, op: &str, x: f64) -> Option<f64> {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let hard = |alpha: f64, beta: f64| (alpha * x + beta).clamp(0.0, 1.0);
    let exponential = |alpha: f64| if x < 0.0 { alpha * x.exp_m1() } else { x };
    Some(match op {
        "Abs" => x.abs(),
        "Clip" => {
            let view = ClipView::of(at).ok()?;
            x.max(view.low).min(view.high)
        }
        "Elu" => exponential(at.float("alpha", 1.0)),
        "Selu" => at.float("gamma", 1.050_701) * exponential(at.float("alpha", 1.673_263_2)),
        "Erf" => erf(x),
        "Exp" => x.exp(),
        "Gelu" if at.string("approximate", "none") == "none" => {
            0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
        }
        "Gelu" => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        "HardSigmoid" => hard(at.float("alpha", 0.2), at.float("beta", 0.5)),
        "HardSwish" => x * hard(1.0 / 6.0, 0.5),
        "LeakyRelu" => {
            if x < 0.0 {
                at.float("alpha", 0.01) * x
            } else {
                x
            }
        }
        "Log" => x.ln(),
        "Mish" => x * softplus(x).tanh(),
        "Reciprocal" => 1.0 / x,
        "Relu" => x.max(0.0),
        "Sigmoid" => sigmoid(x),
        "Softplus" => softplus(x),
        "Softsign" => x / (1.0 + x.abs()),
        "Sqrt" => x.sqrt(),
        "Tanh" => x.tanh(),
        _ => return None,
    })
}
