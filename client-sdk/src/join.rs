//! Joining: from a token to a space that is ready. Every step is durable and idempotent; joining again goes on where it
//! stopped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sync_core::acl::{AclState, RequestStatus, sign_join_proof};
use sync_core::code::Code;
use sync_core::ids::{AccountId, ChangeId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{AclContent, InviteMode, InviteToken, InvitedSpace, JoinClaim, Role, Verified};
use sync_core::token::{token_from_text, token_to_text};
use sync_e2ee::{InviteSecret, Recipient, seal_keys, seal_profile};
use sync_store::{VerdictKind, WriteTx};

use crate::acl::read::{AclRead, Follow, Standing, standing};
use crate::acl::{keys_for, sign_record};
use crate::client::{Client, Shared};
use crate::error::{AclError, CallError, JoinError, OpenError, ReadError, from_store_write};
use crate::space::{Space, SpaceInner};
use crate::synced::{Readability, Sight};

mod background;

pub(crate) use background::Speakers;

const JOIN_PREFIX: &str = "join/";
/// How often a join is tried when other records come first.
const ATTEMPTS_MAX: u32 = 50;
/// The pause after the first conflict; each further one is longer by as much.
const CONFLICT_PAUSE: Duration = Duration::from_millis(10);

/// A token that ended so long ago is refused without asking the node: seven days.
const LONG_DEAD_MS: u64 = 7 * 24 * 3_600_000;

/// A join that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinInfo {
    pub space: SpaceId,
    pub mode: InviteMode,
    pub role: Role,
    pub stage: JoinStage,
    /// False for a join that another device of the account began: [`Client::resume_join`] goes on with it here.
    pub here: bool,
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
    /// This account takes its request back, as soon as the node is reached.
    Cancelling,
}

impl JoinStage {
    /// Whether there is something to wait for.
    pub(crate) const fn goes_on(self) -> bool {
        match self {
            Self::Kept | Self::Requested | Self::Joined => true,
            Self::Declined | Self::Cancelling => false,
        }
    }
}

/// What is kept of a join, encrypted, until it is ready.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRow {
    pub(crate) token: String,
    pub(crate) stage: JoinStage,
}

/// Whether a join may ask the node for what it was not asked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anew {
    Yes,
    /// It was asked already. Whoever was let in since, and is in no more, left, or was removed.
    UnlessItWasIn,
    /// Another device may have ended it: only what the log says counts.
    No,
}

impl Anew {
    /// Whether a stranger is one for good.
    fn is_over(self, acl: &AclState, account: &AccountId) -> bool {
        match self {
            Self::Yes => false,
            Self::UnlessItWasIn => acl.membership_ended(account).is_some(),
            Self::No => true,
        }
    }
}

/// A join of one token. It says when the join is over; the join itself belongs to the client, and goes on by itself when
/// nobody waits for it: dropped, or not ready in time.
#[derive(Debug)]
pub struct Joining {
    client: Client,
    token: Verified<InviteToken>,
    spaces: Vec<SpaceId>,
}

impl Client {
    /// Joins the spaces of a token, or asks to: returns when the join or the request is durable at the node.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, token: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let joining = client.join(token).await?;
    /// let spaces = joining.ready(std::time::Duration::from_secs(60)).await?;
    /// println!("{:?}", spaces[0].name()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`JoinError`]; with several spaces, of the first that failed, named. The others are joined. What failed for a moment only
    /// goes on by itself if [`Client::joins`] shows it.
    pub async fn join(&self, token: &str) -> Result<Joining, JoinError> {
        let token = token_from_text(token)?;
        self.shared.check_token(token.body())?;
        let mut failed = None;
        for space in &token.body().spaces {
            let _speaking = self.shared.speak_for(space.space);
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

    /// Takes a join back that is not decided yet, whichever device of the account began it: kept durably first, so that it goes
    /// out by itself if the node is not reached now (the error is `OFFLINE` then).
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// for join in client.joins()? {
    ///     client.cancel_join(join.space).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`JoinError::NoJoin`] if nothing is under way; [`JoinError::AlreadyMember`] if an admin was faster: leave instead.
    pub async fn cancel_join(&self, space: SpaceId) -> Result<(), JoinError> {
        let _speaking = self.shared.speak_for(space);
        let token = self.shared.join_token(space)?.ok_or(JoinError::NoJoin { space })?;
        let shared = self.shared.clone();
        let wishing = async move {
            shared.keep_join(space, &token, JoinStage::Cancelling).await?;
            shared.cancel_in_background(space);
            Ok::<_, JoinError>(())
        };
        self.shared.to_its_end(wishing).await??;
        // What takes it back does so whatever becomes of this caller; both may run at once.
        self.shared.finish_cancelling(space).await
    }

    /// Joins that are not ready yet, on any device of the account.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn joins(&self) -> Result<Vec<JoinInfo>, ReadError> {
        let rows = self.shared.join_rows()?;
        let info = |(space, row): (SpaceId, JoinRow)| {
            let token = token_from_text(&row.token).ok()?;
            let invited = token.body().spaces.iter().find(|s| s.space == space)?;
            Some(JoinInfo { space, mode: invited.mode, role: invited.role, stage: row.stage, here: true })
        };
        Ok(rows.into_iter().filter_map(info).chain(self.shared.joins_elsewhere()?).collect())
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
            if row.stage == JoinStage::Cancelling {
                self.shared.cancel_in_background(space);
            } else if row.stage.goes_on() {
                self.shared.follow_in_background(space, &row, Anew::Yes);
            }
        }
        Ok(())
    }
}

impl Joining {
    pub(crate) fn of(client: Client, token: Verified<InviteToken>, spaces: Vec<SpaceId>) -> Self {
        Self { client, token, spaces }
    }

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
        self.reaches(timeout, Until::Ready).await
    }

    /// [`Joining::ready`] for reading alone: what this account is meant to see first is fetched before the rest of the log, and
    /// can be read. Until the log has followed, its own writes may be refused, and members and other objects may be missing.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, token: &str) -> Result<(), Box<dyn std::error::Error>> {
    /// let minute = std::time::Duration::from_secs(60);
    /// let joining = client.join(token).await?;
    /// let early = joining.readable(minute).await?;
    /// println!("{:?}", early[0].objects().get("profile", &client.account().to_string())?);
    /// // Now everything else, too.
    /// joining.ready(minute).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Joining::ready`].
    pub async fn readable(&self, timeout: Duration) -> Result<Vec<Space>, JoinError> {
        self.reaches(timeout, Until::Readable).await
    }

    async fn reaches(&self, timeout: Duration, until: Until) -> Result<Vec<Space>, JoinError> {
        let waiting = std::sync::Mutex::new("the node's answer".to_owned());
        let _speaking: Vec<_> = self.spaces.iter().map(|space| self.client.shared.speak_for(*space)).collect();
        let all = async {
            let mut spaces = Vec::with_capacity(self.spaces.len());
            for invited in self.token.body().spaces.iter().filter(|s| self.spaces.contains(&s.space)) {
                spaces.push(self.client.shared.ready(&self.token, invited, &waiting, until).await?);
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
    /// Takes a request back at the node, and forgets the join.
    async fn finish_cancelling(self: &Arc<Self>, space: SpaceId) -> Result<(), JoinError> {
        if self.cancel_at_node(space).await? == Cancelling::Over {
            self.forget_join(space).await?;
            self.unlist_join(space).await?;
        }
        Ok(())
    }

    async fn cancel_at_node(self: &Arc<Self>, space: SpaceId) -> Result<Cancelling, JoinError> {
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            let row = self.join_row(space)?;
            // Whoever asked anew in the meantime wants to join after all.
            let row = row.filter(|row| row.stage == JoinStage::Cancelling);
            let Some(token) = row.and_then(|row| token_from_text(&row.token).ok()) else {
                return Ok(Cancelling::NotWanted);
            };
            let secret = token.body().spaces.iter().find(|s| s.space == space).map(secret_of);
            let acl = match self.read_acl(space, secret.as_ref(), Follow::No).await {
                Ok(acl) => acl,
                // Never asked, and nothing to be asked by any more.
                Err(JoinError::Acl(AclError::Call(CallError::Refused(refused)))) if !refused.code.is_transient() => {
                    return Ok(Cancelling::Over);
                }
                Err(error) => return Err(error),
            };
            let request = match standing(&acl.state, self) {
                Standing::Member => {
                    self.keep_join(space, &token, JoinStage::Joined).await?;
                    self.adopt(&acl).await?;
                    return Err(JoinError::AlreadyMember { space });
                }
                Standing::Pending => acl.state.pending_request(&self.account.id()).map(|(request, _)| request),
                Standing::Declined | Standing::Cancelled | Standing::Stranger => None,
            };
            let Some(request) = request else { return Ok(Cancelling::Over) };
            let record = sign_record(self, &acl.state, vec![AclContent::CancelJoin { request }])?;
            match self.append_on(&self.conn().await?, space, &record).await {
                Ok(_) => return Ok(Cancelling::Over),
                // An admin or another joiner was faster: read what it did.
                Err(CallError::Refused(failure)) if failure.code == Code::AclConflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AclError::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    fn check_token(&self, token: &InviteToken) -> Result<(), JoinError> {
        let (expected, actual) = (token.authority, self.address.authority);
        if expected != actual {
            return Err(JoinError::WrongAuthority { expected, actual });
        }
        // Our clock may be days off and the node's word counts; but a token that is long dead is not worth a call.
        if token.expires_ms != 0 && token.expires_ms.saturating_add(LONG_DEAD_MS) <= self.host.wall_ms() {
            return Err(JoinError::Expired { expires_ms: token.expires_ms });
        }
        Ok(())
    }

    pub(crate) fn join_rows(&self) -> Result<Vec<(SpaceId, JoinRow)>, ReadError> {
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

    pub(crate) fn join_row(&self, space: SpaceId) -> Result<Option<JoinRow>, ReadError> {
        Ok(self.join_rows()?.into_iter().find(|(of, _)| *of == space).map(|(_, row)| row))
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
        self.join_moved(space);
        Ok(())
    }

    /// Whether this installation asked, and was not told the answer yet.
    fn asked_before(&self, space: SpaceId) -> Result<bool, ReadError> {
        let stage = self.join_row(space)?.map(|row| row.stage);
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
        self.join_moved(space);
    }

    fn seal_join(&self, key: &str, token: &Verified<InviteToken>, stage: JoinStage) -> Vec<u8> {
        let row = JoinRow { token: token_to_text(token), stage };
        let bytes = serde_json::to_vec(&row).expect("a join row is always JSON");
        self.local.seal_row(key.as_bytes(), &bytes, &mut self.host.rng())
    }

    async fn forget_join(&self, space: SpaceId) -> Result<(), JoinError> {
        let key = join_key(space);
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(tx.kv_delete(&key)?) };
        self.store.write(job).await.map_err(read_from_write)?;
        self.join_moved(space);
        Ok(())
    }

    /// Up to the durable join or request.
    pub(crate) async fn join_space(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<(), JoinError> {
        let joined = self.ask_to_join(token, invited).await;
        if joined.as_ref().is_err_and(|error| !is_transient(error)) {
            // Nothing of a join that failed for good stays behind.
            self.forget_join(invited.space).await?;
        }
        joined
    }

    async fn ask_to_join(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<(), JoinError> {
        if self.is_member(invited.space)? {
            // The copy here may be older than the end of this membership.
            match self.read_acl(invited.space, Some(&secret_of(invited)), Follow::No).await {
                Ok(acl) if matches!(standing(&acl.state, self), Standing::Member) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.link(sync_core::session::Input::Wake);
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            let mut acl = self.read_acl(invited.space, Some(&secret_of(invited)), Follow::No).await?;
            check_receipt(self.account.id(), &acl, token, invited)?;
            match standing(&acl.state, self) {
                Standing::Member => {
                    self.keep_join(invited.space, token, JoinStage::Joined).await?;
                    self.adopt(&acl).await?;
                    return Ok(());
                }
                Standing::Pending => return self.keep_join(invited.space, token, JoinStage::Requested).await,
                Standing::Declined if self.asked_before(invited.space)? => return Err(JoinError::Declined),
                Standing::Declined | Standing::Cancelled | Standing::Stranger => {}
            }
            self.keep_join(invited.space, token, JoinStage::Kept).await?;
            let appended = self.append_join(&mut acl, invited).await;
            match appended {
                Ok(()) => {}
                // Somebody else's record came first: look again and make a new one.
                Err(JoinError::Acl(AclError::Call(CallError::Refused(f)))) if f.code == Code::AclConflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(AclError::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    async fn append_join(&self, acl: &mut AclRead, invited: &InvitedSpace) -> Result<(), JoinError> {
        let contents = vec![self.join_content(acl, invited)?];
        let record = sign_record(self, &acl.state, contents)?;
        // What the rules refuse here, they refuse everywhere.
        acl.state.apply(&record, Seq(u64::MAX)).map_err(|e| AclError::from(Reject::Acl(e)))?;
        self.offer(invited.space, &record).await?;
        Ok(())
    }

    fn join_content(&self, acl: &mut AclRead, invited: &InvitedSpace) -> Result<AclContent, JoinError> {
        let secret = secret_of(invited);
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
                let keys = keys_for(state.options.history, role, keys);
                let seal = seal_keys(Some(invited.space), state.epoch, to, &keys, &mut self.host.rng())
                    .map_err(AclError::from)?;
                Ok(AclContent::JoinByInvite { claim, seals: vec![seal] })
            }
        }
    }

    fn profile_ct(&self, state: &AclState) -> Result<Bytes, JoinError> {
        let (Some(name), Some(epoch)) = (&self.display_name, state.epochs.get(&state.epoch)) else {
            return Ok(Bytes::new());
        };
        let profile = serde_json::json!({ "name": name }).to_string();
        let sealed =
            seal_profile(state.space, state.epoch, &epoch.profile_key, profile.as_bytes(), &mut self.host.rng());
        Ok(sealed.map_err(AclError::from)?)
    }

    /// Waits for the acceptance of a request, or joins if that has not happened yet.
    async fn follow_join(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
        anew: Anew,
    ) -> Result<Space, JoinError> {
        loop {
            if self.is_member(invited.space)? && !self.is_asking(invited.space)? {
                return Ok(self.open_space(invited.space)?);
            }
            let followed = async {
                let acl = self.read_until_decided(invited).await?;
                match standing(&acl.state, self) {
                    Standing::Member => {
                        self.adopt(&acl).await?;
                        // A copy from an earlier membership has to get there first.
                        self.open_space(invited.space)?.inner.reaches(acl.seq()).await?;
                        if self.is_asking(invited.space)? {
                            self.keep_join(invited.space, token, JoinStage::Joined).await?;
                        }
                        Ok(())
                    }
                    Standing::Declined => Err(JoinError::Declined),
                    Standing::Cancelled => Err(JoinError::Cancelled),
                    Standing::Stranger if anew.is_over(&acl.state, &self.account.id()) => Err(JoinError::Cancelled),
                    // The process ended before the node was asked.
                    Standing::Stranger => self.join_space(token, invited).await,
                    Standing::Pending => Ok(()),
                }
            };
            match followed.await {
                Ok(()) if self.is_member(invited.space)? => {}
                Ok(()) => tokio::time::sleep(limits::RETRY_FIRST / 4).await,
                Err(error) if is_transient(&error) => {
                    tracing::debug!(space = %invited.space.short(), error = %error, "a join waits");
                    tokio::time::sleep(limits::RETRY_FIRST / 4).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Each request that waits holds a stream of the connection; where many wait, the others ask now and then.
    async fn read_until_decided(&self, invited: &InvitedSpace) -> Result<AclRead, JoinError> {
        let secret = secret_of(invited);
        if let Ok(_room) = self.following.try_acquire() {
            return self.read_acl(invited.space, Some(&secret), Follow::UntilDecided).await;
        }
        let acl = self.read_acl(invited.space, Some(&secret), Follow::No).await?;
        if matches!(standing(&acl.state, self), Standing::Pending) {
            tokio::time::sleep(limits::RETRY_FIRST).await;
        }
        Ok(acl)
    }

    async fn ready(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
        waiting: &std::sync::Mutex<String>,
        until: Until,
    ) -> Result<Space, JoinError> {
        let say = |text: String| *waiting.lock().unwrap_or_else(PoisonError::into_inner) = text;
        say(match invited.mode {
            InviteMode::Open => "the node to take the join".to_owned(),
            InviteMode::Approval => "an admin to accept the request".to_owned(),
        });
        let space = match self.follow_join(token, invited, Anew::Yes).await {
            Ok(space) => space,
            Err(error) => {
                self.forget_join(invited.space).await?;
                return Err(error);
            }
        };
        say("the space's log".to_owned());
        let first = match until {
            Until::Ready => None,
            Until::Readable => self.fetch_first(&space, invited).await?,
        };
        let mut moved = space.inner.moved.subscribe();
        loop {
            moved.borrow_and_update();
            if let Some(first) = &first
                && space.inner.all_ahead(first)?
            {
                // The join goes on until everything is here.
                return Ok(space);
            }
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

    /// Has what is to be seen first fetched first; what that is. `None` if the tail was faster.
    async fn fetch_first(&self, space: &Space, invited: &InvitedSpace) -> Result<Option<Named>, JoinError> {
        if space.inner.missing(invited)?.is_none() {
            return Ok(None);
        }
        let ahead = space.inner.look_ahead().await?;
        let named = named(&ahead.acl, self.account.id(), invited);
        let trees = named.iter().map(|(tree, _)| *tree).collect();
        space.inner.want(trees, sync_store::SyncItemKind::Fetch, sync_core::syncer::Priority::Join).await?;
        Ok(Some(named))
    }

    /// Whether the answer to a request or join of ours is not here yet.
    fn is_asking(&self, space: SpaceId) -> Result<bool, ReadError> {
        let stage = self.join_row(space)?.map(|row| row.stage);
        Ok(matches!(stage, Some(JoinStage::Kept | JoinStage::Requested)))
    }

    /// In the space, as the log here says: a former member's copy is no reason not to join anew.
    fn is_member(&self, space: SpaceId) -> Result<bool, ReadError> {
        let account = self.account.id();
        Ok(self.store.read(|tx| tx.acl(space))?.is_some_and(|acl| {
            // A copy that does not reach its own beginning yet knows nobody but the founder.
            let gone = acl.removed.contains_key(&account) || acl.left.contains_key(&account);
            !gone || acl.members.contains_key(&account)
        }))
    }
}

impl SpaceInner {
    /// Whether all of it can be read, from the log here or from what was fetched ahead of it.
    fn all_ahead(&self, named: &Named) -> Result<bool, ReadError> {
        for (tree, heads) in named {
            let here = match self.readability(*tree)? {
                Readability::Purged => true,
                Readability::Hidden | Readability::Absent => false,
                Readability::Readable => self.shows(*tree, heads)?,
            };
            if !here && !self.reads_ahead(*tree, heads)? {
                return Ok(false);
            }
        }
        Ok(!named.is_empty())
    }

    /// The first tree that this member is meant to see and does not see yet.
    fn missing(&self, invited: &InvitedSpace) -> Result<Option<TreeId>, JoinError> {
        let acl = self.acl()?;
        let account = self.shared.account.id();
        // The keys are published after the commit that brought them.
        if !acl.members.contains_key(&account) || self.ring().name_key().is_none() {
            // Our own join is still on its way down the log.
            return Ok(invited.must_see.first().map(|t| t.tree).or(Some(TreeId::from_hash([0; 32]))));
        }
        for (tree, heads) in named(&acl, account, invited) {
            match self.readability(tree)? {
                Readability::Purged => continue,
                Readability::Hidden => return Err(JoinError::Hidden { tree }),
                Readability::Absent => return Ok(Some(tree)),
                Readability::Readable => {}
            }
            if !self.shows(tree, &heads)? {
                return Ok(Some(tree));
            }
        }
        Ok(None)
    }

    /// Whether changes of a tree are shown. One from before this member's keys is not for it to see.
    fn shows(&self, tree: TreeId, heads: &[ChangeId]) -> Result<bool, ReadError> {
        self.shared.store.read(|tx| {
            for head in heads {
                match self.sight_of(tx, tree, *head)? {
                    Sight::Shown => {}
                    Sight::Kept(verdict) if verdict.kind == VerdictKind::Hidden => {}
                    Sight::Kept(_) | Sight::Absent => return Ok(false),
                }
            }
            Ok(true)
        })
    }
}

/// Trees that a member is meant to see, with what of them.
type Named = Vec<(TreeId, Vec<ChangeId>)>;

/// What the invite names, and what the acceptance promised.
fn named(acl: &AclState, account: AccountId, invited: &InvitedSpace) -> Named {
    let mut named: Named = invited.must_see.iter().map(|t| (t.tree, t.heads.clone())).collect();
    for request in acl.requests.values().filter(|r| r.claim.account == account) {
        if let RequestStatus::Accepted { frontier, .. } = &request.status {
            named.extend(frontier.iter().map(|t| (t.tree, t.heads.clone())));
        }
    }
    named
}

/// What a join is waited for until.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Ready,
    Readable,
}

/// How an attempt to take a request back ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cancelling {
    Over,
    NotWanted,
}

/// The inviter knew the log up to a receipt of the node: a node that shows less or another log now does not show that one.
fn check_receipt(
    account: AccountId,
    acl: &AclRead,
    token: &Verified<InviteToken>,
    invited: &InvitedSpace,
) -> Result<(), JoinError> {
    let Some(export) = &invited.receipt else { return Ok(()) };
    let bad = |text: String| JoinError::NodeFault(text);
    let receipt = SignedReceipt::from_export(export.clone()).map_err(|e| JoinError::BadReceipt(e.to_string()))?;
    let body = receipt.body();
    if body.space != invited.space || body.authority != token.body().authority {
        return Err(JoinError::BadReceipt("it is for another space, or of another node".to_owned()));
    }
    match acl.chain_at(body.seq) {
        // Who asked before and whose invite is over is shown the log up to the answer, and no further.
        None if acl.state.requests.values().any(|r| r.claim.account == account) => Ok(()),
        None => Err(bad(format!("it signed {} entries to the inviter and shows {}", body.seq, acl.seq()))),
        Some(chain) if chain != body.chain => {
            Err(bad(format!("it signed another log to the inviter, up to entry {}", body.seq)))
        }
        Some(_) => Ok(()),
    }
}

fn secret_of(invited: &InvitedSpace) -> InviteSecret {
    InviteSecret::from_bytes(invited.invite_secret)
}

fn join_key(space: SpaceId) -> String {
    format!("{JOIN_PREFIX}{space}")
}

fn is_transient(error: &JoinError) -> bool {
    let JoinError::Acl(AclError::Call(call)) = error else { return false };
    let passes = |f: &sync_proto::status::Failure| {
        matches!(f.code, Code::AclConflict | Code::RequiresMissing | Code::Recovering)
    };
    call.is_transient() || matches!(call, CallError::Refused(failure) if passes(failure))
}

fn read_from_write(error: sync_store::WriteError<ReadError>) -> JoinError {
    from_store_write(error).into()
}
