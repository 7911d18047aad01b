//! Reports as one HTML file each, which opens offline.
//!
//! Rust computes every number and coordinate; `page.html` only places them, and escapes text.

mod chart;

use crate::{
    BenchReport, Details, Goal, Measured, OptimizeReport, SearchLimits, SearchReport, Trial, Verification,
};
use chart::{Bars, Chart, Point, bars, scatter};
use minijinja::{Environment, context};
use serde::Serialize;

/// A report that can be shown as a page.
pub trait HtmlReport {
    /// The page, a complete HTML document without references to other files.
    fn to_html(&self) -> String;
}

/// A page.
#[derive(Default, Serialize)]
struct Page {
    title: String,
    subtitle: String,
    /// Sentences that say what counts.
    lead: Vec<String>,
    failures: Vec<String>,
    sections: Vec<Section>,
}

#[derive(Default, Serialize)]
struct Section {
    title: &'static str,
    text: String,
    code: String,
    chart: Option<Chart>,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Page {
    fn render(&self) -> String {
        let mut environment = Environment::new();
        // The name ends with `.html`, so text is escaped.
        let added = environment.add_template("page.html", include_str!("page.html"));
        let render = || {
            environment
                .get_template("page.html")?
                .render(context! { ..minijinja::Value::from_serialize(self) })
        };
        added.and_then(|()| render()).unwrap_or_else(|error| format!("<pre>{error:#}</pre>"))
    }

    /// Adds a section that has a picture, rows, text or code.
    fn add(&mut self, section: Section) {
        if section.chart.is_some() || !section.rows.is_empty() || !section.code.is_empty() {
            self.sections.push(section);
        }
    }
}

/// The execution provider of a latency, unless it is the CPU.
fn on_provider(provider: &str) -> String {
    if provider == "cpu" { String::new() } else { format!(", on {provider}") }
}

impl HtmlReport for SearchReport {
    fn to_html(&self) -> String {
        let mut page = Page { title: title("Search", self.model.as_deref()), ..Page::default() };
        page.subtitle = format!(
            "goal {}, {} candidates in {:.0} s, batch {}, threads {}{}",
            goal_name(self.goal),
            self.trials.len(),
            self.seconds,
            self.batch,
            self.threads,
            on_provider(&self.provider)
        );
        page.lead = search_lead(self);
        page.add(front(self));
        page.add(Section { title: "Pipeline", code: self.pipeline.clone(), ..Section::default() });
        optimize_sections(&mut page, &self.result);
        let skipped = self.families.iter().filter_map(|f| Some(vec![f.name.to_owned(), f.skipped.clone()?]));
        page.add(Section {
            title: "Families that make nothing",
            rows: skipped.collect(),
            ..Section::default()
        });
        let trials = self.trials.iter().map(trial_row);
        page.add(Section {
            title: "Candidates",
            head: vec!["pipeline", "cost", "drift", "agreement", "accuracy", "s"],
            rows: trials.collect(),
            ..Section::default()
        });
        page.render()
    }
}

impl HtmlReport for OptimizeReport {
    fn to_html(&self) -> String {
        let mut page = Page { title: title("Optimization", self.model.as_deref()), ..Page::default() };
        page.subtitle = format!("{:.1} s", self.seconds);
        if let Some(proof) = &self.proof {
            page.failures.clone_from(&proof.failures);
        }
        page.add(Section { title: "Pipeline", code: self.pipeline.clone(), ..Section::default() });
        optimize_sections(&mut page, self);
        page.render()
    }
}

impl HtmlReport for Verification {
    fn to_html(&self) -> String {
        let report = &self.comparison.report;
        let mut page = Page { title: "Verification".into(), ..Page::default() };
        page.subtitle = format!("{} samples in {}", report.samples, self.comparison.engine);
        page.lead.push(format!("the models {}", self.verdict));
        page.failures.clone_from(&self.failures);
        page.add(outputs(&self.comparison));
        page.add(depth(self.layers.as_deref().unwrap_or_default()));
        page.render()
    }
}

impl HtmlReport for BenchReport {
    fn to_html(&self) -> String {
        let mut page = Page { title: "Latency".into(), ..Page::default() };
        page.subtitle = format!(
            "{} rounds, interleaved, batch {}, threads {}, in {}",
            self.rounds, self.batch, self.threads, self.engine
        );
        let name =
            |m: &crate::Timing| m.model.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let bar = |m: &crate::Timing| Bars {
            title: format!("{}: {:.3} ms", name(m), 1e3 * m.median_s),
            heights: vec![("mark", 1e3 * m.median_s)],
        };
        let all: Vec<_> = self.models.iter().map(bar).collect();
        page.add(Section {
            title: "Latency",
            chart: bars(&all, "ms, median"),
            head: vec!["model", "median ms", "middle half", "speed"],
            rows: self
                .models
                .iter()
                .map(|m| {
                    let half = format!("{:.3} – {:.3}", 1e3 * m.low_s, 1e3 * m.high_s);
                    vec![name(m), format!("{:.3}", 1e3 * m.median_s), half, format!("{:.2}×", 1.0 / m.ratio)]
                })
                .collect(),
            ..Section::default()
        });
        page.render()
    }
}

fn title(what: &str, model: Option<&std::path::Path>) -> String {
    model.map_or_else(|| what.to_owned(), |path| format!("{what} of {}", path.display()))
}

fn goal_name(goal: Goal) -> &'static str {
    match goal {
        Goal::Latency => "latency",
        Goal::Bytes => "bytes",
        Goal::Macs => "multiply-accumulates",
    }
}

fn search_lead(report: &SearchReport) -> Vec<String> {
    let Some(best) = report.best.as_ref().and_then(Trial::measured) else {
        return vec!["Nothing keeps the limits and is better than `safe`, which is the result.".into()];
    };
    let cost = report.latency.map_or(best.cost, |[_, median, _]| median);
    let mut lead = vec![match report.goal {
        Goal::Latency => format!("{:.2} times as fast as the original.", 1.0 / cost),
        goal => format!("{} of the {} of the original.", percent(cost), goal_name(goal)),
    }];
    let quality = quality(best);
    lead.push(format!("On {} samples that no pass saw: {}.", report.samples, quality.join(", ")));
    if let Some(confidence) = report.confidence {
        lead.push(format!(
            "The limits hold for other samples with a confidence of {:.0} %.",
            100.0 * confidence
        ));
    }
    lead
}

/// The front as a picture: every candidate, cost against loss.
fn front(report: &SearchReport) -> Section {
    let loss = drawn_loss(&report.limits);
    let best = report.best.as_ref().map(|trial| &trial.pipeline);
    let ratio = |m: &Measured| if report.goal == Goal::Latency { 1.0 / m.cost } else { m.cost };
    let mut points: Vec<_> = report
        .trials
        .iter()
        .enumerate()
        .filter_map(|(at, trial)| {
            let m = trial.measured()?;
            let y = (loss.of)(m)?;
            let is_best = best == Some(&trial.pipeline);
            let on_path = report.front.contains(&at);
            let class = if is_best {
                "best"
            } else if on_path {
                "mark"
            } else {
                "other"
            };
            let title =
                format!("{}\n{:.3} of the original\n{}", trial.pipeline, m.cost, quality(m).join(", "));
            Some(Point { x: ratio(m), y, title, class, on_path })
        })
        .collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    let x_name = match report.goal {
        Goal::Latency => "times as fast",
        Goal::Bytes => "share of the bytes",
        Goal::Macs => "share of the multiply-accumulates",
    };
    Section {
        title: "Cost and loss of quality",
        text: "Every candidate. The line joins those that no other is better than in both cost and drift; the result \
               is green, and the dashed line is the limit."
            .into(),
        chart: scatter(&points, [x_name, loss.name], loss.limit),
        ..Section::default()
    }
}

/// The loss that is drawn.
struct DrawnLoss {
    name: &'static str,
    limit: Option<f64>,
    of: fn(&Measured) -> Option<f64>,
}

/// The first limited loss, or the drift.
fn drawn_loss(limits: &SearchLimits) -> DrawnLoss {
    let accuracy: fn(&Measured) -> Option<f64> = |m| m.accuracy_drop;
    let disagreement: fn(&Measured) -> Option<f64> = |m| Some(1.0 - m.agreement?);
    let metric: fn(&Measured) -> Option<f64> = |m| m.metric_drop;
    let losses = [
        ("drop of accuracy", limits.accuracy_drop, accuracy),
        ("1 − agreement", limits.agreement.map(|share| 1.0 - share), disagreement),
        ("drop of the metric", limits.metric_drop, metric),
    ];
    let limited = losses.into_iter().find(|(_, limit, _)| limit.is_some());
    let (name, limit, of) = limited.unwrap_or(("drift", limits.drift, |m| Some(m.drift)));
    DrawnLoss { name, limit, of }
}

fn quality(m: &Measured) -> Vec<String> {
    let known = [
        m.accuracy_drop.map(|drop| format!("accuracy {:+.2} points", -100.0 * drop)),
        m.agreement.map(|share| format!("agreement {}", percent(share))),
        m.metric_drop.map(|drop| format!("metric {:+.4}", -drop)),
        Some(format!("drift {}", short(m.drift))),
    ];
    known.into_iter().flatten().collect()
}

fn trial_row(trial: &Trial) -> Vec<String> {
    let text = |value: Option<String>| value.unwrap_or_else(|| "–".into());
    let m = trial.measured();
    vec![
        trial.pipeline.clone(),
        text(m.map(|m| format!("{:.3}", m.cost))),
        text(m.map(|m| short(m.drift))),
        text(m.and_then(|m| m.agreement).map(percent)),
        text(m.and_then(|m| m.accuracy_drop).map(|drop| format!("{:+.2}", -100.0 * drop))),
        format!("{:.1}", trial.seconds),
    ]
}

fn optimize_sections(page: &mut Page, report: &OptimizeReport) {
    let (a, b) = (&report.before, &report.after);
    let row = |name: &str, before: u64, after: u64| {
        let kept = percent(after as f64 / before.max(1) as f64);
        vec![name.to_owned(), before.to_string(), after.to_string(), kept]
    };
    let mut rows = vec![
        row("nodes", a.nodes, b.nodes),
        row("parameters", a.parameters, b.parameters),
        row("multiply-accumulates", a.macs, b.macs),
    ];
    if let (Some(before), Some(after)) = (a.bytes, b.bytes) {
        rows.push(row("bytes", before, after));
    }
    page.add(Section {
        title: "Before and after",
        head: vec!["", "before", "after", "kept"],
        rows,
        ..Section::default()
    });
    if let Some(proof) = &report.proof {
        page.add(outputs(&proof.overall));
    }
    if let Some(details) = &report.details {
        page.add(layers(details));
        page.add(depth(&details.tensors));
        page.add(samples(details));
    }
    let steps = report.run.steps.iter().map(|step| {
        let what: Vec<_> = step.counted().collect();
        vec![
            step.pass.to_owned(),
            step.patches.to_string(),
            what.join(", "),
            format!("{:.2}", step.time.as_secs_f64()),
        ]
    });
    page.add(Section {
        title: "Passes",
        head: vec!["pass", "patches", "results", "s"],
        rows: steps.collect(),
        ..Section::default()
    });
    let declined = report.run.steps.iter().flat_map(|step| {
        step.declined().map(|(why, count)| vec![step.pass.to_owned(), why.to_owned(), count.to_string()])
    });
    page.add(Section {
        title: "Skipped",
        head: vec!["pass", "reason", "places"],
        rows: declined.collect(),
        ..Section::default()
    });
}

fn outputs(comparison: &crate::Comparison) -> Section {
    let report = &comparison.report;
    let rows = report.metrics.iter().map(|(name, metrics)| {
        let why = report.quality.get(name).map_or_else(String::new, |output| output.why.clone());
        let agreement = metrics.agreement().map_or_else(|| "–".into(), percent);
        let accuracy = metrics.reference_accuracy().zip(metrics.candidate_accuracy());
        let accuracy =
            accuracy.map_or_else(|| "–".into(), |(a, b)| format!("{} → {}", percent(a), percent(b)));
        vec![name.clone(), metrics.measure().to_string(), why, short(metrics.drift()), agreement, accuracy]
    });
    Section {
        title: "Outputs",
        text: format!("{} samples in {}", report.samples, comparison.engine),
        head: vec!["output", "measure", "because", "drift", "agreement", "accuracy"],
        rows: rows.collect(),
        ..Section::default()
    }
}

fn layers(details: &Details) -> Section {
    let bar = |layer: &crate::LayerChange| Bars {
        title: format!("{}\n{} → {} multiply-accumulates", layer.name, layer.before, layer.after),
        heights: vec![("other", layer.before as f64 / 1e6), ("mark", layer.after as f64 / 1e6)],
    };
    let all: Vec<_> = details.layers.iter().map(bar).collect();
    Section {
        title: "Multiply-accumulates over the depth",
        text:
            "The cost of each operator of the original, and of what computes the same tensor in the result."
                .into(),
        chart: bars(&all, "millions"),
        ..Section::default()
    }
}

fn depth(tensors: &[crate::TensorDrift]) -> Section {
    let bar = |tensor: &crate::TensorDrift| Bars {
        title: format!("{} ({})\ndrift {}", tensor.name, tensor.operator, short(tensor.drift)),
        heights: vec![("mark", 100.0 * tensor.drift.min(1.0))],
    };
    let all: Vec<_> = tensors.iter().map(bar).collect();
    Section {
        title: "Drift over the depth",
        text: "The squared error of each tensor that both models compute, in percent of its variance.".into(),
        chart: bars(&all, "% of the variance"),
        ..Section::default()
    }
}

fn samples(details: &Details) -> Section {
    let text = |class: Option<usize>| class.map_or_else(|| "–".into(), |class| class.to_string());
    let row = |s: &crate::SampleDrift| {
        let label = s.label.map_or_else(|| "–".into(), |label| label.to_string());
        vec![s.sample.to_string(), short(s.drift), text(s.before), text(s.after), label]
    };
    Section {
        title: "Samples that changed most",
        head: vec!["sample", "drift", "class before", "after", "label"],
        rows: details.samples.iter().map(row).collect(),
        ..Section::default()
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A number with few digits.
fn short(x: f64) -> String {
    if x == 0.0 || (1e-3..1e4).contains(&x.abs()) { format!("{x:.4}") } else { format!("{x:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let mut page = Page { title: "a <b> & \"c\"".into(), ..Page::default() };
        page.add(Section { title: "Pipeline", code: "</pre><script>".into(), ..Section::default() });
        let html = page.render();
        assert!(
            html.starts_with("<!DOCTYPE html>") && html.contains("a &lt;b&gt; &amp; &quot;c&quot;"),
            "{html}"
        );
        assert!(!html.contains("<script"));
    }

    #[test]
    fn pages_refer_to_no_other_file() {
        let page = include_str!("page.html");
        assert!(["src=", "href=", "url(", "@import", "http"].iter().all(|link| !page.contains(link)));
    }

    #[test]
    fn pictures_have_a_mark_for_each_value() {
        let tensor = |name: &str, drift| crate::TensorDrift::new(name, "Conv", drift);
        let mut page = Page::default();
        page.add(depth(&[tensor("a", 0.1), tensor("b", 0.0), tensor("c", f64::INFINITY)]));
        let html = page.render();
        assert!(html.contains("data-marks=\"3\"") && html.matches("<rect").count() == 3, "{html}");
        page.sections.clear();
        page.add(depth(&[]));
        assert!(page.sections.is_empty());
    }
}
