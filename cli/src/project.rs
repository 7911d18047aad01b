//! `pare optimize --config pare.toml`.

use crate::{
    args::OptimizeArgs,
    failure::{Failure, Status},
    format::table,
    optimize::{note_unchanged, print_failures, warn_slower, with_reproducer},
    terminal::Terminal,
};
use onnx_pare::{Environment, ModelState, ModelStatus, Project, ProjectOptions, ProjectReport};

pub fn run(
    project: &Project,
    args: &OptimizeArgs,
    environment: Environment,
    terminal: &Terminal,
) -> Result<Status, Failure> {
    let options = ProjectOptions::default()
        .check(args.check)
        .prove(args.prove())
        .prove_time(args.prove_time)
        .time(!args.no_time)
        .batch(args.batch)
        .reproduce(true)
        .memory(args.memory)
        .environment(environment);
    let mut finished = 0;
    let built = project.build(&options, |model| {
        print_status(model, terminal);
        finished += 1;
    });
    let report = built.map_err(|error| {
        let failed = project.models.get(finished).map_or(&project.path, |model| &model.output);
        with_reproducer(error, failed)
    })?;
    terminal.report(&report, || text(&report));
    let unproven = report.models.iter().any(|model| model.report.as_ref().is_some_and(|r| r.is_unproven()));
    Ok(match report.is_up_to_date() {
        false => Status::CheckFailed,
        true if unproven => args.unproven(terminal),
        true => Status::Success,
    })
}

fn print_status(model: &ModelStatus, terminal: &Terminal) {
    let reason = model.reason.as_deref().unwrap_or_default();
    match (model.state, &model.report) {
        (ModelState::Stale, _) => terminal.failed_check(&format!("`{}` is stale: {reason}", model.name)),
        (ModelState::Failed, Some(report)) => {
            print_failures(report, model.reproducer.as_ref(), &model.output, terminal);
        }
        (ModelState::Built, _) if !model.changed => note_unchanged(terminal),
        (ModelState::Built, Some(report)) => warn_slower(report, &format!("`{}`", model.name), terminal),
        _ => {}
    }
}

fn text(report: &ProjectReport) -> String {
    let row = |model: &ModelStatus| {
        vec![model.name.clone(), model.state.to_string(), model.reason.clone().unwrap_or_default()]
    };
    table(&["output", "", ""], report.models.iter().map(row).collect())
}
