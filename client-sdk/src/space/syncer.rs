//! The engine of one space: fetches what is wanted, for as long as it takes. The decisions are [`Syncer`]'s; here are the
//! rows, the calls and the timers. It belongs to the space: whoever wanted something may have hung up long ago.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sync_core::code::Code;
use sync_core::ids::TreeId;
use sync_core::limits;
use sync_core::session::Moment;
use sync_core::syncer::{End, Input, Item, Key, Output, Priority, Syncer, Want};
use sync_store::{SyncItem, SyncItemKind, VerdictKind, WriteTx};
use tokio::task::{Id, JoinError, JoinSet};

use super::{Space, SpaceInner};
use crate::connect::Conn;
use crate::error::{CallError, ReadError};
use crate::link::chain;

/// Why an item was not fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    /// The node answered, and does not have it.
    #[error("the node does not have the content of {0} change(s)")]
    NoContent(usize),
    /// The node does not know the tree: nobody's write of it reached it.
    #[error("the node does not have the tree")]
    NoTree,
    /// What failed here, with its causes.
    #[error("{0}")]
    Local(String),
    #[error("the attempt panicked")]
    Panicked,
}

impl From<ReadError> for FetchError {
    fn from(error: ReadError) -> Self {
        Self::local(&error)
    }
}

impl FetchError {
    pub(super) fn local(error: &dyn std::error::Error) -> Self {
        Self::Local(chain(error))
    }

    /// As it is kept; 0 for what has no code of the rules or the node.
    fn number(&self) -> i32 {
        match self {
            Self::Call(CallError::Refused(failure)) => failure.code.number(),
            Self::NoContent(_) => Code::PayloadMissing.number(),
            Self::NoTree => Code::MissingRoot.number(),
            Self::Call(_) | Self::Local(_) | Self::Panicked => 0,
        }
    }

    fn end(&self, jitter: u8) -> End {
        match self {
            Self::Call(CallError::Refused(failure)) if failure.code.is_transient() => {
                End::Pressed { hint: Duration::from_millis(failure.retry_after_ms), jitter }
            }
            // Something between here and the node answered in its place, or nobody did.
            Self::Call(CallError::Broken(_) | CallError::TimedOut | CallError::Offline { .. }) => {
                End::Pressed { hint: Duration::ZERO, jitter }
            }
            Self::Call(CallError::Refused(_) | CallError::BadAnswer(_))
            | Self::NoContent(_)
            | Self::NoTree
            | Self::Local(_)
            | Self::Panicked => End::Failed { jitter },
        }
    }
}

type Attempt = Result<(), FetchError>;

struct Engine {
    space: Arc<SpaceInner>,
    syncer: Syncer,
    conn: Option<Conn>,
    running: JoinSet<Attempt>,
    /// What each task is about, and the connection that it was begun on.
    about: BTreeMap<Id, (Key, u64)>,
    /// Why the last attempt failed, until that is kept.
    failed: BTreeMap<Key, FetchError>,
}

pub(super) async fn run(space: Arc<SpaceInner>) {
    space.want_what_is_missing().await;
    let mut connection = space.shared.connection.clone();
    let mut budget = space.shared.budget_moved.subscribe();
    let (syncer, running) = (Syncer::default(), JoinSet::new());
    let mut engine =
        Engine { space: space.clone(), syncer, conn: None, running, about: BTreeMap::new(), failed: BTreeMap::new() };
    let now = connection.borrow_and_update().online();
    engine.connection(now).await;
    loop {
        let deadline = engine.deadline();
        tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = connection.borrow_and_update().online();
                engine.connection(now).await;
            }
            Some(ended) = engine.running.join_next_with_id() => engine.ended(ended).await,
            () = space.sync_wanted.notified() => engine.give(Input::Stored).await,
            Ok(()) = budget.changed() => engine.give(Input::Tick).await,
            () = sleep_until(deadline, &space) => engine.give(Input::Tick).await,
        }
    }
}

async fn sleep_until(deadline: Option<Moment>, space: &SpaceInner) {
    match deadline {
        None => std::future::pending().await,
        Some(at) => {
            let left = at.0.saturating_sub(space.shared.host.now().0);
            tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        }
    }
}

/// What was under way for a space that is closed is nobody's any more; its share of the budget is everybody's.
impl Drop for Engine {
    fn drop(&mut self) {
        let now = self.space.shared.host.now();
        self.space.shared.with_budget(|budget| self.about.values().for_each(|_| budget.end(End::Lost, now)));
        self.space.shared.budget_moved.send_modify(|n| *n += 1);
    }
}

impl Engine {
    fn deadline(&self) -> Option<Moment> {
        let now = self.space.shared.host.now();
        self.space.shared.with_budget(|budget| self.syncer.deadline(budget, now))
    }

    async fn connection(&mut self, conn: Option<Conn>) {
        let before = self.conn.as_ref().map(Conn::generation);
        let now = conn.as_ref().map(Conn::generation);
        self.conn = conn;
        match now {
            None => self.give(Input::Offline).await,
            Some(_) if before != now => self.give(Input::Online).await,
            Some(_) => {}
        }
    }

    async fn give(&mut self, input: Input) {
        let mut input = Some(input);
        while let Some(one) = input.take() {
            let now = self.space.shared.host.now();
            self.space.shared.with_budget(|budget| self.syncer.handle(one, budget, now));
            while let Some(output) = self.syncer.poll() {
                match output {
                    Output::Load { max } => input = Some(self.load(max)),
                    Output::Start { item } => self.start(item),
                    Output::Retry { key, attempts, at } => self.keep_retry(key, attempts, at).await,
                }
            }
        }
    }

    fn load(&self, max: usize) -> Input {
        let (space, host) = (&self.space, &self.space.shared.host);
        let (now, now_ms) = (host.now(), host.wall_ms());
        let wait_max = u64::try_from(limits::RETRY_HINT_MAX.as_millis()).unwrap_or(u64::MAX);
        let loaded = space.shared.store.read(|tx| tx.sync_items_due(space.id, now_ms, wait_max, max));
        match loaded {
            Ok(load) => {
                let next = load.next_ms.map(|at| now.plus(Duration::from_millis(at.saturating_sub(now_ms).max(1))));
                Input::Loaded { due: load.due.iter().map(item_of).collect(), next }
            }
            Err(error) => {
                tracing::warn!(space = %space.id.short(), error = %error, "what is wanted could not be read");
                Input::Loaded { due: Vec::new(), next: Some(now.plus(limits::RETRY_FIRST)) }
            }
        }
    }

    fn start(&mut self, item: Item) {
        let Some(conn) = self.conn.clone() else { return };
        let (space, key, generation) = (self.space.clone(), item.key, conn.generation());
        let task = self.running.spawn(async move { space.fetch_item(&conn, key).await });
        self.about.insert(task.id(), (key, generation));
    }

    async fn ended(&mut self, ended: Result<(Id, Attempt), JoinError>) {
        let (id, attempt) = match ended {
            Ok((id, attempt)) => (id, attempt),
            // One item's trouble is contained, and shown.
            Err(error) => (error.id(), Err(FetchError::Panicked)),
        };
        let Some((key, generation)) = self.about.remove(&id) else { return };
        let lost = self.conn.as_ref().map(Conn::generation) != Some(generation);
        let [jitter] = self.space.shared.host.random();
        let end = match attempt {
            Ok(()) => End::Done,
            Err(FetchError::Call(_)) if lost => End::Lost,
            Err(error) => {
                tracing::info!(space = %self.space.id.short(), tree = %key.tree.short(), error = %error, "not fetched");
                let end = error.end(jitter);
                self.failed.insert(key, error);
                end
            }
        };
        self.give(Input::Ended { key, end }).await;
        self.space.shared.budget_moved.send_modify(|n| *n += 1);
        self.space.touch();
    }

    async fn keep_retry(&mut self, key: Key, attempts: u32, at: Moment) {
        let (space, host) = (&self.space, &self.space.shared.host);
        let wait = u64::try_from(at.0.saturating_sub(host.now().0).as_millis()).unwrap_or(u64::MAX);
        let error = self.failed.remove(&key).map(|error| (error.number(), error.to_string()));
        let now_ms = host.wall_ms();
        let row = SyncItem {
            tree: key.tree,
            kind: kind_of(key.want),
            priority: Priority::Gap.number(),
            attempts,
            error,
            next_retry_ms: now_ms.saturating_add(wait),
            since_ms: now_ms,
        };
        let id = space.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.note_sync_failure(id, &row)?) };
        if let Err(error) = space.shared.store.write(job).await {
            tracing::warn!(space = %id.short(), error = %error, "a failure could not be noted");
        }
    }
}

impl Space {
    /// Fetches a tree before the tail brings it, ahead of everything that nobody waits for. Returns once that is kept: it goes
    /// on whatever becomes of the caller.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space) -> Result<(), Box<dyn std::error::Error>> {
    /// let tree = space.objects().tree_id("profile", "mia")?;
    /// space.fetch(tree).await?;
    /// println!("{:?}", space.tree_status(tree)?.reasons);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the store fails.
    pub async fn fetch(&self, tree: TreeId) -> Result<(), crate::error::WriteError> {
        self.inner.want(vec![tree], SyncItemKind::Fetch, Priority::Reader).await
    }
}

impl SpaceInner {
    /// Keeps that something of some trees is wanted, and has it fetched.
    pub(crate) async fn want(
        self: &Arc<Self>,
        trees: Vec<TreeId>,
        kind: SyncItemKind,
        priority: Priority,
    ) -> Result<(), crate::error::WriteError> {
        let (space, now_ms) = (self.id, self.shared.host.wall_ms());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            for tree in trees {
                tx.want_sync_item(space, &wanted(tree, kind, priority, now_ms))?;
            }
            Ok(())
        };
        let this = self.clone();
        let wanting = async move {
            this.shared.store.write(job).await.map_err(crate::error::from_store_write)?;
            this.sync_wanted.notify_one();
            this.touch();
            Ok(())
        };
        self.shared.to_its_end(wanting).await?
    }

    /// What an earlier version noted as missing, and did not ask for again.
    async fn want_what_is_missing(self: &Arc<Self>) {
        let missing = self.shared.store.read(|tx| tx.verdicts_of(self.id, VerdictKind::Missing, None, usize::MAX));
        let trees: std::collections::BTreeSet<_> = missing.into_iter().flatten().map(|(tree, _, _)| tree).collect();
        if trees.is_empty() {
            return;
        }
        if let Err(error) = self.want(trees.into_iter().collect(), SyncItemKind::Content, Priority::Gap).await {
            tracing::warn!(space = %self.id.short(), error = %error, "what is missing could not be asked for");
        }
    }

    async fn fetch_item(self: Arc<Self>, conn: &Conn, key: Key) -> Attempt {
        match key.want {
            Want::Content => self.fetch_content(conn, key.tree).await,
            Want::Fetch => self.fetch_ahead(conn, key.tree).await,
            Want::Judge => self.judge_wanted(key.tree).await,
        }
    }
}

/// An item as it is first kept.
pub(super) fn wanted(tree: TreeId, kind: SyncItemKind, priority: Priority, now_ms: u64) -> SyncItem {
    SyncItem {
        tree,
        kind,
        priority: priority.number(),
        attempts: 0,
        error: None,
        next_retry_ms: now_ms,
        since_ms: now_ms,
    }
}

fn item_of(row: &SyncItem) -> Item {
    let want = match row.kind {
        SyncItemKind::Fetch => Want::Fetch,
        SyncItemKind::Content => Want::Content,
        SyncItemKind::Judge => Want::Judge,
    };
    let key = Key { tree: row.tree, want };
    Item { key, priority: Priority::from_number(row.priority), attempts: row.attempts }
}

const fn kind_of(want: Want) -> SyncItemKind {
    match want {
        Want::Fetch => SyncItemKind::Fetch,
        Want::Content => SyncItemKind::Content,
        Want::Judge => SyncItemKind::Judge,
    }
}
