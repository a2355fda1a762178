//! A plot with two logarithmic axes as SVG: a line per series, a bar for the spread of each point.
use std::fmt::Write as _;

/// One line of a plot.
pub struct Series {
    pub name: &'static str,
    /// Place, value, spread.
    pub points: Vec<(f64, f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Distinct for most eyes, and in grey.
const COLOURS: [&str; 7] = [
    "#555555", "#0a6fd6", "#5fb0ff", "#2ca02c", "#d62728", "#e8860c", "#8c564b",
];

/// A logarithmic axis over whole steps of 1, 2 and 5 times powers of ten.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|v| *v > 0.0);
        let (low, high) = positive.fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        let ticks = || (-4..9).flat_map(|e| [1.0, 2.0, 5.0].map(|m| m * 10_f64.powi(e)));
        Self {
            low: ticks().rfind(|t| *t <= low).unwrap_or(1e-4),
            high: ticks().find(|t| *t >= high * 1.001).unwrap_or(1e9),
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        (value.max(self.low).log10() - self.low.log10()) / (self.high.log10() - self.low.log10())
    }

    fn ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        (-4..9)
            .flat_map(|e| steps.iter().map(move |m| m * 10_f64.powi(e)))
            .filter(|t| *t >= self.low * 0.999 && *t <= self.high * 1.001)
            .collect()
    }
}

/// Draws it.
pub fn plot(title: &str, below: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|s| s.points.iter());
    let (across, up) = (
        Axis::over(points().map(|p| p.0)),
        Axis::over(points().map(|p| p.1)),
    );
    let x = |v: f64| LEFT + across.place(v) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - up.place(v) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    for t in up.ticks() {
        let (y, right) = (y(t), WIDTH - RIGHT);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{t}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for t in across.ticks() {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{t}</text>",
            x(t),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 10.0,
        escape(below)
    );
    for (i, s) in series.iter().enumerate() {
        line(&mut out, i, s, &x, &y);
    }
    out + "</svg>\n"
}

fn line(out: &mut String, i: usize, s: &Series, x: &impl Fn(f64) -> f64, y: &impl Fn(f64) -> f64) {
    let colour = COLOURS[i % COLOURS.len()];
    let mut path = String::new();
    for (j, (px, py, spread)) in s.points.iter().enumerate() {
        let (cx, cy) = (x(*px), y(*py));
        let _ = write!(path, "{}{cx:.1} {cy:.1} ", if j == 0 { 'M' } else { 'L' });
        let _ = writeln!(
            out,
            "<line x1=\"{cx:.1}\" y1=\"{:.1}\" x2=\"{cx:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\
             <circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\" fill=\"{colour}\"/>",
            y((py - spread / 2.0).max(py / 100.0)),
            y(py + spread / 2.0)
        );
    }
    let (left, top) = (WIDTH - RIGHT + 14.0, TOP + 12.0 + 20.0 * i as f64);
    let _ = writeln!(
        out,
        "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
         <line x1=\"{left}\" y1=\"{top}\" x2=\"{}\" y2=\"{top}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
         <text x=\"{}\" y=\"{}\">{}</text>",
        path.trim_end(),
        left + 18.0,
        left + 24.0,
        top + 4.0,
        escape(s.name)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_inside_the_plot() {
        let series = [Series {
            name: "a<b",
            points: vec![(1.0, 20.0, 1.0), (50_000.0, 2_000.0, 0.0)],
        }];
        let text = plot("time & more", "services", &series);
        assert!(text.contains("a&lt;b") && text.contains("time &amp; more"));
        let places = text
            .split("cy=\"")
            .skip(1)
            .filter_map(|t| t.split('"').next()?.parse::<f64>().ok());
        assert!(
            places.clone().count() == 2 && places.into_iter().all(|y| (TOP..=HEIGHT - BOTTOM).contains(&y))
        );
    }
}
