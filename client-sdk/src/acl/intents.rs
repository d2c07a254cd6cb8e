//! Acts that go on by themselves: a leaving that was kept while the node was away, and the keys that a leaver must not have.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sync_core::acl::AclState;
use sync_core::ids::{AclId, Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Reject;
use sync_core::record::Role;
use sync_store::WriteTx;

use super::{AclChange, sign_record};
use crate::error::{AclError, ReadError, from_store_write};
use crate::space::SpaceInner;

/// The row of a wish to leave. It goes in the transaction that ends the membership, and with the space.
pub(crate) fn leave_key(space: SpaceId) -> String {
    format!("leave/{space}")
}

/// Somebody has the present keys who should not: a leaver, or who holds the secret of an open invite that died.
fn owes_rotation(acl: &AclState) -> bool {
    acl.rotation_owed || acl.exposed
}

impl SpaceInner {
    /// Keeps the wish to leave, and leaves.
    pub(super) async fn leave(self: &Arc<Self>) -> Result<(), AclError> {
        let acl = self.acl()?;
        let record = sign_record(&self.shared, &acl, AclChange::Leave.contents(self, &acl)?)?;
        acl.apply(&record, Seq(u64::MAX)).map_err(Reject::Acl)?;
        let space = self.clone();
        let wishing = async move {
            space.keep_leaving(true).await?;
            space.drive_intents();
            Ok::<_, AclError>(())
        };
        self.shared.to_its_end(wishing).await??;
        // What drives it does so whatever becomes of this caller; both may run at once.
        self.finish_leaving().await
    }

    pub(crate) fn is_leaving(&self) -> Result<bool, ReadError> {
        Ok(self.shared.store.read(|tx| tx.kv(&leave_key(self.id)))?.is_some())
    }

    async fn keep_leaving(&self, leaving: bool) -> Result<(), AclError> {
        let key = leave_key(self.id);
        let row = self.shared.local.seal_row(key.as_bytes(), b"leave", &mut self.shared.host.rng());
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> {
            if leaving {
                tx.kv_put(&key, &row)?
            } else {
                tx.kv_delete(&key)?
            }
            Ok(())
        };
        let written = self.shared.store.write(job).await.map_err(from_store_write)?;
        self.shared.store.durable(written.commit).await?;
        self.touch();
        Ok(())
    }

    async fn finish_leaving(self: &Arc<Self>) -> Result<(), AclError> {
        let (space, account) = (self.clone(), self.shared.account.id());
        let make = move |acl: &AclState| {
            if acl.members.contains_key(&account) { AclChange::Leave.contents(&space, acl) } else { Ok(Vec::new()) }
        };
        let left = self.append_acl(&make).await;
        match &left {
            // The wish stays until the node is reached, or until the rules forbid it: an owner transfers first.
            Err(AclError::Call(_) | AclError::Contended { .. } | AclError::Read(_)) => {}
            Ok(()) | Err(_) => self.keep_leaving(false).await?,
        }
        left
    }

    /// What the log or an earlier process left to be done. Called when the node was reached and when the ACL moved; idempotent.
    pub(crate) fn drive_intents(self: &Arc<Self>) {
        let Ok(acl) = self.acl() else { return };
        if acl.deleted {
            return;
        }
        if !self.has_intents(&acl) || self.driving.swap(true, Ordering::AcqRel) {
            return;
        }
        let space = self.clone();
        self.shared.spawn_until_closed(async move {
            let closed = space.closed.clone();
            let Some(stuck_at) = closed.run_until_cancelled(Box::pin(space.drive())).await else { return };
            space.driving.store(false, Ordering::Release);
            // What came while this one ended; what it could not do here it cannot do now.
            if space.acl().is_ok_and(|acl| stuck_at != Some(acl.head) && space.has_intents(&acl)) {
                space.drive_intents();
            }
        });
    }

    fn has_intents(&self, acl: &AclState) -> bool {
        let is_admin = acl.role(&self.shared.account.id()).is_some_and(|role| role >= Role::Admin);
        self.is_leaving().unwrap_or(false) || (owes_rotation(acl) && is_admin)
    }

    /// Until nothing is left to be done, or it cannot be done on the ACL that ends here.
    async fn drive(self: &Arc<Self>) -> Option<AclId> {
        loop {
            let acl = self.acl().ok()?;
            if acl.deleted || !self.has_intents(&acl) {
                return None;
            }
            let done =
                if self.is_leaving().unwrap_or(false) { self.finish_leaving().await } else { self.rotate_owed().await };
            match done {
                Ok(()) => {}
                Err(AclError::Call(error)) if error.is_transient() => tokio::time::sleep(limits::RETRY_FIRST).await,
                Err(AclError::Contended { .. }) => tokio::time::sleep(limits::RETRY_FIRST).await,
                Err(error) => {
                    tracing::info!(space = %self.id.short(), error = %error, "what is left to be done waits");
                    return Some(acl.head);
                }
            }
        }
    }

    /// Every admin who sees that somebody has keys who should not makes new ones; the first one does it for all.
    async fn rotate_owed(self: &Arc<Self>) -> Result<(), AclError> {
        let space = self.clone();
        let make = move |acl: &AclState| {
            if owes_rotation(acl) && !acl.deleted {
                AclChange::RotateKeys.contents(&space, acl)
            } else {
                Ok(Vec::new())
            }
        };
        self.append_acl(&make).await
    }
}
