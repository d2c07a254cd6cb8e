//! Joining: from a token to a space that is ready. Every step is durable and idempotent; joining again goes on where it
//! stopped.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sync_core::acl::{AclReject, AclState, RequestStatus, sign_join_proof};
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, ChangeId, Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::receipt::SignedReceipt;
use sync_core::record::{AclContent, AclRecord, InviteMode, InviteToken, InvitedSpace, JoinClaim, Role, Verified};
use sync_core::session::pause;
use sync_core::token::{token_from_text, token_to_text};
use sync_e2ee::{InviteSecret, Recipient, seal_keys, seal_profile};
use sync_store::{VerdictKind, WriteTx};

use crate::account::joins::listed_key;
use crate::acl::read::{AclRead, Follow, Standing, standing};
use crate::acl::{keys_for, sign_record};
use crate::client::{Client, Shared};
use crate::error::{AclError, CallError, JoinError, ReadError, WriteError, from_store_write};
use crate::space::{Space, SpaceInner};
use crate::synced::{Readability, Sight};

mod background;

use background::Turn;
pub(crate) use background::{Speakers, Turns};

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
    const fn goes_on(self) -> bool {
        match self {
            Self::Kept | Self::Requested | Self::Joined => true,
            Self::Declined | Self::Cancelling => false,
        }
    }

    /// Whether there is something to be done.
    fn is_work(self) -> bool {
        self.goes_on() || self == Self::Cancelling
    }
}

/// What is kept of a join, encrypted, until it is ready.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinRow {
    pub(crate) token: String,
    pub(crate) stage: JoinStage,
    /// The last request of this account that was decided before this join: that answer is none to it.
    #[serde(default)]
    decided: Option<String>,
}

impl JoinRow {
    /// Whether it is this join that the decision of a request answers.
    fn is_answered_by(&self, request: AclId) -> bool {
        match self.stage {
            JoinStage::Requested | JoinStage::Declined => true,
            JoinStage::Kept => self.decided != Some(request.to_string()),
            JoinStage::Joined | JoinStage::Cancelling => false,
        }
    }
}

/// Who goes on with a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follower {
    /// Somebody waits for it.
    Call,
    /// Nobody does. Another device may have ended it, or taken it over.
    Background,
}

/// Why the node is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Somebody shows the token, whatever was wished before.
    Now,
    /// It was begun, and goes on unless it was taken back.
    Still,
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
        let shared = self.shared.clone();
        let wishing = async move {
            let speaking = shared.speak_for(space);
            let token = shared.join_token(space)?.ok_or(JoinError::NoJoin { space })?;
            let row = JoinRow { token: token_to_text(&token), stage: JoinStage::Cancelling, decided: None };
            shared.change_join(space, |_| Change::Keep(row)).await?;
            Ok::<_, JoinError>(speaking)
        };
        // When the call is over, or this caller is gone, what is left of it goes on in the background.
        let _speaking = self.shared.to_its_end(wishing).await??;
        Box::pin(self.shared.finish_cancelling(space)).await
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
    /// Takes a request back at the node, and forgets the join: unless somebody asked anew in the meantime.
    async fn finish_cancelling(self: &Arc<Self>, space: SpaceId) -> Result<(), JoinError> {
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            let turn = self.turns.of(space).await;
            let cancelled = self.join_row(space)?.filter(|row| row.stage == JoinStage::Cancelling);
            let Some(row) = cancelled else { return Ok(()) };
            let token = token_from_text(&row.token)?;
            let secret = token.body().spaces.iter().find(|s| s.space == space).map(secret_of);
            let acl = match self.read_acl(space, secret.as_ref(), Follow::No).await {
                Ok(acl) => Some(acl),
                // Never asked, and nothing to be asked by any more.
                Err(JoinError::Acl(AclError::Call(CallError::Refused(refused)))) if !refused.code.is_transient() => {
                    None
                }
                Err(error) => return Err(error),
            };
            let (_turn, cancelled) = match &acl {
                Some(acl) if matches!(standing(&acl.state, self), Standing::Member) => {
                    self.move_join(space, &[JoinStage::Cancelling], JoinStage::Joined).await?;
                    self.adopt(acl).await?;
                    return Err(JoinError::AlreadyMember { space });
                }
                Some(acl) if let Standing::Pending(request) = standing(&acl.state, self) => {
                    let record = sign_record(self, &acl.state, vec![AclContent::CancelJoin { request }])?;
                    self.offer_in(turn, space, record).await?
                }
                Some(_) | None => (turn, Ok(Seq::ZERO)),
            };
            match cancelled {
                Ok(_) => {}
                // An admin or another joiner was faster: read what it did.
                Err(CallError::Refused(failure)) if failure.code == Code::AclConflict => continue,
                Err(error) => return Err(error.into()),
            }
            let is_still = |row: Option<JoinRow>| match row {
                Some(row) if row.stage == JoinStage::Cancelling => Change::Forget,
                Some(_) | None => Change::Nothing,
            };
            if self.change_join(space, is_still).await? {
                self.unlist_join(space).await?;
            }
            return Ok(());
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
            let space = key.strip_prefix(JOIN_PREFIX).and_then(|id| id.parse().ok());
            found.extend(space.zip(self.open_join(&key, &sealed)?));
        }
        Ok(found)
    }

    pub(crate) fn join_row(&self, space: SpaceId) -> Result<Option<JoinRow>, ReadError> {
        let key = join_key(space);
        let sealed = self.store.read(|tx| tx.kv(&key))?;
        Ok(sealed.map(|sealed| self.open_join(&key, &sealed)).transpose()?.flatten())
    }

    /// Changes the row of a join, and tells of it: in one piece, whatever becomes of the caller. What the row says at that moment
    /// decides, so that nobody overwrites what somebody else wished since. Whether anything was changed.
    async fn change_join(
        self: &Arc<Self>,
        space: SpaceId,
        change: impl FnOnce(Option<JoinRow>) -> Change + Send + 'static,
    ) -> Result<bool, WriteError> {
        let shared = self.clone();
        let changing = async move {
            let key = join_key(space);
            let local = shared.clone();
            let job = move |tx: &mut WriteTx<'_>| -> Result<bool, ReadError> {
                let row = tx.kv(&key)?.map(|sealed| local.open_join(&key, &sealed)).transpose()?.flatten();
                match change(row) {
                    Change::Nothing => return Ok(false),
                    Change::Forget => tx.kv_delete(&key)?,
                    Change::Keep(row) => tx.kv_put(&key, &local.seal_join(&key, &row))?,
                    Change::Begin(row) => {
                        tx.kv_put(&key, &local.seal_join(&key, &row))?;
                        tx.kv_delete(&listed_key(space))?;
                    }
                }
                Ok(true)
            };
            let written = shared.store.write(job).await.map_err(from_store_write)?;
            if written.value {
                shared.store.durable(written.commit).await?;
                shared.join_moved(space);
            }
            Ok(written.value)
        };
        self.to_its_end(changing).await?
    }

    /// A join came from one of some stages to the next.
    async fn move_join(
        self: &Arc<Self>,
        space: SpaceId,
        from: &'static [JoinStage],
        to: JoinStage,
    ) -> Result<bool, WriteError> {
        let change = move |row: Option<JoinRow>| match row {
            Some(row) if from.contains(&row.stage) => Change::Keep(JoinRow { stage: to, ..row }),
            Some(_) | None => Change::Nothing,
        };
        self.change_join(space, change).await
    }

    /// After a join failed for good, and nobody was told: a decline is kept until somebody is.
    async fn note_join_failed(self: &Arc<Self>, space: SpaceId, error: &JoinError) -> Result<(), WriteError> {
        let is_declined = matches!(error, JoinError::Declined);
        let change = move |row: Option<JoinRow>| match row.filter(|row| row.stage.goes_on()) {
            Some(row) if is_declined => Change::Keep(JoinRow { stage: JoinStage::Declined, ..row }),
            Some(_) => Change::Forget,
            // Somebody was told, or wants something else, in the meantime.
            None => Change::Nothing,
        };
        self.change_join(space, change).await.map(|_| ())
    }

    fn open_join(&self, key: &str, sealed: &[u8]) -> Result<Option<JoinRow>, ReadError> {
        let bytes = self.local.open_row(key.as_bytes(), sealed)?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    fn seal_join(&self, key: &str, row: &JoinRow) -> Vec<u8> {
        let bytes = serde_json::to_vec(row).expect("a join row is always JSON");
        self.local.seal_row(key.as_bytes(), &bytes, &mut self.host.rng())
    }

    /// A join is over, and whoever has to know is told; one that is to be taken back is over when that is done.
    async fn forget_join(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        let change = |row: Option<JoinRow>| match row {
            Some(row) if row.stage != JoinStage::Cancelling => Change::Forget,
            Some(_) | None => Change::Nothing,
        };
        self.change_join(space, change).await.map(|_| ())
    }

    /// What a join waits for in a space does not come when that is forgotten. One that is asked for anew goes on, unless the
    /// space itself is over.
    pub(crate) async fn forget_join_in(self: &Arc<Self>, space: SpaceId, is_deleted: bool) -> Result<(), WriteError> {
        let change = move |row: Option<JoinRow>| match row {
            Some(row) if is_deleted || row.stage == JoinStage::Joined => Change::Forget,
            Some(_) | None => Change::Nothing,
        };
        self.change_join(space, change).await.map(|_| ())
    }

    /// Up to the durable join or request.
    pub(crate) async fn join_space(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<(), JoinError> {
        let joined = Box::pin(self.ask_to_join(token, invited, Asking::Now)).await;
        if joined.as_ref().is_err_and(is_for_good) {
            // Nothing of a join that failed for good stays behind.
            self.forget_join(invited.space).await?;
        }
        joined
    }

    async fn ask_to_join(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
        mut asking: Asking,
    ) -> Result<(), JoinError> {
        let space = invited.space;
        if self.is_member(space)? {
            // The copy here may be older than the end of this membership.
            match self.read_acl(space, Some(&secret_of(invited)), Follow::No).await {
                Ok(acl) if matches!(standing(&acl.state, self), Standing::Member) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.link(sync_core::session::Input::Wake);
        for attempt in 0..ATTEMPTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            let turn = self.turns.of(space).await;
            let acl = self.read_acl(space, Some(&secret_of(invited)), Follow::No).await?;
            check_receipt(self.account.id(), &acl, token, invited)?;
            let row = self.join_row(space)?;
            let mut keep = async |stage, decided| {
                let row = JoinRow { token: token_to_text(token), stage, decided };
                let begun = std::mem::replace(&mut asking, Asking::Still);
                self.begin_join(space, row, begun).await
            };
            let decided = match standing(&acl.state, self) {
                Standing::Member => {
                    keep(JoinStage::Joined, None).await?;
                    return self.adopt(&acl).await;
                }
                Standing::Pending(_) => return keep(JoinStage::Requested, None).await,
                Standing::Declined(request) if row.is_some_and(|row| row.is_answered_by(request)) => {
                    return Err(JoinError::Declined);
                }
                Standing::Declined(request) | Standing::Cancelled(request) => Some(request.to_string()),
                Standing::Stranger => None,
            };
            keep(JoinStage::Kept, decided).await?;
            let record = self.join_record(&acl, invited)?;
            match self.offer_in(turn, space, record).await?.1 {
                Ok(_) => {}
                // Somebody else's record came first: look again and make a new one.
                Err(CallError::Refused(failure)) if failure.code == Code::AclConflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AclError::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// Keeps how far a join is. One that was begun, and taken back since, stays so.
    async fn begin_join(self: &Arc<Self>, space: SpaceId, row: JoinRow, asking: Asking) -> Result<(), JoinError> {
        let change = move |there: Option<JoinRow>| match asking {
            Asking::Now => Change::Begin(row),
            Asking::Still if there.as_ref() == Some(&row) => Change::Nothing,
            Asking::Still if there.is_some_and(|there| there.stage.goes_on()) => Change::Keep(row),
            Asking::Still => Change::Nothing,
        };
        self.change_join(space, change).await?;
        let is_on = self.join_row(space)?.is_some_and(|row| row.stage.goes_on());
        if is_on { Ok(()) } else { Err(JoinError::Cancelled) }
    }

    /// Offers a record in a turn. What becomes of it is known when the turn is over, also if the caller goes away half-way.
    async fn offer_in(
        self: &Arc<Self>,
        turn: Turn,
        space: SpaceId,
        record: Verified<AclRecord>,
    ) -> Result<(Turn, Result<Seq, CallError>), JoinError> {
        let shared = self.clone();
        let offering = Box::pin(async move {
            let said = shared.offer(space, &record).await;
            (turn, said)
        });
        Ok(self.until_closed(offering).await?)
    }

    /// The record that joins, or asks to.
    fn join_record(&self, acl: &AclRead, invited: &InvitedSpace) -> Result<Verified<AclRecord>, JoinError> {
        let contents = vec![self.join_content(acl, invited)?];
        let record = sign_record(self, &acl.state, contents)?;
        // What the rules refuse here, they refuse everywhere.
        acl.state.apply(&record, Seq(u64::MAX)).map_err(|e| AclError::from(Reject::Acl(e)))?;
        Ok(record)
    }

    fn join_content(&self, acl: &AclRead, invited: &InvitedSpace) -> Result<AclContent, JoinError> {
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
        follower: Follower,
    ) -> Result<Space, JoinError> {
        let space = invited.space;
        let mut failures = 0;
        loop {
            if follower == Follower::Background && !self.join_row(space)?.is_some_and(|row| row.stage.goes_on()) {
                return Err(JoinError::Cancelled);
            }
            if self.is_member(space)? && !self.is_asking(space)? {
                return Ok(self.open_space(space)?);
            }
            let followed = async {
                let acl = self.read_until_decided(invited).await?;
                let row = self.join_row(space)?;
                let is_answered = |request| row.as_ref().is_none_or(|row| row.is_answered_by(request));
                match standing(&acl.state, self) {
                    Standing::Member => {
                        self.adopt(&acl).await?;
                        // A copy from an earlier membership has to get there first.
                        self.open_space(space)?.inner.reaches(acl.seq()).await?;
                        if self.is_asking(space)? {
                            self.move_join(space, &[JoinStage::Kept, JoinStage::Requested], JoinStage::Joined).await?;
                        }
                        Ok(())
                    }
                    Standing::Declined(request) if is_answered(request) => Err(JoinError::Declined),
                    Standing::Cancelled(request) if is_answered(request) => Err(JoinError::Cancelled),
                    // The process ended before the node was asked.
                    Standing::Declined(_) | Standing::Cancelled(_) | Standing::Stranger => {
                        self.wants_to_ask(&acl, row, invited, follower).await?;
                        self.ask_to_join(token, invited, Asking::Still).await
                    }
                    Standing::Pending(_) => Ok(()),
                }
            };
            match followed.await {
                Ok(()) if self.is_member(space)? => {}
                Ok(()) => {
                    failures = 0;
                    tokio::time::sleep(limits::RETRY_FIRST / 4).await;
                }
                Err(error) if is_transient(&error) => {
                    tracing::debug!(space = %space.short(), error = %error, "a join waits");
                    failures += 1;
                    let [jitter] = self.host.random();
                    // Somebody waits for what may take a moment only.
                    tokio::time::sleep(pause(failures, jitter) / 4).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether an account that the node does not know of asks it, or asks again; if not, why.
    async fn wants_to_ask(
        self: &Arc<Self>,
        acl: &AclRead,
        row: Option<JoinRow>,
        invited: &InvitedSpace,
        follower: Follower,
    ) -> Result<(), JoinError> {
        let ended = acl.state.membership_ended(&self.account.id());
        let is_wanted = match row.map(|row| row.stage) {
            Some(JoinStage::Kept) => true,
            // It was asked already. Whoever was let in since, and is in no more, left, or was removed.
            Some(JoinStage::Requested | JoinStage::Joined) => ended.is_none(),
            Some(JoinStage::Declined | JoinStage::Cancelling) | None => false,
        };
        if is_wanted && (follower == Follower::Call || !self.is_over_elsewhere(invited.space).await?) {
            return Ok(());
        }
        // Where it cannot be asked for any more, that says most.
        self.join_record(acl, invited)?;
        Err(if ended.is_some() { self.not_a_member() } else { JoinError::Cancelled })
    }

    fn not_a_member(&self) -> JoinError {
        AclError::from(Reject::Acl(AclReject::NotAMember { account: self.account.id() })).into()
    }

    /// Each request that waits holds a stream of the connection; where many wait, the others ask now and then.
    async fn read_until_decided(&self, invited: &InvitedSpace) -> Result<AclRead, JoinError> {
        let secret = secret_of(invited);
        if let Ok(_room) = self.following.try_acquire() {
            return self.read_acl(invited.space, Some(&secret), Follow::UntilDecided).await;
        }
        let acl = self.read_acl(invited.space, Some(&secret), Follow::No).await?;
        if matches!(standing(&acl.state, self), Standing::Pending(_)) {
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
        let ready = self.wait_until_ready(token, invited, waiting, until).await;
        if ready.as_ref().is_err_and(is_for_good) {
            self.forget_join(invited.space).await?;
        }
        ready
    }

    async fn wait_until_ready(
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
        let space = self.follow_join(token, invited, Follower::Call).await?;
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
            self.is_not_over(&space)?;
            match space.inner.missing(invited)? {
                None => break,
                Some(tree) => say(format!("{tree}")),
            }
            space.inner.moves(&mut moved).await?;
        }
        self.forget_join(invited.space).await?;
        Ok(space)
    }

    /// What a join waits for in a space comes no more when the membership ends, or the space.
    fn is_not_over(&self, space: &Space) -> Result<(), JoinError> {
        if !self.is_member(space.id())? {
            return Err(self.not_a_member());
        }
        if space.inner.acl()?.deleted {
            return Err(AclError::from(Reject::SpaceDeleted).into());
        }
        Ok(())
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
    /// Waits until something moved here; an error if the space was closed.
    async fn moves(&self, moved: &mut tokio::sync::watch::Receiver<u64>) -> Result<(), JoinError> {
        // The sender is this space.
        let moved = self.closed.run_until_cancelled(moved.changed()).await;
        // With the client, or because it was forgotten.
        let closed =
            || if self.shared.cancel.is_cancelled() { ReadError::Closed } else { ReadError::UnknownSpace(self.id) };
        moved.map(|_| ()).ok_or_else(|| closed().into())
    }

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

/// What becomes of the row of a join.
enum Change {
    Nothing,
    Keep(JoinRow),
    /// Kept, as a join that no other device knows of.
    Begin(JoinRow),
    Forget,
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

/// Whether a join that met this is over. A disk that is full, or in trouble, says nothing about it; nor does the end of the client.
fn is_for_good(error: &JoinError) -> bool {
    let is_here = |error: &ReadError| matches!(error, ReadError::Store(_) | ReadError::Closed);
    let is_full = |error: &WriteError| {
        matches!(
            error,
            WriteError::StoreFull | WriteError::Overloaded | WriteError::OutcomeUnknown(_) | WriteError::Closed
        )
    };
    let passes = matches!(error, JoinError::Acl(AclError::Contended { .. }))
        || matches!(error, JoinError::Acl(AclError::Read(error)) | JoinError::Write(WriteError::Read(error)) if is_here(error))
        || matches!(error, JoinError::Write(error) if is_full(error));
    !passes && !is_transient(error)
}
