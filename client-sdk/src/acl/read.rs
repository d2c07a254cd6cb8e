//! Reading an ACL log from outside: before a replica of the space is here, as the holder of an invite, as who asked to join,
//! or as a member on a new device. Every step is checked, from the space id down.

use std::sync::Arc;

use sync_core::acl::{AclState, RequestStatus, sign_read_proof};
use sync_core::ids::{AclId, Chain, EntryId, HistoryId, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::{Genesis, Position, genesis};
use sync_core::record::{AclRecord, RawRecord, Verified, verify_as};
use sync_core::session::Input;
use sync_e2ee::{InviteSecret, KeyRing};
use sync_proto::v1::{self, acl_read_entry::Entry};
use sync_store::{Registration, WriteTx};
use tonic::Streaming;

use crate::client::Shared;
use crate::connect::Conn;
use crate::error::{CallError, JoinError, ReadError, from_store_write};
use crate::space::absorb;

/// An ACL log read from the node and checked from the space id down.
pub(crate) struct AclRead {
    genesis: Genesis,
    history: HistoryId,
    pub(crate) state: AclState,
    position: Position,
    /// The chain after each entry, from entry 2.
    chains: Vec<Chain>,
    records: Vec<RawRecord>,
}

/// When a read of the ACL ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    No,
    /// When our request was decided.
    UntilDecided,
}

impl AclRead {
    /// The keys that an open invite gives.
    pub(crate) fn open_with(&self, secret: &InviteSecret, shared: &Shared) -> Result<KeyRing, JoinError> {
        let mut ring = KeyRing::new(shared.account.clone());
        ring.hold_invite(secret.clone());
        self.fill(&mut ring);
        Ok(ring)
    }

    /// The ACL records, in order.
    pub(crate) fn records(&self) -> &[RawRecord] {
        &self.records
    }

    /// The keys that the log gives this account.
    pub(crate) fn ring(&self, shared: &Shared) -> KeyRing {
        let mut ring = KeyRing::new(shared.account.clone());
        self.fill(&mut ring);
        ring
    }

    fn fill(&self, ring: &mut KeyRing) {
        let mut epoch = sync_core::ids::Epoch(0);
        for record in &self.records {
            // A seal to somebody else that is wrong is not our affair; a missing key shows when it is needed.
            let _ = absorb(ring, record.clone(), &mut epoch, &self.state);
        }
    }

    fn take(&mut self, entry: v1::AclReadEntry) -> Result<(), JoinError> {
        let bad = |text: String| JoinError::NodeFault(text);
        if entry.seq <= self.position.seq.0 {
            // Sent twice; what was verified then stands.
            return Ok(());
        }
        if entry.seq > self.position.seq.next().0 {
            return Err(broken_off("entries of the ACL did not come"));
        }
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
        self.chains.push(next.chain);
        Ok(())
    }

    /// The end of what was read.
    pub(crate) fn seq(&self) -> Seq {
        self.position.seq
    }

    /// The chain at an entry; `None` beyond the end.
    pub(crate) fn chain_at(&self, seq: Seq) -> Option<Chain> {
        let index = usize::try_from(seq.0.checked_sub(2)?).ok()?;
        self.chains.get(index).copied()
    }
}

impl Shared {
    /// Reads the ACL of a space, checking every step: as the holder of an invite, or without one as a member, with a request, or
    /// as a former member.
    pub(crate) async fn read_acl(
        &self,
        space: SpaceId,
        invite: Option<&InviteSecret>,
        follow: Follow,
    ) -> Result<AclRead, JoinError> {
        let opening = || async {
            let conn = self.conn().await?;
            let stream = self.open_acl_read(&conn, space, invite, follow).await?;
            Ok::<_, CallError>((conn, stream))
        };
        let (conn, mut stream) = self.insist(limits::ASK_AGAIN_MAX, opening).await?;
        let mut read: Option<AclRead> = None;
        let mut header = None;
        let mut first: Option<v1::AclReadEntry> = None;
        let mut complete = false;
        loop {
            // Who follows is told the end again with every heartbeat.
            let Some(message) = self.answer(&conn, stream.message()).await? else {
                let broken = || broken_off("the ACL ended before its end");
                return read.filter(|_| complete).ok_or_else(broken);
            };
            header = header.or(message.header);
            for entry in message.entries {
                match (&mut read, &first) {
                    (Some(read), _) => read.take(entry)?,
                    (None, None) if entry.seq > 1 => return Err(broken_off("the beginning of the ACL did not come")),
                    (None, None) => first = Some(entry),
                    (None, Some(first)) if entry.seq <= first.seq => {}
                    (None, Some(_)) if entry.seq > 2 => {
                        return Err(broken_off("the beginning of the ACL did not come"));
                    }
                    (None, Some(first)) => read = Some(begin(space, header.as_ref(), first, &entry)?),
                }
            }
            if message.complete_to_seq > read.as_ref().map_or(0, |read| read.position.seq.0) {
                return Err(broken_off("entries of the ACL did not come"));
            }
            let Some(read_so_far) = &read else { continue };
            complete |= message.complete_to_seq != 0;
            let decided = !matches!(standing(&read_so_far.state, self), Standing::Pending(_));
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
        space: SpaceId,
        invite: Option<&InviteSecret>,
        follow: Follow,
    ) -> Result<Streaming<v1::AclReadResponse>, CallError> {
        let prove = |secret: &InviteSecret| {
            let signature = sign_read_proof(secret.signing_key(), &conn.nonces(), space, self.account.id());
            v1::InviteProof { invite: secret.id().to_bytes(), signature: signature.to_vec().into() }
        };
        let request = v1::AclReadRequest {
            space: space.to_bytes(),
            from_seq: 0,
            follow: follow == Follow::UntilDecided,
            invite_proof: invite.map(prove),
        };
        let mut rpc = conn.rpc();
        Ok(self.answer(conn, rpc.acl_read(request)).await?.into_inner())
    }

    /// Keeps the beginning of a log that we are a member of, and opens it: the rest comes by its tail.
    pub(crate) async fn adopt(self: &Arc<Self>, acl: &AclRead) -> Result<(), JoinError> {
        let (genesis, history) = (acl.genesis.clone(), acl.history);
        let space = genesis.space();
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            tx.create_space(&genesis, history)?;
            let mut state = tx.node_state(space)?;
            state.registration = Registration::Registered;
            Ok(tx.put_node_state(space, &state)?)
        };
        let shared = self.clone();
        let adopting = async move {
            shared.store.write(job).await.map_err(from_store_write)?;
            shared.open_space(space)?;
            // A former member's subscription waits for the end of a pause.
            shared.link(Input::AskAgain { space });
            Ok(())
        };
        self.to_its_end(adopting).await?
    }
}

/// Something is lacking of an answer. That is nobody's word for anything: the line may have lost it.
fn broken_off(what: &str) -> JoinError {
    CallError::Broken(what.to_owned()).into()
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
    let chains = vec![position.chain];
    Ok(AclRead { genesis, history: HistoryId([0; 16]), state, position, chains, records: vec![first, second] })
}

/// How this account stands in an ACL.
pub(crate) enum Standing {
    Member,
    /// Its request waits.
    Pending(AclId),
    /// Its last request was.
    Declined(AclId),
    /// It took its last request back.
    Cancelled(AclId),
    Stranger,
}

pub(crate) fn standing(state: &AclState, shared: &Shared) -> Standing {
    let account = shared.account.id();
    if state.members.contains_key(&account) {
        return Standing::Member;
    }
    let latest = state.requests.iter().filter(|(_, r)| r.claim.account == account).max_by_key(|(_, r)| r.at);
    let Some((request, latest)) = latest else { return Standing::Stranger };
    match &latest.status {
        // Nobody decides anything there any more.
        RequestStatus::Pending if state.deleted => Standing::Stranger,
        RequestStatus::Accepted { .. } => Standing::Stranger,
        RequestStatus::Pending => Standing::Pending(*request),
        RequestStatus::Declined { .. } => Standing::Declined(*request),
        RequestStatus::Cancelled { .. } => Standing::Cancelled(*request),
    }
}
