//! Receipts: what this node signs for.
//!
//! All facts of a receipt come from one transaction, and it is signed only after everything up to its position is on the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId};
use sync_core::record::{Receipt, Verified};
use sync_host::Host;

use crate::failure::CallError;
use crate::gate::{Gate, Standing};
use crate::identity::Identity;

/// Spaces whose last heartbeat is remembered; more are forgotten at once and made again when needed.
const HEARTBEATS_MAX: usize = 16_384;

/// What the caller of Certify brings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Challenge {
    pub(crate) nonce: [u8; 16],
    pub(crate) prev: Option<[u8; 32]>,
}

/// Whether a receipt carries the set digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithDigest {
    Yes,
    No,
}

/// Signs, and remembers the last heartbeat of each space.
#[derive(Debug)]
pub(crate) struct Receipts {
    host: Host,
    identity: Arc<Identity>,
    heartbeats: Mutex<BTreeMap<SpaceId, Arc<Slot>>>,
}

/// The last heartbeat of one space. The lock is held while the next one is made, so that it is made once.
type Slot = tokio::sync::Mutex<Option<Arc<Verified<Receipt>>>>;

impl Receipts {
    pub(crate) fn new(host: Host, identity: Arc<Identity>) -> Self {
        Self { host, identity, heartbeats: Mutex::default() }
    }

    /// Signs where a space stands, once that is on the disk.
    pub(crate) async fn certify(
        &self,
        gate: &Gate,
        space: SpaceId,
        standing: Standing,
        challenge: Option<Challenge>,
        with_digest: WithDigest,
    ) -> Result<Verified<Receipt>, CallError> {
        wait_durable(gate, space, standing.position.seq).await?;
        let receipt = Receipt {
            authority: self.identity.authority(),
            node: self.identity.node(),
            space,
            history: standing.history,
            seq: standing.position.seq,
            chain: standing.position.chain,
            acl_head: standing.acl_head,
            epoch: standing.epoch,
            durable: true,
            at_ms: self.host.wall_ms(),
            nonce: challenge.map(|c| c.nonce),
            prev: challenge.and_then(|c| c.prev),
            set_digest: match with_digest {
                WithDigest::Yes => Some(standing.set_digest),
                WithDigest::No => None,
            },
            trees: standing.trees,
        };
        let signed = Verified::sign(&receipt, &self.identity.node_key, None);
        signed.map_err(|e| CallError::new(Code::StoreFailed, format!("the receipt could not be signed: {e}")))
    }

    /// The receipt that every subscriber of a space is sent: made once for each position that it stands still at.
    pub(crate) async fn heartbeat(&self, gate: &Gate, space: SpaceId) -> Result<Arc<Verified<Receipt>>, CallError> {
        let slot = self.slot(space);
        let mut last = slot.lock().await;
        let now = gate.watch(space).await?.borrow().seq;
        if let Some(known) = last.as_ref().filter(|known| known.body().seq == now) {
            return Ok(Arc::clone(known));
        }
        let standing = gate.standing_for_heartbeat(space).await?;
        let made = Arc::new(self.certify(gate, space, standing, None, WithDigest::Yes).await?);
        *last = Some(Arc::clone(&made));
        Ok(made)
    }

    fn slot(&self, space: SpaceId) -> Arc<Slot> {
        let mut slots = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= HEARTBEATS_MAX && !slots.contains_key(&space) {
            slots.clear();
        }
        Arc::clone(slots.entry(space).or_default())
    }
}

/// Waits until the log up to `seq` is on the disk.
pub(crate) async fn wait_durable(gate: &Gate, space: SpaceId, seq: Seq) -> Result<(), CallError> {
    let mut marks = gate.watch(space).await?;
    match marks.wait_for(|marks| marks.durable_seq >= seq).await {
        Ok(_) => Ok(()),
        Err(_closed) => Err(CallError::shutting_down()),
    }
}
