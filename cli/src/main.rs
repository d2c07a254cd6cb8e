//! `headwater`: the command line of an end-to-end-encrypted, local-first store of JSON objects.
//!
//! It does nothing that an application could not do: everything here goes through [`client_sdk`]. Each invocation opens the
//! data directory, acts, and gives it free again.
//!
//! - [`args`]: what can be typed. [`commands`]: what is done. [`output`]: the only place that prints.
//! - [`exit`]: the one table from failures to exit codes. [`error`]: failures, as people and programs see them.
//! - [`who`]: whom a person means by a name or the beginning of an account.
//! - [`records`]: JSON files to objects and back. [`git`]: a git history, read.
//!
//! # Never here
//!
//! No rules, no cryptography, no wire protocol, and no second opinion on what "synced" means.

mod app;
mod args;
mod commands;
mod error;
mod exit;
mod git;
mod output;
mod reasons;
mod records;
mod text;
mod who;

use std::process::ExitCode;

use clap::FromArgMatches as _;
use clap::error::ErrorKind;

use crate::app::App;
use crate::args::Cli;
use crate::error::CliError;
use crate::output::{ColorChoice, Form, Output};

#[tokio::main]
async fn main() -> ExitCode {
    let parsed = args::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let form = if cli.global.json { Form::Json } else { Form::Text };
    let out = Output::new(form, cli.global.color);
    log_to_stderr(cli.global.verbose);
    let app = App::new(cli.global, out);
    let done = Box::pin(commands::run(&app, cli.command)).await;
    let said = done.and_then(|answer| {
        let exit = answer.exit;
        app.out.answer(answer).map(|()| exit)
    });
    match said {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(exit)) => exit.into(),
        // Whoever read our output has enough.
        Err(CliError::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            app.out.error(&error);
            error.exit().into()
        }
    }
}

/// Help and version go to stdout; a mistake goes where the caller looks for mistakes.
fn misused(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !asked_for && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let usage = CliError::Usage(first.trim_start_matches("error: ").to_owned());
        Output::new(Form::Json, ColorChoice::Never).error(&usage);
        return usage.exit().into();
    }
    // Nothing is left to do when the terminal is gone.
    let _ = error.print();
    let wanted = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if wanted { ExitCode::SUCCESS } else { exit::Exit::Usage.into() }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::new(level);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
