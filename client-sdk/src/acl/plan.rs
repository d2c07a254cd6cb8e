//! What a change of the ACL would do, before it is done.

use std::collections::BTreeSet;

use sync_core::acl::{AclState, InviteStatus};
use sync_core::ids::{AccountId, InviteId, Seq};
use sync_core::log::Reject;
use sync_core::record::{AclContent, HistoryMode, Role};

use super::{AclChange, reads_from_now_on, sign_record};
use crate::error::AclError;
use crate::space::Space;

/// What a change would do: who gains and loses what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclPlan {
    /// The names of the record's contents, in order, as in docs/acl.md.
    pub contents: Vec<&'static str>,
    /// In the order: members, invites, keys, the space.
    pub effects: Vec<Effect>,
}

/// One thing that a change of the ACL would bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Becomes a member. `reads_history`: everything written before, too; otherwise from now on.
    Joins { account: AccountId, role: Role, reads_history: bool },
    /// Is a member no more: its writes are refused from here on, it reads nothing written later (who leaves: from the next
    /// rotation on).
    Goes { account: AccountId, role: Role },
    /// Has another role.
    Role { account: AccountId, from: Role, to: Role },
    /// Can be used no more.
    InviteEnds { invite: InviteId },
    /// The space gets new keys, sealed to so many members and open invites.
    NewKeys { epoch: u32, members: usize, invites: usize },
    /// Only from the next rotation on the leaver, or who holds the secret of an open invite that dies, cannot read; the first
    /// admin who sees it makes one.
    RotationOwed,
    /// From now on new members read all, or only what is written after they joined.
    History { mode: HistoryMode },
    /// The space ends, and its contents are dropped everywhere.
    SpaceEnds,
    /// A request to join is decided.
    RequestEnds { account: AccountId, accepted: bool },
}

impl Space {
    /// What a change would do, on the ACL as it is here now. Nothing is sent.
    ///
    /// ```no_run
    /// # async fn doc(space: client_sdk::Space, bob: client_sdk::AccountId) -> Result<(), Box<dyn std::error::Error>> {
    /// use client_sdk::{AclChange, Effect};
    /// let plan = space.plan(&AclChange::RemoveMembers { accounts: vec![bob] })?;
    /// for effect in plan.effects {
    ///     if let Effect::NewKeys { members, .. } = effect {
    ///         println!("new keys for {members} members");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AclError`], the same that [`Space::change`] would give here: what the rules refuse has no plan.
    pub fn plan(&self, change: &AclChange) -> Result<AclPlan, AclError> {
        let before = self.inner.acl()?;
        let contents = change.contents(&self.inner, &before)?;
        let record = sign_record(&self.inner.shared, &before, contents)?;
        let after = before.apply(&record, Seq(u64::MAX)).map_err(Reject::Acl)?;
        let names = record.body().contents.iter().map(AclContent::name).collect();
        Ok(AclPlan { contents: names, effects: effects(&before, &after) })
    }
}

fn effects(before: &AclState, after: &AclState) -> Vec<Effect> {
    let mut effects = Vec::new();
    let accounts: BTreeSet<_> = before.members.keys().chain(after.members.keys()).copied().collect();
    for account in accounts {
        match (before.role(&account), after.role(&account)) {
            (None, Some(role)) => {
                let reads_history = !reads_from_now_on(after.options.history, role);
                effects.push(Effect::Joins { account, role, reads_history });
            }
            (Some(role), None) => effects.push(Effect::Goes { account, role }),
            (Some(from), Some(to)) if from != to => effects.push(Effect::Role { account, from, to }),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    let is_live = |acl: &AclState, id: &InviteId| acl.invites.get(id).is_some_and(|i| i.status == InviteStatus::Live);
    let ended = before.invites.keys().filter(|id| is_live(before, id) && !is_live(after, id));
    effects.extend(ended.map(|invite| Effect::InviteEnds { invite: *invite }));
    for (id, request) in &before.requests {
        use sync_core::acl::RequestStatus as S;
        let now = after.requests.get(id).map(|r| &r.status);
        if request.status == S::Pending && now != Some(&S::Pending) {
            let accepted = matches!(now, Some(S::Accepted { .. }));
            effects.push(Effect::RequestEnds { account: request.claim.account, accepted });
        }
    }
    if after.epoch != before.epoch {
        let open = |i: &&sync_core::acl::Invite| {
            i.status == InviteStatus::Live && i.content.mode == sync_core::record::InviteMode::Open
        };
        let invites = after.invites.values().filter(open).count();
        effects.push(Effect::NewKeys { epoch: after.epoch.0, members: after.members.len(), invites });
    }
    let newly_owed = |of: fn(&AclState) -> bool| of(after) && !of(before);
    if newly_owed(|acl| acl.rotation_owed) || newly_owed(|acl| acl.exposed) {
        effects.push(Effect::RotationOwed);
    }
    if after.options.history != before.options.history {
        effects.push(Effect::History { mode: after.options.history });
    }
    if after.deleted {
        effects.push(Effect::SpaceEnds);
    }
    effects
}
