//! The `sync-node` binary: flags and signals around [`sync_node::Node`].

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use sync_node::{
    Flags, LogFormat, Node, NodeCommand, NodeConfig, RestoreError, Restored, StartError, Stopped, back_up, restore,
    serve_metrics,
};
use sync_store::{BackupError, OpenError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const USAGE: u8 = 2;
const INTERNAL: u8 = 70;
const STORAGE: u8 = 74;
const IN_USE: u8 = 75;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match NodeConfig::load(&flags) {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &error),
    };
    if let Some(command) = flags.command {
        return perform(&config, command).await;
    }
    if let Err(error) = log_to_stderr(&config) {
        return fail(USAGE, error.as_ref());
    }
    if let Some(Err(error)) = config.metrics.as_deref().map(serve_metrics) {
        return fail(USAGE, &error);
    }
    match run(config).await {
        Ok(code) => code,
        Err(RunError::Start(error)) => fail(start_code(&error), &error),
        Err(RunError::Io(error)) => fail(INTERNAL, &error),
    }
}

async fn perform(config: &NodeConfig, command: NodeCommand) -> ExitCode {
    match command {
        NodeCommand::Backup { to } => match back_up(&config.data, &to) {
            Ok(()) => said(&format!("the store is in {}; keep the keys apart from it", to.display())),
            Err(error @ BackupError::Exists { .. }) => fail(USAGE, &error),
            Err(error @ (BackupError::NoStore { .. } | BackupError::Io { .. } | BackupError::Store(_))) => {
                fail(STORAGE, &error)
            }
        },
        NodeCommand::Restore { backup } => match restore(&config.data, backup.as_deref()).await {
            Ok(Restored { spaces, replaced }) => {
                let kept = replaced.map_or(String::new(), |path| format!("; the old store is in {}", path.display()));
                said(&format!("{spaces} spaces have a new history{kept}; start the node"))
            }
            Err(error @ RestoreError::Store(OpenError::InUse { .. })) => fail(IN_USE, &error),
            Err(
                error @ (RestoreError::NoKeys { .. }
                | RestoreError::NoStore { .. }
                | RestoreError::OtherNode { .. }
                | RestoreError::Identity(_)),
            ) => fail(USAGE, &error),
            Err(
                error @ (RestoreError::Store(_)
                | RestoreError::Copy(_)
                | RestoreError::Renew(_)
                | RestoreError::NotDurable(_)
                | RestoreError::Io { .. }),
            ) => fail(STORAGE, &error),
        },
    }
}

fn said(text: &str) -> ExitCode {
    match announce(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(INTERNAL, &error),
    }
}

enum RunError {
    Start(StartError),
    Io(std::io::Error),
}

async fn run(config: NodeConfig) -> Result<ExitCode, RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Io)?;
    let node = Node::start(config).await.map_err(RunError::Start)?;
    announce(&node.address().to_string()).map_err(RunError::Io)?;
    let stopped = tokio::select! {
        biased;
        _ = terminate.recv() => node.shutdown().await,
        _ = interrupt.recv() => node.shutdown().await,
        stopped = node.stopped() => stopped,
    };
    Ok(match stopped {
        Stopped::AsAsked => ExitCode::SUCCESS,
        Stopped::StoreFailed(error) => fail(STORAGE, &error),
        Stopped::ServerFailed(why) => {
            tracing::error!(why, "the server failed");
            ExitCode::from(INTERNAL)
        }
    })
}

/// The one line that a program prints: whoever reads it can connect.
fn announce(address: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{address}")?;
    stdout.flush()
}

fn start_code(error: &StartError) -> u8 {
    match error {
        StartError::PlaintextInTheOpen { .. }
        | StartError::Listen { .. }
        | StartError::Identity(_)
        | StartError::HalfRestored { .. } => USAGE,
        StartError::Store(OpenError::InUse { .. }) => IN_USE,
        StartError::Store(
            OpenError::TooNew { .. }
            | OpenError::Foreign { .. }
            | OpenError::WrongKind { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::Damaged { .. }
            | OpenError::Io { .. },
        )
        | StartError::Read(_)
        | StartError::Data { .. } => STORAGE,
        StartError::Tls(_) | StartError::Reflection(_) => INTERNAL,
    }
}

/// Prints an error with its causes, one line each.
fn fail(code: u8, error: &dyn Error) -> ExitCode {
    let mut text = format!("sync-node: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  because: {error}\n"));
        cause = error.source();
    }
    // If stderr is gone too, the exit code remains.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn log_to_stderr(config: &NodeConfig) -> Result<(), Box<dyn Error>> {
    let builder =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(&config.log)?).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
