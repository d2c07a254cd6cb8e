//! A join belongs to the client: what no call waits for, or none waits for any more, goes on here. Its row says what is to be
//! done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sync_core::ids::SpaceId;
use sync_core::record::{InviteToken, InvitedSpace, Verified};
use sync_core::session::pause;
use sync_core::token::token_from_text;
use tokio_util::sync::CancellationToken;

use super::{Follower, JoinStage, is_for_good};
use crate::client::Shared;
use crate::error::{JoinError, ReadError};

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

/// Whose turn it is to ask the node about a join: one after the other, so that each knows what became of what was asked before.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<BTreeMap<SpaceId, Arc<tokio::sync::Mutex<()>>>>);

/// Over when it is dropped.
pub(super) type Turn = tokio::sync::OwnedMutexGuard<()>;

impl Turns {
    pub(super) async fn of(&self, space: SpaceId) -> Turn {
        let turns = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has a turn, or waits for one, holds it.
            turns.retain(|_, turns| Arc::strong_count(turns) > 1);
            turns.entry(space).or_default().clone()
        };
        turns.lock_owned().await
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

    /// Goes on with a join, or with taking it back, unless there is none, or somebody speaks for it.
    pub(crate) fn go_on_with_join(self: &Arc<Self>, space: SpaceId) -> Result<(), ReadError> {
        if !self.join_row(space)?.is_some_and(|row| row.stage.is_work()) {
            return Ok(());
        }
        let Some(stop) = self.speakers.background(space, &self.cancel) else { return Ok(()) };
        let shared = self.clone();
        self.spawn(async move {
            let work = async {
                let mut failures = 0;
                while let Err(error) = shared.join_in_background(space).await {
                    tracing::info!(space = %space.short(), error = %error, "a join waits");
                    failures += 1;
                    let [jitter] = shared.host.random();
                    tokio::time::sleep(pause(failures, jitter)).await;
                }
                shared.speakers.background_is_over(space, &stop);
            };
            // Nothing remains of work that was stopped: what matters of it is in its row, and in the node's log.
            let _ = stop.run_until_cancelled(Box::pin(work)).await;
        });
        Ok(())
    }

    /// Until nothing is left to be done for a join.
    async fn join_in_background(self: &Arc<Self>, space: SpaceId) -> Result<(), JoinError> {
        while let Some(row) = self.join_row(space)?.filter(|row| row.stage.is_work()) {
            if row.stage == JoinStage::Cancelling {
                match self.finish_cancelling(space).await {
                    // An admin was faster, and the join goes on.
                    Ok(()) | Err(JoinError::AlreadyMember { .. }) => continue,
                    Err(error) => return Err(error),
                }
            }
            let token = token_from_text(&row.token)?;
            let Some(invited) = token.body().spaces.iter().find(|s| s.space == space) else { return Ok(()) };
            if let Err(error) = self.follow_to_the_end(&token, invited).await {
                if !is_for_good(&error) {
                    return Err(error);
                }
                tracing::info!(space = %space.short(), error = %error, "a join did not finish");
                self.note_join_failed(space, &error).await?;
            }
        }
        Ok(())
    }

    /// Up to a space that is ready; then the join is over.
    async fn follow_to_the_end(
        self: &Arc<Self>,
        token: &Verified<InviteToken>,
        invited: &InvitedSpace,
    ) -> Result<(), JoinError> {
        let space = self.follow_join(token, invited, Follower::Background).await?;
        let mut moved = space.inner.moved.subscribe();
        loop {
            moved.borrow_and_update();
            self.is_not_over(&space)?;
            if space.inner.missing(invited)?.is_none() {
                return Ok(self.forget_join(invited.space).await?);
            }
            space.inner.moves(&mut moved).await?;
        }
    }
}
