//! Whom a person means by what was typed, and what to call an account.

use std::collections::BTreeMap;

use client_sdk::{AccountId, ReadError, Space};

use crate::error::CliError;
use crate::text;

/// Accounts and what they call themselves.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeMap<AccountId, Option<String>>,
}

impl Names {
    /// The members of a space.
    pub(crate) fn of_members(space: &Space) -> Result<Self, ReadError> {
        let mut names = Self::default();
        names.learn_members(space)?;
        Ok(names)
    }

    /// The members of a space, and everybody who asked to join it.
    pub(crate) fn of_everybody(space: &Space) -> Result<Self, ReadError> {
        let mut names = Self::default();
        names.learn_everybody(space)?;
        Ok(names)
    }

    pub(crate) fn learn_members(&mut self, space: &Space) -> Result<(), ReadError> {
        for member in space.members()? {
            self.learn(member.account, member.name);
        }
        Ok(())
    }

    /// Learns who is there now; who went in the meantime is not forgotten.
    pub(crate) fn learn_everybody(&mut self, space: &Space) -> Result<(), ReadError> {
        for request in space.requests()? {
            self.learn(request.account, request.name);
        }
        self.learn_members(space)
    }

    fn learn(&mut self, account: AccountId, name: Option<String>) {
        let known = self.known.entry(account).or_default();
        if name.is_some() {
            *known = name;
        }
    }

    pub(crate) fn name(&self, account: &AccountId) -> Option<&str> {
        self.known.get(account)?.as_deref()
    }

    /// `Bo (acct_abcdefgh)`, for sentences.
    pub(crate) fn show(&self, account: &AccountId) -> String {
        match self.name(account) {
            Some(name) => format!("{} ({})", text::plain(name), account.short()),
            None => account.short(),
        }
    }

    /// The account that was meant: by its whole id, by a beginning of it, or by a name that only one has. What looks like an
    /// account is never taken for a name: anybody can call themselves so.
    pub(crate) fn choose(&self, typed: &str) -> Result<AccountId, CliError> {
        if let Ok(account) = typed.parse() {
            return Ok(account);
        }
        let found: Vec<&AccountId> = if typed.starts_with(AccountId::PREFIX) {
            self.known.keys().filter(|account| is_beginning(&account.to_string(), AccountId::PREFIX, typed)).collect()
        } else {
            let named = self.known.iter().filter(|(_, name)| name.as_deref() == Some(typed));
            named.map(|(account, _)| account).collect()
        };
        match found.as_slice() {
            [one] => Ok(**one),
            [] => Err(CliError::NotFound(format!(
                "there is no member {typed:?}: type a name or the first letters of an account (acct_ and at least 4 more)"
            ))),
            several => {
                let one = |account: &&AccountId| match self.name(account) {
                    Some(name) => format!("{} ({account})", text::plain(name)),
                    None => account.to_string(),
                };
                let all: Vec<_> = several.iter().map(one).collect();
                let n = several.len();
                Err(CliError::Usage(format!("{typed:?} could be {n} members; use the account: {}", all.join(", "))))
            }
        }
    }
}

/// Whether `typed` is the beginning of an id, long enough not to be a slip.
pub(crate) fn is_beginning(id: &str, prefix: &str, typed: &str) -> bool {
    id == typed || (typed.len() >= prefix.len() + 4 && id.starts_with(typed))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keys of RFC 8032.
    const ACCOUNTS: [&str; 3] = [
        "acct_25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena",
        "acct_hvabpq7iioevvevxbktu2g36xsojqlgpf3cjndgazvk7ckxumyga",
        "acct_7ri43dtcdcq2hdnep3iaemhqlaebn3itxizqhlc55oirkseqqasq",
    ];

    pub(crate) fn account(n: usize) -> AccountId {
        ACCOUNTS[n].parse().expect("an account")
    }

    fn names() -> Names {
        let mut names = Names::default();
        names.learn(account(0), Some("Bo".to_owned()));
        names.learn(account(1), Some("Cy".to_owned()));
        names.learn(account(2), None);
        names
    }

    #[test]
    fn an_account_its_beginning_or_a_name() {
        let names = names();
        for (typed, wanted) in [(ACCOUNTS[0], 0), ("Bo", 0), ("Cy", 1), (&ACCOUNTS[2][..9], 2), (&ACCOUNTS[1][..20], 1)]
        {
            assert_eq!(names.choose(typed).map_err(|e| e.code()), Ok(account(wanted)), "{typed}");
        }
        for typed in ["bo", "Dee", "acct_", &ACCOUNTS[0][..8], "acct_zzzzzz"] {
            assert_eq!(names.choose(typed).map_err(|e| e.code()), Err("NOT_FOUND"), "{typed}");
        }
    }

    #[test]
    fn a_name_that_two_have_names_nobody() {
        let mut names = names();
        names.learn(account(2), Some("Bo".to_owned()));
        let error = names.choose("Bo").expect_err("two of them");
        assert_eq!(error.code(), "USAGE");
        let text = error.to_string();
        assert!(text.contains(ACCOUNTS[0]) && text.contains(ACCOUNTS[2]) && !text.contains(ACCOUNTS[1]), "{text}");
    }

    #[test]
    fn nobody_is_meant_by_calling_themselves_an_account() {
        let mut names = names();
        names.learn(account(2), Some(ACCOUNTS[0][..12].to_owned()));
        assert_eq!(names.choose(&ACCOUNTS[0][..12]).map_err(|e| e.code()), Ok(account(0)));
        names.learn(account(2), Some(ACCOUNTS[1].to_owned()));
        assert_eq!(names.choose(ACCOUNTS[1]).map_err(|e| e.code()), Ok(account(1)));
    }

    #[test]
    fn who_went_keeps_a_name() {
        let mut names = names();
        names.learn(account(0), None);
        assert_eq!(names.name(&account(0)), Some("Bo"));
        assert!(names.show(&account(0)).starts_with("Bo (acct_"));
    }
}
