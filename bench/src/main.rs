//! Benchmarks. Each one runs ours and what it is held against alternately, in one call, and prints medians: timings are
//! noisy, so believe ratios. `scripts/bench` builds what is needed and writes `bench/RESULTS.md`.

#![expect(clippy::print_stdout, reason = "results are for people")]

mod head_sync;
mod space_open;
mod stories;

use sync_tests::harness::Outcome;

#[tokio::main]
async fn main() -> Outcome {
    if cfg!(debug_assertions) {
        return Err("a debug build says nothing of speed: scripts/bench".into());
    }
    let mut rows = space_open::run().await?;
    rows.extend(stories::run().await?);
    println!("| benchmark | what | median | least | most |\n|---|---|---|---|---|");
    for row in rows {
        println!("{row}");
    }
    for line in head_sync::run()? {
        println!("{line}");
    }
    Ok(())
}

fn millis(took: std::time::Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// One line of the results.
struct Row {
    benchmark: &'static str,
    what: String,
    /// Sorted.
    values: Vec<f64>,
    unit: &'static str,
}

impl Row {
    fn new(benchmark: &'static str, what: impl Into<String>, mut values: Vec<f64>, unit: &'static str) -> Self {
        values.sort_by(f64::total_cmp);
        Self { benchmark, what: what.into(), values, unit }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { benchmark, what, values, unit } = self;
        let (least, most) = (values[0], values[values.len() - 1]);
        let median = values[values.len() / 2];
        write!(f, "| {benchmark} | {what} | {median:.1} {unit} | {least:.1} | {most:.1} |")
    }
}
