//! The only place that prints.
//!
//! Stdout carries results, stderr everything else: notes, progress, errors for people. With `--json`, stdout carries exactly
//! one document (or one a line for streams), errors included, and stderr is left alone.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::OwoColorize as _;
use serde_json::Value;

use crate::args::Global;
use crate::daemon::{Printed, ProgressSlot, RemoteProgress};
use crate::error::CliError;
use crate::exit::Exit;

/// When to use colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

/// What a command has to say, in both forms.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) json: Value,
    /// Set where not all of it was done: the answer says what was.
    pub(crate) exit: Option<Exit>,
}

impl Answer {
    pub(crate) fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, exit: None }
    }

    /// The same answer of a command that did not do everything.
    pub(crate) fn but(self, exit: Exit) -> Self {
        Self { exit: Some(exit), ..self }
    }

    /// A stream has said everything already.
    pub(crate) const fn nothing() -> Self {
        Self { text: String::new(), json: Value::Null, exit: None }
    }
}

/// Where a command prints.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    form: Form,
    paint: Paint,
    paint_errors: Paint,
    to: To,
}

/// Whose terminal it is.
#[derive(Debug, Clone)]
enum To {
    Here,
    /// That of another process, which the daemon runs the command for.
    There(Printed, ProgressSlot),
}

impl Output {
    pub(crate) fn new(form: Form, color: ColorChoice) -> Self {
        let allowed = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let paint = |terminal: bool| match color {
            ColorChoice::Always => Paint::Colors,
            ColorChoice::Never => Paint::Plain,
            ColorChoice::Auto if terminal && allowed => Paint::Colors,
            ColorChoice::Auto => Paint::Plain,
        };
        Self {
            form,
            paint: paint(std::io::stdout().is_terminal()),
            paint_errors: paint(std::io::stderr().is_terminal()),
            to: To::Here,
        }
    }

    /// The output of another process, which says whether it shows colors, on stdout and on stderr.
    pub(crate) fn there(global: &Global, printed: Printed, progress: ProgressSlot, colors: (bool, bool)) -> Self {
        let paint = |colors: bool| if colors { Paint::Colors } else { Paint::Plain };
        Self {
            form: if global.json { Form::Json } else { Form::Text },
            paint: paint(colors.0),
            paint_errors: paint(colors.1),
            to: To::There(printed, progress),
        }
    }

    /// Whether it shows colors, on stdout and on stderr.
    pub(crate) fn colors(&self) -> (bool, bool) {
        (self.paint == Paint::Colors, self.paint_errors == Paint::Colors)
    }

    pub(crate) const fn form(&self) -> Form {
        self.form
    }

    pub(crate) const fn paint(&self) -> Paint {
        self.paint
    }

    /// Prints the result of a command.
    pub(crate) async fn answer(&self, answer: Answer) -> Result<(), CliError> {
        let nothing = match self.form {
            Form::Text => answer.text.is_empty(),
            Form::Json => answer.json.is_null(),
        };
        if nothing { Ok(()) } else { self.line(&answer.text, &answer.json).await }
    }

    /// Prints one line of a stream.
    pub(crate) async fn line(&self, text: &str, json: &Value) -> Result<(), CliError> {
        match self.form {
            Form::Text => self.print(format!("{text}\n")).await,
            Form::Json => self.print(format!("{json}\n")).await,
        }
    }

    async fn print(&self, text: String) -> Result<(), CliError> {
        let printed = match &self.to {
            To::Here => print_raw(text.as_bytes()),
            To::There(printed, _) => printed.stdout(text.into_bytes()).await,
        };
        printed.map_err(CliError::Print)
    }

    /// Bytes as they are: completion scripts.
    pub(crate) async fn raw(&self, bytes: Vec<u8>) -> Result<(), CliError> {
        let printed = match &self.to {
            To::Here => print_raw(&bytes),
            To::There(printed, _) => printed.stdout(bytes).await,
        };
        printed.map_err(CliError::Print)
    }

    /// Tells a person something on the terminal, whatever the form. If stderr is gone, there is nobody to tell.
    pub(crate) async fn say(&self, text: &str) {
        match &self.to {
            To::Here => drop(writeln!(std::io::stderr().lock(), "{text}")),
            To::There(printed, _) => drop(printed.stderr(format!("{text}\n").into_bytes()).await),
        }
    }

    /// Tells a person something that is not the result.
    pub(crate) async fn note(&self, text: impl Display) {
        if self.form == Form::Text {
            self.say(&text.to_string()).await;
        }
    }

    pub(crate) async fn error(&self, error: &CliError) {
        match self.form {
            // If stdout is gone, the exit code remains.
            Form::Json => drop(self.print(format!("{}\n", error.to_json())).await),
            Form::Text => {
                let paint = self.paint_errors;
                self.say(&format!("{} {error}", paint.red("error:"))).await;
                for cause in error.causes() {
                    self.say(&format!("  {} {cause}", paint.dim("because:"))).await;
                }
                if let CliError::NotSynced(not_synced) = error {
                    // One stands in the error itself.
                    let others: Vec<_> = not_synced.residue.iter().filter(|r| Some(*r) != not_synced.cause()).collect();
                    for line in some_of(&others, ToString::to_string) {
                        self.say(&format!("  {} {line}", paint.dim("because:"))).await;
                    }
                }
                if let Some(hint) = error.hint() {
                    self.say(&format!("  {} {hint}", paint.dim("try:"))).await;
                }
            }
        }
    }

    /// Something of unknown length; on stderr, and only on a terminal.
    pub(crate) fn spinner(&self, text: impl Into<String>) -> Progress {
        if let To::There(_, slot) = &self.to {
            return self.progress_there(slot, text.into(), None);
        }
        let bar = self.progress(ProgressBar::new_spinner(), "{spinner} {msg} {elapsed:.dim}");
        bar.set_message(text.into());
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress::Here(bar)
    }

    /// Something of known length; on stderr, and only on a terminal.
    pub(crate) fn bar(&self, total: usize, text: impl Into<String>) -> Progress {
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        if let To::There(_, slot) = &self.to {
            return self.progress_there(slot, text.into(), Some(total));
        }
        let bar = self.progress(ProgressBar::new(total), "{msg} {bar:32.cyan/dim} {pos}/{len} {per_sec:.dim}");
        bar.set_message(text.into());
        Progress::Here(bar)
    }

    fn progress(&self, bar: ProgressBar, style: &str) -> ProgressBar {
        if self.form == Form::Json {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.with_style(style)
    }

    fn progress_there(&self, slot: &ProgressSlot, text: String, total: Option<u64>) -> Progress {
        match self.form {
            Form::Text => Progress::There(slot.begin(text, total)),
            Form::Json => Progress::Here(ProgressBar::hidden()),
        }
    }
}

/// Progress on a terminal; gone from it when dropped.
#[derive(Debug)]
pub(crate) enum Progress {
    Here(ProgressBar),
    There(RemoteProgress),
}

impl Progress {
    pub(crate) fn say(&self, text: impl Into<String>) {
        match self {
            Self::Here(bar) => bar.set_message(text.into()),
            Self::There(progress) => progress.say(text.into()),
        }
    }

    pub(crate) fn advance(&self, by: usize) {
        let by = u64::try_from(by).unwrap_or(u64::MAX);
        match self {
            Self::Here(bar) => bar.inc(by),
            Self::There(progress) => progress.advance(by),
        }
    }

    /// As far as another process says that it is.
    pub(crate) fn reach(&self, done: u64) {
        match self {
            Self::Here(bar) => bar.set_position(done),
            Self::There(_) => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        match self {
            Self::Here(bar) => bar.finish_and_clear(),
            Self::There(_) => {}
        }
    }
}

fn print_raw(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Colors, where they are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Colors,
}

impl Paint {
    pub(crate) fn bold(self, text: impl Display) -> String {
        self.with(&text, |t| t.bold().to_string())
    }

    pub(crate) fn dim(self, text: impl Display) -> String {
        self.with(&text, |t| t.dimmed().to_string())
    }

    pub(crate) fn red(self, text: impl Display) -> String {
        self.with(&text, |t| t.red().to_string())
    }

    pub(crate) fn green(self, text: impl Display) -> String {
        self.with(&text, |t| t.green().to_string())
    }

    pub(crate) fn yellow(self, text: impl Display) -> String {
        self.with(&text, |t| t.yellow().to_string())
    }

    pub(crate) fn cyan(self, text: impl Display) -> String {
        self.with(&text, |t| t.cyan().to_string())
    }

    pub(crate) fn magenta(self, text: impl Display) -> String {
        self.with(&text, |t| t.magenta().to_string())
    }

    fn with(self, text: &dyn Display, color: impl FnOnce(&str) -> String) -> String {
        match self {
            Self::Plain => text.to_string(),
            Self::Colors => color(&text.to_string()),
        }
    }
}

/// How many of many things people are shown.
const SHOWN_MAX: usize = 8;

/// The first few of many, and how many more there are.
pub(crate) fn some_of<'a, T>(all: &'a [T], show: impl FnMut(&'a T) -> String) -> Vec<String> {
    let mut lines: Vec<_> = all.iter().take(SHOWN_MAX).map(show).collect();
    if all.len() > SHOWN_MAX {
        lines.push(format!("… and {} more", all.len() - SHOWN_MAX));
    }
    lines
}

/// A table for people; ids in it stay whole, so that they can be copied.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `name: value` lines for people.
pub(crate) fn pairs<'a>(paint: Paint, rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, value): (&str, String)| format!("{}  {value}", paint.dim(format!("{name:<width$}")));
    rows.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_things_some_are_shown() {
        assert_eq!(some_of(&[1, 2], ToString::to_string), ["1", "2"]);
        let many: Vec<_> = (0..20).collect();
        assert_eq!(some_of(&many, ToString::to_string).last().map(String::as_str), Some("… and 12 more"));
    }

    #[test]
    fn tables_and_pairs_are_plain_without_colors() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "2".to_owned()]];
        assert_eq!(table(&["id", "n"], rows), "ID   N\na    1\nbcd  2");
        assert_eq!(pairs(Paint::Plain, [("id", "x".to_owned()), ("node", "y".to_owned())]), "id    x\nnode  y");
    }
}
