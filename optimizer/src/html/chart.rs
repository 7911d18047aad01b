//! Pictures as shapes with coordinates, which the template draws.

use serde::Serialize;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 14.0;

#[derive(Default, Serialize)]
pub(super) struct Chart {
    width: f64,
    height: f64,
    lines: Vec<Line>,
    /// The points of a line through marks.
    path: String,
    labels: Vec<Label>,
    marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Line {
    class: &'static str,
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
}

#[derive(Serialize)]
struct Label {
    x: f64,
    y: f64,
    anchor: &'static str,
    text: String,
}

/// A circle, or without `r` a rectangle.
#[derive(Default, Serialize)]
struct Mark {
    class: &'static str,
    x: f64,
    y: f64,
    r: Option<f64>,
    width: f64,
    height: f64,
    title: String,
}

/// A point of a scatter plot.
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    pub title: String,
    pub class: &'static str,
    /// On the line.
    pub on_path: bool,
}

/// A group of bars that stand at the same place.
pub(super) struct Bars {
    pub title: String,
    /// Class and height; drawn one over the other.
    pub heights: Vec<(&'static str, f64)>,
}

/// Points over two axes that start at 0 or below; `limit` is drawn as a horizontal line.
pub(super) fn scatter(points: &[Point], names: [&str; 2], limit: Option<f64>) -> Option<Chart> {
    let height = 380.0;
    let ys = points.iter().map(|p| p.y).chain(limit);
    let x = Scale::over(points.iter().map(|p| p.x), LEFT, WIDTH - RIGHT)?;
    let y = Scale::over(ys, height - BOTTOM, TOP)?;
    let mut chart = Chart { width: WIDTH, height, ..Chart::default() };
    chart.frame(height);
    for tick in x.ticks() {
        chart.label(x.at(tick), height - BOTTOM + 16.0, "middle", number(tick));
    }
    for tick in y.ticks() {
        chart.label(LEFT - 6.0, y.at(tick) + 4.0, "end", number(tick));
    }
    chart.label(WIDTH - RIGHT, height - 2.0, "end", names[0].into());
    chart.label(LEFT + 8.0, TOP + 4.0, "start", names[1].into());
    if let Some(limit) = limit {
        let at = y.at(limit);
        chart.lines.push(Line { class: "limit", x1: LEFT, y1: at, x2: WIDTH - RIGHT, y2: at });
    }
    let on_path = points.iter().filter(|p| p.on_path);
    chart.path = on_path.map(|p| format!("{:.1},{:.1} ", x.at(p.x), y.at(p.y))).collect();
    let marks = points.iter().map(|p| Mark {
        class: p.class,
        x: x.at(p.x),
        y: y.at(p.y),
        r: Some(if p.class == "best" { 6.0 } else { 4.0 }),
        title: p.title.clone(),
        ..Mark::default()
    });
    chart.marks = marks.collect();
    Some(chart)
}

/// Bars over the depth.
pub(super) fn bars(bars: &[Bars], name: &str) -> Option<Chart> {
    let height = 220.0;
    if bars.is_empty() {
        return None;
    }
    let heights = bars.iter().flat_map(|b| b.heights.iter().map(|(_, h)| *h));
    let y = Scale::over(heights.chain([0.0]), height - BOTTOM, TOP)?;
    let mut chart = Chart { width: WIDTH, height, ..Chart::default() };
    chart.frame(height);
    for tick in y.ticks() {
        chart.label(LEFT - 6.0, y.at(tick) + 4.0, "end", number(tick));
    }
    chart.label(LEFT + 8.0, TOP + 4.0, "start", name.into());
    chart.label(LEFT, height - BOTTOM + 16.0, "start", "input".into());
    chart.label(WIDTH - RIGHT, height - BOTTOM + 16.0, "end", "output".into());
    let step = (WIDTH - LEFT - RIGHT) / bars.len() as f64;
    for (i, group) in bars.iter().enumerate() {
        for &(class, value) in &group.heights {
            let top = y.at(value).min(height - BOTTOM - 0.5);
            chart.marks.push(Mark {
                class,
                x: LEFT + step * i as f64,
                y: top,
                width: (step * 0.85).max(0.5),
                height: height - BOTTOM - top,
                title: group.title.clone(),
                ..Mark::default()
            });
        }
    }
    Some(chart)
}

impl Chart {
    fn frame(&mut self, height: f64) {
        let base = height - BOTTOM;
        self.lines.push(Line { class: "axis", x1: LEFT, y1: base, x2: WIDTH - RIGHT, y2: base });
        self.lines.push(Line { class: "axis", x1: LEFT, y1: TOP, x2: LEFT, y2: base });
    }

    fn label(&mut self, x: f64, y: f64, anchor: &'static str, text: String) {
        self.labels.push(Label { x, y, anchor, text });
    }
}

/// Maps an interval of values to one of the picture.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// A scale from 0, or the least value below, to the greatest. `None` without finite values.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let (mut low, mut high, mut any) = (0.0_f64, 0.0_f64, false);
        for value in values.filter(|v| v.is_finite()) {
            (low, high, any) = (low.min(value), high.max(value), true);
        }
        if low == high {
            high = low + 1.0;
        }
        any.then_some(Self { low, high, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        ((self.from + share * (self.to - self.from)) * 10.0).round() / 10.0
    }

    /// Round numbers, four to ten of them.
    fn ticks(&self) -> Vec<f64> {
        let span = self.high - self.low;
        let power = 10_f64.powf((span / 4.0).log10().floor());
        let step =
            [5.0, 2.0, 1.0].into_iter().map(|k| k * power).find(|step| span / step >= 4.0).unwrap_or(power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|k| k as f64 * step).collect()
    }
}

/// A number without digits that floats only seem to have.
fn number(x: f64) -> String {
    let text = format!("{x:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, title: String::new(), class: "mark", on_path: true }
    }

    #[test]
    fn every_point_is_a_mark_inside_the_picture() {
        let points = [point(1.0, 0.0), point(2.4, 0.01), point(3.0, f64::INFINITY)];
        let chart = scatter(&points, ["speed", "loss"], Some(0.02)).unwrap();
        assert_eq!(chart.marks.len(), 3);
        for mark in &chart.marks {
            assert!((LEFT..=WIDTH - RIGHT).contains(&mark.x) && (TOP..=380.0 - BOTTOM).contains(&mark.y));
        }
        assert!(scatter(&[], ["", ""], None).is_none());
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |low: f64, high: f64| Scale { low, high, from: 0.0, to: 1.0 }.ticks();
        assert_eq!(
            ticks(0.0, 2.4).iter().map(|&t| number(t)).collect::<Vec<_>>(),
            ["0", "0.5", "1", "1.5", "2"]
        );
        assert!((4..=11).contains(&ticks(-0.013, 0.07).len()));
    }
}
