//! `pare runtime`: which engines there are.

use crate::{
    args::{Common, RuntimeAction, RuntimeArgs},
    failure::{Done, Failure},
    inputs::Engines,
    voice::Voice,
};
use pare_runtime::{candidates, install};
use serde_json::json;

pub fn run(args: &RuntimeArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    if let Some(RuntimeAction::Install) = args.action {
        if common.offline {
            return Err(Failure::new("installing needs the network, and `--offline` forbids it"));
        }
        let path = install::install(&mut |line| voice.note(line))
            .map_err(|e| Failure::from(pare_runtime::EngineError::from(e)))?;
        voice.report(|| json!({ "library": path }), || format!("{}\n", path.display()));
        return Ok(Done::Well);
    }
    let found = candidates(common.ort_library.as_deref());
    // Looking must not fetch.
    let common = Common { offline: true, ..common.clone() };
    let engines = Engines::new(&common, voice);
    let chosen = engines.get()?.note.clone();
    voice.report(
        || {
            let found = found.iter().map(|c| {
                json!({ "path": c.path, "from": c.from, "version": c.version.as_ref().ok(), "error": c.version.as_ref().err() })
            });
            json!({ "chosen": chosen, "found": found.collect::<Vec<_>>() })
        },
        || {
            let mut text = format!("models run in {chosen}\n");
            for candidate in &found {
                let version = candidate.version.as_ref().map_or_else(|e| format!("unusable: {e}"), Clone::clone);
                text += &format!("  {version}  {} ({})\n", candidate.path.display(), candidate.from);
            }
            if found.is_empty() {
                text += "no ONNX Runtime library was found; `pare runtime install` fetches one\n";
            }
            text
        },
    );
    Ok(Done::Well)
}
