//! Object types: the write rule of every (type, id), declared once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use sync_core::ids::AccountId;
use sync_core::record::{Who, WriteRule};

type RuleOf = dyn Fn(&str) -> WriteRule + Send + Sync;

/// A kind of object and who may write each of its objects.
///
/// The rule is a pure function of the object id, the same in every client of the app: it goes into the tree id, so two
/// clients that disagree make two trees.
///
/// ```
/// use client_sdk::{ObjectType, Who, WriteRule};
/// let ballot = ObjectType::new("ballot").rule(|_id| WriteRule { who: Who::Writers, once: true });
/// assert_eq!(ballot.name(), "ballot");
/// ```
#[derive(Clone)]
pub struct ObjectType {
    name: String,
    rule: Arc<RuleOf>,
}

impl ObjectType {
    /// A type whose objects every writer may write.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rule: Arc::new(|_| WriteRule::WRITERS) }
    }

    /// The same type with its own rule.
    #[must_use]
    pub fn rule(self, rule: impl Fn(&str) -> WriteRule + Send + Sync + 'static) -> Self {
        Self { rule: Arc::new(rule), ..self }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A member's profile: its id is an account id, and that account or an admin writes it.
    #[must_use]
    pub fn profile() -> Self {
        Self::new("profile").rule(|id| match id.parse::<AccountId>() {
            Ok(account) => WriteRule { who: Who::AccountOrAdmins(account), once: false },
            Err(_) => WriteRule::WRITERS,
        })
    }

    /// What the space says of itself; its only id is `self`.
    #[must_use]
    pub fn space_info() -> Self {
        Self::new(SPACE_INFO).rule(|_| WriteRule { who: Who::Admins, once: false })
    }
}

/// The type of the object that holds a space's name.
pub(crate) const SPACE_INFO: &str = "headwater.space";

impl fmt::Debug for ObjectType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectType").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All declared types. An undeclared one is written by every writer.
#[derive(Debug, Clone)]
pub(crate) struct ObjectTypes(BTreeMap<String, ObjectType>);

impl ObjectTypes {
    pub(crate) fn new(declared: Vec<ObjectType>) -> Self {
        let own = [ObjectType::profile(), ObjectType::space_info()];
        Self(own.into_iter().chain(declared).map(|t| (t.name.clone(), t)).collect())
    }

    pub(crate) fn rule(&self, object_type: &str, id: &str) -> WriteRule {
        self.0.get(object_type).map_or(WriteRule::WRITERS, |t| (t.rule)(id))
    }
}
