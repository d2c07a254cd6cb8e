//! Joins that are not over, so that another device of the account can finish or cancel them.
//!
//! A device lists the joins that it works on under its own id, and ends the entry when the join is over for it. An entry that
//! another device ended is not written again: a local row remembers that it was.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sync_core::ids::SpaceId;
use sync_core::record::{InviteToken, Verified};
use sync_core::token::token_from_text;
use sync_store::WriteTx;

use super::spaces::Here;
use super::{ClientEvent, JOIN, end};
use crate::client::{Client, Shared};
use crate::error::{JoinError, ReadError, WriteError, from_store_write};
use crate::join::{JoinInfo, JoinStage, Joining};
use crate::objects::Object;

/// The row that says that this device listed a join. It goes with the join, and when the token is shown again.
pub(crate) fn listed_key(space: SpaceId) -> String {
    format!("join-listed/{space}")
}

impl Client {
    /// Goes on here with a join, whichever device of the account began it. Returns as [`Client::join`] does.
    ///
    /// ```no_run
    /// # async fn doc(client: client_sdk::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let begun_elsewhere = client.joins()?.into_iter().find(|join| !join.here);
    /// if let Some(join) = begun_elsewhere {
    ///     let spaces = client.resume_join(join.space).await?.ready(std::time::Duration::from_secs(60)).await?;
    ///     println!("{:?}", spaces[0].name()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`JoinError::NoJoin`] if no device of the account joins the space; or as [`Client::join`].
    pub async fn resume_join(&self, space: SpaceId) -> Result<Joining, JoinError> {
        let _speaking = self.shared.speak_for(space);
        let token = self.shared.join_token(space)?.ok_or(JoinError::NoJoin { space })?;
        let invited = token.body().spaces.iter().find(|s| s.space == space).cloned();
        let invited = invited.ok_or(JoinError::NoJoin { space })?;
        self.shared.join_space(&token, &invited).await?;
        Ok(Joining::of(self.clone(), token, vec![space]))
    }
}

impl Shared {
    /// Whether a join that this device listed as its own was ended or taken over by another one, as far as the account's space
    /// tells now.
    pub(crate) async fn is_over_elsewhere(self: &Arc<Self>, space: SpaceId) -> Result<bool, ReadError> {
        if self.store.read(|tx| tx.kv(&listed_key(space)))?.is_none() {
            return Ok(false);
        }
        let own = self.account_space()?;
        while own.await_synced().await.is_err() {
            tokio::time::sleep(sync_core::limits::RETRY_FIRST).await;
        }
        let device = json!(self.identity.device().to_string());
        let entry = own.objects().get(JOIN, &space.to_string())?;
        Ok(entry.is_none_or(|object| object.fields.get("device") != Some(&device)))
    }

    /// The token of a join that is not over, whichever device began it.
    pub(crate) fn join_token(self: &Arc<Self>, space: SpaceId) -> Result<Option<Verified<InviteToken>>, ReadError> {
        if let Some(row) = self.join_row(space)? {
            return Ok(token_from_text(&row.token).ok());
        }
        let listed = self.account_space()?.objects().get(JOIN, &space.to_string())?;
        // What this device listed and works on no more is over.
        let device = json!(self.identity.device().to_string());
        let listed = listed.filter(|object| object.fields.get("device") != Some(&device));
        Ok(listed.and_then(|object| token_from_text(object.fields.get("token")?.as_str()?).ok()))
    }

    /// After a join that another device began was ended here: nobody is left to end its entry.
    pub(crate) async fn unlist_join(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        end(self.account_space()?.objects().delete(JOIN, &space.to_string()).await)
    }

    /// Joins that other devices of the account work on.
    pub(crate) fn joins_elsewhere(self: &Arc<Self>) -> Result<Vec<JoinInfo>, ReadError> {
        let here = self.join_rows()?;
        let mut joins = Vec::new();
        let device = json!(self.identity.device().to_string());
        for object in self.account_space()?.objects().list(JOIN)? {
            // What this device listed and works on no more is over; the entry goes in a moment.
            if object.fields.get("device") == Some(&device) {
                continue;
            }
            let Some(info) = info_of(&object) else { continue };
            let is_known = here.iter().any(|(space, _)| *space == info.space);
            if !is_known && self.here(info.space)? != Here::Member {
                joins.push(info);
            }
        }
        Ok(joins)
    }

    /// Every space that a join is known of, here or in the account's space.
    pub(super) fn known_joins(self: &Arc<Self>) -> Result<Vec<SpaceId>, ReadError> {
        let objects = self.account_space()?.objects().list(JOIN)?;
        let listed = objects.iter().filter_map(|object| object.id.parse().ok());
        Ok(self.join_rows()?.into_iter().map(|(space, _)| space).chain(listed).collect())
    }

    pub(super) async fn compare_join(self: &Arc<Self>, space: SpaceId) -> Result<(), WriteError> {
        let (id, device) = (space.to_string(), self.identity.device().to_string());
        let objects = self.account_space()?.objects();
        let entry = objects.get(JOIN, &id)?;
        // Two devices that wrote at once can leave a piece without its token: nobody's.
        let listed = entry.as_ref().filter(|object| info_of(object).is_some());
        let is_ours = listed.is_some_and(|o| o.fields.get("device") == Some(&json!(device)));
        let is_member = self.here(space)? == Here::Member;
        let row = self.join_row(space)?;
        let active = row.filter(|row| !is_member && is_under_way(row.stage));
        let marker = listed_key(space);
        let was_listed = self.store.read(|tx| tx.kv(&marker))?.is_some();
        let is_elsewhere = active.is_some() && !is_ours && was_listed;
        match active {
            Some(row) if !is_elsewhere => {
                let fields = json!({ "token": row.token, "stage": row.stage, "device": device });
                let Value::Object(fields) = fields else { return Ok(()) };
                // Another device may have taken it over or ended it since it was read: what that one wrote stands.
                let still = move |there: Option<&Map<String, Value>>| {
                    !was_listed || there.is_some_and(|f| f.get("device") == Some(&json!(device)))
                };
                objects.put_if(JOIN, &id, fields, still).await?;
                if !was_listed {
                    self.mark(move |tx| tx.kv_put(&marker, &[])).await?;
                }
            }
            Some(_) => {}
            None => {
                if entry.is_some() && (is_ours || is_member || listed.is_none()) {
                    end(objects.delete(JOIN, &id).await)?;
                }
                if was_listed {
                    self.mark(move |tx| tx.kv_delete(&marker)).await?;
                }
            }
        }
        Ok(())
    }

    async fn mark(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<(), sync_store::StoreError> + Send + 'static,
    ) -> Result<(), WriteError> {
        let job = move |tx: &mut WriteTx<'_>| -> Result<(), ReadError> { Ok(change(tx)?) };
        self.store.write(job).await.map_err(from_store_write)?;
        Ok(())
    }

    /// A join began, moved or ended here.
    pub(crate) fn join_moved(&self, space: SpaceId) {
        self.own.tell(ClientEvent::JoinsChanged);
        self.own.moved(space);
    }
}

const fn is_under_way(stage: JoinStage) -> bool {
    match stage {
        JoinStage::Kept | JoinStage::Requested | JoinStage::Cancelling => true,
        JoinStage::Joined | JoinStage::Declined => false,
    }
}

fn info_of(object: &Object) -> Option<JoinInfo> {
    let space: SpaceId = object.id.parse().ok()?;
    let token = token_from_text(object.fields.get("token")?.as_str()?).ok()?;
    let stage = serde_json::from_value(object.fields.get("stage")?.clone()).ok()?;
    let invited = token.body().spaces.iter().find(|s| s.space == space)?;
    Some(JoinInfo { space, mode: invited.mode, role: invited.role, stage, here: false })
}
