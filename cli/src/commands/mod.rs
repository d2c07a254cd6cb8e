//! What is done for each command.

mod account;
mod daemon;
mod data;
mod demo;
mod devices;
mod events;
mod evidence;
mod gitlog;
mod invites;
mod joins;
mod members;
mod objects;
mod plan;
mod receipt;
mod recover;
mod refused;
mod spaces;
mod sync;
mod tree;

use serde_json::json;

use crate::app::App;
use crate::args::{
    self, Account, Acl, Command, DevicesCommand, InviteCommand, Node, Receipt, RefusedCommand, Space, Tree,
};
use crate::error::CliError;
use crate::exit;
use crate::output::Answer;

/// Does what was typed.
pub(crate) async fn run(app: &App, command: Command) -> Result<Answer, CliError> {
    match command {
        Command::Init(args) => account::init(app, args).await,
        Command::Recover(args) => recover::recover(app, args).await,
        Command::Devices(args) => match args.command {
            None | Some(DevicesCommand::List) => devices::list(app).await,
            Some(DevicesCommand::Revoke { device, confirm }) => devices::revoke(app, &device, confirm).await,
        },
        Command::Whoami | Command::Account(Account::Show) => account::whoami(app).await,
        Command::Account(Account::Replace { old, new, all_spaces, confirm }) => {
            account::replace(app, &old, new, all_spaces, confirm).await
        }
        Command::Node(Node::Set { address }) => account::node_set(app, address).await,
        Command::Node(Node::Show) => account::node_show(app).await,
        Command::Space(Space::Create { name, history, settle }) => spaces::create(app, &name, history, settle).await,
        Command::Space(Space::List) => spaces::list(app).await,
        Command::Space(Space::Open { id }) => spaces::open(app, id).await,
        Command::Space(Space::Options { history }) => spaces::options(app, history).await,
        Command::Space(Space::Forget { which, confirm }) => spaces::forget(app, &which, confirm).await,
        Command::Space(Space::Delete(confirm)) => spaces::delete(app, confirm).await,
        Command::Members | Command::Space(Space::Members) => members::members(app).await,
        Command::Role(args) => members::change_role(app, args).await,
        Command::Add(args) => members::add(app, args).await,
        Command::Remove(args) => members::remove(app, args).await,
        Command::Leave(args) => members::leave(app, args).await,
        Command::Transfer(args) => members::transfer(app, args).await,
        Command::Rotate | Command::Space(Space::RotateKeys) => members::rotate(app).await,
        Command::Reseal { who } => members::reseal(app, &who).await,
        Command::Acl(Acl::Plan(change)) => plan::plan(app, change).await,
        Command::Put(args) => objects::put(app, args).await,
        Command::Get(args) => objects::get(app, args).await,
        Command::List(args) => objects::list(app, args).await,
        Command::Rm(args) => objects::rm(app, args).await,
        Command::Watch(args) => objects::watch(app, args).await,
        Command::Purge(args) => refused::purge(app, args).await,
        Command::Invite(args) => match args.command {
            None => invites::create(app, args.offer).await,
            Some(InviteCommand::Create(offer)) => invites::create(app, offer).await,
            Some(InviteCommand::List) => invites::list(app).await,
            Some(InviteCommand::Revoke { invite }) => invites::revoke(app, &invite).await,
            Some(InviteCommand::Show { token }) => invites::show(app, &token).await,
        },
        Command::Join(args) => joins::run(app, args).await,
        Command::Requests(args) => joins::requests(app, args).await,
        Command::Approve(args) => joins::approve(app, args).await,
        Command::Decline(args) => joins::decline(app, &args.who).await,
        Command::AwaitSynced(args) => sync::await_synced(app, args).await,
        Command::Status(args) => sync::status(app, args).await,
        Command::Why(args) => sync::why(app, args).await,
        Command::Sync(args) => sync::sync(app, args).await,
        Command::Events(args) => events::events(app, args).await,
        Command::Refused(args) => match args.command {
            None | Some(RefusedCommand::List) => refused::list(app).await,
            Some(RefusedCommand::Retry { which, settle }) => refused::retry(app, which, settle).await,
            Some(RefusedCommand::Export { file }) => refused::export(app, &file).await,
        },
        Command::Dismiss(which) => refused::dismiss(app, which).await,
        Command::Receipt(Receipt::Verify { file, authority, of_space }) => {
            receipt::verify(app, &file, authority, of_space).await
        }
        Command::Receipt(Receipt::Show { file }) => receipt::show(app, file).await,
        Command::Receipt(Receipt::Accusations) => evidence::accusations(app).await,
        Command::Receipt(Receipt::Evidence { number }) => evidence::export(app, number).await,
        Command::Receipt(Receipt::Compare { file }) => evidence::compare(app, &file).await,
        Command::Receipt(Receipt::Dismiss { number }) => evidence::dismiss(app, number).await,
        Command::Lost(args) => evidence::lost(app, args).await,
        Command::Tree(Tree::List { all, limit }) => tree::list(app, tree::Which::of(all), limit).await,
        Command::Tree(Tree::Heads { tree }) => tree::heads(app, &tree).await,
        Command::Tree(Tree::Log { tree, limit }) => tree::log(app, &tree, limit).await,
        Command::Tree(Tree::Purge { tree, confirm, settle }) => refused::purge_tree(app, &tree, confirm, settle).await,
        Command::Tree(Tree::VerifyGit { tree, repo, refs }) => gitlog::verify(app, &tree, &repo, &refs).await,
        Command::Import(args) => data::import(app, args).await,
        Command::Export(args) => data::export(app, args).await,
        Command::ImportGit(args) => gitlog::import(app, args).await,
        Command::Demo(args) => demo::demo(app, args).await,
        Command::Daemon(args) => daemon::daemon(app, args).await,
        Command::Completions { shell } => completions(app, shell).await,
        Command::ExitCodes => Ok(Answer::new(exit::HELP, json!({ "exit_codes": exit::HELP }))),
    }
}

async fn completions(app: &App, shell: clap_complete::Shell) -> Result<Answer, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "headwater", &mut script);
    app.out.raw(script).await?;
    Ok(Answer::nothing())
}
