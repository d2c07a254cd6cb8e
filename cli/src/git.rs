//! A git history, read by running `git`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::args::Refs;
use crate::caller::Caller;
use crate::exit::Exit;
use serde::{Deserialize, Serialize};

/// What a change that holds a commit says it is.
pub(crate) const DATA_TYPE: &str = "headwater.git-commit/1";

const FORMAT: &str = "--format=%H%x00%P%x00%an <%ae>%x00%aI%x00%B";
const FIELDS: usize = 5;

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("git could not be run; is it installed?")]
    Missing(#[source] std::io::Error),
    #[error("git log failed in {}: {stderr}", .repo.display())]
    Failed { repo: PathBuf, stderr: String },
    #[error("git log printed what it never prints: {what}")]
    Unexpected { what: String },
    #[error("there are no commits in {}", .repo.display())]
    Empty { repo: PathBuf },
    #[error("commit {oid} has {parents} parents; a change can have {max}")]
    TooManyParents { oid: String, parents: usize, max: usize },
}

impl GitError {
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "NO_GIT",
            Self::Failed { .. } => "GIT_FAILED",
            Self::Unexpected { .. } => "GIT_UNEXPECTED",
            Self::Empty { .. } => "NO_COMMITS",
            Self::TooManyParents { .. } => "TOO_MANY_PARENTS",
        }
    }

    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Missing(_) | Self::Unexpected { .. } => Exit::Internal,
            Self::Failed { .. } | Self::Empty { .. } => Exit::NotFound,
            Self::TooManyParents { .. } => Exit::Refused,
        }
    }
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) oid: String,
    /// Those that were read, too. A shallow clone or a ref range leaves some out.
    pub(crate) parents: Vec<String>,
    pub(crate) content: Content,
}

/// What a change says about its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) oid: String,
    pub(crate) author: String,
    /// RFC 3339, with the author's offset.
    pub(crate) time: String,
    pub(crate) message: String,
}

/// The commits that the refs reach, parents before children.
pub(crate) async fn read(caller: &Caller, repo: &Path, refs: &Refs) -> Result<Vec<Commit>, GitError> {
    let mut args: Vec<OsString> = vec!["-C".into(), repo.into()];
    let mut say = |more: &[&str]| args.extend(more.iter().map(Into::into));
    say(&["-c", "log.showSignature=false", "-c", "i18n.logOutputEncoding=UTF-8", "-c", "log.mailmap=false"]);
    say(&["log", "--topo-order", "--reverse", "-z", "--no-color", FORMAT]);
    if refs.all_refs {
        say(&["--all"]);
    } else if refs.refs.is_empty() {
        say(&["HEAD"]);
    } else {
        say(&["--end-of-options"]);
        refs.refs.iter().for_each(|name| say(&[name]));
    }
    say(&["--"]);
    let output = caller.git(args).await.map_err(GitError::Missing)?;
    if !output.success {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(GitError::Failed { repo: repo.to_owned(), stderr });
    }
    let commits = parse(&output.stdout)?;
    if commits.is_empty() {
        return Err(GitError::Empty { repo: repo.to_owned() });
    }
    Ok(commits)
}

fn parse(log: &[u8]) -> Result<Vec<Commit>, GitError> {
    // Commits from before UTF-8 was usual may hold bytes that are no text; they are shown as git shows them.
    let text = String::from_utf8_lossy(log);
    let mut fields: Vec<&str> = text.split('\0').collect();
    // Every commit ends with a NUL, so something empty stands behind the last one.
    fields.pop_if(|last| last.is_empty());
    if !fields.len().is_multiple_of(FIELDS) {
        return Err(GitError::Unexpected { what: format!("{} fields", fields.len()) });
    }
    let mut commits = Vec::with_capacity(fields.len() / FIELDS);
    let mut seen = BTreeSet::new();
    for commit in fields.chunks_exact(FIELDS) {
        let [oid, parents, author, time, message] = commit else { continue };
        let parents: BTreeSet<&str> = parents.split_ascii_whitespace().filter(|p| seen.contains(*p)).collect();
        seen.insert((*oid).to_owned());
        let content = Content {
            oid: (*oid).to_owned(),
            author: (*author).to_owned(),
            time: (*time).to_owned(),
            message: (*message).to_owned(),
        };
        let parents = parents.into_iter().map(str::to_owned).collect();
        commits.push(Commit { oid: (*oid).to_owned(), parents, content });
    }
    Ok(commits)
}

/// Commits that no other commit names as a parent: the tips.
pub(crate) fn tips(commits: &[Commit]) -> BTreeSet<&str> {
    let parents: BTreeSet<&str> = commits.iter().flat_map(|c| c.parents.iter().map(String::as_str)).collect();
    commits.iter().map(|c| c.oid.as_str()).filter(|oid| !parents.contains(oid)).collect()
}

/// Where each commit stands.
pub(crate) fn by_oid(commits: &[Commit]) -> BTreeMap<&str, usize> {
    commits.iter().enumerate().map(|(index, c)| (c.oid.as_str(), index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"aa\0\0Ada <a@x>\x002026-01-01T00:00:00+00:00\0first\n\n\
        \0bb\0aa zz\0Bo <b@x>\x002026-01-02T00:00:00+00:00\0second\nline\n\
        \0cc\0aa\0Bo <b@x>\x002026-01-02T00:00:00+00:00\0\
        \0dd\0cc bb\0Bo <b@x>\x002026-01-03T00:00:00+00:00\0\xff merge\n\0";

    #[test]
    fn a_log_is_read() {
        let commits = parse(LOG).unwrap();
        let oids: Vec<_> = commits.iter().map(|c| c.oid.as_str()).collect();
        assert_eq!(oids, ["aa", "bb", "cc", "dd"]);
        assert_eq!(commits[1].parents, ["aa"], "a parent that was not read is left out");
        assert_eq!(commits[1].content.message, "second\nline\n");
        assert_eq!(commits[2].content.message, "");
        assert_eq!(commits[3].parents, ["bb", "cc"]);
        assert_eq!(commits[3].content.message, "\u{fffd} merge\n");
        assert_eq!(tips(&commits), BTreeSet::from(["dd"]));
        assert_eq!(tips(&commits[..3]), BTreeSet::from(["bb", "cc"]));
        assert_eq!(by_oid(&commits)["cc"], 2);
    }

    #[test]
    fn a_cut_log_is_refused() {
        assert!(matches!(parse(b"aa\0bb"), Err(GitError::Unexpected { .. })));
        assert_eq!(parse(b"").unwrap(), []);
    }
}
