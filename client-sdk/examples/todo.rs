//! A shared to-do list that works offline.
//!
//! ```text
//! cargo run --example todo -- DIR init NODE-ADDRESS      make an account and a list
//! cargo run --example todo -- DIR add TEXT               works without a node, too
//! cargo run --example todo -- DIR done ID
//! cargo run --example todo -- DIR list
//! cargo run --example todo -- DIR sync                   proves that the node has everything
//! ```

use std::path::Path;

use client_sdk::{Client, ClientConfig, Space, Unlock, Update};

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: todo DIR init NODE-ADDRESS | add TEXT | done ID | list | sync";

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
            client.create_space("To do").await?;
            client
        }
        _ => Client::open(config).await?,
    };
    let result = run(&client, command).await;
    client.close().await;
    result
}

#[expect(clippy::print_stdout, reason = "a list is what it prints")]
async fn run(client: &Client, command: &[&str]) -> Result<(), Error> {
    let list = the_list(client)?;
    let todos = list.objects();
    match command {
        ["init", _] => println!("made a list"),
        ["add", text] => {
            let id = (todos.list("todo")?.len() + 1).to_string();
            todos.put("todo", &id, serde_json::json!({ "text": text, "done": false })).await?;
            println!("added {id}");
        }
        ["done", id] => {
            todos.update("todo", id, Update::new().set("done", true)).await?;
            println!("done: {id}");
        }
        ["list"] => {
            for todo in todos.list("todo")? {
                let mark = if todo.fields["done"] == true { "x" } else { " " };
                println!("[{mark}] {} {}", todo.id, todo.fields["text"].as_str().unwrap_or_default());
            }
        }
        ["sync"] => {
            let synced = list.await_synced().await?;
            println!("on the node's disk up to {}", synced.receipt.body().seq);
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

fn the_list(client: &Client) -> Result<Space, Error> {
    let spaces = client.spaces()?;
    let first = spaces.first().ok_or("this client has no list")?;
    Ok(client.space(first.id)?)
}
