//! Certify: a durable receipt as of now, bound to the caller's nonce.

use sync_core::ids::{SpaceId, TreeId};
use sync_core::limits;
use sync_proto::v1::{CertifyRequest, CertifyResponse};
use sync_proto::{WireError, array, id};

use super::State;
use crate::failure::CallError;
use crate::metrics;
use crate::receipts::{Challenge, WithDigest};
use crate::session::Session;

pub(super) async fn certify(
    state: &State,
    session: &Session,
    request: CertifyRequest,
) -> Result<CertifyResponse, CallError> {
    let since = state.host.now();
    let space: SpaceId = id(&request.space)?;
    let challenge = Challenge {
        nonce: array("nonce", &request.nonce)?,
        prev: if request.prev.is_empty() { None } else { Some(array("prev", &request.prev)?) },
    };
    let with_digest = if request.with_set_digest { WithDigest::Yes } else { WithDigest::No };
    let trees = named_trees(&request)?;
    let standing = state.gate.as_member(session, space, move |view| view.standing(&trees)).await?;
    let receipt = state.receipts.certify(&state.gate, space, standing, Some(challenge), with_digest).await?;
    metrics::certified(state.host.now().0.saturating_sub(since.0));
    Ok(CertifyResponse { receipt: Some(receipt.into_raw().into()) })
}

fn named_trees(request: &CertifyRequest) -> Result<Vec<TreeId>, WireError> {
    let (actual, max) = (request.trees.len(), limits::RECEIPT_TREES_MAX);
    if actual > max {
        return Err(WireError::TooMany { field: "trees", actual, max });
    }
    request.trees.iter().map(|tree| id(tree)).collect()
}
