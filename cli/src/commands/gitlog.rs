//! A git history as a tree, and the comparison of both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use client_sdk::{
    ChangeId, Client, LoggedChange, NewTree, ParentRef, Space, TreeId, TreeWrite, TreeWritten, WriteRule,
};
use serde_json::json;

use crate::app::App;
use crate::args::{ImportGit, Refs};
use crate::commands::tree;
use crate::error::CliError;
use crate::git::{self, Commit, Content, GitError};
use crate::output::{Answer, table};
use crate::text;

/// Commits in one transaction.
const BATCH: usize = 1000;

/// How many parents a change can have.
const PARENTS_MAX: usize = 32;

pub(crate) async fn import(app: &App, args: ImportGit) -> Result<Answer, CliError> {
    let commits = {
        let _spinner = app.out.spinner("reading the history");
        git::read(&app.caller, &args.repo, &args.refs).await?
    };
    if let Some(octopus) = commits.iter().find(|c| c.parents.len() > PARENTS_MAX) {
        let (oid, parents) = (octopus.oid.clone(), octopus.parents.len());
        return Err(GitError::TooManyParents { oid, parents, max: PARENTS_MAX }.into());
    }
    app.with_space(async |_: &Client, space: &Space| {
        let bar = app.out.bar(commits.len(), "writing");
        let mut import = Importing { space, tree: None, changes: BTreeMap::new(), writes: Vec::new() };
        for batch in commits.chunks(BATCH) {
            import.write(batch).await?;
            bar.advance(batch.len());
        }
        drop(bar);
        let Some(tree) = import.tree else { return Err(GitError::Empty { repo: args.repo.clone() }.into()) };
        let settled = {
            let _spinner = app.out.spinner(format!("pushing {}", text::count(import.writes.len(), "change")));
            app.settle(space, &import.writes, args.settle).await?
        };
        let tips = git::tips(&commits).len();
        let said = format!(
            "{tree}\n{}, {}: {}",
            text::count(commits.len(), "commit"),
            text::count(tips, "head"),
            settled.text()
        );
        let json = json!({
            "space": space.id().to_string(),
            "tree": tree.to_string(),
            "commits": commits.len(),
            "heads": tips,
        });
        Ok(Answer::new(said, settled.into_json(json)))
    })
    .await
}

/// A history that is being written.
struct Importing<'a> {
    space: &'a Space,
    tree: Option<TreeId>,
    changes: BTreeMap<String, ChangeId>,
    writes: Vec<client_sdk::WriteId>,
}

impl Importing<'_> {
    /// Writes some commits in one transaction. Parents stand before children, so every parent is here or in the batch.
    async fn write(&mut self, commits: &[Commit]) -> Result<(), CliError> {
        let writes = self.writes_of(commits)?;
        let data_type = git::DATA_TYPE.to_owned();
        let written: TreeWritten = match self.tree {
            None => {
                let new = NewTree { data_type, write_rule: WriteRule::WRITERS };
                self.space.create_tree(new, writes).await?
            }
            Some(tree) => self.space.append(tree, data_type, writes).await?,
        };
        self.tree = Some(written.tree);
        self.writes.extend(written.writes);
        self.changes.extend(commits.iter().map(|c| c.oid.clone()).zip(written.changes));
        Ok(())
    }

    fn writes_of(&self, commits: &[Commit]) -> Result<Vec<TreeWrite>, CliError> {
        let here = git::by_oid(commits);
        let parent = |oid: &String| match (self.changes.get(oid), here.get(oid.as_str())) {
            (Some(change), _) => Some(ParentRef::Change(*change)),
            (None, index) => index.copied().map(ParentRef::Earlier),
        };
        let write = |commit: &Commit| {
            let payload = serde_json::to_vec(&commit.content).map_err(|e| CliError::Internal(e.to_string()))?;
            let parents = commit.parents.iter().filter_map(parent).collect();
            Ok(TreeWrite { parents: Some(parents), payload: payload.into() })
        };
        commits.iter().map(write).collect()
    }
}

pub(crate) async fn verify(app: &App, typed: &str, repo: &Path, refs: &Refs) -> Result<Answer, CliError> {
    let commits = git::read(&app.caller, repo, refs).await?;
    app.with_space(async |_: &Client, space: &Space| {
        let tree = tree::find(app, space, typed)?;
        if tree.snapshot()?.pending > 0 {
            let _spinner = app.out.spinner("some of it is not in the log yet");
            space.await_synced_within(app.timeout()).await?;
        }
        let heads = tree.snapshot()?.heads.clone();
        let checks = compare(&commits, &tree.changes()?, &heads);
        let rows = checks.iter().map(|c| {
            let verdict = if c.is_equal() { "equal" } else { "DIFFERENT" };
            vec![c.what.to_owned(), c.git.clone(), c.tree.clone(), verdict.to_owned()]
        });
        let said = table(&["what", "git", "tree", ""], rows);
        if let Some(check) = checks.iter().find(|c| !c.is_equal()) {
            app.out.note(&said).await;
            let Check { what, git, tree, .. } = check;
            return Err(CliError::Different(format!("{what}: git has {git}, the tree has {tree}")));
        }
        let json: Vec<_> = checks
            .iter()
            .map(|c| json!({ "what": c.what, "git": c.git, "tree": c.tree, "equal": c.is_equal() }))
            .collect();
        Ok(Answer::new(said, json!({ "tree": tree.id().to_string(), "checks": json })))
    })
    .await
}

/// One thing that git and the tree should agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    what: &'static str,
    git: String,
    tree: String,
}

impl Check {
    fn new(what: &'static str, git: impl ToString, tree: impl ToString) -> Self {
        Self { what, git: git.to_string(), tree: tree.to_string() }
    }

    /// Counts of things that are right in both must be the same.
    fn is_equal(&self) -> bool {
        self.git == self.tree
    }
}

/// What a tree says about commits.
struct Told {
    content: BTreeMap<ChangeId, Content>,
    order: BTreeMap<ChangeId, usize>,
}

fn compare(commits: &[Commit], changes: &[LoggedChange], heads: &BTreeSet<ChangeId>) -> Vec<Check> {
    let content = changes.iter().filter_map(|c| Some((c.id, content_of(c)?))).collect();
    let order = changes.iter().enumerate().map(|(index, c)| (c.id, index)).collect();
    let told = Told { content, order };
    let git = git::by_oid(commits);
    let tips: BTreeSet<String> = git::tips(commits).into_iter().map(str::to_owned).collect();
    let heads: BTreeSet<String> = heads.iter().map(|head| told.oid(head)).collect();
    let both = tips.intersection(&heads).count();
    let same = |is_same: &dyn Fn(&Commit, &LoggedChange) -> bool| {
        changes.iter().filter(|c| told.commit(c, &git, commits).is_some_and(|commit| is_same(commit, c))).count()
    };
    vec![
        Check::new("commits", commits.len(), changes.len()),
        Check::new("tips", tips.len(), heads.len()),
        Check::new("tips that are the same commits", tips.len(), both),
        Check::new("commits with their parents", commits.len(), same(&|commit, c| told.parents(c) == commit.parents)),
        Check::new("commits behind all their parents", commits.len(), same(&|_, c| told.stands_behind_parents(c))),
        Check::new(
            "authors, times and messages",
            commits.len(),
            same(&|commit, c| told.content.get(&c.id) == Some(&commit.content)),
        ),
    ]
}

impl Told {
    fn oid(&self, change: &ChangeId) -> String {
        self.content.get(change).map_or_else(|| change.to_string(), |c| c.oid.clone())
    }

    fn commit<'c>(
        &self,
        change: &LoggedChange,
        git: &BTreeMap<&str, usize>,
        commits: &'c [Commit],
    ) -> Option<&'c Commit> {
        let oid = &self.content.get(&change.id)?.oid;
        commits.get(*git.get(oid.as_str())?)
    }

    /// The commits that a change stands on, sorted. The root of the tree is no commit.
    fn parents(&self, change: &LoggedChange) -> Vec<String> {
        let is_change = |p: &&ChangeId| self.order.contains_key(p);
        let parents: BTreeSet<_> = change.parents.iter().filter(is_change).map(|p| self.oid(p)).collect();
        parents.into_iter().collect()
    }

    fn stands_behind_parents(&self, change: &LoggedChange) -> bool {
        let place = self.order.get(&change.id);
        change.parents.iter().filter_map(|p| self.order.get(p)).all(|parent| Some(parent) < place)
    }
}

fn content_of(change: &LoggedChange) -> Option<Content> {
    let (data_type, payload) = change.content.as_ref()?;
    if data_type != git::DATA_TYPE {
        return None;
    }
    serde_json::from_slice(payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first public key of RFC 8032, section 7.1.
    const AUTHOR: &str = "acct_25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";

    fn commit(oid: &str, parents: &[&str]) -> Commit {
        let text = |s: &str| s.to_owned();
        let content = Content { oid: text(oid), author: text("A"), time: text("t"), message: format!("m {oid}\n") };
        Commit { oid: text(oid), parents: parents.iter().map(|p| text(p)).collect(), content }
    }

    fn id(n: u8) -> ChangeId {
        ChangeId::from_hash([n; 32])
    }

    fn change(n: u8, parents: &[u8], commit: &Commit) -> LoggedChange {
        LoggedChange {
            id: id(n),
            seq: n.into(),
            height: n.into(),
            parents: parents.iter().map(|p| id(*p)).collect(),
            author: AUTHOR.parse().unwrap(),
            at_ms: 0,
            content: Some((git::DATA_TYPE.to_owned(), serde_json::to_vec(&commit.content).unwrap().into())),
        }
    }

    fn different(commits: &[Commit], changes: &[LoggedChange], heads: &[u8]) -> Vec<&'static str> {
        let heads = heads.iter().map(|h| id(*h)).collect();
        compare(commits, changes, &heads).into_iter().filter(|c| !c.is_equal()).map(|c| c.what).collect()
    }

    #[test]
    fn a_tree_is_compared_with_its_history() {
        let commits = [commit("a", &[]), commit("b", &["a"]), commit("c", &["a"]), commit("d", &["b", "c"])];
        let [a, b, c, d] = &commits;
        // 99 stands for the root of the tree.
        let good = [change(1, &[99], a), change(2, &[1], b), change(3, &[1], c), change(4, &[2, 3], d)];
        assert_eq!(different(&commits, &good, &[4]), Vec::<&str>::new());
        assert_eq!(different(&commits, &good, &[3]), ["tips that are the same commits"]);
        assert_eq!(different(&commits[..3], &good[..3], &[2, 3]), Vec::<&str>::new());
        assert_eq!(different(&commits, &good[..3], &[2, 3])[0], "commits");
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        assert_eq!(different(&commits, &swapped, &[4]), ["commits behind all their parents"]);
        let mut rebuilt = good.clone();
        rebuilt[3].parents = vec![id(3)];
        assert_eq!(different(&commits, &rebuilt, &[4]), ["commits with their parents"]);
        let mut other = good;
        other[1] =
            change(2, &[1], &Commit { content: Content { message: "x".into(), ..b.content.clone() }, ..b.clone() });
        assert_eq!(different(&commits, &other, &[4]), ["authors, times and messages"]);
    }
}
