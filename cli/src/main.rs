//! `headwater`: the command line of an end-to-end-encrypted, local-first store of JSON objects.
//!
//! It does nothing that an application could not do: everything here goes through [`client_sdk`]. Each invocation opens the
//! data directory, acts, and gives it free again; where a daemon has it, the daemon does what was typed.
//!
//! - [`args`]: what can be typed. [`commands`]: what is done. [`output`]: the only place that prints.
//! - [`caller`]: whose files and terminal a command has. [`daemon`]: commands of other processes, and having one run there.
//! - [`exit`]: the one table from failures to exit codes. [`error`]: failures, as people and programs see them.
//! - [`who`]: whom a person means by a name or the beginning of an account.
//! - [`records`]: JSON files to objects and back. [`git`]: a git history, read.
//!
//! # Never here
//!
//! No rules, no cryptography, no wire protocol, and no second opinion on what "synced" means.

mod app;
mod args;
mod caller;
mod commands;
mod daemon;
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
use crate::caller::Caller;
use crate::error::CliError;
use crate::output::{ColorChoice, Form, Output};

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            // Without threads there is nothing to print with but this.
            eprintln!("error: the program cannot start: {error}");
            return exit::Exit::Internal.into();
        }
    };
    let exit = runtime.block_on(start());
    // Everything that must end has ended; a read of the terminal that nobody waits for any more does not.
    runtime.shutdown_background();
    exit
}

async fn start() -> ExitCode {
    let parsed = args::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return misused(&error).await,
    };
    let form = if cli.global.json { Form::Json } else { Form::Text };
    let out = Output::new(form, cli.global.color);
    log_to_stderr(cli.global.verbose);
    let app = App::new(cli.global, out, Caller::Here, None);
    if cli.command.needs_account() {
        match hand_over(&app).await {
            Ok(Some(exit)) => return exit,
            Ok(None) => {}
            Err(error) => return fail(&app, &error).await.into(),
        }
    }
    run(&app, cli.command).await.into()
}

/// Where a daemon has the data directory, it does what was typed.
async fn hand_over(app: &App) -> Result<Option<ExitCode>, CliError> {
    // What is wrong with the directory is said by the command itself.
    let Ok(dir) = app.dir() else { return Ok(None) };
    daemon::hand_over(&dir, &app.out).await
}

/// Does what was typed, prints what there is to say, and returns the exit code.
pub(crate) async fn run(app: &App, command: args::Command) -> u8 {
    let done = Box::pin(commands::run(app, command)).await;
    let said = match done {
        Ok(answer) => {
            let exit = answer.exit;
            app.out.answer(answer).await.map(|()| exit)
        }
        Err(error) => Err(error),
    };
    match said {
        Ok(None) => 0,
        Ok(Some(exit)) => exit as u8,
        Err(error) => fail(app, &error).await,
    }
}

async fn fail(app: &App, error: &CliError) -> u8 {
    if matches!(error, CliError::Print(error) if error.kind() == std::io::ErrorKind::BrokenPipe) {
        // Whoever read our output has enough.
        return 0;
    }
    app.out.error(error).await;
    error.exit() as u8
}

/// Help and version go to stdout; a mistake goes where the caller looks for mistakes.
async fn misused(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !asked_for && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let usage = CliError::Usage(first.trim_start_matches("error: ").to_owned());
        Output::new(Form::Json, ColorChoice::Never).error(&usage).await;
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
