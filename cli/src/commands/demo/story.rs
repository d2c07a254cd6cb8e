//! The story, step by step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client_sdk::{
    Client, ClientConfig, InviteOptions, JoinError, NodeAddress, Object, SignedReceipt, Space, SpaceId, SyncState,
    Unlock,
};
use serde_json::json;

use super::node::NodeProcess;
use super::timeline::{Actor, Timeline};
use super::world::Records;
use crate::args::RecordArgs;
use crate::commands::data;
use crate::error::CliError;
use crate::output::Answer;
use crate::records::{self, ByType};
use crate::text;

/// No wait of the story takes longer.
const DEADLINE: Duration = Duration::from_secs(300);

const PROFILE: &str = "profile";
const SECRET_NOTE: &str = "Only members can read this line";
const SPACE_NAME: &str = "The demo's world atlas";

/// Everything that the story needs.
pub(super) struct Story<'a> {
    timeline: Timeline,
    dir: &'a Path,
    binary: &'a Path,
    records: Records,
}

impl<'a> Story<'a> {
    pub(super) const fn new(timeline: Timeline, dir: &'a Path, binary: &'a Path, records: Records) -> Self {
        Self { timeline, dir, binary, records }
    }

    /// Tells it, and ends with what was proven.
    pub(super) async fn tell(mut self) -> Result<Answer, CliError> {
        let mut node = NodeProcess::start(self.binary, &self.dir.join("node")).await?;
        self.timeline
            .say(Actor::Node, format!("runs as process {} at {}", node.pid(), node.address().endpoint))
            .await?;
        let admin = self.account(Actor::Admin, "Ada", node.address()).await?;
        let member = self.account(Actor::Member, "Bo", node.address()).await?;
        let told = Box::pin(self.between(&admin, &member, &mut node)).await;
        admin.close().await;
        member.close().await;
        node.kill().await?;
        let facts = told?;
        self.check_node_files(&facts).await?;
        self.timeline.finish(&facts.json).await?;
        Ok(Answer::nothing())
    }

    async fn account(&self, actor: Actor, name: &str, node: &NodeAddress) -> Result<Client, CliError> {
        let dir = self.dir.join(name);
        let config = ClientConfig::new(dir.clone(), Unlock::KeyFile(dir.join("device.key")));
        let (client, _) = Box::pin(Client::create(config.node(node.clone()).name(name))).await?;
        self.timeline.say(actor, format!("is {name}, {}", client.account().short())).await?;
        Ok(client)
    }

    async fn between(&mut self, admin: &Client, member: &Client, node: &mut NodeProcess) -> Result<Facts, CliError> {
        let atlas = self.prepare(admin).await?;
        let token = self.invite(&atlas, member).await?;
        let joining = self.request(member, &token).await?;
        let profile = self.accept(&atlas, member).await?;
        let id = atlas.id();

        // From here on the member waits, as an application would: in one call, which the node's death does not end.
        let waiting = tokio::spawn(async move { joining.ready(DEADLINE).await });
        self.kill_in_download(&atlas, member, id, node).await?;
        let spaces = waiting.await.map_err(|e| CliError::Internal(e.to_string()))??;
        let copy = spaces.into_iter().find(|s| s.id() == id);
        let copy = copy.ok_or_else(|| CliError::Internal("ready came without the space".to_owned()))?;
        self.read_profile(&copy, member, &profile).await?;
        self.compare(&atlas, &copy).await
    }

    async fn prepare(&mut self, admin: &Client) -> Result<Space, CliError> {
        let atlas = admin.create_space(SPACE_NAME).await?;
        self.timeline.say(Actor::Admin, format!("makes the space {:?}: {}", SPACE_NAME, atlas.id().short())).await?;
        let records = std::mem::take(&mut self.records.records);
        let count = records.len();
        {
            let bar = self.timeline.out.bar(count, "writing");
            data::write_all(&atlas.objects(), records, &bar).await?;
        }
        let source = self.records.source;
        self.timeline.say(Actor::Admin, format!("has written {} ({source})", text::count(count, "record"))).await?;
        let synced = {
            let _spinner = self.timeline.out.spinner("pushing");
            atlas.await_synced_within(DEADLINE).await?
        };
        self.timeline
            .say(Actor::Node, format!("has entry {} on its disk, and signs for it", synced.receipt.body().seq))
            .await?;
        Ok(atlas)
    }

    async fn invite(&self, atlas: &Space, member: &Client) -> Result<String, CliError> {
        let profile = atlas.objects().tree_id(PROFILE, &member.account().to_string())?;
        let options = InviteOptions { must_see: vec![profile], ..InviteOptions::approval() };
        let invite = atlas.invite(options).await?;
        let chars = invite.token.chars().count();
        self.timeline.say(
            Actor::Admin,
            format!("hands over an invite of {chars} characters; it names the member's profile, which nobody has written yet"),
        ).await?;
        Ok(invite.token)
    }

    async fn request(&self, member: &Client, token: &str) -> Result<client_sdk::Joining, CliError> {
        let joining = member.join(token).await?;
        self.timeline.say(Actor::Member, "has asked to join; the request is on the node's disk").await?;
        Ok(joining)
    }

    /// Writes the profile only now, and accepts with a promise that the member will see it.
    async fn accept(&self, atlas: &Space, member: &Client) -> Result<serde_json::Value, CliError> {
        let account = member.account();
        let mut since = 0;
        let arrives = async {
            loop {
                match atlas.request_of(account) {
                    Ok(request) => return Ok(request),
                    Err(client_sdk::AclError::NoRequest { .. }) => atlas.status_changed(&mut since).await,
                    Err(error) => return Err(error),
                }
            }
        };
        let request = tokio::time::timeout(DEADLINE, arrives).await.map_err(|_| client_sdk::CallError::TimedOut)??;
        self.timeline.say(Actor::Admin, format!("sees that {} asks", account.short())).await?;
        let id = account.to_string();
        let profile = json!({ "name": "Bo", "note": SECRET_NOTE, "welcome": ["привет", "你好", "أهلا"] });
        let write = |w: &mut client_sdk::Preparation| w.put(PROFILE, &id, profile.clone());
        atlas.approve(request, None, write).await?;
        self.timeline
            .say(Actor::Admin, "writes the member's profile, and accepts once it is on the node's disk")
            .await?;
        Ok(profile)
    }

    /// Kills the node while the member fetches, writes into the silence, and starts it again.
    async fn kill_in_download(
        &mut self,
        atlas: &Space,
        member: &Client,
        id: SpaceId,
        node: &mut NodeProcess,
    ) -> Result<(), CliError> {
        let end = atlas.status()?.seq;
        let seen = tokio::time::timeout(DEADLINE, downloaded(member, id, end / 4)).await;
        let seen = seen.map_err(|_| client_sdk::CallError::TimedOut)??;
        node.kill().await?;
        let here = seen.status()?.seq;
        self.timeline.say(Actor::Node, format!("is killed (SIGKILL); the member had {here} of {end} entries")).await?;
        wait_for_state(atlas, SyncState::Offline).await?;
        let note = json!({ "text": "written while the node was dead" });
        atlas.objects().put("note", "offline", note).await?;
        let pending = atlas.status()?.pending;
        self.timeline
            .say(Actor::Admin, format!("is offline and writes on: {} kept here", text::count(pending, "write")))
            .await?;
        node.restart().await?;
        self.timeline
            .say(Actor::Node, format!("is back as process {}, with the same data and address", node.pid()))
            .await?;
        // A small download can be over before the signal arrives; then the story says no more than that.
        let when =
            if here < end { "in the middle of the member's first download" } else { "right after it took the join" };
        self.timeline.proven(format!("a node that was killed {when} (at {here} of {end} entries) lost nothing"));
        Ok(())
    }

    async fn read_profile(
        &mut self,
        copy: &Space,
        member: &Client,
        expected: &serde_json::Value,
    ) -> Result<(), CliError> {
        let account = member.account().to_string();
        let found: Option<Object> = copy.objects().get(PROFILE, &account)?;
        let object = found.ok_or_else(|| CliError::Different("ready came before the profile".to_owned()))?;
        if json!(object.fields) != *expected {
            return Err(CliError::Different(format!("the profile reads {}", json!(object.fields))));
        }
        self.timeline.say(Actor::Member, "is ready, and reads its own profile").await?;
        self.timeline.proven("when the member was told that it is ready, it could read what it was promised");
        Ok(())
    }

    async fn compare(&mut self, atlas: &Space, copy: &Space) -> Result<Facts, CliError> {
        let ours = self.certified(Actor::Admin, atlas).await?;
        let theirs = self.certified(Actor::Member, copy).await?;
        // The receipts travel as text, and a stranger judges them.
        let (ours, theirs) = (SignedReceipt::from_text(&ours)?, SignedReceipt::from_text(&theirs)?);
        let (a, b) = (ours.body(), theirs.body());
        if (a.space, a.seq, a.chain, a.acl_head) != (b.space, b.seq, b.chain, b.acl_head) {
            return Err(CliError::Different(format!("the receipts speak of entries {} and {}", a.seq, b.seq)));
        }
        if !a.durable || !b.durable {
            return Err(CliError::Different("a receipt does not speak of the disk".to_owned()));
        }
        self.timeline
            .say(Actor::Anyone, "verifies both receipts offline, from their text: one log, one chain, one ACL")
            .await?;
        self.timeline.proven(format!("both sides and the node agree on {} entries, by two signed receipts", a.seq));
        let everything = RecordArgs { object_type: None, type_field: None, id_field: None, prefix: None };
        let (left, right) = (data::exported(atlas, &everything)?, data::exported(copy, &everything)?);
        let (left_text, right_text) = (records::sections_text(&left)?, records::sections_text(&right)?);
        if left_text != right_text {
            let difference = records::difference(&left, &right).unwrap_or_else(|| "the exports differ".to_owned());
            return Err(CliError::Different(difference));
        }
        let objects: usize = left.values().map(BTreeMap::len).sum();
        self.timeline
            .say(
                Actor::Anyone,
                format!("compares both exports: {objects} objects, {} bytes, byte for byte equal", left_text.len()),
            )
            .await?;
        self.timeline.proven(format!("{objects} objects are the same on both sides, byte for byte"));
        let json = json!({
            "space": a.space.to_string(),
            "seq": a.seq.0,
            "chain": a.chain.to_string(),
            "objects": objects,
            "export_bytes": left_text.len(),
        });
        Ok(Facts { json, needles: needles(&left) })
    }

    async fn certified(&self, actor: Actor, space: &Space) -> Result<String, CliError> {
        let synced = {
            let _spinner = self.timeline.out.spinner("comparing with the node");
            space.await_synced_within(DEADLINE).await?
        };
        self.timeline
            .say(actor, format!("is synced up to {}: the node has signed for it", synced.receipt.body().seq))
            .await?;
        Ok(synced.receipt.to_text())
    }

    /// The node's files, searched for what only members may read.
    async fn check_node_files(&mut self, facts: &Facts) -> Result<(), CliError> {
        let mut bytes = 0;
        for file in files_below(&self.dir.join("node"))? {
            let content = std::fs::read(&file).map_err(CliError::file(&file))?;
            bytes += content.len();
            if let Some(found) = find_any(&content, &facts.needles) {
                return Err(CliError::Different(format!("{} holds {found:?} in the clear", file.display())));
            }
        }
        self.timeline
            .say(
                Actor::Anyone,
                format!(
                    "searches the node's {bytes} bytes on disk for {} plaintexts: none is there",
                    facts.needles.len()
                ),
            )
            .await?;
        self.timeline
            .proven(format!("none of {} plaintexts is in the node's {bytes} bytes on disk", facts.needles.len()));
        Ok(())
    }
}

/// What the end of the story is judged by.
struct Facts {
    json: serde_json::Value,
    /// Texts that must not be on the node's disk.
    needles: Vec<String>,
}

/// Texts of the exports that are long enough to be no accident.
fn needles(types: &ByType) -> Vec<String> {
    const CHARS_MIN: usize = 16;
    const NEEDLES_MAX: usize = 20;
    let values = types.values().flat_map(BTreeMap::values).flat_map(|fields| fields.values());
    let long = values.filter_map(serde_json::Value::as_str).filter(|text| text.len() >= CHARS_MIN);
    let mut needles: Vec<String> = long.take(NEEDLES_MAX).map(str::to_owned).collect();
    needles.extend([SECRET_NOTE.to_owned(), SPACE_NAME.to_owned()]);
    needles
}

/// Waits until the member's own copy of the log is at least so long.
async fn downloaded(member: &Client, id: SpaceId, seq: u64) -> Result<Space, CliError> {
    let space = member.wait_for_space(id, DEADLINE).await?;
    let mut since = 0;
    while space.status()?.seq < seq {
        space.status_changed(&mut since).await;
    }
    Ok(space)
}

async fn wait_for_state(space: &Space, state: SyncState) -> Result<(), CliError> {
    let mut since = 0;
    let waiting = async {
        while space.status()?.state != state {
            space.status_changed(&mut since).await;
        }
        Ok::<_, CliError>(())
    };
    let waited = tokio::time::timeout(DEADLINE, waiting).await;
    waited.map_err(|_| JoinError::NotReady { waiting: format!("{state:?}") })?
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(CliError::file(&dir))? {
            let path = entry.map_err(CliError::file(&dir))?.path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// The first of the needles that is in the haystack, in one pass.
fn find_any<'n>(haystack: &[u8], needles: &'n [String]) -> Option<&'n String> {
    let pair = |bytes: &[u8]| Some(usize::from(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?])));
    let mut begins = vec![false; 1 << 16];
    for needle in needles {
        begins[pair(needle.as_bytes())?] = true;
    }
    (0..haystack.len()).find_map(|at| {
        let rest = &haystack[at..];
        if !begins[pair(rest)?] {
            return None;
        }
        needles.iter().find(|needle| rest.starts_with(needle.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found() {
        let needles = ["abc".to_owned(), "日本".to_owned()];
        assert_eq!(find_any(b"xxabcxx", &needles), Some(&needles[0]));
        assert_eq!(find_any("ab日本".as_bytes(), &needles), Some(&needles[1]));
        assert_eq!(find_any(b"xxabxx", &needles), None);
        assert_eq!(find_any(b"", &needles), None);
    }
}
