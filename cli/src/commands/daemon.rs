//! The daemon: the account kept open, for programs and for the other commands.

use client_sdk::Client;
use client_sdk::local::{Listen, SOCKET_FILE, Service};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::args::{Daemon, ListenOn};
use crate::daemon::pb::command_server_server::CommandServerServer;
use crate::daemon::{Commands, DESCRIPTORS, Open};
use crate::error::CliError;
use crate::output::Answer;

/// Runs until a signal ends it; then it lets calls finish, for ten seconds at most.
pub(crate) async fn daemon(app: &App, args: Daemon) -> Result<Answer, CliError> {
    let dir = app.dir()?;
    let config = app.config()?.hold()?;
    // From here on a signal is waited for, however long the opening takes.
    let mut signals = Signals::new().map_err(CliError::file("signals"))?;
    let client = Box::pin(Client::open(config.clone())).await?;
    let service = Service::new(client, &dir);
    let lost = CancellationToken::new();
    let open = Open::new(service.current(), config, lost.clone());
    let commands = Commands::new(open.clone(), &dir, service.closing()).map_err(CliError::file(&dir))?;
    let service = service.with(DESCRIPTORS, |routes| {
        routes.add_service(CommandServerServer::new(commands));
    });
    let listen = match args.listen {
        ListenOn::Unix => Listen::Unix(dir.join(SOCKET_FILE)),
        ListenOn::Loopback { port } => Listen::Loopback { port },
    };
    let serving = match service.start(listen).await {
        Ok(serving) => serving,
        Err(error) => {
            open.close().await;
            return Err(error.into());
        }
    };
    let place = serving.place();
    let json = json!({
        "event": "listening",
        "target": place.target,
        "token_file": place.token_file.as_ref().map(|p| p.display().to_string()),
        "pid": place.pid,
    });
    let said = app.out.line(&place.target, &json).await;
    if said.is_ok() {
        signals.any(&lost).await;
        app.out.note("stopping").await;
    }
    serving.close().await;
    open.close().await;
    said?;
    if lost.is_cancelled() {
        return Err(CliError::Internal("the account could not be opened again".to_owned()));
    }
    Ok(Answer::nothing())
}

/// The signals that end a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn any(&mut self, lost: &CancellationToken) {
        tokio::select! {
            biased;
            () = lost.cancelled() => {}
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
