//! Requests to join, and letting somebody in.

use sync_core::acl::{AclReject, AclState, RequestStatus};
use sync_core::code::Code;
use sync_core::ids::{AccountId, AclId, Seq};
use sync_core::log::Reject;
use sync_core::record::{AclContent, Role};

use super::change::sealed;
use super::preparation::Reader;
use super::{AclChange, Preparation, open_name, reads_from_now_on, sign_record};
use crate::error::{AclError, CallError, ReadError};
use crate::space::{Space, SpaceInner};

/// How often a preparation is written anew because other admins changed the keys meanwhile.
const PREPARED_MAX: u32 = 5;

/// Somebody who asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    pub id: AclId,
    pub account: AccountId,
    pub role: Role,
    /// What the account calls itself.
    pub name: Option<String>,
    pub at_ms: u64,
    pub status: RequestStatus,
}

impl Space {
    /// Every request to join, oldest first, with what became of it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn requests(&self) -> Result<Vec<JoinRequest>, ReadError> {
        let acl = self.inner.acl()?;
        let ring = self.inner.ring();
        let info = |(id, request): (&AclId, &sync_core::acl::Request)| JoinRequest {
            id: *id,
            account: request.claim.account,
            role: request.claim.role,
            name: open_name(&ring, self.inner.id, request.epoch, &request.claim.profile_ct),
            at_ms: request.at_ms,
            status: request.status.clone(),
        };
        let mut requests: Vec<_> = acl.requests.iter().map(|r| (r.1.at, info(r))).collect();
        requests.sort_by_key(|(at, _)| *at);
        Ok(requests.into_iter().map(|(_, r)| r).collect())
    }

    /// The pending request of an account.
    ///
    /// # Errors
    /// [`AclError::NoRequest`].
    pub fn request_of(&self, account: AccountId) -> Result<AclId, AclError> {
        let acl = self.inner.acl()?;
        acl.pending_request(&account).map(|(id, _)| id).ok_or(AclError::NoRequest { account })
    }

    /// Accepts a request; `role`: another than it asks for, not above it. What `prepare` writes and promises is on the
    /// node's disk before the acceptance is appended, and the acceptance names it, so the member's `ready` waits for it.
    ///
    /// Where new members do not read history, the space gets new keys first and every object that `prepare` names is written
    /// whole with them.
    ///
    /// # Errors
    /// [`AclError`]; [`AclError::NothingToPromise`] (`BAD_FRONTIER`) for a tree that nobody wrote yet.
    ///
    /// ```no_run
    /// # async fn f(space: client_sdk::Space, request: client_sdk::AclId) -> Result<(), client_sdk::AclError> {
    /// space
    ///     .approve(request, None, |w| {
    ///         let id = w.account().to_string();
    ///         w.put("profile", &id, serde_json::json!({ "title": "New here" }))?;
    ///         w.promise("page", "welcome")
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn approve(
        &self,
        request: AclId,
        role: Option<Role>,
        prepare: impl FnOnce(&mut Preparation) -> Result<(), AclError>,
    ) -> Result<(), AclError> {
        let acl = self.inner.acl()?;
        let claim = SpaceInner::pending_claim(&acl, request)?;
        let (account, role) = (claim.account, role.unwrap_or(claim.role));
        // Nothing is written for somebody whom the rules would not let in.
        let dry = sign_record(&self.inner.shared, &acl, self.inner.acceptance(&acl, request, role, &[])?)?;
        acl.apply(&dry, Seq(u64::MAX)).map_err(Reject::Acl)?;
        let mut preparation = Preparation::new(account);
        prepare(&mut preparation)?;
        self.inner.accept(request, role, preparation).await
    }

    /// [`Space::approve`] with nothing to prepare.
    ///
    /// # Errors
    /// [`AclError`].
    pub async fn approve_as(&self, request: AclId, role: Option<Role>) -> Result<(), AclError> {
        self.approve(request, role, |_| Ok(())).await
    }
}

impl SpaceInner {
    async fn accept(
        self: &std::sync::Arc<Self>,
        request: AclId,
        role: Role,
        mut preparation: Preparation,
    ) -> Result<(), AclError> {
        let mut has_new_keys = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let from_now_on = reads_from_now_on(self.acl()?.options.history, role);
            let reader = if from_now_on { Reader::FromNowOn } else { Reader::OfHistory };
            self.can_prepare(&mut preparation, reader)?;
            if from_now_on && !has_new_keys {
                self.append_acl(&|acl: &AclState| AclChange::RotateKeys.contents(self, acl)).await?;
                has_new_keys = true;
            }
            let promised = self.prepare(&preparation, reader).await?;
            // What was done once is only shown from here on.
            preparation.is_done();
            let make = |acl: &AclState| {
                if reads_from_now_on(acl.options.history, role) != from_now_on {
                    return Err(AclError::Contended { attempts: attempt });
                }
                self.acceptance(acl, request, role, &promised)
            };
            match self.append_acl(&make).await {
                // Somebody else changed the keys or the options in between: what is promised is shown once more.
                Err(error) if attempt < PREPARED_MAX && is_overtaken(&error) => {}
                said => return said,
            }
        }
    }

    fn acceptance(
        &self,
        acl: &AclState,
        request: AclId,
        role: Role,
        promised: &[sync_core::ids::TreeId],
    ) -> Result<Vec<AclContent>, AclError> {
        let account = Self::pending_claim(acl, request)?.account;
        let seal = sealed(self, acl, account, role)?;
        let frontier = self.frontier(promised)?;
        Ok(vec![AclContent::AcceptJoin { request, role, seals: vec![seal], frontier }])
    }

    /// Checks that a request is pending, and reads what it asks for.
    pub(super) fn pending_claim(acl: &AclState, request: AclId) -> Result<&sync_core::record::JoinClaim, AclError> {
        let pending = acl.requests.get(&request).filter(|r| r.status == RequestStatus::Pending);
        Ok(&pending.ok_or(Reject::Acl(AclReject::RequestUnknown { request }))?.claim)
    }
}

/// The keys or the options moved while something was prepared for them. The node judges a frontier; the rules of the ACL alone
/// do not see it.
fn is_overtaken(error: &AclError) -> bool {
    match error {
        AclError::Contended { .. } | AclError::Rejected(Reject::BadFrontier { .. }) => true,
        AclError::Call(CallError::Refused(failure)) => failure.code == Code::BadFrontier,
        AclError::Call(_)
        | AclError::Rejected(_)
        | AclError::Read(_)
        | AclError::Seal(_)
        | AclError::NoSpaces
        | AclError::StillAMember { .. }
        | AclError::NoRequest { .. }
        | AclError::NothingToPromise { .. }
        | AclError::CannotShow { .. }
        | AclError::NotDurable(_)
        | AclError::Record(_)
        | AclError::Write(_) => false,
    }
}
