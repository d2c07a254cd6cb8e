//! The real thing: a node process, and clients that reach it through a relay which can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_sdk::{
    AccountId, AclError, AclId, ClientConfig, HistoryMode, InviteId, InviteMode, InviteOptions, JoinError, Joining,
    NodeAddress, NotSynced, NotSyncedCode, Object, ObjectType, ReadError, Role, Space, SpaceId, SpaceOptions, TreeId,
    WriteError,
};
use serde_json::{Map, Value};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Act, Governing, ObjectName, Shown, Step, Trouble, World, compare, holds, no_plaintext, plain};
use crate::harness::{NodeProcess, PATIENCE, TestClient, until};

/// What must not become ready is given this long.
const MOMENT: Duration = Duration::from_millis(500);
const TREES_MAX: usize = 10_000;

/// Forwards bytes between clients and the node, until it is cut.
#[derive(Debug)]
struct TcpRelay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    connections: Arc<Mutex<JoinSet<()>>>,
    accepting: JoinHandle<()>,
}

impl TcpRelay {
    async fn to(endpoint: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let (open, is_open) = watch::channel(true);
        let accepting = tokio::spawn(accept(listener, endpoint, is_open, connections.clone()));
        Self { address, open, connections, accepting }
    }

    /// Ends every connection, and takes none. Nothing passes any more once this returns.
    async fn cut(&self) {
        self.open.send_replace(false);
        let mut connections = std::mem::take(&mut *lock(&self.connections));
        connections.shutdown().await;
    }

    fn mend(&self) {
        self.open.send_replace(true);
    }

    fn is_open(&self) -> bool {
        *self.open.borrow()
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, endpoint: String, open: watch::Receiver<bool>, all: Arc<Mutex<JoinSet<()>>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let (endpoint, is_open) = (endpoint.clone(), open.clone());
        let mut connections = lock(&all);
        // Judged under the lock: a connection is either there to be cut or not taken at all.
        if !*is_open.borrow() {
            continue;
        }
        connections.spawn(async move {
            if let Ok(mut node) = TcpStream::connect(endpoint).await {
                let _ = copy_bidirectional(&mut client, &mut node).await;
            }
        });
    }
}

struct Token {
    space: SpaceId,
    id: InviteId,
    text: String,
}

/// Declares the types of objects in scripts that have a write rule of their own.
fn with_types(config: ClientConfig) -> ClientConfig {
    let types = ["ballot", "notice", "statute", "diary", "pass", "badge"];
    types
        .into_iter()
        .fold(config, |config, name| config.object_type(ObjectType::new(name).rule(move |id| super::rule_of(name, id))))
}

struct Person {
    /// `None` only while it restarts.
    client: Option<TestClient>,
    relay: TcpRelay,
    /// Joins under way; true once nothing but their own sync is missing.
    joining: BTreeMap<SpaceId, (Joining, bool)>,
}

/// A node process and one client per person.
pub struct RealWorld {
    node: NodeProcess,
    people: BTreeMap<String, Person>,
    tokens: BTreeMap<String, Vec<Token>>,
    names: BTreeMap<String, SpaceId>,
    latest: Option<SpaceId>,
    plaintext: BTreeSet<String>,
    /// The files of the node before anybody came: words that stand there are its own.
    empty: Vec<Vec<u8>>,
}

impl std::fmt::Debug for RealWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RealWorld").field("node", &self.node.address()).finish_non_exhaustive()
    }
}

fn only_pure() -> Result<(), Trouble> {
    Err(Trouble::wrong("a line for both worlds", "only the pure one can do that: keep the script to `world: pure`"))
}

/// The error and everything below it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        text = format!("{text}: {below}");
        source = below.source();
    }
    text
}

macro_rules! refusals {
    ($($error:ty => $code:expr),* $(,)?) => {$(
        impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                let code: fn(&$error) -> &'static str = $code;
                Self::refused(code(&error), chain(&error))
            }
        }
    )*};
}

refusals! {
    ReadError => |e| e.code(),
    WriteError => |e| e.code(),
    AclError => |e| e.code(),
    JoinError => |e| e.code(),
    NotSynced => |e| e.code.name(),
}

impl World for RealWorld {
    async fn act(&mut self, step: &Step) -> Result<(), Trouble> {
        if step.forced {
            return Err(Trouble::wrong(
                "an honest client",
                "`forces` needs a patched one: keep the script to `world: pure`",
            ));
        }
        Box::pin(self.perform(step)).await
    }

    fn seed(&self) -> Option<u64> {
        None
    }
}

impl RealWorld {
    /// A world with a node of its own.
    #[must_use]
    pub fn start() -> Self {
        let node = NodeProcess::start();
        let empty = files_in(node.dir()).expect("files of the node");
        Self {
            node,
            people: BTreeMap::new(),
            tokens: BTreeMap::new(),
            names: BTreeMap::new(),
            latest: None,
            plaintext: BTreeSet::new(),
            empty,
        }
    }

    async fn perform(&mut self, step: &Step) -> Result<(), Trouble> {
        let who = step.who.as_str();
        match &step.act {
            Act::Creates { space, history } => self.create_space(who, space, *history).await,
            Act::GoesOffline => {
                self.person(who).await.relay.cut().await;
                Ok(())
            }
            Act::GoesOnline => {
                let person = self.person(who).await;
                person.relay.mend();
                person.client().reconnect();
                Ok(())
            }
            Act::Restarts if who == "node" => self.restart_node(),
            Act::Restarts => self.restart(who).await,
            Act::IsKilled => {
                self.node.kill();
                Ok(())
            }
            Act::Settles => Box::pin(self.settle()).await,
            Act::Holds { space, entries } => self.node_holds(space, *entries).await,
            Act::Agrees => self.everyone_agrees(),
            Act::Invites { .. }
            | Act::Joins { .. }
            | Act::IsReady
            | Act::Approves { .. }
            | Act::Declines { .. }
            | Act::Writes { .. }
            | Act::Deletes { .. }
            | Act::Reads { .. }
            | Act::Lists { .. } => self.perform_in(step, self.space_id(step)?).await,
            Act::Governs(act) => self.govern(who, self.space_id(step)?, act).await,
            Act::Purges { .. } | Act::HasRefused { .. } | Act::Dismisses => {
                self.act_on_object(step, self.space_id(step)?).await
            }
            Act::Forges(_) | Act::HoldsEpochs { .. } | Act::HoldsNoKey { .. } => only_pure(),
        }
    }

    async fn perform_in(&mut self, step: &Step, id: SpaceId) -> Result<(), Trouble> {
        let who = step.who.as_str();
        match &step.act {
            Act::Joins { by } => return self.join(who, id, by.as_deref()).await,
            Act::IsReady => return self.is_ready(who, id, step.refusal.is_some()).await,
            Act::Invites { whom, role, mode, max_uses, must_see } => {
                return self.invite(who, id, whom, *role, *mode, *max_uses, must_see).await;
            }
            Act::Approves { whom, role, promising } => return self.approve(who, id, whom, *role, promising).await,
            Act::Declines { whom } => {
                let (space, request) = self.request_of(who, id, whom).await?;
                return Ok(space.decline(request).await?);
            }
            Act::Writes { .. } | Act::Deletes { .. } | Act::Reads { .. } | Act::Lists { .. } => {}
            Act::Creates { .. }
            | Act::GoesOffline
            | Act::GoesOnline
            | Act::Restarts
            | Act::IsKilled
            | Act::Settles
            | Act::Governs(_)
            | Act::Forges(_)
            | Act::Purges { .. }
            | Act::HoldsEpochs { .. }
            | Act::HoldsNoKey { .. }
            | Act::HasRefused { .. }
            | Act::Dismisses
            | Act::Agrees
            | Act::Holds { .. } => unreachable!("needs no space"),
        }
        self.act_on_object(step, id).await
    }

    async fn act_on_object(&mut self, step: &Step, id: SpaceId) -> Result<(), Trouble> {
        let space = self.space(&step.who, id).await?;
        match &step.act {
            Act::Writes { object, fields, citing: _ } => {
                let object = self.resolve(object).await;
                self.note_plaintext(&object, fields);
                space.objects().put(&object.object_type, &object.id, Value::Object(fields.clone())).await?;
            }
            Act::Deletes { object } => {
                let object = self.resolve(object).await;
                space.objects().delete(&object.object_type, &object.id).await?;
            }
            Act::Reads { object, shown } => {
                let object = self.resolve(object).await;
                let seen = space.objects().get(&object.object_type, &object.id)?.map(|o| o.fields);
                return match shown {
                    Shown::Nothing => compare(None, seen.as_ref()),
                    Shown::Fields(fields) => compare(Some(fields), seen.as_ref()),
                    Shown::Hidden => is_hidden(&space, &object),
                };
            }
            Act::Purges { object } => {
                let object = self.resolve(object).await;
                space.objects().purge(&object.object_type, &object.id).await?;
            }
            Act::HasRefused { count } => {
                let refused = space.refused()?;
                if refused.len() != *count {
                    return Err(Trouble::wrong(count, format!("{refused:?}")));
                }
            }
            Act::Dismisses => {
                for refused in space.refused()? {
                    space.dismiss(refused.write).await?;
                }
            }
            Act::Lists { object_type, count } => {
                let ids: Vec<_> = space.objects().list(object_type)?.into_iter().map(|o| o.id).collect();
                if ids.len() != *count {
                    return Err(Trouble::wrong(count, format!("{}: {ids:?}", ids.len())));
                }
            }
            Act::Creates { .. }
            | Act::Invites { .. }
            | Act::Joins { .. }
            | Act::IsReady
            | Act::Approves { .. }
            | Act::Declines { .. }
            | Act::GoesOffline
            | Act::GoesOnline
            | Act::Restarts
            | Act::IsKilled
            | Act::Settles
            | Act::Governs(_)
            | Act::Forges(_)
            | Act::HoldsEpochs { .. }
            | Act::HoldsNoKey { .. }
            | Act::Agrees
            | Act::Holds { .. } => unreachable!("not on an object"),
        }
        Ok(())
    }

    // ---- people and spaces ------------------------------------------------------------------------------------------

    async fn person(&mut self, name: &str) -> &mut Person {
        if !self.people.contains_key(name) {
            let relay = TcpRelay::to(self.node.address().endpoint.clone()).await;
            let address = NodeAddress { endpoint: relay.address.to_string(), ..self.node.address().clone() };
            let client = Some(TestClient::create_with(name, &address, with_types).await);
            self.people.insert(name.to_owned(), Person { client, relay, joining: BTreeMap::new() });
        }
        self.people.get_mut(name).expect("just made")
    }

    fn space_id(&self, step: &Step) -> Result<SpaceId, Trouble> {
        let named = step.space.as_ref().map(|name| self.names.get(name).copied());
        named.unwrap_or(self.latest).ok_or_else(|| Trouble::wrong("a space", "nobody made it"))
    }

    /// A person's handle on a space. Who was let in waits for its join first, as an app would.
    async fn space(&mut self, who: &str, id: SpaceId) -> Result<Space, Trouble> {
        let person = self.person(who).await;
        if person.relay.is_open()
            && let Some((joining, true)) = person.joining.get(&id)
        {
            joining.ready(PATIENCE).await?;
            person.joining.remove(&id);
        }
        Ok(person.client().space(id)?)
    }

    /// Where the id of an object is an account, scripts say the name of a person.
    async fn resolve(&mut self, object: &ObjectName) -> ObjectName {
        if !super::is_of_an_account(&object.object_type) {
            return object.clone();
        }
        ObjectName { id: self.person(&object.id).await.client().own(), ..object.clone() }
    }

    fn note_plaintext(&mut self, object: &ObjectName, fields: &Map<String, Value>) {
        self.plaintext.insert(object.object_type.clone());
        // The node knows its accounts; that one of them has a profile is in the name tag alone.
        if object.id.parse::<client_sdk::AccountId>().is_err() {
            self.plaintext.insert(object.id.clone());
        }
        self.plaintext.extend(fields.iter().flat_map(|(field, value)| [field.clone(), plain(value)]));
    }

    async fn create_space(&mut self, who: &str, name: &str, history: HistoryMode) -> Result<(), Trouble> {
        let space = self.person(who).await.client().create_space(name).await?;
        if history != HistoryMode::All {
            // A space begins with all of its history, and nobody else is there yet.
            set_history(&space, history).await?;
        }
        self.plaintext.insert(name.to_owned());
        self.names.insert(name.to_owned(), space.id());
        self.latest = Some(space.id());
        Ok(())
    }

    async fn restart(&mut self, who: &str) -> Result<(), Trouble> {
        let person = self.person(who).await;
        let client = person.client.take().expect("it is not restarting");
        person.client = Some(client.reopen().await);
        // The joins of the old client are gone; joining again goes on where they stopped.
        person.joining.clear();
        Ok(())
    }

    fn restart_node(&mut self) -> Result<(), Trouble> {
        self.node.restart();
        for person in self.people.values().filter(|p| p.relay.is_open()) {
            person.client().reconnect();
        }
        Ok(())
    }

    // ---- membership -------------------------------------------------------------------------------------------------

    #[expect(clippy::too_many_arguments, reason = "what a line of a script says")]
    async fn invite(
        &mut self,
        who: &str,
        id: SpaceId,
        whom: &str,
        role: Role,
        mode: Option<InviteMode>,
        max_uses: Option<u32>,
        must_see: &[ObjectName],
    ) -> Result<(), Trouble> {
        let space = self.space(who, id).await?;
        let mut options = InviteOptions::approval();
        options.mode = mode.unwrap_or(InviteMode::Open);
        options.role = role;
        options.max_uses = max_uses;
        options.must_see = self.trees(&space, must_see).await?;
        let invite = space.invite(options).await?;
        let token = Token { space: id, id: invite.id(), text: invite.token };
        self.tokens.entry(whom.to_owned()).or_default().push(token);
        if mode.is_some() {
            return Ok(());
        }
        self.join(whom, id, None).await?;
        self.space(whom, id).await.map(|_| ())
    }

    async fn account(&mut self, who: &str) -> AccountId {
        self.person(who).await.client().account()
    }

    async fn govern(&mut self, who: &str, id: SpaceId, act: &Governing) -> Result<(), Trouble> {
        if *act == Governing::Cancels {
            return Ok(self.person(who).await.client().cancel_join(id).await?);
        }
        let space = self.space(who, id).await?;
        match act {
            Governing::Removes { whom } => {
                let mut accounts = Vec::with_capacity(whom.len());
                for name in whom {
                    accounts.push(self.account(name).await);
                }
                space.remove_members(&accounts).await?;
            }
            Governing::Leaves => space.leave().await?,
            Governing::Makes { whom, role } => space.change_role(self.account(whom).await, *role).await?,
            Governing::Adds { whom, role } => {
                space.add_members(&[(self.account(whom).await, *role)]).await?;
                let person = self.person(whom).await;
                if person.relay.is_open() {
                    person.client().open_joined(id, PATIENCE).await?;
                }
            }
            Governing::Revokes { whom } => {
                let given = self.tokens.get(whom).into_iter().flatten().rfind(|t| t.space == id).map(|t| t.id);
                let invite = given.ok_or_else(|| Trouble::wrong("an invite", format!("nobody gave {whom} one")))?;
                space.revoke_invite(invite).await?;
            }
            Governing::Rotates => space.rotate_keys().await?,
            Governing::Reseals { whom } => space.reseal(self.account(whom).await).await?,
            Governing::Transfers { to } => space.transfer_ownership(self.account(to).await).await?,
            Governing::SetsHistory { history } => set_history(&space, *history).await?,
            Governing::DeletesSpace => space.delete().await?,
            Governing::Cancels => unreachable!("done above"),
        }
        Ok(())
    }

    async fn trees(&mut self, space: &Space, objects: &[ObjectName]) -> Result<Vec<TreeId>, Trouble> {
        let mut trees = Vec::with_capacity(objects.len());
        for object in objects {
            let object = self.resolve(object).await;
            trees.push(space.objects().tree_id(&object.object_type, &object.id)?);
        }
        Ok(trees)
    }

    async fn join(&mut self, who: &str, id: SpaceId, by: Option<&str>) -> Result<(), Trouble> {
        let tokens = self.tokens.get(by.unwrap_or(who)).into_iter().flatten();
        let token = tokens.filter(|t| t.space == id).map(|t| t.text.clone()).next_back();
        let token = token.ok_or_else(|| Trouble::wrong("an invite", format!("nobody gave {who} one")))?;
        let person = self.person(who).await;
        let joining = person.client().join(&token).await?;
        let is_in = person.client().space(id).is_ok();
        person.joining.insert(id, (joining, is_in));
        Ok(())
    }

    async fn is_ready(&mut self, who: &str, id: SpaceId, must_fail: bool) -> Result<(), Trouble> {
        let patience = if must_fail { MOMENT } else { PATIENCE };
        let person = self.person(who).await;
        match person.joining.get(&id) {
            Some((joining, _)) => {
                joining.ready(patience).await?;
                person.joining.remove(&id);
                Ok(())
            }
            None => person.client().space(id).map(|_| ()).map_err(Into::into),
        }
    }

    async fn approve(
        &mut self,
        who: &str,
        id: SpaceId,
        whom: &str,
        role: Option<Role>,
        promising: &[ObjectName],
    ) -> Result<(), Trouble> {
        let (space, request) = self.request_of(who, id, whom).await?;
        let promised = self.trees(&space, promising).await?;
        space.approve(request, role, |w| w.promise_trees(&promised)).await?;
        if let Some((_, is_in)) = self.person(whom).await.joining.get_mut(&id) {
            *is_in = true;
        }
        Ok(())
    }

    /// The latest request of an account, whatever became of it: the rules say what may be done with it.
    async fn request_of(&mut self, who: &str, id: SpaceId, whom: &str) -> Result<(Space, AclId), Trouble> {
        let space = self.space(who, id).await?;
        // A request is durable at the node once `joins` returned.
        space.await_synced_within(PATIENCE).await?;
        let account = self.person(whom).await.client().account();
        let latest = space.requests()?.into_iter().rfind(|r| r.account == account).map(|r| r.id);
        let request = latest.ok_or(AclError::NoRequest { account })?;
        Ok((space, request))
    }

    // ---- what must hold ---------------------------------------------------------------------------------------------

    fn online(&self) -> Vec<String> {
        self.people.iter().filter(|(_, p)| p.relay.is_open()).map(|(name, _)| name.clone()).collect()
    }

    fn spaces(&self) -> Vec<SpaceId> {
        self.names.values().copied().collect()
    }

    /// Twice: what everybody sent in the first round, everybody has in the second.
    async fn settle(&mut self) -> Result<(), Trouble> {
        for _ in 0..2 {
            for who in self.online() {
                for id in self.spaces() {
                    match self.space(&who, id).await {
                        Ok(space) => settle_one(&space, self.account(&who).await).await?,
                        Err(Trouble::Refused { code, .. }) if code == "SPACE_UNKNOWN" => {}
                        Err(trouble) => return Err(trouble),
                    }
                }
            }
        }
        Ok(())
    }

    fn everyone_agrees(&self) -> Result<(), Trouble> {
        for id in self.spaces() {
            let mut first: Option<(String, Seen)> = None;
            for who in self.online() {
                let client = self.people[&who].client();
                let Ok(space) = client.space(id) else { continue };
                if !space.acl()?.members.contains_key(&client.account()) {
                    continue;
                }
                let seen = Seen::of(&space)?;
                match &first {
                    None => first = Some((who, seen)),
                    Some((other, expected)) if *expected != seen => {
                        let expected = format!("{other} and {who} see the same: {expected:?}");
                        return Err(Trouble::wrong(expected, format!("{seen:?}")));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    async fn node_holds(&mut self, name: &str, entries: u64) -> Result<(), Trouble> {
        let id = *self.names.get(name).ok_or_else(|| Trouble::wrong("a space", format!("nobody made {name}")))?;
        let member = self.online().into_iter().find(|who| self.people[who].client().space(id).is_ok());
        let member = member.ok_or_else(|| Trouble::wrong("a member who is online", "nobody"))?;
        let synced = self.space(&member, id).await?.await_synced_within(PATIENCE).await?;
        let held = synced.receipt.body().seq.0;
        if held != entries {
            return Err(Trouble::wrong(format!("{entries} entries"), format!("the node signs for {held}")));
        }
        self.plaintext.extend(self.people.keys().cloned());
        self.plaintext.retain(|text| !self.empty.iter().any(|bytes| holds(bytes, text)));
        let files = files_in(self.node.dir()).map_err(|e| Trouble::wrong("files of the node", e))?;
        no_plaintext(&self.plaintext, files.iter().map(Vec::as_slice))
    }
}

async fn set_history(space: &Space, history: HistoryMode) -> Result<(), Trouble> {
    let options = space.acl()?.options;
    Ok(space.set_options(SpaceOptions { history, ..options }).await?)
}

/// A member is in sync; a former one knows that it is one, and has nothing refused that it did not set aside.
async fn settle_one(space: &Space, account: AccountId) -> Result<(), Trouble> {
    let synced = space.await_synced_within(PATIENCE).await;
    if synced.as_ref().is_err_and(|e| e.code == NotSyncedCode::Forbidden) {
        // The node does not talk to it any more; its own copy learns why.
        let ended = || Ok((!space.acl()?.members.contains_key(&account)).then_some(()));
        let wrong = |happened: String| Trouble::wrong("the end of the membership, in its own log", happened);
        let learned = tokio::time::timeout(PATIENCE, until(space, ended)).await;
        learned.map_err(|_| wrong("it did not come".to_owned()))?.map_err(|e| wrong(e.to_string()))?;
    }
    if space.acl()?.members.contains_key(&account) {
        return Ok(synced.map(drop)?);
    }
    match space.refused()?.first() {
        None => Ok(()),
        Some(refused) => Err(Trouble::refused("REFUSED", &refused.message)),
    }
}

/// In the log, and nothing of it is readable here.
fn is_hidden(space: &Space, object: &ObjectName) -> Result<(), Trouble> {
    let expected = "a tree that this reader cannot read";
    let tree = space.objects().tree(&object.object_type, &object.id)?;
    let tree = tree.ok_or_else(|| Trouble::wrong(expected, "there is no such tree"))?;
    let changes = tree.changes()?;
    let hidden = !changes.is_empty() && changes.iter().all(|c| c.content.is_none()) && !tree.snapshot()?.purged;
    if hidden { Ok(()) } else { Err(Trouble::wrong(expected, format!("{changes:?}"))) }
}

impl Person {
    fn client(&self) -> &TestClient {
        self.client.as_ref().expect("it is not restarting")
    }
}

/// What must be equal at equal positions.
#[derive(Debug, PartialEq)]
struct Seen {
    seq: u64,
    acl_head: AclId,
    heads: Vec<(TreeId, Vec<client_sdk::ChangeId>)>,
    objects: Vec<Object>,
}

impl Seen {
    fn of(space: &Space) -> Result<Self, Trouble> {
        let mut heads = Vec::new();
        for id in space.trees(None, TREES_MAX)? {
            let tree = space.tree(id)?.ok_or_else(|| Trouble::wrong("a listed tree", format!("{id} is gone")))?;
            heads.push((id, tree.snapshot()?.heads.iter().copied().collect()));
        }
        let (seq, acl_head) = (space.status()?.seq, space.acl()?.head);
        Ok(Self { seq, acl_head, heads, objects: space.objects().list_all()? })
    }
}

/// The bytes of every file below a folder.
fn files_in(dir: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else {
            files.push(std::fs::read(&path)?);
        }
    }
    Ok(files)
}
