//! One text that several people write at the same time, offline too: a Yjs document over a tree.
//!
//! ```text
//! cargo run --example shared_text -- DIR init NODE-ADDRESS    make an account, a space and a text; prints the tree
//! cargo run --example shared_text -- DIR say TREE TEXT        appends to it; works without a node, too
//! cargo run --example shared_text -- DIR show TREE
//! ```

mod reducer;

use std::path::Path;

use client_sdk::{Client, ClientConfig, NewTree, TreeId, TreeWrite, Unlock, WriteRule};
use reducer::{DATA_TYPE, Text, edit, empty};
use yrs::Text as _;

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: shared_text DIR init NODE-ADDRESS | say TREE TEXT | show TREE";

#[tokio::main]
async fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [dir, command @ ..] = args.as_slice() else { return Err(USAGE.into()) };
    let dir = Path::new(dir);
    let config = ClientConfig::new(dir, Unlock::KeyFile(dir.join("device.key")));
    let client = match command {
        ["init", node] => Client::create(config.node(node.parse()?)).await?.0,
        _ => Client::open(config).await?,
    };
    let result = run(&client, command).await;
    client.close().await;
    result
}

#[expect(clippy::print_stdout, reason = "a text is what it prints")]
async fn run(client: &Client, command: &[&str]) -> Result<(), Error> {
    let write = |payload| vec![TreeWrite { parents: None, payload }];
    match command {
        ["init", _] => {
            let space = client.create_space("Text").await?;
            let new = NewTree { data_type: DATA_TYPE.to_owned(), write_rule: WriteRule::WRITERS };
            let first = edit(&empty(), |text, transaction| text.insert(transaction, 0, "It began:\n"))?;
            println!("{}", space.create_tree(new, write(first)).await?.tree);
        }
        ["say" | "show", tree, said @ ..] => {
            let tree: TreeId = tree.parse()?;
            let info = client.spaces()?.into_iter().next().ok_or("this client has no space")?;
            let space = client.space(info.id)?;
            let mut shared = space.tree(tree)?.ok_or("no such tree")?.reduced::<Text>()?;
            let now = shared.get().await?;
            if !said.is_empty() {
                let line = format!("{}\n", said.join(" "));
                let payload = edit(&now.view, |text, transaction| {
                    let end = text.len(transaction);
                    text.insert(transaction, end, &line);
                })?;
                space.append(tree, DATA_TYPE.to_owned(), write(payload)).await?;
            }
            print!("{}", shared.get().await?.view.text);
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
