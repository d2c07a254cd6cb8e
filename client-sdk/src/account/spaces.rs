//! The spaces of the account: what this device has and the account's space does not tell of is written there; what it tells
//! of and is not here is fetched.
//!
//! Where the two contradict each other, the node is asked before anything is written, so that a device which was away for
//! long neither brings back what another one ended, nor ends what another one began:
//!
//! | here | listed | what follows |
//! |---|---|---|
//! | member | never | it is listed |
//! | member | ended | listed again, if the node still serves us |
//! | member no more | yes | ended, if the node does not serve us any more |
//! | not here | yes | fetched, as soon as the node serves us |

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::json;
use sync_core::code::Code;
use sync_core::ids::SpaceId;
use sync_core::limits;
use sync_proto::v1;

use super::{ClientEvent, SPACE, end};
use crate::acl::read::{Follow, Standing, standing};
use crate::client::{Client, Shared};
use crate::error::{AclError, CallError, JoinError, ReadError, WriteError};
use crate::space::Space;

/// The pause before a question to the node is asked again, at first; it doubles up to [`limits::RETRY_MAX`].
const ASK_PAUSE: Duration = Duration::from_millis(250);

/// How the account stands in a space, by what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    Absent,
    /// The log here does not reach the account's membership yet.
    Before,
    Member,
    /// It was a member.
    After,
    Deleted,
}

/// What the account's space says of a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listed {
    Never,
    Yes,
    Ended,
}

impl Client {
    /// Waits until a space is here: made or joined here or by another device of the account. A listed space that cannot be
    /// fetched at present is waited for too.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, id: client_sdk::SpaceId) -> Result<(), Box<dyn std::error::Error>> {
    /// let space = client.wait_for_space(id, std::time::Duration::from_secs(30)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`JoinError::NotReady`] after `timeout`.
    pub async fn wait_for_space(&self, id: SpaceId, timeout: Duration) -> Result<Space, JoinError> {
        let mut events = self.events();
        let waiting = async {
            loop {
                match self.space(id) {
                    Ok(space) => return Ok(space),
                    Err(ReadError::UnknownSpace(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                if events.next().await.is_none() {
                    return Err(JoinError::from(WriteError::Closed));
                }
            }
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(found) => found,
            Err(_) => Err(JoinError::NotReady { waiting: self.shared.missing_because(id) }),
        }
    }

    /// Opens a space that an admin put this account into without an invite: all that is known of it is its id. Returns when
    /// the account is a member here and can read.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client, id: client_sdk::SpaceId) -> Result<(), Box<dyn std::error::Error>> {
    /// let space = client.open_joined(id, std::time::Duration::from_secs(30)).await?;
    /// println!("{:?}", space.name()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`JoinError::NotReady`] after `timeout`, saying what it waits for.
    pub async fn open_joined(&self, space: SpaceId, timeout: Duration) -> Result<Space, JoinError> {
        let waiting = std::sync::Mutex::new("the node".to_owned());
        let opening = async {
            let mut pause = ASK_PAUSE;
            while self.shared.store.read(|tx| tx.space(space))?.is_none() {
                match self.shared.fetch(space).await {
                    Ok(Fetched::Adopted) => break,
                    Ok(Fetched::Ended) => say(&waiting, "the account is no member of the space"),
                    Err(error) if may_pass(&error) => say(&waiting, &error.to_string()),
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(limits::RETRY_MAX);
            }
            let space = self.space(space)?;
            say(&waiting, "the space's log");
            let mut moved = space.inner.moved.subscribe();
            loop {
                moved.borrow_and_update();
                let acl = space.inner.acl()?;
                if acl.members.contains_key(&self.account()) && space.inner.ring().holds(acl.epoch) {
                    return Ok(space);
                }
                if moved.changed().await.is_err() {
                    return Err(self.shared.offline().into());
                }
            }
        };
        self.shared.link(sync_core::session::Input::Wake);
        match tokio::time::timeout(timeout, opening).await {
            Ok(result) => result,
            Err(_) => Err(JoinError::NotReady { waiting: waiting.into_inner().unwrap_or_default() }),
        }
    }
}

fn say(waiting: &std::sync::Mutex<String>, text: &str) {
    text.clone_into(&mut waiting.lock().unwrap_or_else(PoisonError::into_inner));
}

/// What may be otherwise a moment later: somebody has yet to reach the node, or we have.
fn may_pass(error: &JoinError) -> bool {
    let JoinError::Acl(AclError::Call(call)) = error else { return false };
    let unheard_of = |code| matches!(code, Code::SpaceUnknown | Code::Forbidden);
    call.is_transient() || matches!(call, CallError::Refused(failure) if unheard_of(failure.code))
}

/// What came of fetching a space.
enum Fetched {
    Adopted,
    /// Its own log says that the account is no member, or that it was deleted.
    Ended,
}

impl Shared {
    /// Why a space is not here.
    pub(super) fn missing_because(&self, space: SpaceId) -> String {
        let asking = self.own.asking.lock().unwrap_or_else(PoisonError::into_inner);
        match asking.get(&space) {
            Some(why) if !why.is_empty() => format!("{space}: {why}"),
            _ if self.connection.borrow().online().is_none() => format!("{space}: {}", self.offline()),
            Some(_) => format!("{space}: the node has yet to answer"),
            None => format!("{space}: no device of the account tells of it"),
        }
    }

    /// The spaces that the account's space lists.
    pub(super) fn listed_spaces(self: &Arc<Self>) -> Result<BTreeSet<SpaceId>, ReadError> {
        let objects = self.account_space()?.objects().list(SPACE)?;
        Ok(objects.iter().filter_map(|object| object.id.parse().ok()).collect())
    }

    /// Every space that is here or listed, but the account's own.
    pub(super) fn known_spaces(self: &Arc<Self>) -> Result<BTreeSet<SpaceId>, ReadError> {
        let mut known = self.listed_spaces()?;
        known.extend(self.store.read(|tx| tx.spaces())?.into_iter().map(|row| row.space));
        known.remove(&self.own.id);
        Ok(known)
    }

    pub(super) async fn compare_space(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        let (here, listed) = (self.here(space)?, self.listed(space)?);
        match (here, listed) {
            (Here::Member, Listed::Never) => self.list_space(space).await?,
            (Here::Deleted, Listed::Yes) => self.unlist_space(space).await?,
            (Here::Member, Listed::Ended) | (Here::After | Here::Absent, Listed::Yes) => self.ask(space),
            (Here::Member | Here::Before, Listed::Yes)
            | (Here::Before | Here::After | Here::Deleted | Here::Absent, Listed::Never | Listed::Ended) => {}
        }
        self.tell_of_membership(space, here);
        Ok(())
    }

    fn tell_of_membership(&self, space: SpaceId, here: Here) {
        let mut member_of = self.own.member_of.lock().unwrap_or_else(PoisonError::into_inner);
        match here {
            Here::Member => {
                member_of.insert(space);
            }
            Here::After | Here::Deleted | Here::Absent => {
                if member_of.remove(&space) {
                    self.own.tell(ClientEvent::SpaceGone { space });
                }
            }
            Here::Before => {}
        }
    }

    pub(super) fn here(&self, space: SpaceId) -> Result<Here, ReadError> {
        let Some(acl) = self.store.read(|tx| tx.acl(space))? else { return Ok(Here::Absent) };
        if acl.deleted {
            return Ok(Here::Deleted);
        }
        let account = self.account.id();
        if acl.members.contains_key(&account) {
            return Ok(Here::Member);
        }
        let was_member = acl.removed.contains_key(&account) || acl.left.contains_key(&account);
        Ok(if was_member { Here::After } else { Here::Before })
    }

    fn listed(self: &Arc<Self>, space: SpaceId) -> Result<Listed, ReadError> {
        let objects = self.account_space()?.objects();
        Ok(match objects.tree(SPACE, &space.to_string())? {
            None => Listed::Never,
            Some(tree) if tree.snapshot()?.object.is_some() => Listed::Yes,
            Some(_) => Listed::Ended,
        })
    }

    async fn list_space(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        let fields = json!({ "since_ms": self.host.wall_ms() });
        self.account_space()?.objects().put(SPACE, &space.to_string(), fields).await?;
        Ok(())
    }

    /// Takes a space off the account's list: for somebody who is about to forget it here.
    pub(crate) async fn unlist_space(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        end(self.account_space()?.objects().delete(SPACE, &space.to_string()).await)
    }

    /// Settles with the node's help what is here and what is listed, in the background; one task for a space.
    fn ask(self: &Arc<Self>, space: SpaceId) {
        let mut asking = self.own.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if asking.contains_key(&space) {
            return;
        }
        asking.insert(space, String::new());
        drop(asking);
        let shared = self.clone();
        self.spawn(async move {
            let work = shared.clone().settle_until_done(space);
            let _ = shared.cancel.run_until_cancelled(work).await;
            shared.own.asking.lock().unwrap_or_else(PoisonError::into_inner).remove(&space);
            // What moved in the meantime was left to this task.
            shared.own.moved(space);
        });
    }

    async fn settle_until_done(self: Arc<Self>, space: SpaceId) {
        let mut pause = ASK_PAUSE;
        while let Err(error) = self.settle_space(space).await {
            tracing::debug!(space = %space.short(), error = %error, "a space of the account waits");
            self.own.asking.lock().unwrap_or_else(PoisonError::into_inner).insert(space, error.to_string());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limits::RETRY_MAX);
        }
    }

    async fn settle_space(self: &Arc<Self>, space: SpaceId) -> Result<(), JoinError> {
        match (self.here(space)?, self.listed(space)?) {
            (Here::Member, Listed::Ended) => {
                if !self.is_served(space).await? {
                    return Err(forbidden(space));
                }
                Ok(self.list_space(space).await?)
            }
            (Here::After, Listed::Yes) => {
                if self.is_served(space).await? {
                    // A member again; the log here does not say so yet.
                    return Err(CallError::TimedOut.into());
                }
                Ok(self.unlist_space(space).await?)
            }
            (Here::Absent, Listed::Yes) => match self.fetch(space).await? {
                Fetched::Adopted => Ok(()),
                Fetched::Ended => Ok(self.unlist_space(space).await?),
            },
            (Here::Member | Here::Before | Here::Deleted, Listed::Yes)
            | (Here::Before | Here::After | Here::Deleted | Here::Absent, Listed::Ended)
            | (_, Listed::Never) => Ok(()),
        }
    }

    /// Begins a space that the account is a member of and that is not here.
    async fn fetch(self: &Arc<Self>, space: SpaceId) -> Result<Fetched, JoinError> {
        self.conn().await?;
        let acl = self.read_acl(space, None, Follow::No).await?;
        match standing(&acl.state, self) {
            _ if acl.state.deleted => return Ok(Fetched::Ended),
            Standing::Member => {}
            // Signed by somebody who could: it ends what is listed. That a node shows less than it might does not.
            Standing::Stranger | Standing::Declined(_) | Standing::Cancelled(_)
                if acl.state.membership_ended(&self.account.id()).is_some() =>
            {
                return Ok(Fetched::Ended);
            }
            Standing::Stranger | Standing::Declined(_) | Standing::Cancelled(_) | Standing::Pending(_) => {
                return Err(forbidden(space));
            }
        }
        // A former member is shown the log up to a point where it was one still.
        if !self.is_served(space).await? {
            return Err(forbidden(space));
        }
        self.adopt(&acl).await?;
        Ok(Fetched::Adopted)
    }

    /// Whether the node serves this account in a space as a member.
    async fn is_served(&self, space: SpaceId) -> Result<bool, CallError> {
        self.insist(limits::ASK_AGAIN_MAX, || self.is_served_now(space)).await
    }

    async fn is_served_now(&self, space: SpaceId) -> Result<bool, CallError> {
        let conn = self.conn().await?;
        let nonce: [u8; 16] = self.host.random();
        let request = v1::CertifyRequest {
            space: space.to_bytes(),
            nonce: nonce.to_vec().into(),
            prev: bytes::Bytes::new(),
            trees: Vec::new(),
            with_set_digest: false,
        };
        let mut rpc = conn.rpc();
        match self.answer(&conn, rpc.certify(request)).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused(failure)) if failure.code == Code::Forbidden => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn forbidden(space: SpaceId) -> JoinError {
    let text = format!("the account is no member of {} now", space.short());
    CallError::Refused(sync_proto::status::Failure::new(Code::Forbidden, text)).into()
}
