//! S61 for everything that happens to members: what the node stores and logs of it, and what passes on the wire, tells nobody who
//! people say they are, what they call things, and what opens them.

use client_sdk::{Client, ClientConfig, InviteOptions, Mnemonic, ObjectType, Role, Space, Unlock, Who, WriteRule};
use serde_json::json;
use sync_core::record::PayloadClaim;
use sync_core::token::token_from_text;
use sync_e2ee::{AccountKeys, InviteSecret};
use sync_tests::capture::{Haystack, LoggedNode, Needle, Relay, files, findings};
use sync_tests::harness::{Outcome, PATIENCE, TestClient, accept, config, object, request_of, until};
use sync_tests::hostile::{Hostile, Pen, Said};
use tempfile::TempDir;

/// Names of spaces, people, devices and invites; types, ids, fields and texts of objects.
const PLAINTEXTS: [&str; 32] = [
    "Periwinkle Rowing Club",
    "Committee of the Periwinkle",
    "Farewell to the old boathouse",
    "Philippa Thistlewood",
    "Octavian Marchbanks",
    "Serafina Quillfeather",
    "Lysander Pemberton",
    "Gwendolyn Ashgrove",
    "Peregrine Blackwater",
    "Isolde Fairweather",
    "Philippa's kitchen laptop",
    "Philippa's red telephone",
    "for the people from the regatta",
    "for whoever steers on Sundays",
    "for the one who must not come",
    "regattaplan",
    "oarsman-card",
    "confidential-vow",
    "plan-for-the-thaw",
    "plan-that-was-dropped",
    "plan-of-the-committee",
    "launch_place",
    "who_steers",
    "fee_waiver",
    "below the second weir",
    "Octavian steers and nobody else",
    "forty crowns, never to be mentioned",
    "written for Serafina's eyes",
    "prepared before Gwendolyn arrived",
    "what Lysander wrote on the train",
    "the boathouse key hangs in the elder",
    "typed on the red telephone",
];

struct Person {
    dir: TempDir,
    client: Client,
    words: Mnemonic,
}

impl std::ops::Deref for Person {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Everything secret that came up in the story, beside the plaintexts.
#[derive(Default)]
struct Secrets {
    words: Vec<Mnemonic>,
    tokens: Vec<String>,
}

impl Secrets {
    /// By name: what must not be found anywhere, as bytes.
    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = PLAINTEXTS.iter().map(|text| (format!("{text:?}"), text.as_bytes().to_vec())).collect();
        for words in &self.words {
            let list: Vec<&str> = words.phrase().split(' ').collect();
            // Two words in a row: what chance does not write.
            all.extend(list.windows(2).map(|pair| (format!("{pair:?}"), pair.join(" ").into_bytes())));
            all.push(("an account key".into(), AccountKeys::from_mnemonic(words).signing_key().to_bytes().to_vec()));
        }
        for token in &self.tokens {
            for invited in &token_from_text(token).expect("a token").body().spaces {
                all.push(("an invite secret".into(), invited.invite_secret.to_vec()));
                let key = InviteSecret::from_bytes(invited.invite_secret).signing_key().to_scalar_bytes();
                all.push(("an invite key".into(), key.to_vec()));
            }
            all.push(("a token".into(), token.as_bytes()[10..60].to_vec()));
        }
        all
    }

    fn needles(&self) -> Vec<Needle> {
        self.all().into_iter().map(|(name, bytes)| Needle::new(name, &bytes)).collect()
    }
}

struct Stage {
    node: LoggedNode,
    relay: Relay,
    secrets: Secrets,
}

impl Stage {
    fn config(&self, dir: &TempDir, name: &str, device: &str) -> ClientConfig {
        let card = ObjectType::new("oarsman-card")
            .rule(|id| WriteRule { who: id.parse().map_or(Who::Admins, Who::AccountOrAdmins), once: false });
        let vow = ObjectType::new("confidential-vow").rule(|_| WriteRule { who: Who::Writers, once: true });
        ClientConfig::new(dir.path(), Unlock::KeyFile(dir.path().join("device.key")))
            .node(self.relay.address(self.node.address()))
            .name(name)
            .device_name(device)
            .object_type(card)
            .object_type(vow)
    }

    async fn person(&mut self, name: &str) -> Outcome<Person> {
        let dir = tempfile::tempdir()?;
        let (client, words) = Client::create(self.config(&dir, name, "Philippa's kitchen laptop")).await?;
        self.secrets.words.push(words.clone());
        Ok(Person { dir, client, words })
    }

    async fn token(&mut self, space: &Space, label: &str, options: InviteOptions) -> Outcome<String> {
        let token = space.invite(InviteOptions { label: Some(label.to_owned()), ..options }).await?.token;
        self.secrets.tokens.push(token.clone());
        Ok(token)
    }
}

async fn synced(spaces: &[&Space]) -> Outcome {
    for space in spaces {
        space.await_synced_within(PATIENCE).await?;
    }
    Ok(())
}

/// Both kinds of invite, a preparation, a decline, roles, a removal with writes made offline, rotations, a leaving, a revocation,
/// a purge, new keys, a replaced account, two devices, a new owner, and the end of a space.
async fn story(stage: &mut Stage) -> Outcome<Vec<TempDir>> {
    let [club, committee, farewell, philippa, octavian, serafina, lysander, gwendolyn, peregrine, isolde, ..] =
        PLAINTEXTS;
    let founder = stage.person(philippa).await?;
    let space = founder.create_space(club).await?;
    let objects = space.objects();
    objects.put("regattaplan", "plan-for-the-thaw", json!({ "launch_place": "below the second weir" })).await?;
    objects.put("regattaplan", "plan-that-was-dropped", json!({ "launch_place": "below the second weir" })).await?;

    // In by an open invite, and by approval with a preparation; one is declined, and tries another way.
    let must_see = vec![objects.tree_id("regattaplan", "plan-for-the-thaw")?];
    let open = InviteOptions { must_see, ..InviteOptions::open() };
    let open = stage.token(&space, "for the people from the regatta", open).await?;
    let steerer = stage.person(octavian).await?;
    let his = steerer.join(&open).await?.ready(PATIENCE).await?.remove(0);
    his.objects()
        .put("regattaplan", "plan-for-the-thaw", json!({ "who_steers": "Octavian steers and nobody else" }))
        .await?;
    let approval = stage.token(&space, "for whoever steers on Sundays", InviteOptions::approval()).await?;
    let guest = stage.person(serafina).await?;
    let joining = guest.join(&approval).await?;
    space.decline(request_of(&space, &guest).await?).await?;
    joining.ready(PATIENCE).await.expect_err("declined");
    let joining = guest.join(&approval).await?;
    let hers = accept(&space, &guest, &joining, Role::Guest, &[]).await?;
    hers.await_synced().await?;
    space.change_role(guest.account(), Role::Writer).await?;
    until(&hers, || Ok((hers.status()?.hidden == 0).then_some(()))).await?;
    let prepared = stage.person(gwendolyn).await?;
    let joining = prepared.join(&approval).await?;
    let request = request_of(&space, &prepared).await?;
    space
        .approve(request, None, |w| {
            let id = w.account().to_string();
            w.put("oarsman-card", &id, json!({ "fee_waiver": "forty crowns, never to be mentioned" }))?;
            w.put("confidential-vow", "self", json!({ "text": "prepared before Gwendolyn arrived" }))?;
            Ok(())
        })
        .await?;
    let theirs = joining.ready(PATIENCE).await?.remove(0);
    object(&theirs, "confidential-vow", "self")?;
    let names: Vec<_> = space.members()?.into_iter().filter_map(|m| m.name).collect();
    assert!([octavian, serafina, gwendolyn].iter().all(|n| names.contains(&(*n).to_owned())), "{names:?}");

    // Somebody is removed who wrote offline; somebody leaves; an invite is revoked; a plan is purged; keys are given again.
    let removed = stage.person(lysander).await?;
    let joining = removed.join(&approval).await?;
    accept(&space, &removed, &joining, Role::Writer, &[]).await?;
    let account = removed.account();
    let Person { dir: removed_dir, client, .. } = removed;
    client.close().await;
    space.remove_members(&[account]).await?;
    let removed = Client::open(config(removed_dir.path())).await?;
    let lost = removed.space(space.id())?;
    // It may have been told by now; then it is kept nowhere.
    let _ =
        lost.objects().put("regattaplan", "late", json!({ "who_steers": "what Lysander wrote on the train" })).await;
    until(&lost, || Ok(lost.status()?.role.is_none().then_some(()))).await?;
    let revoked = stage.token(&space, "for the one who must not come", InviteOptions::open()).await?;
    let revoked_id = space.invites()?.last().ok_or("an invite")?.id;
    space.revoke_invite(revoked_id).await?;
    removed.join(&revoked).await.expect_err("revoked");
    theirs.leave().await?;
    until(&space, || Ok((!space.acl()?.rotation_owed && space.acl()?.left.len() == 1).then_some(()))).await?;
    objects.purge("regattaplan", "plan-that-was-dropped").await?;
    space.rotate_keys().await?;
    space.reseal(guest.account()).await?;
    hers.objects()
        .put("regattaplan", "plan-for-the-thaw", json!({ "fee_waiver": "written for Serafina's eyes" }))
        .await?;
    synced(&[&space, &hers, &his, &space]).await?;
    assert_eq!(object(&his, "regattaplan", "plan-for-the-thaw")?.fields["fee_waiver"], "written for Serafina's eyes");

    // A stolen account is replaced, and the new one finds the space.
    let replacement = stage.person(peregrine).await?;
    space.replace_account(steerer.account(), replacement.account()).await?;
    let replaced = replacement.open_joined(space.id(), PATIENCE).await?;
    synced(&[&replaced]).await?;

    // A second device of the founder: it finds everything by the words alone.
    let second_dir = tempfile::tempdir()?;
    let second_config = stage.config(&second_dir, philippa, "Philippa's red telephone");
    let second = Client::restore(second_config, founder.words.clone()).await?;
    let mut events = second.events();
    while second.space(space.id()).is_err() {
        tokio::time::timeout(PATIENCE, events.next()).await?;
    }
    let there = second.space(space.id())?;
    synced(&[&there]).await?;
    there.objects().put("regattaplan", "plan-for-the-thaw", json!({ "note": "typed on the red telephone" })).await?;
    synced(&[&there, &space]).await?;

    // Another space gets another owner, and is deleted.
    let board = founder.create_space(committee).await?;
    board.objects().put("regattaplan", "plan-of-the-committee", json!({ "text": farewell })).await?;
    board.objects().put("confidential-vow", isolde, json!({ "text": "the boathouse key hangs in the elder" })).await?;
    board.add_members(&[(guest.account(), Role::Admin)]).await?;
    let theirs = guest.open_joined(board.id(), PATIENCE).await?;
    board.transfer_ownership(guest.account()).await?;
    until(&theirs, || Ok((theirs.status()?.role.as_deref() == Some("owner")).then_some(()))).await?;
    object(&theirs, "confidential-vow", isolde)?;
    theirs.delete().await?;
    until(&board, || Ok(board.status()?.deleted.then_some(()))).await?;

    let mut dirs = vec![removed_dir, second_dir];
    removed.close().await;
    second.close().await;
    for person in [founder, steerer, guest, prepared, replacement] {
        person.client.close().await;
        dirs.push(person.dir);
    }
    Ok(dirs)
}

/// Every needle, planted where it could be, is found there.
fn each_is_found_when_planted(secrets: &Secrets, real: &Haystack) {
    for (name, bytes) in secrets.all() {
        let needle = Needle::new(name.clone(), &bytes);
        let middle = real.bytes.len() / 2;
        for text in [bytes.clone(), data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase().into_bytes()] {
            let planted = [&real.bytes[..middle], &text, &real.bytes[middle..]].concat();
            let haystack = Haystack { name: real.name.clone(), bytes: planted };
            assert_eq!(findings(std::slice::from_ref(&needle), &[haystack]).len(), 1, "{name} in {}", real.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s61_what_happens_to_members_is_told_to_nobody() -> Outcome {
    let node = LoggedNode::start();
    let relay = Relay::to(&node.address().endpoint).await;
    let mut stage = Stage { node, relay, secrets: Secrets::default() };
    let dirs = story(&mut stage).await?;
    let needles = stage.secrets.needles();
    assert!(needles.len() > 100, "{}", needles.len());

    let running = stage.node.haystacks();
    let wal = running.iter().find(|h| h.name.ends_with("-wal")).ok_or("a write-ahead log")?;
    let log = running.iter().find(|h| h.name.ends_with("stderr")).ok_or("a log")?;
    let wire = stage.relay.haystacks();
    let bytes: usize = wire.iter().map(|h| h.bytes.len()).sum();
    assert!(wire.len() >= 8 && bytes > 50_000, "the relay saw it: {wire:?}");
    for real in [wal, log] {
        assert!(real.bytes.len() > 10_000, "{real:?}");
    }
    // The search would find each of them.
    let small = Haystack { name: log.name.clone(), bytes: log.bytes[..4_000].to_vec() };
    each_is_found_when_planted(&stage.secrets, &small);
    assert_eq!(findings(&needles, &running), Vec::<String>::new());
    assert_eq!(findings(&needles, &wire), Vec::<String>::new());
    stage.node.stop();
    assert_eq!(findings(&needles, &stage.node.haystacks()), Vec::<String>::new());

    // A stolen, locked device, also one that was removed, and one that was restored.
    for dir in &dirs {
        let mut found = files(dir.path());
        found.retain(|h| !h.name.ends_with("device.key"));
        assert_eq!(findings(&needles, &found), Vec::<String>::new());
    }
    Ok(())
}

/// A client that forgets to encrypt is caught by this search: in the node's files, and on the wire.
#[tokio::test(flavor = "multi_thread")]
async fn the_search_sees_a_client_that_does_not_encrypt() -> Outcome {
    let mut node = LoggedNode::start();
    let relay = Relay::to(&node.address().endpoint).await;
    let address = relay.address(node.address());
    let dir = tempfile::tempdir()?;
    let (client, words) = Client::create(config(dir.path()).node(address.clone()).name("Careless")).await?;
    let careless = TestClient { dir, client };
    let space = careless.create_space("Club").await?;
    space.await_synced().await?;
    let mut patched = Hostile::beside(&address, &words, vec![careless.device()]).await;
    let pen = Pen::of(&mut patched, space.id()).await;
    let plain = PLAINTEXTS.join(", ");
    let naked = pen.first(&pen.root(WriteRule::WRITERS), |change, payload| {
        *payload = plain.clone().into_bytes().into();
        change.payload = PayloadClaim::of(payload);
    });
    assert_eq!(patched.push(space.id(), vec![naked]).await?, [Said::Accepted]);
    patched.standing(space.id()).await;
    let needles: Vec<Needle> = PLAINTEXTS.iter().map(|text| Needle::text(text)).collect();
    let all_of = |haystacks: &[Haystack]| {
        let found = findings(&needles, haystacks);
        needles.iter().all(|needle| found.iter().any(|f| f.starts_with(&needle.name)))
    };
    assert!(all_of(&node.haystacks()), "as it runs");
    assert!(all_of(&relay.haystacks()), "on the wire");
    careless.shut().await;
    drop(patched);
    node.stop();
    assert!(all_of(&node.haystacks()), "after it stopped");
    Ok(())
}
