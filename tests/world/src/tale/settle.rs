//! The end of a story: the weather clears, everything that was begun is over, and everybody agrees.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client_sdk::{Client, JoinStage, NotSyncedCode, ReadError, ReasonCode, RecoverError, Space, SpaceId};
use sync_core::acl::AclState;
use sync_core::limits;
use tokio::time::Instant;

use super::{Teller, is_member, is_open};
use crate::invariants as hold;
use crate::invariants::{Claim, Replica};
use crate::story::{Act, NODE, Step, Who};
use crate::violation::Violation;

/// In good weather, everything that was begun is over within this time, and everybody agrees.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// Rounds in which writes that were refused are set aside, and what is sent in one is had by all in the next.
const ROUNDS: usize = 4;

impl Teller {
    /// The weather clears, everything that was begun is over, and everybody agrees.
    pub(super) async fn settle(&mut self) -> Result<(), Violation> {
        self.check_disks()?;
        let cleared = self.world.clear_up().await;
        cleared.map_err(|e| Violation::new("settle_terminates", "every machine starts", e))?;
        self.foes.come_to_an_end().await;
        Box::pin(self.settle_terminates()).await?;
        self.settled = true;
        let last = Step { number: u32::MAX, act: Act::Heal { who: Who(0) }, then_ms: 0 };
        self.check(&last)?;
        self.check_disks()?;
        let mut replicas = Vec::new();
        for who in self.clients.clone() {
            let (Ok(client), Ok(store)) = (self.world.client(who.name()), self.world.store(who.name())) else {
                continue;
            };
            let is_there = |space: &&Space| is_member(&client, space) && !self.is_lost(&client, space);
            let spaces: Vec<Space> = self.spaces_of(&client).into_iter().filter(|s| is_there(&s)).collect();
            for space in &spaces {
                let replica = Replica::of(who.name(), &client, &store, space)?;
                let objects = space.objects().list_all().unwrap_or_default();
                hold::one_live_instance_per_tree(who, space, &objects)?;
                let held = self.told.held(who, self.world.life(who.name()));
                hold::a_held_tree_is_the_instance(who, space, &held)?;
                hold::a_live_tree_shows_what_is_stored(who, space, &objects)?;
                hold::a_held_tree_shows_what_is_stored(who, &objects, &held)?;
                self.readers.have_been_told_all(who, space, &store)?;
                self.world.note(format_args!("{who} has {} objects in {}", objects.len(), space.id()));
                replicas.push(replica);
            }
        }
        hold::replicas_converge(&replicas)?;
        self.foes.judge()?;
        Box::pin(self.begin_anew(&replicas)).await
    }

    /// One of the accounts on a new machine: it reads everything from nothing.
    async fn begin_anew(&self, replicas: &[Replica]) -> Result<(), Violation> {
        const FRESH: &str = "fresh";
        let who = self.clients[usize::try_from(self.world.seed()).unwrap_or(0) % self.clients.len()];
        let absent = |e: &dyn std::fmt::Debug| Violation::new("settle_terminates", format!("{who} on a new device"), e);
        let old = self.world.client(who.name()).map_err(|e| absent(&e))?;
        // From now on another device finds everything: so says the call.
        old.account_synced(SETTLED_WITHIN).await.map_err(|e| absent(&e))?;
        self.world.add_device(FRESH, who.name());
        self.world.start(FRESH).await.map_err(|e| absent(&e))?;
        let client = self.world.client(FRESH).map_err(|e| absent(&e))?;
        match client.recovered(SETTLED_WITHIN).await {
            Ok(_) => {}
            // It says so of a space whose log went another way without its account.
            Err(RecoverError::Missing { missing, .. })
                if missing.iter().all(|m| old.space(m.space).is_ok_and(|space| self.is_lost(&old, &space))) => {}
            Err(error) => return Err(absent(&error)),
        }
        let mut compared = Ok(());
        for _ in 0..ROUNDS {
            let mut spaces: BTreeSet<SpaceId> =
                replicas.iter().filter(|r| r.who == who.name()).map(|r| r.space).collect();
            let members = self.spaces_of(&client).into_iter().filter(|space| is_member(&client, space));
            spaces.extend(members.map(|space| space.id()));
            let mut replicas = [Vec::new(), Vec::new()];
            for space in &spaces {
                replicas[0].push(self.comes_to(who.name(), &old, *space).await?);
                replicas[1].push(self.comes_to(FRESH, &client, *space).await?);
            }
            let [known, fresh] = &replicas;
            compared = hold::a_fresh_replica_is_the_same(known, fresh);
            if compared.is_ok() {
                self.world.note(format_args!("{who} has {} spaces on a new device", fresh.len()));
                break;
            }
            // What somebody began in a process that ended, a join for one, goes on by itself, and writes between two looks.
        }
        compared
    }

    async fn comes_to(&self, name: &str, client: &Client, id: SpaceId) -> Result<Replica, Violation> {
        let stuck = |e: &dyn std::fmt::Debug| Violation::new("settle_terminates", format!("{name} comes to {id}"), e);
        let space = client.wait_for_space(id, SETTLED_WITHIN).await.map_err(|e| stuck(&e))?;
        space.await_synced_within(SETTLED_WITHIN).await.map_err(|e| stuck(&e))?;
        let store = self.world.store(name).map_err(|e| stuck(&e))?;
        Replica::of(name, client, &store, &space)
    }

    async fn settle_terminates(&mut self) -> Result<(), Violation> {
        let until = Instant::now() + SETTLED_WITHIN;
        for task in std::mem::take(&mut self.work) {
            if tokio::time::timeout_at(until, task).await.is_err() {
                return Err(Violation::new("settle_terminates", "everything that was begun is over", self.stuck()));
            }
        }
        for who in self.clients.clone() {
            let Ok(client) = self.world.client(who.name()) else { continue };
            while let Some(left) = self.left_undone(&client)? {
                if Instant::now() > until {
                    let expected = format!("{who} joins, or leaves, though nobody waits for it");
                    return Err(Violation::new("what_was_begun_goes_on", expected, left));
                }
                tokio::time::sleep(limits::RETRY_FIRST).await;
            }
        }
        for _ in 0..ROUNDS {
            for who in self.clients.clone() {
                let Ok(client) = self.world.client(who.name()) else { continue };
                for space in self.spaces_of(&client).iter().filter(|space| is_member(&client, space)) {
                    set_refused_aside(space).await;
                    self.synced_at_last(who, &client, space).await?;
                }
            }
        }
        Ok(())
    }

    /// What this client was asked for, and neither did nor waits for anybody with: a join that no admin has to decide, or that was
    /// taken back, a leaving.
    fn left_undone(&self, client: &Client) -> Result<Option<String>, Violation> {
        let unreadable = |e: ReadError| Violation::new("what_was_begun_goes_on", "it can be read", e);
        let Ok(node) = self.world.store(NODE) else { return Ok(None) };
        if self.told.is_set_back() {
            // What it did may be lost, and not be brought back yet.
            return Ok(None);
        }
        for join in client.joins().map_err(unreadable)?.into_iter().filter(|join| join.here) {
            let acl = node.read(|tx| tx.acl(join.space)).map_err(|e| unreadable(e.into()))?;
            let is_undecided = acl.is_some_and(|acl| acl.pending_request(&client.account()).is_some());
            // What the invite promised may never have been written: that is waited for as long as it takes.
            let is_in = client.space(join.space).is_ok_and(|space| is_member(client, &space));
            let is_waiting = is_undecided || is_in || join.stage == JoinStage::Declined;
            // What was taken back waits for nobody.
            if !is_waiting || join.stage == JoinStage::Cancelling {
                return Ok(Some(format!("{join:?}")));
            }
        }
        for space in self.spaces_of(client) {
            let reasons = space.explain().map_err(unreadable)?;
            if let Some(leaving) = reasons.iter().find(|reason| reason.code == ReasonCode::Leaving) {
                return Ok(Some(format!("{leaving:?}")));
            }
        }
        Ok(None)
    }

    fn stuck(&self) -> String {
        let why = |who: &Who| {
            let client = self.world.client(who.name()).ok()?;
            let reasons: Vec<_> = self.spaces_of(&client).iter().filter_map(|s| s.explain().ok()).flatten().collect();
            Some(format!("{who}: {reasons:?}"))
        };
        self.clients.iter().filter_map(why).collect::<Vec<_>>().join("; ")
    }

    async fn synced_at_last(&self, who: Who, client: &Client, space: &Space) -> Result<(), Violation> {
        let (before, since) = (self.told.writes_of(who, space.id()), self.told.lock().set_backs.len());
        let mut synced = space.await_synced_within(SETTLED_WITHIN).await;
        for _ in 0..ROUNDS {
            let is_lost = |not: &client_sdk::NotSynced| not.residue.iter().any(|r| r.code == ReasonCode::LostByNode);
            let Err(not) = &synced else { break };
            let is_asked_again = not.code == NotSyncedCode::Forbidden && !self.is_lost(client, space);
            if is_asked_again && self.told.is_set_back() {
                // Others brought its membership back since it was refused: it asks again by itself.
                tokio::time::sleep(limits::RETRY_MAX).await;
            } else if not.code != NotSyncedCode::Refused && !is_lost(not) {
                break;
            }
            // Written while the client was away, and refused when it was back: a no that names it is the right answer.
            set_refused_aside(space).await;
            synced = space.await_synced_within(SETTLED_WITHIN).await;
        }
        let before = before.into_iter().filter(|w| is_open(space, w.id)).collect();
        match synced {
            Ok(synced) => {
                let claim = Claim { who, client, space, receipt: &synced.receipt, before, node: NODE, since };
                hold::synced_means_equal(&self.world, &self.told, &claim)
            }
            // The end of a membership may only be heard of now, and the entry that says so come after the word of the node.
            // A node that was set back, and whose log went another way since, may have lost a membership for good.
            Err(not) if not.code == NotSyncedCode::Forbidden && self.is_lost(client, space) => Ok(()),
            Err(not) if not.code == NotSyncedCode::Forbidden && hears_of_its_end(client, space).await => Ok(()),
            Err(_) if !is_member(client, space) => Ok(()),
            Err(error) => {
                let expected = format!("{who} is synced with {} in good weather", space.id());
                Err(Violation::new("settle_terminates", expected, (error, space.explain())))
            }
        }
    }

    /// The node was set back, and does not know this member.
    pub(super) fn is_lost(&self, client: &Client, space: &Space) -> bool {
        self.told.is_set_back() && self.node_acl(space).is_none_or(|acl| acl.role(&client.account()).is_none())
    }

    /// The node was set back to before this account was in a space. It shows the log to no stranger, and takes none from it:
    /// what only this account had of it, its leaving among that, is lost.
    pub(super) fn is_lost_somewhere(&self, who: Who) -> bool {
        let Ok(client) = self.world.client(who.name()) else { return false };
        let was_here =
            |space: &Space| self.node_acl(space).is_some_and(|acl| acl.membership_ended(&client.account()).is_some());
        self.spaces_of(&client)
            .iter()
            .any(|space| self.is_lost(&client, space) && (is_member(&client, space) || !was_here(space)))
    }

    fn node_acl(&self, space: &Space) -> Option<Arc<AclState>> {
        self.world.store(NODE).ok()?.read(|tx| tx.acl(space.id())).ok().flatten()
    }
}

/// Whether the log here comes to the end of this client's membership, in good time.
async fn hears_of_its_end(client: &Client, space: &Space) -> bool {
    let mut since = 0;
    let heard = async {
        while is_member(client, space) {
            space.status_changed(&mut since).await;
        }
    };
    tokio::time::timeout(SETTLED_WITHIN, heard).await.is_ok()
}

/// What was refused, or lost by the node: somebody has seen it.
async fn set_refused_aside(space: &Space) {
    for refused in space.refused().unwrap_or_default() {
        // One that is gone meanwhile is set aside.
        let _ = space.dismiss(refused.write).await;
    }
    for lost in space.lost(0, usize::MAX).unwrap_or_default() {
        let _ = space.dismiss_lost(lost.id).await;
    }
}
