//! What is done for each command.

mod account;
mod data;
mod demo;
mod gitlog;
mod members;
mod objects;
mod receipt;
mod spaces;
mod sync;
mod tree;

use clap::CommandFactory as _;
use serde_json::json;

use crate::app::App;
use crate::args::{Cli, Command, InviteCommand, Node, Receipt, Space, Tree};
use crate::error::CliError;
use crate::exit;
use crate::output::{self, Answer};

/// Does what was typed.
pub(crate) async fn run(app: &App, command: Command) -> Result<Answer, CliError> {
    match command {
        Command::Init(args) => account::init(app, args).await,
        Command::Whoami => account::whoami(app).await,
        Command::Node(Node::Set { address }) => account::node_set(app, address).await,
        Command::Node(Node::Show) => account::node_show(app).await,
        Command::Space(Space::Create { name, settle }) => spaces::create(app, &name, settle).await,
        Command::Space(Space::List) => spaces::list(app).await,
        Command::Space(Space::Members) => spaces::members(app).await,
        Command::Space(Space::RotateKeys) => spaces::rotate_keys(app).await,
        Command::Put(args) => objects::put(app, args).await,
        Command::Get(args) => objects::get(app, args).await,
        Command::List(args) => objects::list(app, args).await,
        Command::Rm(args) => objects::rm(app, args).await,
        Command::Watch(args) => objects::watch(app, args).await,
        Command::Invite(args) => match args.command {
            None => members::invite(app, args).await,
            Some(InviteCommand::List) => members::invites(app).await,
            Some(InviteCommand::Show { token }) => members::show(app, &token),
        },
        Command::Join(args) => members::join(app, args).await,
        Command::Requests(args) => members::requests(app, args).await,
        Command::Approve(args) => members::approve(app, args).await,
        Command::Decline(args) => members::decline(app, &args.who).await,
        Command::AwaitSynced(args) => sync::await_synced(app, args).await,
        Command::Status(args) => sync::status(app, args).await,
        Command::Why => sync::why(app).await,
        Command::Sync(args) => sync::sync(app, args).await,
        Command::Dismiss(args) => sync::dismiss(app, args.write).await,
        Command::Receipt(Receipt::Verify { file, authority, of_space }) => {
            receipt::verify(app, &file, authority, of_space)
        }
        Command::Receipt(Receipt::Show { file }) => receipt::show(app, file).await,
        Command::Tree(Tree::List { all, limit }) => tree::list(app, tree::Which::of(all), limit).await,
        Command::Tree(Tree::Heads { tree }) => tree::heads(app, &tree).await,
        Command::Tree(Tree::Log { tree, limit }) => tree::log(app, &tree, limit).await,
        Command::Tree(Tree::VerifyGit { tree, repo, refs }) => gitlog::verify(app, &tree, &repo, &refs).await,
        Command::Import(args) => data::import(app, args).await,
        Command::Export(args) => data::export(app, args).await,
        Command::ImportGit(args) => gitlog::import(app, args).await,
        Command::Demo(args) => demo::demo(app, args).await,
        Command::Completions { shell } => completions(shell),
        Command::ExitCodes => Ok(Answer::new(exit::HELP, json!({ "exit_codes": exit::HELP }))),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<Answer, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "headwater", &mut script);
    output::print_raw(&script)?;
    Ok(Answer::nothing())
}
