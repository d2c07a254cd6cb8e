//! Notes that several people write at the same time, offline too: an Automerge document over a tree.
//!
//! ```text
//! cargo run --example shared_notes -- DIR init NODE-ADDRESS     make an account, a space and a document; prints the tree
//! cargo run --example shared_notes -- DIR note TREE KEY TEXT    works without a node, too
//! cargo run --example shared_notes -- DIR show TREE
//! cargo run --example shared_notes -- DIR sync                  proves that the node has everything
//! ```

mod reducer;

use std::path::Path;

use automerge::transaction::Transactable as _;
use automerge::{ROOT, ReadDoc as _};
use client_sdk::{Client, ClientConfig, NewTree, Space, TreeId, TreeWrite, Unlock, WriteRule};
use reducer::{DATA_TYPE, Notes, edit};

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: shared_notes DIR init NODE-ADDRESS | note TREE KEY TEXT | show TREE | sync";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [dir, command @ ..] = args.as_slice() else { return Err(USAGE.into()) };
    let dir = Path::new(dir);
    let config = ClientConfig::new(dir, Unlock::KeyFile(dir.join("device.key")));
    let client = match command {
        ["init", node] => {
            let (client, _) = Client::create(config.node(node.parse()?)).await?;
            client.create_space("Notes").await?;
            client
        }
        _ => Client::open(config).await?,
    };
    let result = run(&client, command).await;
    client.close().await;
    result
}

#[expect(clippy::print_stdout, reason = "notes are what it prints")]
async fn run(client: &Client, command: &[&str]) -> Result<(), Error> {
    let info = client.spaces()?.into_iter().next().ok_or("this client has no space")?;
    let space = client.space(info.id)?;
    match command {
        ["init", _] => {
            let new = NewTree { data_type: DATA_TYPE.to_owned(), write_rule: WriteRule::WRITERS };
            let first = edit(&automerge::Automerge::new(), |document| document.put(ROOT, "made by", "shared_notes"))?;
            let made = space.create_tree(new, vec![TreeWrite { parents: None, payload: first }]).await?;
            println!("{}", made.tree);
        }
        ["note", tree, key, text] => note(&space, tree.parse()?, key, text).await?,
        ["show", tree] => {
            let mut notes = space.tree(tree.parse()?)?.ok_or("no such tree")?.reduced::<Notes>()?;
            let shown = notes.get().await?;
            for key in shown.view.keys(ROOT) {
                let value = shown.view.get(ROOT, &key)?.map(|(value, _)| value.to_string());
                println!("{key}: {}", value.unwrap_or_default());
            }
            println!("{} changes, {} of them only here", shown.changes + shown.pending as u64, shown.pending);
        }
        ["sync"] => println!("on the node's disk up to {}", space.await_synced().await?.receipt.body().seq),
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

async fn note(space: &Space, tree: TreeId, key: &str, text: &str) -> Result<(), Error> {
    let mut notes = space.tree(tree)?.ok_or("no such tree")?.reduced::<Notes>()?;
    let now = notes.get().await?;
    let payload = edit(&now.view, |document| document.put(ROOT, key, text))?;
    space.append(tree, DATA_TYPE.to_owned(), vec![TreeWrite { parents: None, payload }]).await?;
    Ok(())
}
