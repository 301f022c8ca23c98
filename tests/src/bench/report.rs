//! The table and the words under it.

use std::fmt::Write as _;

/// Values of one side of a comparison, in one unit.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// A series of these values; the order does not matter.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value below which this share of the values lies.
    pub fn quantile(&self, share: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "an index into the values")]
        let index = ((self.0.len() as f64 * share).ceil() as usize).saturating_sub(1);
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The middle value.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `median (smallest - largest) unit`.
    pub fn spread(&self, unit: &str) -> String {
        let (first, last) = (self.quantile(0.0), self.quantile(1.0));
        let digits = digits(self.median());
        format!("{:.digits$} ({first:.digits$} - {last:.digits$}) {unit}", self.median())
    }

    /// `p50 X, p95 Y unit`.
    pub fn quantiles(&self, unit: &str) -> String {
        let digits = digits(self.median());
        format!("p50 {:.digits$}, p95 {:.digits$} {unit}", self.median(), self.quantile(0.95))
    }

    /// `p50 X, p99 Y, most Z unit`.
    pub fn tail(&self, unit: &str) -> String {
        let digits = digits(self.median());
        let (p99, most) = (self.quantile(0.99), self.quantile(1.0));
        format!("p50 {:.digits$}, p99 {p99:.digits$}, most {most:.digits$} {unit}", self.median())
    }
}

/// Digits after the point that say something.
fn digits(value: f64) -> usize {
    match value.abs() {
        v if v < 1.0 => 3,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    }
}

struct Row {
    what: String,
    ours: String,
    raw: String,
    ratio: String,
    count: usize,
}

struct Promise {
    what: String,
    bound: f64,
    measured: f64,
    unit: &'static str,
}

/// All rows, and what is to be said about them.
pub struct Report {
    machine: Vec<String>,
    rows: Vec<Row>,
    promises: Vec<Promise>,
    notes: Vec<String>,
}

impl Report {
    /// An empty table for this machine.
    pub fn new(machine: Vec<String>) -> Self {
        Self { machine, rows: vec![], promises: vec![], notes: vec![] }
    }

    /// Two series of the same thing, with the ratio of their medians.
    pub fn compare(&mut self, what: &str, ours: &Series, raw: &Series, unit: &str) {
        let ratio = format!("{:.2}", ours.median() / raw.median());
        self.row(what, &ours.spread(unit), &raw.spread(unit), &ratio, ours.count());
    }

    /// A row as it is.
    pub fn row(&mut self, what: &str, ours: &str, raw: &str, ratio: &str, count: usize) {
        eprintln!("  {what}: {ours} | raw {raw} | {ratio}");
        self.rows.push(Row { what: what.to_owned(), ours: ours.to_owned(), raw: raw.to_owned(), ratio: ratio.to_owned(), count });
    }

    /// A bound that was promised, and what was measured.
    pub fn promise(&mut self, what: &str, bound: f64, measured: f64, unit: &'static str) {
        self.promises.push(Promise { what: what.to_owned(), bound, measured, unit });
    }

    /// What is not measured on this machine, and why.
    pub fn skip(&mut self, what: &str, why: &str) {
        self.row(what, &format!("not measured: {why}"), "", "", 0);
    }

    /// A sentence under the table; said once.
    pub fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|said| said == note) {
            self.notes.push(note.to_owned());
        }
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\n\nWritten by `cargo xtask bench`; run it again to measure your machine. Both sides of a row were measured in the same run, \
             in turns.\nValues are median (smallest - largest) unless they say otherwise.\n\n\
             | what | OpenAgent | raw baseline | ratio | n |\n|---|---|---|---|---|\n",
        );
        for Row { what, ours, raw, ratio, count } in &self.rows {
            let _ = writeln!(text, "| {what} | {ours} | {raw} | {ratio} | {count} |");
        }
        text.push_str("\n## Promises\n\n| promise | bound | measured | |\n|---|---|---|---|\n");
        for Promise { what, bound, measured, unit } in &self.promises {
            let (digits, verdict) = (digits(*measured), if measured <= bound { "kept" } else { "missed" });
            let _ = writeln!(text, "| {what} | {bound} {unit} | {measured:.digits$} {unit} | {verdict} |");
        }
        for (title, lines) in [("What the rows mean", &self.notes), ("Where it was measured", &self.machine)] {
            let _ = writeln!(text, "\n## {title}\n");
            for line in lines {
                let _ = writeln!(text, "- {line}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let series = Series::new((1..=100).rev().map(f64::from).collect());
        assert_eq!((series.median(), series.quantile(0.99), series.quantile(0.0), series.quantile(1.0)), (50.0, 99.0, 1.0, 100.0));
        assert!(Series::default().median().is_nan());
    }

    #[test]
    fn the_table_has_one_line_a_row_and_says_each_note_once() {
        let mut report = Report::new(vec!["a machine".to_owned()]);
        report.compare("start", &Series::new(vec![2.0, 4.0, 3.0]), &Series::new(vec![2.0]), "s");
        report.note("said");
        report.note("said");
        report.promise("soon", 2.0, 2.5, "s");
        let text = report.markdown();
        assert!(text.contains("| start | 3.00 (2.00 - 4.00) s | 2.00 (2.00 - 2.00) s | 1.50 | 3 |"), "{text}");
        assert!(text.contains("| soon | 2 s | 2.50 s | missed |"), "{text}");
        assert_eq!(text.matches("- said").count(), 1);
    }
}
