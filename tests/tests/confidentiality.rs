//! S61: what the node stores, logs and sends around tells nobody what people write.

use client_sdk::{Client, ClientConfig, InviteOptions, NewTree, TreeWrite, Unlock, Update, WriteRule};
use serde_json::json;
use sync_core::token::token_from_text;
use sync_e2ee::{AccountKeys, Mnemonic};
use sync_tests::capture::{Haystack, LoggedNode, Needle, Relay, files, findings};
use sync_tests::harness::PATIENCE;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What people wrote, called things, and called themselves. None of it occurs anywhere but on their own devices, encrypted.
const PLAINTEXTS: [&str; 24] = [
    "Quokka Allotment Society",
    "Wilhelmina Featherstone",
    "Bartholomew Underhill",
    "gardenplot",
    "seedpacket",
    "treasurerledger",
    "plot-by-the-willow",
    "packet-of-borage",
    "ledger-autumn",
    "watering_rota",
    "sown_on_day",
    "secret_remark",
    "Mondays before breakfast",
    "the third of Marchember",
    "Nobody may know of the badger",
    "borage attracts every bumblebee",
    "owes eleven guineas",
    "marrow-competition-entry",
    "compost grievance",
    "the scarecrow is named Horace",
    "Nasturtium Nasturtium",
    "offline under the pear tree",
    "foreign-crdt-bytes/v7",
    "a foreign history of turnips",
];

struct Story {
    node: LoggedNode,
    relay: Relay,
    dirs: [tempfile::TempDir; 2],
    words: [Mnemonic; 2],
    secrets: Vec<[u8; 32]>,
}

/// A space, members by both kinds of invite, objects of several types, updates, deletions, foreign histories, writes made
/// offline, and a joiner that reads it all.
async fn story() -> Result<Story, Box<dyn std::error::Error>> {
    let [society, wilhelmina, bartholomew, plot_type, packet_type, ledger_type, plot, packet, ledger, ..] = PLAINTEXTS;
    let [
        ..,
        rota,
        sown,
        remark,
        mondays,
        march,
        badger,
        bumblebee,
        guineas,
        marrow,
        compost,
        horace,
        nasturtium,
        pear,
        crdt,
        turnips,
    ] = PLAINTEXTS;
    let node = LoggedNode::start();
    let relay = Relay::to(&node.address().endpoint).await;
    let address = relay.address(node.address());
    let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
    let config = |n: usize, name: &str| {
        let dir: &std::path::Path = dirs[n].path();
        ClientConfig::new(dir, Unlock::KeyFile(dir.join("device.key"))).node(address.clone()).name(name)
    };
    let (admin, admin_words) = Client::create(config(0, wilhelmina)).await?;
    let (member, member_words) = Client::create(config(1, bartholomew)).await?;
    let space = admin.create_space(society).await?;
    let objects = space.objects();
    objects.put(plot_type, plot, json!({ rota: mondays, remark: badger })).await?;
    objects.put(packet_type, packet, json!({ sown: march, remark: { "nested": bumblebee } })).await?;
    objects.put(ledger_type, ledger, json!({ remark: [guineas] })).await?;
    objects.put(plot_type, marrow, json!({ remark: compost })).await?;
    let new = NewTree { data_type: crdt.to_owned(), write_rule: WriteRule::WRITERS };
    space.create_tree(new, vec![TreeWrite { parents: None, payload: turnips.into() }]).await?;

    let mut open = InviteOptions::open();
    open.must_see = vec![objects.tree_id(plot_type, plot)?];
    let open = space.invite(open).await?.token;
    let approval = space.invite(InviteOptions::approval()).await?.token;
    let joined = member.join(&open).await?.ready(PATIENCE).await?.remove(0);
    let third_dir = tempfile::tempdir()?;
    let third = ClientConfig::new(third_dir.path(), Unlock::KeyFile(third_dir.path().join("key")));
    let (third, _) = Client::create(third.node(address.clone()).name(nasturtium)).await?;
    let joining = third.join(&approval).await?;
    space.await_synced().await?;
    space
        .approve(space.request_of(third.account())?, None, |w| {
            w.promise_trees(&[objects.tree_id(packet_type, packet)?])
        })
        .await?;
    joining.ready(PATIENCE).await?;
    third.close().await;

    let theirs = joined.objects();
    theirs.update(plot_type, plot, Update::new().set(remark, horace).add("tags", nasturtium)).await?;
    joined.await_synced().await?;
    // Killed processes and restarts leave their files as well: the log is open while others come and go.
    member.close().await;
    let member =
        Client::open(ClientConfig::new(dirs[1].path(), Unlock::KeyFile(dirs[1].path().join("device.key")))).await?;
    let joined = member.space(space.id())?;
    joined.objects().put(plot_type, pear, json!({ remark: pear })).await?;
    joined.objects().delete(plot_type, marrow).await?;
    joined.await_synced().await?;
    space.await_synced().await?;
    assert_eq!(objects.get(plot_type, pear)?.ok_or("it arrived")?.fields[remark], pear);
    let names: Vec<_> = space.members()?.into_iter().filter_map(|m| m.name).collect();
    assert!(names.contains(&bartholomew.to_owned()), "{names:?}");
    admin.close().await;
    member.close().await;

    let secret = |token: &str| Ok::<_, client_sdk::TokenError>(token_from_text(token)?.body().spaces[0].invite_secret);
    let secrets = vec![secret(&open)?, secret(&approval)?];
    Ok(Story { node, relay, dirs, words: [admin_words, member_words], secrets })
}

/// Two words in a row of a phrase: what chance does not write.
fn of_words(words: &Mnemonic) -> Vec<Needle> {
    let list: Vec<&str> = words.phrase().split(' ').collect();
    let mut needles: Vec<Needle> = list.windows(2).map(|pair| Needle::text(&pair.join(" "))).collect();
    let key = AccountKeys::from_mnemonic(words).signing_key().to_bytes();
    needles.push(Needle::new("an account key", &key));
    needles
}

#[tokio::test(flavor = "multi_thread")]
async fn s61_node_log_and_wire_carry_no_plaintext() -> Outcome {
    let mut story = story().await?;
    let plaintexts: Vec<Needle> = PLAINTEXTS.iter().map(|text| Needle::text(text)).collect();
    let mut needles = plaintexts.clone();
    needles.extend(story.secrets.iter().map(|secret| Needle::new("an invite secret", secret)));
    needles.extend(story.words.iter().flat_map(of_words));

    // As it runs, with its write-ahead log, and after it stopped and tidied up.
    let running = story.node.haystacks();
    let wal = running.iter().find(|h| h.name.ends_with("-wal")).ok_or("a write-ahead log")?;
    assert!(!wal.bytes.is_empty(), "it holds what was just written");
    let log = running.iter().find(|h| h.name.ends_with("stderr")).ok_or("a log")?;
    assert!(log.bytes.windows(5).any(|w| w == b"TRACE"), "it logs everything");
    let wire = story.relay.haystacks();
    let bytes: usize = wire.iter().map(|h| h.bytes.len()).sum();
    assert!(wire.len() >= 8 && bytes > 20_000, "the relay saw it: {wire:?}");
    story.node.stop();
    let stopped = story.node.haystacks();
    for haystacks in [&running, &stopped, &wire] {
        assert_eq!(findings(&needles, haystacks), Vec::<String>::new());
    }

    // A stolen, locked device: neither the words nor the objects nor the invites.
    for dir in &story.dirs {
        let mut found = files(dir.path());
        assert!(found.len() >= 3, "{found:?}");
        found.retain(|h| !h.name.ends_with("device.key"));
        assert_eq!(findings(&needles, &found), Vec::<String>::new());
    }
    Ok(())
}

/// The search finds what is there, in every form and wherever it stands, and the relay's recording is what went through.
#[tokio::test(flavor = "multi_thread")]
async fn the_search_finds_what_is_planted() -> Outcome {
    use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER};
    let secret: [u8; 32] = rand::random();
    let needles = [Needle::text("compost grievance"), Needle::new("a secret", &secret)];
    for (needle, bytes) in needles.iter().zip([b"compost grievance".as_slice(), &secret]) {
        for before in 0..7 {
            let text = [&vec![b'.'; before], bytes, b"!!"].concat();
            let forms = [
                text.clone(),
                HEXLOWER.encode(&text).into_bytes(),
                BASE32_NOPAD.encode(&text).into_bytes(),
                BASE32_NOPAD.encode(&text).to_ascii_lowercase().into_bytes(),
                BASE64.encode(&text).into_bytes(),
            ];
            for form in forms {
                let planted = [&[0; 100], form.as_slice(), &[0; 100]].concat();
                let haystack = Haystack { name: "planted".into(), bytes: planted };
                let found = findings(std::slice::from_ref(needle), &[haystack]);
                assert!(!found.is_empty(), "{} at {before}", String::from_utf8_lossy(&form));
            }
        }
    }
    let clean = Haystack { name: "clean".into(), bytes: vec![7; 10_000] };
    assert_eq!(findings(&needles, &[clean]), Vec::<String>::new());

    // Through the relay: a node's answer to a plain HTTP/2 preface with a data frame that is cut in two.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let relay = Relay::to(&listener.local_addr()?.to_string()).await;
    let mut client = tokio::net::TcpStream::connect(relay.endpoint()).await?;
    let (mut server, _) = listener.accept().await?;
    let frame = |text: &[u8]| [&[0, 0, text.len() as u8, 0, 0, 0, 0, 0, 1], text].concat();
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let sent = [frame(b"compost gri"), frame(b"evance")].concat();
    client.write_all(&sent).await?;
    client.shutdown().await?;
    let mut received = Vec::new();
    server.read_to_end(&mut received).await?;
    assert_eq!(received, sent);
    assert_eq!(findings(&needles[..1], &relay.haystacks()).len(), 1);
    Ok(())
}
