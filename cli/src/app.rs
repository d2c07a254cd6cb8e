//! One invocation: its flags, the account that they open, the space that they mean.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use client_sdk::{
    Client, ClientConfig, NotSyncedCode, Reason, ReasonCode, Space, SpaceId, SpaceInfo, TreeId, Unlock, WriteId,
};
use etcetera::BaseStrategy as _;
use serde_json::{Value, json};

use crate::args::{Global, Settle};
use crate::caller::Caller;
use crate::daemon::Open;
use crate::error::CliError;
use crate::output::Output;
use crate::text;
use crate::who::is_beginning;

/// How long a command that does not insist looks for the node.
pub(crate) const NODE_LOOKUP_MAX: Duration = Duration::from_secs(3);

/// One invocation.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) out: Output,
    pub(crate) caller: Caller,
    /// The account, where a daemon has it open.
    open: Option<Open>,
    /// How often the daemon had tried to reach the node when this command first looked.
    attempts_before: OnceLock<u32>,
}

impl App {
    pub(crate) const fn new(global: Global, out: Output, caller: Caller, open: Option<Open>) -> Self {
        Self { global, out, caller, open, attempts_before: OnceLock::new() }
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.global.timeout
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> Result<PathBuf, CliError> {
        if let Some(dir) = &self.global.data {
            return Ok(dir.clone());
        }
        let dirs = etcetera::choose_base_strategy()
            .map_err(|e| CliError::Usage(format!("no data directory: {e}; give one with --data")))?;
        Ok(dirs.data_dir().join("headwater"))
    }

    /// The configuration that opens the account.
    pub(crate) fn config(&self) -> Result<ClientConfig, CliError> {
        let dir = self.dir()?;
        Ok(ClientConfig::new(dir.clone(), self.unlock(&dir)?))
    }

    fn unlock(&self, dir: &Path) -> Result<Unlock, CliError> {
        if let Some(passphrase) = self.given_passphrase()? {
            return Ok(Unlock::Passphrase(passphrase));
        }
        let key = key_file(dir);
        // Without a vault the SDK says that there is no account; nothing to ask for.
        if key.exists() || !dir.join("vault").exists() {
            return Ok(Unlock::KeyFile(key));
        }
        if std::io::stdin().is_terminal() {
            return Ok(Unlock::Passphrase(prompt("Passphrase: ")?));
        }
        Err(CliError::Locked("the account is locked with a passphrase, and none was given".to_owned()))
    }

    /// The passphrase of the flags or the environment.
    fn given_passphrase(&self) -> Result<Option<String>, CliError> {
        if let Some(file) = &self.global.passphrase_file {
            let text = std::fs::read_to_string(file).map_err(CliError::file(file))?;
            return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
        }
        Ok(std::env::var("HEADWATER_PASSPHRASE").ok().filter(|p| !p.is_empty()))
    }

    /// What will open a new account.
    pub(crate) fn new_unlock(&self, wanted: NewLock) -> Result<Unlock, CliError> {
        if let Some(passphrase) = self.given_passphrase()? {
            return Ok(Unlock::Passphrase(passphrase));
        }
        match wanted {
            NewLock::KeyFile => Ok(Unlock::KeyFile(key_file(&self.dir()?))),
            NewLock::Passphrase => Ok(Unlock::Passphrase(new_passphrase()?)),
        }
    }

    /// Opens the account, does the work, and gives the data directory free whatever came of it. In a daemon it is open.
    pub(crate) async fn with_client<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        match &self.open {
            Some(open) => {
                let client = open.client()?;
                // As a process of its own would: it asks the node now, not after the daemon's pause.
                client.reconnect();
                Box::pin(work(&client)).await
            }
            None => self.open_and(|config| config, work).await,
        }
    }

    /// [`App::with_client`] with another configuration; the account keeps it.
    pub(crate) async fn with_config<T>(
        &self,
        change: impl FnOnce(ClientConfig) -> ClientConfig,
        work: impl AsyncFnOnce(&Client) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        match &self.open {
            Some(open) => Box::pin(work(&open.reopen(change).await?)).await,
            None => self.open_and(change, work).await,
        }
    }

    async fn open_and<T>(
        &self,
        change: impl FnOnce(ClientConfig) -> ClientConfig,
        work: impl AsyncFnOnce(&Client) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let client = Box::pin(Client::open(change(self.config()?))).await?;
        let result = Box::pin(work(&client)).await;
        client.close().await;
        result
    }

    /// [`App::with_client`] for commands in a space.
    pub(crate) async fn with_space<T>(
        &self,
        work: impl AsyncFnOnce(&Client, &Space) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        self.with_client(async |client: &Client| {
            let space = self.space(client)?;
            Box::pin(work(client, &space)).await
        })
        .await
    }

    /// The space that `--space` means, or the only one.
    pub(crate) fn space(&self, client: &Client) -> Result<Space, CliError> {
        let spaces = client.spaces()?;
        let typed = self.global.space.as_deref();
        if typed.is_none()
            && let [only] = spaces.iter().filter(|s| is_live(s)).collect::<Vec<_>>().as_slice()
        {
            return Ok(client.space(only.id)?);
        }
        Ok(client.space(choose(&spaces, typed)?)?)
    }

    /// A space that was typed elsewhere than after `--space`.
    pub(crate) fn space_typed(&self, client: &Client, typed: &str) -> Result<Space, CliError> {
        Ok(client.space(choose(&client.spaces()?, Some(typed))?)?)
    }

    /// The space that `--space` means, or all of them.
    pub(crate) fn spaces(&self, client: &Client) -> Result<Vec<Space>, CliError> {
        if self.global.space.is_some() {
            return Ok(vec![self.space(client)?]);
        }
        client.spaces()?.iter().map(|info| Ok(client.space(info.id)?)).collect()
    }

    /// A space by its name or id.
    pub(crate) fn space_named(&self, client: &Client, typed: &str) -> Result<Space, CliError> {
        Ok(client.space(choose(&client.spaces()?, Some(typed))?)?)
    }

    /// [`App::spaces`] without those that nothing comes from any more: left, removed from, deleted.
    pub(crate) fn live_spaces(&self, client: &Client) -> Result<Vec<Space>, CliError> {
        if self.global.space.is_some() {
            return Ok(vec![self.space(client)?]);
        }
        client.spaces()?.iter().filter(|s| is_live(s)).map(|info| Ok(client.space(info.id)?)).collect()
    }

    /// Has the node know of it, if that is quick, so that the account's other devices find what this one just began or ended.
    /// The next command that reaches the node does it otherwise.
    pub(crate) async fn tell_devices(&self, client: &Client) {
        let _spinner = self.out.spinner("telling the account's other devices");
        let _ = client.account_synced(self.timeout().min(NODE_LOOKUP_MAX)).await;
    }

    /// Follows writes as the flags say.
    pub(crate) async fn settle(&self, space: &Space, writes: &[WriteId], how: Settle) -> Result<Settled, CliError> {
        let Some(last) = writes.last() else { return Ok(Settled::Unchanged) };
        if how.no_wait {
            space.durable_locally().await?;
            return Ok(Settled::Kept { why: None });
        }
        if !how.wait
            && let Reached::No(reason) = self.reach(space).await?
        {
            space.durable_locally().await?;
            return Ok(Settled::Kept { why: reason });
        }
        match Box::pin(self.pushed(space, writes, *last)).await {
            Ok(seq) => Ok(Settled::Durable { seq }),
            Err(CliError::NotSynced(error))
                if !how.wait && matches!(error.code, NotSyncedCode::NoNode | NotSyncedCode::DeadlineExceeded) =>
            {
                Ok(Settled::Kept { why: error.cause().cloned() })
            }
            Err(error) => Err(error),
        }
    }

    async fn pushed(&self, space: &Space, writes: &[WriteId], last: WriteId) -> Result<u64, CliError> {
        if writes.len() == 1 {
            let receipt = space.await_durable_within(last, self.timeout()).await?;
            return Ok(receipt.body().seq.0);
        }
        let synced = space.await_synced_within(self.timeout()).await?;
        Ok(synced.receipt.body().seq.0)
    }

    /// Looks for the node: until there is a session, an attempt has failed, or a few seconds are over.
    pub(crate) async fn reach(&self, space: &Space) -> Result<Reached, CliError> {
        let patience = self.timeout().min(NODE_LOOKUP_MAX);
        let mut since = 0;
        let looking = async {
            loop {
                let offline = no_session(space)?;
                match offline {
                    None => return Ok(Reached::Yes),
                    Some(reason) if reason.attempts > self.attempts_before(&reason) => {
                        return Ok(Reached::No(Some(reason)));
                    }
                    Some(_) => space.status_changed(&mut since).await,
                }
            }
        };
        match tokio::time::timeout(patience, looking).await {
            Ok(reached) => reached,
            Err(_) => Ok(Reached::No(no_session(space)?)),
        }
    }

    /// What a daemon had tried before this command came is no answer to it.
    fn attempts_before(&self, reason: &Reason) -> u32 {
        match &self.open {
            Some(_) => *self.attempts_before.get_or_init(|| reason.attempts),
            None => 0,
        }
    }

    /// Catches up with the node where that is possible; otherwise says so and goes on with what is here.
    pub(crate) async fn refresh(&self, space: &Space) -> Result<(), CliError> {
        let spinner = self.out.spinner("asking the node");
        let why = match self.reach(space).await? {
            Reached::No(reason) => reason,
            Reached::Yes => match space.await_synced_within(self.timeout()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code == NotSyncedCode::Forbidden => {
                    drop(spinner);
                    self.out.note("this account is no member any more; this is what is known here").await;
                    return Ok(());
                }
                Err(error) => error.cause().cloned(),
            },
        };
        drop(spinner);
        let why = why.map_or_else(String::new, |reason| format!(": {}", reason.detail));
        self.out.note(format!("this is what is known here; the node could not be asked{why}")).await;
        Ok(())
    }

    pub(crate) async fn write_file(&self, path: &Path, content: String) -> Result<(), CliError> {
        self.caller.write(path, content.into_bytes()).await.map_err(CliError::file(path))
    }

    /// A tree, from its id or `TYPE/ID`.
    pub(crate) fn tree_id(&self, space: &Space, typed: &str) -> Result<TreeId, CliError> {
        if typed.starts_with(TreeId::PREFIX)
            && let Ok(tree) = typed.parse()
        {
            return Ok(tree);
        }
        let usage = || CliError::Usage(format!("{typed:?} is neither a tree id nor TYPE/ID"));
        let (object_type, id) = typed.split_once('/').ok_or_else(usage)?;
        if object_type.is_empty() || id.is_empty() {
            return Err(usage());
        }
        Ok(space.objects().tree_id(object_type, id)?)
    }
}

/// A space that this account is in, or is yet to read that it is.
fn is_live(space: &SpaceInfo) -> bool {
    space.role.is_some() && !space.deleted
}

/// Why there is no session with the node, if there is none.
fn no_session(space: &Space) -> Result<Option<Reason>, CliError> {
    let reasons = space.explain()?;
    let codes = [ReasonCode::NoNode, ReasonCode::WrongNode, ReasonCode::SessionRefused];
    Ok(codes.iter().find_map(|code| Reason::find(&reasons, *code)).cloned())
}

/// Whether there is a session with the node.
#[derive(Debug)]
pub(crate) enum Reached {
    Yes,
    No(Option<Reason>),
}

/// How a new account is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewLock {
    KeyFile,
    Passphrase,
}

/// What became of writes.
#[derive(Debug)]
pub(crate) enum Settled {
    /// Everything was said already.
    Unchanged,
    /// Durable here; goes out when the node is reached.
    Kept { why: Option<Reason> },
    /// On the node's disk.
    Durable { seq: u64 },
}

impl Settled {
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Unchanged => "nothing to change".to_owned(),
            Self::Kept { why: None } => "kept here, goes out with the next command that reaches the node".to_owned(),
            Self::Kept { why: Some(why) } => {
                format!("kept here, goes out when the node is reached ({})", why.detail)
            }
            Self::Durable { seq } => format!("on the node's disk at {seq}"),
        }
    }

    /// Adds `state` and what belongs to it.
    pub(crate) fn into_json(self, mut rest: Value) -> Value {
        match self {
            Self::Unchanged => rest["state"] = json!("unchanged"),
            Self::Kept { why } => {
                rest["state"] = json!("kept");
                rest["reason"] = json!(why);
            }
            Self::Durable { seq } => {
                rest["state"] = json!("durable");
                rest["seq"] = json!(seq);
            }
        }
        rest
    }
}

fn key_file(dir: &Path) -> PathBuf {
    dir.join("device.key")
}

pub(crate) fn prompt(text: &str) -> Result<String, CliError> {
    rpassword::prompt_password(text).map_err(CliError::file("the terminal"))
}

fn new_passphrase() -> Result<String, CliError> {
    if !std::io::stdin().is_terminal() {
        let text = "--passphrase asks on a terminal; use --passphrase-file or HEADWATER_PASSPHRASE here";
        return Err(CliError::Usage(text.to_owned()));
    }
    let first = prompt("New passphrase: ")?;
    if first.is_empty() {
        return Err(CliError::Usage("the passphrase is empty".to_owned()));
    }
    if prompt("Once more: ")? != first {
        return Err(CliError::Usage("the passphrases differ".to_owned()));
    }
    Ok(first)
}

/// The space that was meant: by id, by a beginning of the id, or by a name that only one has.
fn choose(spaces: &[SpaceInfo], typed: Option<&str>) -> Result<SpaceId, CliError> {
    let found: Vec<&SpaceInfo> = match typed {
        None => spaces.iter().collect(),
        Some(typed) => {
            let by_name: Vec<_> = spaces.iter().filter(|s| s.name.as_deref() == Some(typed)).collect();
            let by_id = || spaces.iter().filter(|s| is_beginning(&s.id.to_string(), SpaceId::PREFIX, typed)).collect();
            if by_name.is_empty() { by_id() } else { by_name }
        }
    };
    match (found.as_slice(), typed) {
        ([one], _) => Ok(one.id),
        ([], None) => Err(CliError::NotFound(
            "there is no space yet: headwater space create NAME, or headwater join TOKEN".to_owned(),
        )),
        ([], Some(typed)) => Err(CliError::NotFound(format!("there is no space {typed:?} here: headwater space list"))),
        (several, None) => Err(CliError::Usage(format!(
            "there are {} spaces; choose one with --space: {}",
            several.len(),
            names(several)
        ))),
        (several, Some(typed)) => {
            Err(CliError::Usage(format!("{typed:?} could be {} spaces; use the id: {}", several.len(), names(several))))
        }
    }
}

fn names(spaces: &[&SpaceInfo]) -> String {
    let name = |s: &SpaceInfo| s.name.as_deref().map_or_else(|| "unnamed".to_owned(), text::plain);
    let one = |s: &&SpaceInfo| format!("{} ({})", name(s), s.id.short());
    spaces.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use client_sdk::Registration;

    fn info(byte: u8, name: &str) -> SpaceInfo {
        SpaceInfo {
            id: SpaceId::from_hash([byte; 32]),
            name: Some(name.to_owned()),
            seq: 0,
            members: 1,
            registration: Registration::Registered,
            role: Some(client_sdk::Role::Owner),
            deleted: false,
        }
    }

    #[test]
    fn which_space_is_meant() {
        let (a, b, c) = (info(1, "one"), info(2, "two"), info(3, "two"));
        let all = [a.clone(), b.clone(), c];
        fn chosen(spaces: &[SpaceInfo], typed: Option<&str>) -> Result<SpaceId, &'static str> {
            choose(spaces, typed).map_err(|e| e.code())
        }
        assert_eq!(chosen(&all[..1], None), Ok(a.id));
        assert_eq!(chosen(&all, Some("one")), Ok(a.id));
        assert_eq!(chosen(&all, Some(&b.id.to_string())), Ok(b.id));
        assert_eq!(chosen(&all, Some(&b.id.short())), Ok(b.id));
        assert_eq!(chosen(&all, None), Err("USAGE"));
        assert_eq!(chosen(&all, Some("two")), Err("USAGE"));
        assert_eq!(chosen(&all, Some("space_")), Err("NOT_FOUND"));
        assert_eq!(chosen(&[], None), Err("NOT_FOUND"));
    }
}
