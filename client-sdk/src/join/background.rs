//! A join belongs to the client: what no call waits for, or none waits for any more, goes on here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::ids::SpaceId;
use sync_core::limits;
use sync_core::record::{InviteToken, InvitedSpace, Verified};
use sync_core::token::token_from_text;
use tokio_util::sync::CancellationToken;

use super::{Anew, JoinRow, JoinStage, is_transient};
use crate::client::Shared;
use crate::error::JoinError;

/// Who speaks for each join: the calls that wait for it, or else one task in the background. Never both: one would ask anew
/// what the other was just told, or be told the answer in its place.
#[derive(Debug, Default)]
pub(crate) struct Speakers(Mutex<BTreeMap<SpaceId, Speaker>>);

#[derive(Debug)]
enum Speaker {
    Calls(usize),
    Background(CancellationToken),
}

/// A call that speaks for a join. When the last one is over, whatever is left of the join goes on in the background.
pub(crate) struct Speaking {
    shared: Arc<Shared>,
    space: SpaceId,
}

impl Speakers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpaceId, Speaker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, space: SpaceId) {
        let mut speakers = self.lock();
        let calls = match speakers.remove(&space) {
            Some(Speaker::Calls(calls)) => calls,
            Some(Speaker::Background(stop)) => {
                stop.cancel();
                0
            }
            None => 0,
        };
        speakers.insert(space, Speaker::Calls(calls + 1));
    }

    fn call_is_over(&self, space: SpaceId) {
        let mut speakers = self.lock();
        match speakers.get_mut(&space) {
            Some(Speaker::Calls(calls)) if *calls > 1 => *calls -= 1,
            _ => _ = speakers.remove(&space),
        }
    }

    /// What stops it; `None` if somebody speaks for the join already.
    fn background(&self, space: SpaceId, client: &CancellationToken) -> Option<CancellationToken> {
        let mut speakers = self.lock();
        if speakers.contains_key(&space) {
            return None;
        }
        let stop = client.child_token();
        speakers.insert(space, Speaker::Background(stop.clone()));
        Some(stop)
    }

    fn background_is_over(&self, space: SpaceId, stop: &CancellationToken) {
        let mut speakers = self.lock();
        // Whoever stopped it took its place.
        if !stop.is_cancelled() {
            speakers.remove(&space);
        }
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.shared.speakers.call_is_over(self.space);
        self.shared.own.moved(self.space);
    }
}

impl Shared {
    /// From here on this call speaks for the join; what it asks anew must not get the answer to what was asked before.
    pub(crate) fn speak_for(self: &Arc<Self>, space: SpaceId) -> Speaking {
        self.speakers.call(space);
        Speaking { shared: self.clone(), space }
    }

    /// Goes on with a join, unless somebody speaks for it.
    pub(crate) fn follow_in_background(self: &Arc<Self>, space: SpaceId, row: &JoinRow, anew: Anew) {
        let Ok(token) = token_from_text(&row.token) else { return };
        let Some(invited) = token.body().spaces.iter().find(|s| s.space == space).cloned() else { return };
        let Some(stop) = self.speakers.background(space, &self.cancel) else { return };
        let (shared, stage) = (self.clone(), row.stage);
        self.spawn(async move {
            let work = async {
                if let Err(error) = shared.follow_to_the_end(&token, &invited, stage, anew).await {
                    tracing::info!(space = %space.short(), error = %error, "a join did not finish");
                    shared.note_join_failed(&token, space, &error).await;
                }
                shared.speakers.background_is_over(space, &stop);
            };
            // Nothing remains of work that was stopped: what matters of it is in the node's log.
            let _ = stop.run_until_cancelled(Box::pin(work)).await;
        });
    }

    /// Up to a space that is ready, or that this account is not in any more; then the join is over.
    async fn follow_to_the_end(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
        stage: JoinStage,
        anew: Anew,
    ) -> Result<(), JoinError> {
        // What another device ended while this one was away is not asked for anew.
        let over = anew == Anew::Yes && self.is_over_elsewhere(invited.space).await?;
        let anew = match anew {
            Anew::Yes if over => Anew::No,
            Anew::Yes if stage != JoinStage::Kept => Anew::UnlessItWasIn,
            Anew::Yes | Anew::UnlessItWasIn | Anew::No => anew,
        };
        let space = self.follow_join(token, invited, anew).await?;
        let mut moved = space.inner.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let has_ended = !self.is_member(invited.space)?;
            if has_ended || space.inner.missing(invited)?.is_none() {
                return self.forget_join(invited.space).await;
            }
            if moved.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Takes a request back as soon as the node is reached.
    pub(super) fn cancel_in_background(self: &Arc<Self>, space: SpaceId) {
        let shared = self.clone();
        self.spawn_until_closed(async move {
            while let Err(error) = Box::pin(shared.finish_cancelling(space)).await {
                tracing::info!(space = %space.short(), error = %error, "a cancelling waits");
                if !is_transient(&error) {
                    return;
                }
                tokio::time::sleep(limits::RETRY_FIRST).await;
            }
        });
    }
}
