//! `pare runtime`.

use crate::{
    args::{RuntimeAction, RuntimeArgs},
    failure::{Failure, Status},
    terminal::Terminal,
};
use onnx_pare::{
    Environment,
    engines::{Candidate, candidates, describe},
};
use serde_json::json;

pub fn run(args: &RuntimeArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    if let Some(RuntimeAction::Install) = args.action {
        return install(&environment, terminal);
    }
    let found = candidates(environment.library.as_deref());
    // Nothing is fetched to show the engines.
    let chosen = describe(&environment.offline(true))?;
    let entry = |c: &Candidate| {
        let (version, error) = (c.version.as_ref().ok(), c.version.as_ref().err());
        json!({ "path": c.path, "from": c.from, "version": version, "error": error })
    };
    let report = json!({ "chosen": chosen, "found": found.iter().map(entry).collect::<Vec<_>>() });
    terminal.report(&report, || text(&chosen, &found));
    Ok(Status::Success)
}

#[cfg(feature = "install")]
fn install(environment: &Environment, terminal: &Terminal) -> Result<Status, Failure> {
    if environment.offline {
        return Err(Failure::new("installing needs the network, and `--offline` forbids it"));
    }
    let path = onnx_pare::engines::install(&mut |line| terminal.note(line))?;
    terminal.report(&json!({ "library": path }), || format!("{}\n", path.display()));
    Ok(Status::Success)
}

#[cfg(not(feature = "install"))]
fn install(_: &Environment, _: &Terminal) -> Result<Status, Failure> {
    Err(Failure::new("this build of pare cannot install ONNX Runtime"))
}

fn text(chosen: &str, found: &[Candidate]) -> String {
    let mut text = format!("models run in {chosen}\n");
    for candidate in found {
        let version = candidate.version.as_ref().map_or_else(|e| format!("unusable: {e}"), Clone::clone);
        text += &format!("  {version}  {} ({})\n", candidate.path.display(), candidate.from);
    }
    if found.is_empty() {
        text += "no ONNX Runtime library was found; `pare runtime install` fetches one\n";
    }
    text
}
