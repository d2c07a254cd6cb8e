//! Acts on who is in a space and what they may do there.
//!
//! Every act is an *intent* ([`AclChange`]): from it and the present ACL the contents of one record are made. If another admin
//! was faster, they are made again on the new ACL; the rules are asked before anything is sent. [`Space::plan`] makes the same
//! contents and only says what they would do.

mod change;
mod events;
mod intents;
mod invites;
mod plan;
mod preparation;
pub(crate) mod read;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use sync_core::acl::{AclState, InviteStatus};
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, Epoch, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::record::{AclContent, AclRecord, HistoryMode, InviteMode, Role, Rotation, Verified};
use sync_e2ee::{HistoryAccess, KeyRing, Recipient, SpaceKeys, make_rotation, open_profile, seal_keys};
use sync_proto::v1::{self, acl_append_response::Outcome};

use crate::connect::Conn;
use crate::error::{AclError, CallError, ReadError};
use crate::space::SpaceInner;
use crate::space::recovery::seen_now;

pub use change::AclChange;
pub(crate) use events::events_of;
pub(crate) use intents::leave_key;
pub use invites::{Invite, InviteInfo, InviteOptions};
pub use plan::{AclPlan, Effect};
pub use preparation::Preparation;
pub use requests::JoinRequest;

/// Makes the contents of a record for an ACL; none if the intent is fulfilled already.
pub(crate) type MakeContents<'a> = dyn Fn(&AclState) -> Result<Vec<AclContent>, AclError> + Send + Sync + 'a;

impl SpaceInner {
    /// Appends an ACL record for an intent, and waits until it is part of our own log.
    pub(crate) async fn append_acl(self: &Arc<Self>, make: &MakeContents<'_>) -> Result<(), AclError> {
        let registered = tokio::time::timeout(limits::UNARY_TIMEOUT, self.registered()).await;
        registered.map_err(|_| self.shared.timed_out())??;
        let until = self.shared.host.now().plus(limits::ACL_INTENT_TIMEOUT);
        let mut attempts = 0;
        loop {
            let acl = self.acl()?;
            let contents = make(&acl)?;
            if contents.is_empty() {
                return Ok(());
            }
            let record = sign_record(&self.shared, &acl, contents)?;
            // What the rules refuse here, they refuse everywhere.
            acl.apply(&record, Seq(u64::MAX)).map_err(Reject::Acl)?;
            attempts += 1;
            match self.offer(&record).await {
                Ok(seq) => return Ok(self.reaches(seq).await?),
                Err(CallError::Refused(refused)) if refused.code == Code::AclConflict => {
                    self.acl_moves_from(acl.head).await?;
                }
                Err(error) => return Err(error.into()),
            }
            if self.acl()?.records.contains_key(&record.id().into()) {
                // An answer was lost on the way, and the second offer met the first.
                return Ok(());
            }
            if self.shared.host.now() > until {
                return Err(AclError::Contended { attempts });
            }
        }
    }

    /// Offers a record to the node until it says yes or no: a broken connection leaves open what became of it, and the same
    /// record a second time is answered with where it stands. On each connection, nothing new is appended to a log that does
    /// not continue ours.
    async fn offer(&self, record: &Verified<AclRecord>) -> Result<Seq, CallError> {
        let append = || async {
            let conn = self.shared.conn().await?;
            self.tail_stands(&conn).await?;
            self.shared.append_on(&conn, self.id, record).await
        };
        self.shared.insist(limits::UNARY_TIMEOUT, append).await
    }

    /// Waits until the node has the space, for as long as it takes.
    pub(crate) async fn registered(&self) -> Result<(), CallError> {
        let mut moved = self.moved.subscribe();
        while !self.shared.is_registered(self.id) {
            moved.changed().await.map_err(|_| self.shared.offline())?;
        }
        Ok(())
    }

    /// Waits until our log holds `seq`.
    pub(crate) async fn reaches(&self, seq: Seq) -> Result<(), CallError> {
        let mut watermarks = self.shared.store.watch(self.id);
        let reached = watermarks.wait_for(|w| w.seq >= seq);
        let waited = tokio::time::timeout(limits::UNARY_TIMEOUT, reached).await;
        waited.map_err(|_| CallError::TimedOut)?.map_err(|_| self.shared.offline())?;
        Ok(())
    }

    async fn acl_moves_from(&self, head: AclId) -> Result<(), AclError> {
        let mut watermarks = self.shared.store.watch(self.id);
        let moves = async {
            loop {
                watermarks.borrow_and_update();
                if self.acl()?.head != head {
                    return Ok::<_, AclError>(());
                }
                watermarks.changed().await.map_err(|_| self.shared.offline())?;
            }
        };
        tokio::time::timeout(limits::UNARY_TIMEOUT, moves).await.map_err(|_| CallError::TimedOut)?
    }

    /// The keys of the present epoch.
    fn current_keys(&self, acl: &AclState) -> Result<SpaceKeys, AclError> {
        let ring = self.shared.store.read(|tx| self.ring_of(tx, acl))?;
        Ok(ring.keys(acl.epoch).ok_or(ReadError::NoKeys)?.clone())
    }

    /// New keys for those who hold the present ones by right, without some of them.
    fn rotation(
        &self,
        acl: &AclState,
        without: &[AccountId],
        invites: OpenInvites<'_>,
    ) -> Result<(Rotation, SpaceKeys), AclError> {
        self.rotation_with(acl, acl.options.history, without, invites)
    }

    /// As [`Self::rotation`], for members who read as another option says.
    fn rotation_with(
        &self,
        acl: &AclState,
        history: HistoryMode,
        without: &[AccountId],
        invites: OpenInvites<'_>,
    ) -> Result<(Rotation, SpaceKeys), AclError> {
        let keys = self.current_keys(acl)?;
        let stays = |account: &AccountId| !without.contains(account);
        let members: Vec<_> = acl
            .members
            .iter()
            .filter(|(account, _)| stays(account))
            .map(|(account, m)| (*account, access(history, m.role)))
            .collect();
        let mut rng = self.shared.host.rng();
        let (mut rotation, new_keys) = make_rotation(acl.space, (acl.epoch, &keys), &members, &mut rng)?;
        let OpenInvites::Reseal { except } = invites else { return Ok((rotation, new_keys)) };
        for (id, invite) in &acl.invites {
            let is_open = invite.status == InviteStatus::Live && invite.content.mode == InviteMode::Open;
            // A leaver may hold the secret of an open invite: the next rotation closes them all.
            if is_open && !acl.rotation_owed && except != Some(id) {
                let keys = keys_for(history, invite.content.role, &new_keys);
                let to = Recipient::Invite(*id);
                rotation.invite_seals.push(seal_keys(Some(acl.space), rotation.epoch, to, &keys, &mut rng)?);
            }
        }
        Ok((rotation, new_keys))
    }
}

/// What a rotation does with open invites.
#[derive(Clone, Copy)]
enum OpenInvites<'a> {
    /// Those that live on get the new keys.
    Reseal { except: Option<&'a sync_core::ids::InviteId> },
    /// The record closes them.
    Close,
}

fn access(history: HistoryMode, role: Role) -> HistoryAccess {
    match history {
        HistoryMode::All if role > Role::Guest => HistoryAccess::WithHistory,
        HistoryMode::All | HistoryMode::SinceJoin => HistoryAccess::WithoutHistory,
    }
}

/// The keys that a role is given: the way back to older epochs only where the space lets its members read history.
pub(crate) fn keys_for(history: HistoryMode, role: Role, keys: &SpaceKeys) -> SpaceKeys {
    match access(history, role) {
        HistoryAccess::WithHistory => keys.clone(),
        HistoryAccess::WithoutHistory => keys.without_history(),
    }
}

/// True if a new member of this role is not to read what was written before.
fn reads_from_now_on(history: HistoryMode, role: Role) -> bool {
    match access(history, role) {
        HistoryAccess::WithHistory => false,
        HistoryAccess::WithoutHistory => true,
    }
}

/// The next record of an ACL log.
pub(crate) fn sign_record(
    shared: &crate::client::Shared,
    acl: &AclState,
    contents: Vec<AclContent>,
) -> Result<Verified<AclRecord>, AclError> {
    let record = AclRecord {
        space: acl.space,
        prev: acl.head,
        index: acl.index + 1,
        author: shared.account.id(),
        at_ms: shared.host.wall_ms(),
        // Of a space that is not here nothing was seen.
        seen: shared.store.read(|tx| seen_now(tx, acl.space))?,
        contents,
    };
    Ok(Verified::sign(&record, shared.account.signing_key(), None)?)
}

impl crate::client::Shared {
    /// Asks until the node says what stands: a session that ended a moment ago, or a node that is just being started again, is
    /// nothing that the caller hears of before `patience` is over.
    pub(crate) async fn insist<T, Asked: Future<Output = Result<T, CallError>>>(
        &self,
        patience: Duration,
        ask: impl Fn() -> Asked,
    ) -> Result<T, CallError> {
        let mut met = None;
        let asking = async {
            let begun = self.host.now();
            loop {
                match ask().await {
                    Err(error) if is_worth_another_try(&error) && self.host.now() < begun.plus(patience) => {
                        tracing::debug!(error = %error, "the node is asked again");
                        met = Some(error);
                        tokio::time::sleep(limits::RETRY_FIRST / 10).await;
                    }
                    said => return said,
                }
            }
        };
        let asked = tokio::time::timeout(limits::UNARY_TIMEOUT, asking).await;
        // What the node said last is why nothing came of it.
        asked.unwrap_or_else(|_| Err(met.unwrap_or_else(|| self.timed_out())))
    }

    /// As [`SpaceInner`] offers a record, for who has no log of the space yet.
    pub(crate) async fn offer(&self, space: SpaceId, record: &Verified<AclRecord>) -> Result<Seq, CallError> {
        let append = || async { self.append_on(&self.conn().await?, space, record).await };
        self.insist(limits::UNARY_TIMEOUT, append).await
    }

    /// One AclAppend; the position of the record, durable.
    pub(crate) async fn append_on(
        &self,
        conn: &Conn,
        space: SpaceId,
        record: &Verified<AclRecord>,
    ) -> Result<Seq, CallError> {
        let record = Some(record.raw().clone().into());
        let request = v1::AclAppendRequest { space: space.to_bytes(), record, invite_proof: None };
        let mut rpc = conn.rpc();
        match self.answer(conn, rpc.acl_append(request)).await?.into_inner().outcome {
            Some(Outcome::Accepted(v1::Accepted { seq }) | Outcome::Known(v1::Known { seq })) => Ok(Seq(seq)),
            None => Err(CallError::BadAnswer("an append without an outcome".to_owned())),
        }
    }

    /// Why a call timed out: no session all the time, or a silent node.
    pub(crate) fn timed_out(&self) -> CallError {
        if self.connection.borrow().online().is_some() { CallError::TimedOut } else { self.offline() }
    }
}

/// Nobody watches a disk being emptied: whoever acts is told at once, and decides.
fn is_worth_another_try(error: &CallError) -> bool {
    let named = match error {
        CallError::Offline { .. } => true,
        CallError::Refused(failure) => failure.code == Code::StoreFull,
        CallError::TimedOut | CallError::Broken(_) | CallError::BadAnswer(_) => false,
    };
    error.is_transient() && !named
}

/// The name in a profile or label that is encrypted to the members of an epoch.
pub(crate) fn open_name(ring: &KeyRing, space: SpaceId, epoch: Epoch, profile_ct: &[u8]) -> Option<String> {
    let plain = open_profile(space, epoch, ring.keys(epoch)?, profile_ct).ok()?;
    let profile: serde_json::Value = serde_json::from_slice(&plain).ok()?;
    profile.get("name")?.as_str().map(str::to_owned)
}
