//! The four things that happen to the heads of a tree, as the status hears of them. Only what a peer told and is not logged
//! here is kept in rows of its own; all else is in rows that are there anyway:
//!
//! - *HeadsChange*, a write of ours: its row in the outbox.
//! - *HeadsReceive*, a peer told its heads: `peer_heads`, as long as they are not the logged ones here.
//! - *ObjectReceive*, entries of a tree came: the log itself, or a row ahead of it.
//! - *HeadsApply*, the log here moved: what was told is compared with it again.

use sync_core::ids::{Seq, SpaceId};
use sync_core::record::TreeHeads;
use sync_core::syncer::Priority;
use sync_store::{HeadsTold, PeerHeads, SyncItemKind, WriteTx};

use super::SpaceInner;
use super::syncer::wanted;
use crate::client::Shared;
use crate::error::ReadError;

/// What a peer told of its heads.
pub(super) struct Told {
    pub(super) heads: Vec<TreeHeads>,
    /// The end of the peer's log then.
    pub(super) seq: Seq,
    pub(super) now_ms: u64,
}

/// Whether something is to be fetched or judged because of what a peer told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    Something,
    Nothing,
}

/// *HeadsApply*: with the entries of the peer in the log, its heads are the ones here, or that is noted. A tree with changes in
/// quarantine, of which it tells heads that are news, is judged again.
pub(super) fn apply(tx: &mut WriteTx<'_>, shared: &Shared, space: SpaceId, told: Told) -> Result<Wants, ReadError> {
    let peer = *shared.address.authority.as_bytes();
    let mut wants = Wants::Nothing;
    for TreeHeads { tree, heads } in told.heads {
        let found = tx.put_peer_heads(space, &PeerHeads { peer, tree, heads, seq: told.seq, told_ms: told.now_ms })?;
        if found == HeadsTold::Apart && tx.has_quarantined(space, tree)? {
            tx.want_sync_item(space, &wanted(tree, SyncItemKind::Judge, Priority::Gap, told.now_ms))?;
            wants = Wants::Something;
        }
    }
    Ok(wants)
}

impl SpaceInner {
    /// *HeadsReceive*: the node told heads whose entries could not be applied.
    pub(super) async fn heads_receive(&self, heads: Vec<TreeHeads>, seq: Seq) {
        if heads.is_empty() {
            return;
        }
        let (space, shared) = (self.id, self.shared.clone());
        let told = Told { heads, seq, now_ms: shared.host.wall_ms() };
        let job = move |tx: &mut WriteTx<'_>| apply(tx, &shared, space, told);
        match self.shared.store.write(job).await {
            Ok(written) if written.value == Wants::Something => self.sync_wanted.notify_one(),
            Ok(_) => {}
            Err(error) => tracing::warn!(space = %space.short(), error = %error, "told heads could not be noted"),
        }
        self.touch();
    }
}
