//! What clients do in a story: each act is a hand of its client, with work of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use client_sdk::{
    AclError, Client, HistoryMode, InviteOptions, JoinError, NewTree, NotSyncedCode, Role, Space, SpaceId,
    SpaceOptions, TreeId, TreeWrite, Update, WriteError, WriteId, WriteRule,
};
use serde_json::json;
use tokio::sync::oneshot;

use super::{Trees, is_open};
use crate::invariants as hold;
use crate::invariants::{Claim, NEEDLE};
use crate::story::{Act, Given, History, NODE, Profile, Step, Way, Who};
use crate::told::{Certified, Field, Stage, Told, Written};
use crate::violation::Violation;
use crate::world::World;

/// How long a join, an approval or an act on the ACL may take.
const PATIENCE: Duration = Duration::from_secs(60);

const NOTE: &str = "zqxneedle-note";
const PROFILE: &str = "zqxneedle-profile";

/// One piece of work of a client.
#[derive(Clone)]
pub(super) struct Hand {
    pub(super) world: World,
    pub(super) told: Told,
    pub(super) trees: Trees,
    pub(super) step: Step,
    pub(super) by: Who,
    pub(super) client: Client,
}

impl Hand {
    fn say(&self, what: impl std::fmt::Display) {
        self.world.note(format_args!("{:>3} {}: {what}", self.step.number, self.by));
    }

    /// How long it waits for what is begun: one in three goes away soon, and what it asked for must be done all the same.
    fn stays(&self) -> Duration {
        let number = u64::from(self.step.number);
        if number % 3 == 0 { Duration::from_millis(number * 173 % 3_000) } else { 2 * PATIENCE }
    }

    fn space(&self, slot: usize) -> Option<Space> {
        self.client.space(self.told.space(slot)?).ok()
    }

    pub(super) async fn work(self) {
        match self.step.act {
            Act::Create { space, history, .. } => self.create(space, history).await,
            Act::Put { space, object, .. } => self.put(space, object).await,
            Act::Merge { space, object, .. } => self.merge(space, object).await,
            Act::Erase { space, object, .. } => self.erase(space, object).await,
            Act::Purge { space, object, .. } => self.purge(space, object).await,
            Act::Grow { space, tree, .. } => self.grow(space, tree).await,
            Act::ChangeRole { space, who, given, .. } => self.change_role(space, who, given).await,
            Act::Remove { space, who, .. } => self.remove(space, who).await,
            Act::Leave { space, .. } => self.leave(space).await,
            Act::Rotate { space, .. } => self.rotate(space).await,
            Act::AwaitSynced { space, deadline_ms, .. } => self.await_synced(space, deadline_ms).await,
            Act::AwaitDurable { space, .. } => self.await_durable(space).await,
            Act::AwaitLocally { space, .. } => self.await_locally(space).await,
            Act::AwaitObject { space, object, .. } => self.await_object(space, object).await,
            Act::Read { space, .. } => self.read(space),
            Act::Admit { .. }
            | Act::Cut { .. }
            | Act::Heal { .. }
            | Act::Sever { .. }
            | Act::Garble { .. }
            | Act::Kill { .. }
            | Act::PowerCut { .. }
            | Act::Stop { .. }
            | Act::Start { .. }
            | Act::Fill { .. }
            | Act::MakeRoom { .. }
            | Act::Fail { .. }
            | Act::Foe(_) => {}
        }
    }

    // ---- spaces and members -----------------------------------------------------------------------------------------

    async fn create(&self, slot: usize, history: History) {
        if self.told.space(slot).is_some() {
            return;
        }
        let history = match history {
            History::Everybody => HistoryMode::All,
            History::NobodyNew => HistoryMode::SinceJoin,
        };
        let options = SpaceOptions { history, ..SpaceOptions::default() };
        match self.client.create_space_with(&format!("{NEEDLE} space {slot}"), options).await {
            Ok(space) => {
                self.told.lock().spaces.entry(slot).or_insert(space.id());
                self.say(format_args!("made {}", space.id()));
            }
            Err(error) => self.say(error),
        }
    }

    fn profile(&self, account: client_sdk::AccountId) -> Field {
        let value = format!("{NEEDLE}-value-{}", self.step.number);
        Field { object_type: PROFILE, object: account.to_string(), name: field_name(self.step.number), value }
    }

    pub(super) async fn admit(self, account: client_sdk::AccountId, token: oneshot::Sender<String>) {
        let Act::Admit { space, way, given, profile, .. } = self.step.act else { return };
        let Some(space) = self.space(space) else { return };
        *self.told.lock().admitted.entry((space.id(), account)).or_default() += 1;
        let field = self.profile(account);
        let by_approval = way == Way::Approval && profile == Profile::WithTheApproval;
        let is_promised = profile != Profile::None;
        if is_promised && !by_approval && profile != Profile::AfterTheInvite {
            self.write_profile(&space, &field).await;
        }
        let options = match way {
            Way::Open => InviteOptions::open(),
            Way::Approval => InviteOptions::approval(),
        };
        let tree = space.objects().tree_id(field.object_type, &field.object).ok();
        let must_see = tree.filter(|_| is_promised && !by_approval).into_iter().collect();
        let options = InviteOptions { role: role(given), max_uses: Some(1), must_see, ..options };
        let invited = tokio::time::timeout(PATIENCE, space.invite(options)).await;
        let Ok(Ok(invite)) = invited else {
            self.say(format_args!("no invite: {}", invited.map_or("too slow".to_owned(), |r| text(r.map(|_| ())))));
            return;
        };
        self.say("invited");
        self.told.lock().tokens.insert(invite.token.clone());
        if token.send(invite.token).is_err() {
            return;
        }
        if profile == Profile::AfterTheInvite {
            self.write_profile(&space, &field).await;
        }
        if way == Way::Approval {
            let prepared = by_approval.then_some(field);
            let approved = tokio::time::timeout(PATIENCE, self.approve(&space, account, prepared.clone())).await;
            if let (Ok(Ok(())), Some(field)) = (&approved, prepared) {
                self.judge(hold::an_acceptance_promises_what_was_prepared(self.by, &space, account, &field));
            }
            self.say(format_args!("approved: {}", approved.map_or("too slow".to_owned(), text)));
        }
    }

    async fn write_profile(&self, space: &Space, field: &Field) {
        let put = space.objects().put(field.object_type, &field.object, json!({ &field.name: field.value })).await;
        self.wrote(space, put, Some(field.clone()));
    }

    async fn approve(
        &self,
        space: &Space,
        account: client_sdk::AccountId,
        prepared: Option<Field>,
    ) -> Result<(), AclError> {
        let mut since = 0;
        let request = loop {
            match space.request_of(account) {
                Ok(request) => break request,
                Err(_) => space.status_changed(&mut since).await,
            }
        };
        space
            .approve(request, None, |w| match &prepared {
                Some(field) => w.put(field.object_type, &field.object, json!({ &field.name: field.value })),
                None => Ok(()),
            })
            .await
    }

    /// The newcomer's side.
    pub(super) async fn come(self, handed: oneshot::Receiver<String>) {
        let Act::Admit { space, profile, way, .. } = self.step.act else { return };
        let was_here = self.space(space).is_some();
        let Ok(Ok(token)) = tokio::time::timeout(PATIENCE, handed).await else { return };
        let ready = async {
            let joining = self.client.join(&token).await?;
            self.say("joins");
            joining.ready(PATIENCE).await
        };
        let Ok(ready) = tokio::time::timeout(self.stays(), ready).await else {
            self.say("hangs up");
            return self.waver(&token).await;
        };
        match ready {
            Ok(spaces) => {
                self.say("ready");
                // A member that was let in another way before was promised nothing by this one.
                let promised = profile != Profile::None && way == Way::Open || profile == Profile::WithTheApproval;
                let field = self.profile(self.client.account());
                for space in spaces.iter().filter(|_| promised) {
                    if !was_here
                        && self.told.is_admitted_once(space.id(), self.client.account())
                        && let Err(violation) = hold::ready_means_readable(self.by, space, &field)
                    {
                        self.told.found(violation);
                    }
                }
            }
            Err(error) => self.say(format_args!("not ready: {} {error}", error.code())),
        }
    }

    /// Of those who went away, one in two takes the join back, and of these one in two wants it after all. The last wish counts.
    async fn waver(&self, token: &str) {
        let number = self.step.number / 3;
        if !number.is_multiple_of(2) {
            return;
        }
        let soon = Duration::from_millis(u64::from(number) * 271 % 2_000);
        for join in self.client.joins().unwrap_or_default().into_iter().filter(|join| join.here) {
            let cancelled = tokio::time::timeout(soon, self.client.cancel_join(join.space)).await;
            self.say(format_args!("takes it back: {}", answer(cancelled.ok())));
        }
        if number.is_multiple_of(4) {
            let joined = tokio::time::timeout(soon, self.client.join(token)).await;
            self.say(format_args!("joins after all: {}", answer(joined.ok())));
        }
    }

    async fn change_role(&self, slot: usize, who: Who, given: Given) {
        let (Some(space), Ok(other)) = (self.space(slot), self.world.client(who.name())) else { return };
        self.say(text(space.change_role(other.account(), role(given)).await));
    }

    async fn remove(&self, slot: usize, who: Who) {
        let (Some(space), Ok(other)) = (self.space(slot), self.world.client(who.name())) else { return };
        self.say(text(space.remove_members(&[other.account()]).await));
    }

    async fn leave(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        let left = tokio::time::timeout(self.stays(), space.leave()).await;
        self.say(left.map_or("hangs up".to_owned(), text));
    }

    async fn rotate(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        self.say(text(space.rotate_keys().await));
    }

    // ---- writing ----------------------------------------------------------------------------------------------------

    fn field(&self, object: usize) -> Field {
        Field {
            object_type: NOTE,
            object: object_name(object),
            name: field_name(self.step.number),
            value: format!("{NEEDLE}-value-{}", self.step.number),
        }
    }

    async fn put(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        let field = self.field(object);
        let put = space.objects().put(NOTE, &field.object, json!({ &field.name: field.value })).await;
        self.wrote(&space, put, Some(field));
    }

    async fn merge(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        let field = self.field(object);
        let tag = format!("{NEEDLE}-tag-{}", self.step.number % 3);
        let update = Update::new().set(&field.name, field.value.clone()).increment("count", 1).add("tags", tag);
        let updated = space.objects().update(NOTE, &field.object, update).await;
        self.wrote(&space, updated, Some(field));
    }

    async fn erase(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        self.erases(&space, object);
        let deleted = space.objects().delete(NOTE, &object_name(object)).await;
        self.wrote(&space, deleted, None);
    }

    async fn purge(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        self.erases(&space, object);
        let purged = space.objects().purge(NOTE, &object_name(object)).await.map(Some);
        self.wrote(&space, purged, None);
    }

    fn erases(&self, space: &Space, object: usize) {
        self.told.lock().erased.insert((space.id(), NOTE, object_name(object)));
    }

    async fn grow(&self, slot: usize, tree: usize) {
        let Some(space) = self.space(slot) else { return };
        let key = (space.id(), tree);
        let payload = Bytes::from(format!("{NEEDLE}-payload-{}", self.step.number));
        let write = TreeWrite { parents: None, payload };
        let known = self.lock_trees().get(&key).copied();
        let data_type = format!("{NEEDLE}/type");
        let written = match known {
            Some(tree) => space.append(tree, data_type, vec![write]).await,
            None => space.create_tree(NewTree { data_type, write_rule: WriteRule::WRITERS }, vec![write]).await,
        };
        match written {
            Ok(written) => {
                self.lock_trees().entry(key).or_insert(written.tree);
                self.wrote(&space, Ok(written.writes.first().copied()), None);
            }
            Err(error) => self.wrote(&space, Err(error), None),
        }
    }

    fn lock_trees(&self) -> std::sync::MutexGuard<'_, BTreeMap<(SpaceId, usize), TreeId>> {
        self.trees.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A write returned.
    fn wrote(&self, space: &Space, written: Result<Option<WriteId>, WriteError>, field: Option<Field>) {
        match written {
            Ok(Some(id)) => {
                self.say(format_args!("wrote {id}"));
                if let Some(field) = &field {
                    let shown = hold::own_writes_are_shown_at_once(&self.told, self.by, space, (id, field));
                    shown.unwrap_or_else(|violation| self.told.found(violation));
                }
                let written = Written {
                    number: self.step.number,
                    by: self.by,
                    space: space.id(),
                    id,
                    field,
                    locally_durable: false,
                    state: Stage::Pending,
                    chain: None,
                };
                self.told.lock().writes.push(written);
            }
            Ok(None) => self.say("nothing to write"),
            Err(error) => self.say(format_args!("not written: {} {error}", error.code())),
        }
    }

    // ---- waiting and reading ----------------------------------------------------------------------------------------

    async fn await_synced(&self, slot: usize, deadline_ms: u64) {
        let Some(space) = self.space(slot) else { return };
        let (before, since) = (self.told.writes_of(self.by, space.id()), self.told.lock().set_backs.len());
        let before: Vec<Written> = before.into_iter().filter(|w| is_open(&space, w.id)).collect();
        match space.await_synced_within(Duration::from_millis(deadline_ms)).await {
            Ok(synced) => {
                self.say(format_args!("synced at {}", synced.receipt.body().seq));
                let claim = Claim {
                    who: self.by,
                    client: &self.client,
                    space: &space,
                    receipt: &synced.receipt,
                    before,
                    node: NODE,
                    since,
                };
                self.judge(hold::synced_means_equal(&self.world, &self.told, &claim));
                self.certified(&space, &synced.receipt, since);
            }
            Err(not) => {
                self.say(format_args!("not synced: {not}"));
                if not.residue.is_empty() {
                    let expected = format!("{}: a no that names something", self.by);
                    self.told.found(Violation::new("not_synced_names_something", expected, not.code));
                }
            }
        }
    }

    async fn await_durable(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        let writes = self.told.writes_of(self.by, space.id());
        let Some(write) = writes.last() else { return };
        let since = self.told.lock().set_backs.len();
        match space.await_durable(write.id).await {
            Ok(receipt) => {
                self.say(format_args!("write {} is durable at {}", write.id, receipt.body().seq));
                let before = vec![write.clone()];
                let (who, client) = (self.by, &self.client);
                let claim = Claim { who, client, space: &space, receipt: &receipt, before, node: NODE, since };
                self.judge(claim.receipt_is_true(&self.world, &self.told));
                self.certified(&space, &receipt, since);
            }
            Err(not) => self.say(format_args!("not durable: {not}")),
        }
    }

    fn certified(&self, space: &Space, receipt: &client_sdk::SignedReceipt, since: usize) {
        let body = receipt.body();
        self.told.lock().certified.push(Certified { space: space.id(), seq: body.seq, chain: body.chain, since });
    }

    fn judge(&self, held: Result<(), Violation>) {
        if let Err(violation) = held {
            self.told.found(violation);
        }
    }

    async fn await_locally(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        let writes: Vec<WriteId> = self.told.writes_of(self.by, space.id()).iter().map(|w| w.id).collect();
        match space.durable_locally().await {
            Ok(()) => {
                self.say("durable here");
                self.told.locally_durable(self.by, &writes);
            }
            Err(error) => self.say(error),
        }
    }

    async fn await_object(&self, slot: usize, object: usize) {
        let Some(space) = self.space(slot) else { return };
        match space.await_object(NOTE, &object_name(object), PATIENCE).await {
            Ok(object) => self.say(format_args!("{} has {} fields", object.id, object.fields.len())),
            Err(not) if not.residue.is_empty() && not.code != NotSyncedCode::StoreFailed => {
                let expected = format!("{}: a no that names something", self.by);
                self.told.found(Violation::new("not_synced_names_something", expected, not.code));
            }
            Err(not) => self.say(format_args!("no object: {not}")),
        }
    }

    fn read(&self, slot: usize) {
        let Some(space) = self.space(slot) else { return };
        match space.objects().list_all() {
            Ok(objects) => {
                self.say(format_args!("reads {} objects", objects.len()));
                let life = self.world.life(self.by.name());
                let held = self.told.held(self.by, life);
                self.judge(hold::a_held_tree_is_the_instance(self.by, &space, &held));
                self.judge(hold::one_live_instance_per_tree(self.by, &space, &objects));
                let one = objects.get(self.step.number as usize % objects.len().max(1));
                if let Some(Ok(Some(tree))) = one.map(|object| space.tree(object.tree)) {
                    self.told.lock().held.push((self.by, life, tree));
                }
            }
            Err(error) => self.say(error),
        }
    }
}

fn object_name(object: usize) -> String {
    format!("{NEEDLE}-object-{object}")
}

fn field_name(number: u32) -> String {
    format!("{NEEDLE}-field-{number}")
}

fn role(given: Given) -> Role {
    match given {
        Given::Reader => Role::Reader,
        Given::Writer => Role::Writer,
        Given::Admin => Role::Admin,
    }
}

fn answer<T>(answer: Option<Result<T, JoinError>>) -> String {
    match answer {
        None => "hangs up".to_owned(),
        Some(Ok(_)) => "done".to_owned(),
        Some(Err(error)) => format!("{} {error}", error.code()),
    }
}

fn text(done: Result<(), AclError>) -> String {
    match done {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{} {error}", error.code()),
    }
}
