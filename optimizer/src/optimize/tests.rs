use super::*;
use crate::FAULT_KEY;
use pare_graph::{Decline, Node, NodeRef, Patch, expect, text::parse_graph};
use pare_passes::{Context, Pass, PassError, pass};

pass! {
    /// Panics at a `Tanh`.
    #[pass("panic-at-tanh", Exact)]
    pub struct PanicAtTanh {}
}

impl Pass for PanicAtTanh {
    fn run(&self, model: &mut Model, _: &mut Context<'_>) -> Result<(), PassError> {
        let graph = &model.graph;
        assert!(graph.nodes().iter().all(|&n| graph.node(n).op != "Tanh"), "a Tanh!");
        Ok(())
    }
}

pass! {
    /// Replaces `Abs` by `Neg`.
    #[pass("flip-abs", Rounding)]
    pub struct FlipAbs {}
}

impl Pass for FlipAbs {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Abs"], |at: NodeRef<'_>| -> Result<Patch, Decline> {
            expect(at.is("Abs"))?;
            let mut patch = Patch::at(at);
            let new = patch.node("y", Node::new("Neg"), &[at.input(0)?.into()]);
            patch.replace(at.output()?, new);
            Ok(patch)
        })
    }
}

const MODEL: &str = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
    a = Relu(x) b = Sigmoid(a) c = Tanh(b) d = Exp(c) e = Abs(d) y = Sqrt(e) z = Exp(b) }";

fn model() -> Model {
    Model::of(parse_graph(MODEL, 18).unwrap())
}

fn options(pass: impl Pass + 'static, prove: Prove) -> OptimizeOptions {
    let mut pipeline = Pipeline::default();
    pipeline.push(pass);
    OptimizeOptions::from(pipeline).prove(prove).reproduce(true)
}

#[test]
fn reduces_a_panic_to_the_smallest_model() {
    let Err(Error::Defect(defect)) = optimize(model(), options(PanicAtTanh {}, Prove::Result)) else {
        panic!("the pass does not fail")
    };
    assert_eq!(defect.error.to_string(), "`panic-at-tanh` panicked: a Tanh!");
    assert_eq!(defect.model_error, None);
    let small = defect.reproducer.unwrap();
    assert_eq!((small.model.node_count(), small.nodes_before), (1, 7));
    assert_eq!(small.model.metadata(PIPELINE_KEY), Some("panic-at-tanh"));
    assert_eq!(small.model.metadata(FAULT_KEY), Some("`panic-at-tanh` panicked: a Tanh!"));
}

#[test]
fn names_the_patch_of_a_wrong_pass() {
    for prove in [Prove::Result, Prove::EachPass] {
        let Err(Error::Rejected(rejected)) = optimize(model(), options(FlipAbs {}, prove)) else {
            panic!("the result is accepted")
        };
        let report = serde_json::to_value(&rejected.report).unwrap();
        let proof = &report["proof"];
        assert_eq!(proof["guilty"], "patch 1, by `flip-abs`, is the first after which the models differ");
        let each = proof["each"].as_array().unwrap();
        assert_eq!(each.len(), usize::from(prove == Prove::EachPass));
        assert!(each.iter().all(|e| e["passes"] == "flip-abs" && e["outcome"] == "differs"));
        assert!(report["written"] == false && report["after"]["bytes"].is_null());
        assert_eq!(rejected.reproducer.unwrap().model.node_count(), 1);
    }
}

#[test]
fn reproduces_the_difference_that_was_found() {
    // Both outputs differ, the second one more.
    let source = "g (float[N,4] x, float[N,4] u) => (float[N,4] y, float[N,4] z) <float k = {1e3}> {
        a = Abs(x) y = Neg(a) b = Abs(u) z = Mul(b, k) }";
    let model = Model::of(parse_graph(source, 18).unwrap());
    let Err(Error::Rejected(rejected)) = optimize(model, options(FlipAbs {}, Prove::Result)) else {
        panic!("the result is accepted")
    };
    let found = rejected.report.proof.as_ref().unwrap().overall.difference().unwrap();
    assert!(found.starts_with("`z`: "), "{found}");
    let small = rejected.reproducer.unwrap();
    assert_eq!(small.fault.kind, FaultKind::Differs);
    assert_eq!((small.model.node_count(), small.fault.output.as_deref()), (1, Some("b")));
}

#[test]
fn rejects_limits_without_a_proof() {
    let limits = QualityLimits { deviation: Some(0.1), ..QualityLimits::default() };
    let options = |prove| OptimizeOptions::from("safe").limits(limits.clone()).prove(prove);
    assert!(check_limits(&options(Prove::Nothing)).is_err());
    assert!(check_limits(&options(Prove::Result)).is_ok());
}

#[test]
fn stops_when_cancelled() {
    struct Cancel;
    impl crate::Progress for Cancel {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let environment = Environment::default().progress(Cancel);
    let cancelled = optimize(model(), OptimizeOptions::from("safe").environment(environment));
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}
