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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    form: Form,
    paint: Paint,
    paint_errors: Paint,
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
        }
    }

    pub(crate) const fn form(&self) -> Form {
        self.form
    }

    pub(crate) const fn paint(&self) -> Paint {
        self.paint
    }

    /// Prints the result of a command.
    pub(crate) fn answer(&self, answer: Answer) -> Result<(), CliError> {
        let nothing = match self.form {
            Form::Text => answer.text.is_empty(),
            Form::Json => answer.json.is_null(),
        };
        if nothing { Ok(()) } else { self.line(&answer.text, &answer.json) }
    }

    /// Prints one line of a stream.
    pub(crate) fn line(&self, text: &str, json: &Value) -> Result<(), CliError> {
        match self.form {
            Form::Text => print(text),
            Form::Json => print(&json.to_string()),
        }
    }

    /// Tells a person something that is not the result.
    pub(crate) fn note(&self, text: impl Display) {
        if self.form == Form::Text {
            say(&text.to_string());
        }
    }

    pub(crate) fn error(&self, error: &CliError) {
        match self.form {
            // If stdout is gone, the exit code remains.
            Form::Json => drop(print(&error.to_json().to_string())),
            Form::Text => {
                let paint = self.paint_errors;
                say(&format!("{} {error}", paint.red("error:")));
                for cause in error.causes() {
                    say(&format!("  {} {cause}", paint.dim("because:")));
                }
                if let CliError::NotSynced(not_synced) = error {
                    // One stands in the error itself.
                    let others: Vec<_> = not_synced.residue.iter().filter(|r| Some(*r) != not_synced.cause()).collect();
                    for line in some_of(&others, ToString::to_string) {
                        say(&format!("  {} {line}", paint.dim("because:")));
                    }
                }
                if let Some(hint) = error.hint() {
                    say(&format!("  {} {hint}", paint.dim("try:")));
                }
            }
        }
    }

    /// Something of unknown length; on stderr, and only on a terminal.
    pub(crate) fn spinner(&self, text: impl Into<String>) -> Progress {
        let bar = self.progress(ProgressBar::new_spinner(), "{spinner} {msg} {elapsed:.dim}");
        bar.0.set_message(text.into());
        bar.0.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// Something of known length; on stderr, and only on a terminal.
    pub(crate) fn bar(&self, total: usize, text: impl Into<String>) -> Progress {
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        let bar = self.progress(ProgressBar::new(total), "{msg} {bar:32.cyan/dim} {pos}/{len} {per_sec:.dim}");
        bar.0.set_message(text.into());
        bar
    }

    fn progress(&self, bar: ProgressBar, style: &str) -> Progress {
        if self.form == Form::Json {
            return Progress(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        Progress(bar.with_style(style))
    }
}

/// Progress on a terminal; gone from it when dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn say(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }

    pub(crate) fn advance(&self, by: usize) {
        self.0.inc(u64::try_from(by).unwrap_or(u64::MAX));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(CliError::Print)
}

/// Prints to the terminal while a password or words are asked for, and for people only.
pub(crate) fn say(text: &str) {
    // If stderr is gone too, there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Bytes as they are: completion scripts.
pub(crate) fn print_raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CliError::Print)
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
