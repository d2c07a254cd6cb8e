//! Joining: from a token to a space that is ready. Every step is durable and idempotent; joining again goes on where it
//! stopped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sync_core::acl::{AclState, RequestStatus, sign_join_proof, sign_read_proof};
use sync_core::code::Code;
use sync_core::ids::{EntryId, HistoryId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::{Genesis, Position, Reject, genesis};
use sync_core::record::{
    AclContent, AclRecord, InviteMode, InviteToken, InvitedSpace, JoinClaim, RawRecord, Role, Verified, verify_as,
};
use sync_core::token::{token_from_text, token_to_text};
use sync_e2ee::{InviteSecret, KeyRing, Recipient, seal_keys, seal_profile};
use sync_proto::v1::{self, acl_read_entry::Entry};
use sync_store::{Registration, WriteTx};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::client::{Client, Shared};
use crate::clock;
use crate::connect::{Conn, failure};
use crate::error::{AclError, CallError, JoinError, OpenError, ReadError, from_store_write};
use crate::members::{keys_for, sign_record};
use crate::space::{Space, SpaceInner, absorb};
use crate::synced::Readability;

const JOIN_PREFIX: &str = "join/";
/// How often a join is tried when other records come first.
const ATTEMPTS_MAX: u32 = 50;
/// The pause after the first conflict; each further one is longer by as much.
const CONFLICT_PAUSE: Duration = Duration::from_millis(10);

/// A join that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinInfo {
    pub space: SpaceId,
    pub mode: InviteMode,
    pub role: Role,
    pub stage: JoinStage,
}

/// How far a join is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinStage {
    /// The token is kept; the node has not been asked yet.
    Kept,
    /// An admin has to accept.
    Requested,
    /// A member; what it must see may still be on its way.
    Joined,
    /// An admin declined the request. Said once by the next join with this token; the one after asks again.
    Declined,
}

/// What is kept of a join, encrypted, until it is ready.
#[derive(Serialize, Deserialize)]
struct JoinRow {
    token: String,
    stage: JoinStage,
}

/// A join of one token. Dropping it stops the waiting, not the join.
#[derive(Debug)]
pub struct Joining {
    client: Client,
    token: Verified<InviteToken>,
    spaces: Vec<SpaceId>,
}

impl Client {
    /// Joins the spaces of a token, or asks to: returns when the join or the request is durable at the node.
    ///
    /// # Errors
    /// [`JoinError`]; with several spaces, of the first that failed, named. The others are joined.
    pub async fn join(&self, token: &str) -> Result<Joining, JoinError> {
        let token = token_from_text(token)?;
        self.shared.check_token(token.body())?;
        let mut failed = None;
        for space in &token.body().spaces {
            // From here on this call speaks for the join; what it asks anew must not get the answer to what was asked before.
            self.shared.stop_resuming(space.space);
            if let Err(error) = self.shared.join_space(&token, space).await {
                let source = Box::new(error);
                failed.get_or_insert(JoinError::Space { space: space.space, source });
            }
        }
        match failed {
            Some(JoinError::Space { source, .. }) if token.body().spaces.len() == 1 => Err(*source),
            Some(error) => Err(error),
            None => {
                let spaces = token.body().spaces.iter().map(|s| s.space).collect();
                Ok(Joining { client: self.clone(), token, spaces })
            }
        }
    }

    /// Joins that are not ready yet.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn joins(&self) -> Result<Vec<JoinInfo>, ReadError> {
        let rows = self.shared.join_rows()?;
        let info = |(space, row): (SpaceId, JoinRow)| {
            let token = token_from_text(&row.token).ok()?;
            let invited = token.body().spaces.iter().find(|s| s.space == space)?;
            Some(JoinInfo { space, mode: invited.mode, role: invited.role, stage: row.stage })
        };
        Ok(rows.into_iter().filter_map(info).collect())
    }

    /// Goes on with the joins that an earlier process began.
    pub(crate) fn resume_joins(&self) -> Result<(), OpenError> {
        let rows = match self.shared.join_rows() {
            Ok(rows) => rows,
            Err(ReadError::Store(error)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(error = %error, "unfinished joins could not be read");
                return Ok(());
            }
        };
        for (space, row) in rows {
            if row.stage == JoinStage::Declined || self.shared.has_space(space).unwrap_or(false) {
                continue;
            }
            let Ok(token) = token_from_text(&row.token) else { continue };
            let Some(invited) = token.body().spaces.iter().find(|s| s.space == space).cloned() else { continue };
            let shared = self.shared.clone();
            let stopped = shared.start_resuming(space);
            self.shared.spawn(async move {
                let work = async {
                    if let Err(error) = shared.follow_join(&token, &invited).await {
                        tracing::info!(space = %space.short(), error = %error, "a join did not finish");
                        shared.note_join_failed(&token, space, &error).await;
                    }
                };
                // Nothing remains of work that was stopped: what matters of it is in the node's log.
                let _ = stopped.run_until_cancelled(work).await;
            });
        }
        Ok(())
    }
}

impl Joining {
    /// The spaces of the token.
    #[must_use]
    pub fn spaces(&self) -> &[SpaceId] {
        &self.spaces
    }

    /// Waits until this account is a member of every space and can read everything that it is meant to see first: what the
    /// invite names, and what the acceptance promised.
    ///
    /// # Errors
    /// [`JoinError::NotReady`] after `timeout`, saying what it waits for; [`JoinError::Declined`]; [`JoinError::Hidden`].
    pub async fn ready(&self, timeout: Duration) -> Result<Vec<Space>, JoinError> {
        let waiting = std::sync::Mutex::new("the node's answer".to_owned());
        let all = async {
            let mut spaces = Vec::with_capacity(self.spaces.len());
            for invited in &self.token.body().spaces {
                spaces.push(self.client.shared.ready(&self.token, invited, &waiting).await?);
            }
            Ok(spaces)
        };
        match tokio::time::timeout(timeout, all).await {
            Ok(result) => result,
            Err(_) => {
                let mut waiting = waiting.into_inner().unwrap_or_default();
                if self.client.shared.connection.borrow().online().is_none() {
                    waiting = format!("{waiting}; {}", self.client.shared.offline());
                }
                Err(JoinError::NotReady { waiting })
            }
        }
    }
}

impl Shared {
    /// What ends the background work on a join: the client's end, or a call that takes the join over.
    fn start_resuming(&self, space: SpaceId) -> CancellationToken {
        let stop = self.cancel.child_token();
        self.resuming.lock().unwrap_or_else(PoisonError::into_inner).insert(space, stop.clone());
        stop
    }

    fn stop_resuming(&self, space: SpaceId) {
        if let Some(stop) = self.resuming.lock().unwrap_or_else(PoisonError::into_inner).remove(&space) {
            stop.cancel();
        }
    }

    fn check_token(&self, token: &InviteToken) -> Result<(), JoinError> {
        let (expected, actual) = (token.authority, self.address.authority);
        if expected != actual {
            return Err(JoinError::WrongAuthority { expected, actual });
        }
        // Our clock may be wrong and the node's word counts; but a token that is long dead is not worth a call.
        if token.expires_ms != 0 && token.expires_ms <= clock::wall_ms() {
            return Err(JoinError::Expired { expires_ms: token.expires_ms });
        }
        Ok(())
    }

    fn join_rows(&self) -> Result<Vec<(SpaceId, JoinRow)>, ReadError> {
        let rows = self.store.read(|tx| tx.kv_scan(JOIN_PREFIX))?;
        let mut found = Vec::with_capacity(rows.len());
        for (key, sealed) in rows {
            let bytes = self.local.open_row(key.as_bytes(), &sealed)?;
            let space = key.strip_prefix(JOIN_PREFIX).and_then(|id| id.parse().ok());
            let row = serde_json::from_slice(&bytes).ok();
            found.extend(space.zip(row));
        }
        Ok(found)
    }

    async fn keep_join(
        &self,
        space: SpaceId,
        token: &Verified<InviteToken>,
        stage: JoinStage,
    ) -> Result<(), JoinError> {
        let key = join_key(space);
        let sealed = self.seal_join(&key, token, stage);
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.kv_put(&key, &sealed)?) };
        let written = self.store.write(job).await.map_err(read_from_write)?;
        self.store.durable(written.commit).await?;
        Ok(())
    }

    /// Whether this installation asked, and was not told the answer yet.
    fn asked_before(&self, space: SpaceId) -> Result<bool, ReadError> {
        let rows = self.join_rows()?;
        let stage = rows.iter().find(|(of, _)| *of == space).map(|(_, row)| row.stage);
        Ok(matches!(stage, Some(JoinStage::Requested | JoinStage::Declined)))
    }

    /// After a join in the background failed for good: a decline is kept until somebody is told. If somebody was told in the
    /// meantime, there is nothing to keep.
    async fn note_join_failed(&self, token: &Verified<InviteToken>, space: SpaceId, error: &JoinError) {
        let key = join_key(space);
        let declined = matches!(error, JoinError::Declined).then(|| self.seal_join(&key, token, JoinStage::Declined));
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            match (tx.kv(&key)?, declined) {
                (None, _) => Ok(()),
                (Some(_), Some(row)) => Ok(tx.kv_put(&key, &row)?),
                (Some(_), None) => Ok(tx.kv_delete(&key)?),
            }
        };
        if let Err(error) = self.store.write(job).await {
            tracing::warn!(space = %space.short(), error = %error, "the end of a join could not be noted");
        }
    }

    fn seal_join(&self, key: &str, token: &Verified<InviteToken>, stage: JoinStage) -> Vec<u8> {
        let row = JoinRow { token: token_to_text(token), stage };
        let bytes = serde_json::to_vec(&row).expect("a join row is always JSON");
        self.local.seal_row(key.as_bytes(), &bytes, &mut rand::rng())
    }

    async fn forget_join(&self, space: SpaceId) -> Result<(), JoinError> {
        let key = join_key(space);
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.kv_delete(&key)?) };
        self.store.write(job).await.map_err(read_from_write)?;
        Ok(())
    }

    /// Up to the durable join or request.
    async fn join_space(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<(), JoinError> {
        if self.has_space(invited.space)? {
            return Ok(());
        }
        self.link(sync_core::session::Input::Wake);
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            let mut acl = self.read_acl(invited, Follow::No).await?;
            match standing(&acl.state, self) {
                Standing::Member => {
                    self.keep_join(invited.space, token, JoinStage::Joined).await?;
                    self.adopt(&acl).await?;
                    return Ok(());
                }
                Standing::Pending => return self.keep_join(invited.space, token, JoinStage::Requested).await,
                Standing::Declined if self.asked_before(invited.space)? => {
                    self.forget_join(invited.space).await?;
                    return Err(JoinError::Declined);
                }
                Standing::Declined | Standing::Cancelled | Standing::Stranger => {}
            }
            self.keep_join(invited.space, token, JoinStage::Kept).await?;
            let appended = self.append_join(&mut acl, invited).await;
            match appended {
                Ok(()) => {}
                // Somebody else's record came first: look again and make a new one.
                Err(JoinError::Acl(AclError::Call(CallError::Refused(f)))) if f.code == Code::AclConflict => {}
                Err(error) => {
                    // Nothing of a join that failed for good stays behind.
                    if !is_transient(&error) {
                        self.forget_join(invited.space).await?;
                    }
                    return Err(error);
                }
            }
        }
        Err(AclError::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    async fn append_join(&self, acl: &mut AclRead, invited: &InvitedSpace) -> Result<(), JoinError> {
        let contents = vec![self.join_content(acl, invited)?];
        let record = sign_record(self, &acl.state, contents)?;
        // What the rules refuse here, they refuse everywhere.
        acl.state.apply(&record, Seq(u64::MAX)).map_err(|e| AclError::from(Reject::Acl(e)))?;
        let request = v1::AclAppendRequest {
            space: invited.space.to_bytes(),
            record: Some(record.into_raw().into()),
            invite_proof: None,
        };
        self.acl_append(request).await?;
        Ok(())
    }

    fn join_content(&self, acl: &mut AclRead, invited: &InvitedSpace) -> Result<AclContent, JoinError> {
        let secret = InviteSecret::from_bytes(invited.invite_secret);
        let (state, account) = (&acl.state, self.account.id());
        let invite = state.live_invite(&secret.id()).map_err(|e| AclError::from(Reject::Acl(e)))?;
        let role = invite.content.role;
        let claim = JoinClaim {
            invite: secret.id(),
            account,
            role,
            proof: sign_join_proof(secret.signing_key(), invited.space, account, role),
            profile_ct: self.profile_ct(state)?,
        };
        match invite.content.mode {
            InviteMode::Approval => Ok(AclContent::RequestJoin { claim }),
            InviteMode::Open => {
                let ring = acl.open_with(&secret, self)?;
                let keys = ring.keys(state.epoch).ok_or(ReadError::NoKeys)?;
                let to = Recipient::Account(account);
                let keys = keys_for(state, role, keys);
                let seal =
                    seal_keys(Some(invited.space), state.epoch, to, &keys, &mut rand::rng()).map_err(AclError::from)?;
                Ok(AclContent::JoinByInvite { claim, seals: vec![seal] })
            }
        }
    }

    fn profile_ct(&self, state: &AclState) -> Result<Bytes, JoinError> {
        let (Some(name), Some(epoch)) = (&self.display_name, state.epochs.get(&state.epoch)) else {
            return Ok(Bytes::new());
        };
        let profile = serde_json::json!({ "name": name }).to_string();
        let sealed = seal_profile(state.space, state.epoch, &epoch.profile_key, profile.as_bytes(), &mut rand::rng());
        Ok(sealed.map_err(AclError::from)?)
    }

    /// Waits for the acceptance of a request, or joins if that has not happened yet.
    async fn follow_join(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<Space, JoinError> {
        loop {
            if self.has_space(invited.space)? {
                return Ok(self.open_space(invited.space)?);
            }
            let followed = async {
                let acl = self.read_acl(invited, Follow::UntilDecided).await?;
                match standing(&acl.state, self) {
                    Standing::Member => {
                        self.keep_join(invited.space, token, JoinStage::Joined).await?;
                        self.adopt(&acl).await
                    }
                    Standing::Declined => Err(JoinError::Declined),
                    Standing::Cancelled => Err(JoinError::Cancelled),
                    // The process ended before the node was asked.
                    Standing::Stranger => self.join_space(token, invited).await,
                    Standing::Pending => Ok(()),
                }
            };
            match followed.await {
                Ok(()) => {}
                Err(error) if is_transient(&error) => {
                    tracing::debug!(space = %invited.space.short(), error = %error, "a join waits");
                    tokio::time::sleep(limits::RETRY_FIRST / 4).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn ready(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
        waiting: &std::sync::Mutex<String>,
    ) -> Result<Space, JoinError> {
        let say = |text: String| *waiting.lock().unwrap_or_else(PoisonError::into_inner) = text;
        say(match invited.mode {
            InviteMode::Open => "the node to take the join".to_owned(),
            InviteMode::Approval => "an admin to accept the request".to_owned(),
        });
        let space = match self.follow_join(token, invited).await {
            Ok(space) => space,
            Err(error) => {
                self.forget_join(invited.space).await?;
                return Err(error);
            }
        };
        say("the space's log".to_owned());
        let mut moved = space.inner.moved.subscribe();
        loop {
            moved.borrow_and_update();
            match space.inner.missing(invited)? {
                None => break,
                Some(tree) => say(format!("{tree}")),
            }
            if moved.changed().await.is_err() {
                return Err(self.offline().into());
            }
        }
        self.forget_join(invited.space).await?;
        Ok(space)
    }

    fn has_space(&self, space: SpaceId) -> Result<bool, ReadError> {
        Ok(self.store.read(|tx| tx.space(space))?.is_some())
    }

    /// Keeps the beginning of a log that we are a member of, and opens it: the rest comes by its tail.
    async fn adopt(self: &Arc<Self>, acl: &AclRead) -> Result<(), JoinError> {
        let genesis = acl.genesis.clone();
        let space = genesis.space();
        let history = acl.history;
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            tx.create_space(&genesis, history)?;
            let mut state = tx.node_state(space)?;
            state.registration = Registration::Registered;
            Ok(tx.put_node_state(space, &state)?)
        };
        self.store.write(job).await.map_err(read_from_write)?;
        self.open_space(space)?;
        Ok(())
    }
}

impl SpaceInner {
    /// The first tree that this member is meant to see and does not see yet.
    fn missing(&self, invited: &InvitedSpace) -> Result<Option<TreeId>, JoinError> {
        let acl = self.acl()?;
        let account = self.shared.account.id();
        // The keys are published after the commit that brought them.
        if !acl.members.contains_key(&account) || self.ring().name_key().is_none() {
            // Our own join is still on its way down the log.
            return Ok(invited.must_see.first().map(|t| t.tree).or(Some(TreeId::from_hash([0; 32]))));
        }
        let mut wanted: Vec<(TreeId, Vec<sync_core::ids::ChangeId>)> =
            invited.must_see.iter().map(|t| (t.tree, t.heads.clone())).collect();
        for request in acl.requests.values().filter(|r| r.claim.account == account) {
            if let RequestStatus::Accepted { frontier, .. } = &request.status {
                wanted.extend(frontier.iter().map(|t| (t.tree, t.heads.clone())));
            }
        }
        for (tree, heads) in wanted {
            match self.readability(tree)? {
                Readability::Purged => continue,
                Readability::Hidden => return Err(JoinError::Hidden { tree }),
                Readability::Absent => return Ok(Some(tree)),
                Readability::Readable => {}
            }
            let all = self.shared.store.read(|tx| -> Result<bool, ReadError> {
                for head in &heads {
                    if tx.change(self.id, tree, *head)?.is_none() {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            if !all {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }
}

/// How this account stands in an ACL.
enum Standing {
    Member,
    Pending,
    Declined,
    Cancelled,
    Stranger,
}

fn standing(state: &AclState, shared: &Shared) -> Standing {
    let account = shared.account.id();
    if state.members.contains_key(&account) {
        return Standing::Member;
    }
    let latest = state.requests.values().filter(|r| r.claim.account == account).max_by_key(|r| r.at);
    match latest.map(|r| &r.status) {
        None | Some(RequestStatus::Accepted { .. }) => Standing::Stranger,
        Some(RequestStatus::Pending) => Standing::Pending,
        Some(RequestStatus::Declined { .. }) => Standing::Declined,
        Some(RequestStatus::Cancelled { .. }) => Standing::Cancelled,
    }
}

fn join_key(space: SpaceId) -> String {
    format!("{JOIN_PREFIX}{space}")
}

fn is_transient(error: &JoinError) -> bool {
    let JoinError::Acl(AclError::Call(call)) = error else { return false };
    match call {
        CallError::Offline { .. } | CallError::TimedOut | CallError::Broken(_) => true,
        CallError::Refused(failure) => matches!(
            failure.code,
            Code::SessionExpired
                | Code::Overloaded
                | Code::ShuttingDown
                | Code::StoreFailed
                | Code::StoreFull
                | Code::AclConflict
                | Code::RequiresMissing
        ),
        CallError::BadAnswer(_) => false,
    }
}

fn read_from_write(error: sync_store::WriteError<ReadError>) -> JoinError {
    from_store_write(error).into()
}

// ---- reading an ACL from outside ------------------------------------------------------------------------------------

/// An ACL log read from the node and checked from the space id down.
struct AclRead {
    genesis: Genesis,
    history: HistoryId,
    state: AclState,
    position: Position,
    records: Vec<RawRecord>,
}

/// When a read of the ACL ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    No,
    /// When our request was decided.
    UntilDecided,
}

impl AclRead {
    /// The keys that an open invite gives.
    fn open_with(&self, secret: &InviteSecret, shared: &Shared) -> Result<KeyRing, JoinError> {
        let mut ring = KeyRing::new(shared.account.clone());
        ring.hold_invite(secret.clone());
        let mut epoch = sync_core::ids::Epoch(0);
        for record in &self.records {
            // A seal to somebody else that is wrong is not our affair; a missing key shows when it is needed.
            let _ = absorb(&mut ring, record.clone(), &mut epoch, &self.state);
        }
        Ok(ring)
    }

    fn take(&mut self, entry: v1::AclReadEntry) -> Result<(), JoinError> {
        let bad = |text: String| JoinError::NodeFault(text);
        let next = match entry.entry.ok_or_else(|| bad("an empty entry".to_owned()))? {
            Entry::Id(id) => self.position.after(&EntryId::try_from(id.as_ref()).map_err(|e| bad(e.to_string()))?),
            Entry::Acl(record) => {
                let raw = RawRecord::try_from(record).map_err(|e| bad(e.to_string()))?;
                let record: Verified<AclRecord> = verify_as(raw).map_err(|e| bad(e.to_string()))?;
                let next = self.position.after(&record.id());
                self.state = self.state.apply(&record, next.seq).map_err(|e| bad(e.to_string()))?;
                self.records.push(record.into_raw());
                next
            }
        };
        if next.seq != Seq(entry.seq) {
            return Err(bad(format!("entry {} where {} belongs", entry.seq, next.seq)));
        }
        self.position = next;
        Ok(())
    }
}

impl Shared {
    /// Reads the ACL of a space as the holder of an invite (or as a member, or with a request), checking every step.
    async fn read_acl(&self, invited: &InvitedSpace, follow: Follow) -> Result<AclRead, JoinError> {
        let opening = async {
            let conn = self.conn().await?;
            let stream = self.open_acl_read(&conn, invited, follow).await?;
            Ok::<_, CallError>((conn, stream))
        };
        let opened = tokio::time::timeout(limits::UNARY_TIMEOUT, opening).await;
        let (_conn, mut stream) = opened.map_err(|_| self.timed_out())??;
        let mut read: Option<AclRead> = None;
        let mut header = None;
        let mut first = None;
        loop {
            let message = match follow {
                Follow::No => tokio::time::timeout(limits::UNARY_TIMEOUT, stream.message())
                    .await
                    .map_err(|_| CallError::TimedOut)?,
                Follow::UntilDecided => stream.message().await,
            };
            let message = message.map_err(|s| CallError::from(failure(&s)))?;
            let Some(message) = message else {
                return read.ok_or_else(|| JoinError::NodeFault("the ACL ended before it began".to_owned()));
            };
            header = header.or(message.header);
            for entry in message.entries {
                match (&mut read, &first) {
                    (Some(read), _) => read.take(entry)?,
                    (None, None) => first = Some(entry),
                    (None, Some(first)) => read = Some(begin(invited.space, header.as_ref(), first, &entry)?),
                }
            }
            let Some(read_so_far) = &read else { continue };
            let complete = message.complete_to_seq != 0 && read_so_far.position.seq.0 >= message.complete_to_seq;
            let decided = !matches!(standing(&read_so_far.state, self), Standing::Pending);
            match follow {
                Follow::No if complete => break,
                Follow::UntilDecided if complete && decided => break,
                Follow::No | Follow::UntilDecided => {}
            }
        }
        read.ok_or_else(|| JoinError::NodeFault("an ACL without a beginning".to_owned()))
    }

    async fn open_acl_read(
        &self,
        conn: &Conn,
        invited: &InvitedSpace,
        follow: Follow,
    ) -> Result<Streaming<v1::AclReadResponse>, CallError> {
        let secret = InviteSecret::from_bytes(invited.invite_secret);
        let signature = sign_read_proof(secret.signing_key(), &conn.nonces(), invited.space, self.account.id());
        let proof = v1::InviteProof { invite: secret.id().to_bytes(), signature: signature.to_vec().into() };
        let request = v1::AclReadRequest {
            space: invited.space.to_bytes(),
            from_seq: 0,
            follow: follow == Follow::UntilDecided,
            invite_proof: Some(proof),
        };
        Ok(conn.rpc().acl_read(request).await.map_err(|s| CallError::from(failure(&s)))?.into_inner())
    }
}

/// The first two entries, against the space id that the token names.
fn begin(
    space: SpaceId,
    header: Option<&sync_core::pb::SignedRecord>,
    first: &v1::AclReadEntry,
    second: &v1::AclReadEntry,
) -> Result<AclRead, JoinError> {
    let bad = |text: String| JoinError::NodeFault(text);
    let raw = |entry: &v1::AclReadEntry| match &entry.entry {
        Some(Entry::Acl(record)) => RawRecord::try_from(record.clone()).map_err(|e| bad(e.to_string())),
        Some(Entry::Id(_)) | None => Err(bad("the log does not begin with ACL records".to_owned())),
    };
    let header = header.ok_or_else(|| bad("no header".to_owned()))?.clone();
    let header = RawRecord::try_from(header).map_err(|e| bad(e.to_string()))?;
    let header = verify_as(header).map_err(|e| bad(e.to_string()))?;
    let (first, second) = (raw(first)?, raw(second)?);
    let root = verify_as(first.clone()).map_err(|e| bad(e.to_string()))?;
    let set_home = verify_as(second.clone()).map_err(|e| bad(e.to_string()))?;
    let genesis = genesis(header, &root, &set_home).map_err(|e| bad(e.to_string()))?;
    if genesis.space() != space {
        return Err(bad(format!("this is {}, not the space of the invite", genesis.space())));
    }
    let state = genesis.acl().clone();
    let position = genesis.entries()[1].position;
    Ok(AclRead { genesis, history: HistoryId([0; 16]), state, position, records: vec![first, second] })
}
