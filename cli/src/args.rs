//! What can be typed.

mod groups;
mod membership;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use client_sdk::{NodeAddress, TreeId};

use crate::exit;
use crate::output::ColorChoice;

pub(crate) use groups::command;
pub(crate) use membership::*;

/// Encrypted spaces of JSON objects that work offline and always know whether they are synced.
///
/// Writes are durable on this machine first and go to the node by themselves. Each command is a process of its own: what
/// could not be pushed goes out with the next command that reaches the node, or with `headwater sync`. A `headwater daemon` on
/// the same data directory stays connected, and does what the commands say.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The data directory [default: headwater in the user's data directory]
    #[arg(long, global = true, env = "HEADWATER_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// The space: its id, the beginning of its id, or its name [default: the only one]
    #[arg(short, long, global = true, value_name = "SPACE")]
    pub(crate) space: Option<String>,

    /// One JSON document on stdout (one a line for streams); errors too, as {"error": {"code", "message", "causes"}}
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Reads the passphrase from a file. Without it: HEADWATER_PASSPHRASE, then DIR/device.key, then a prompt
    ///
    /// A key file beside the vault protects only against the loss of the vault alone: whoever has the whole directory has
    /// the account. Use a passphrase where that matters.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,

    /// How long to wait for the node, for other people, for an object
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,

    /// When to use colors
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    pub(crate) color: ColorChoice,

    /// Logs on stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes an account on this machine, and shows its 24 words once
    #[command(after_help = "Example:\n  headwater init --node headwater://auth_…@127.0.0.1:4710 --name Ada")]
    Init(Init),
    /// Brings an account back on an empty machine, from its 24 words
    ///
    /// The words are read from stdin, or asked for on a terminal. It waits until every space is here and synced.
    #[command(after_help = RECOVER_HELP)]
    Recover(Recover),
    /// Who this is: account, device, node
    #[command(after_help = "Example:\n  headwater whoami --json")]
    Whoami,
    /// The account of this machine
    #[command(subcommand)]
    Account(Account),
    /// The devices of the account
    Devices(Devices),
    /// The node that this account uses
    #[command(subcommand)]
    Node(Node),
    /// Spaces: making, listing, opening, ending them
    #[command(subcommand)]
    Space(Space),
    /// Prints who is in the space
    #[command(after_help = "Example:\n  headwater members -s Shopping")]
    Members,
    /// Gives a member another role
    #[command(after_help = "Example:\n  headwater role Bo reader")]
    Role(ChangeRole),
    /// Makes an account a member without its asking
    #[command(after_help = "Example:\n  headwater add acct_… --role writer")]
    Add(AddMember),
    /// Removes members; the space gets new keys
    #[command(after_help = "Example:\n  headwater remove Bo acct_… --yes")]
    Remove(Remove),
    /// Ends one's own membership
    #[command(after_help = "Example:\n  headwater leave -s Shopping")]
    Leave(Leave),
    /// Makes a member the owner of the space
    #[command(after_help = "Example:\n  headwater transfer Bo --yes")]
    Transfer(Transfer),
    /// Gives the space new keys, for what is written from now on
    #[command(after_help = "Example:\n  headwater rotate -s Shopping")]
    Rotate,
    /// Gives a member the keys of the space again
    #[command(after_help = "Example:\n  headwater reseal Bo")]
    Reseal {
        /// A member: the account, the beginning of it, or a name that only one has
        #[arg(value_name = "ACCOUNT")]
        who: String,
    },
    /// What a change of members would do
    #[command(subcommand)]
    Acl(Acl),
    /// Writes fields of an object; its other fields stay as they are
    #[command(after_help = PUT_HELP)]
    Put(Put),
    /// Prints an object
    #[command(after_help = "Examples:\n  headwater get item milk\n  headwater get profile acct_… --wait --timeout 1m")]
    Get(Get),
    /// Prints the objects of a type, or how many each type has
    #[command(after_help = "Example:\n  headwater list item --limit 20")]
    List(List),
    /// Deletes an object; it can be written again
    #[command(after_help = "Example:\n  headwater rm item milk")]
    Rm(Rm),
    /// Drops an object's content everywhere, for good
    #[command(after_help = "Example:\n  headwater purge item milk --yes")]
    Purge(Purge),
    /// Prints objects as they are, then every change, until Ctrl-C
    #[command(after_help = "Example:\n  headwater watch item --new --count 3 --json")]
    Watch(Watch),
    /// Makes an invite and prints its token
    ///
    /// Whoever holds the token can use it.
    Invite(Invite),
    /// Joins the spaces of a token; run it again to go on
    ///
    /// It waits until everything can be read that the invite and the acceptance promise.
    #[command(after_help = JOIN_HELP)]
    Join(Join),
    /// Prints who asked to join
    #[command(after_help = "Example:\n  headwater requests --wait")]
    Requests(Requests),
    /// Accepts requests to join
    #[command(after_help = APPROVE_HELP)]
    Approve(Approve),
    /// Declines a request to join
    #[command(after_help = "Example:\n  headwater decline acct_…")]
    Decline(Decline),
    /// Waits until here and the node hold the same, with a receipt
    #[command(after_help = "Example:\n  headwater await-synced --receipt synced.receipt")]
    AwaitSynced(AwaitSynced),
    /// How the spaces stand
    #[command(after_help = "Example:\n  headwater status --watch --json")]
    Status(Status),
    /// Why a space is not synced
    #[command(after_help = "Examples:\n  headwater why\n  headwater why Club\n  headwater why Club item/milk")]
    Why(Why),
    /// Pushes and fetches, until Ctrl-C or once
    #[command(after_help = "Example:\n  headwater sync --once")]
    Sync(Sync),
    /// Prints who comes, asks and goes, as it happens, until Ctrl-C
    ///
    /// Refused writes, new keys and the end of a space, too; one a line.
    #[command(after_help = "Example:\n  headwater events --count 1 --json")]
    Events(Events),
    /// Own writes that the rules refused: list, export, retry
    ///
    /// They are kept, with everything in them, until they are retried or dismissed.
    Refused(Refused),
    /// Forgets refused writes, so that await-synced can succeed
    #[command(after_help = "Example:\n  headwater dismiss 17")]
    Dismiss(WhichWrite),
    /// What the node lost and cannot take again
    ///
    /// Each stands in the way of await-synced until it is dismissed.
    #[command(after_help = "Examples:\n  headwater lost\n  headwater lost --dismiss 3")]
    Lost(Lost),
    /// Receipts: what a node signed, judged offline
    #[command(subcommand)]
    Receipt(Receipt),
    /// Histories: those under objects, and those of one's own
    #[command(subcommand)]
    Tree(Tree),
    /// Writes the records of JSON files as objects
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
    /// Writes objects as canonical JSON, one file a type
    #[command(after_help = EXPORT_HELP)]
    Export(Export),
    /// Writes a git history as a tree
    ///
    /// One change a commit, with its real parents and message.
    #[command(after_help = "Example:\n  headwater import-git . --all")]
    ImportGit(ImportGit),
    /// Keeps the account open for programs and for other commands
    ///
    /// Other commands on this data directory find it and are done by it. It ends at SIGTERM or Ctrl-C.
    #[command(after_help = DAEMON_HELP)]
    Daemon(Daemon),
    /// Plays a whole story: import, invite, a killed node, proofs
    #[command(after_help = "Example:\n  headwater demo --records 500")]
    Demo(Demo),
    /// Prints a completion script for a shell
    #[command(
        after_help = "Example:\n  headwater completions bash > ~/.local/share/bash-completion/completions/headwater"
    )]
    Completions { shell: clap_complete::Shell },
    /// Prints what the exit codes mean
    #[command(long_about = exit::HELP)]
    ExitCodes,
}

const DAEMON_HELP: &str = "Examples:
  headwater daemon
  headwater daemon --listen loopback:4711";

const RECOVER_HELP: &str = "Examples:
  headwater recover --node headwater://auth_…@127.0.0.1:4710
  headwater recover --node headwater://auth_…@127.0.0.1:4710 --timeout 10m < words.txt
  headwater recover --timeout 10m";

const JOIN_HELP: &str = "Examples:
  headwater join headwater1… --name Bo
  headwater join - < token.txt
  headwater join --cancel space_…";

const APPROVE_HELP: &str =
    "What is written and promised is on the node's disk before the member is let in, and the member's \
`join` waits for it.

Examples:
  headwater approve acct_… --promise note/welcome
  headwater approve --all --write 'profile/{account}={\"title\":\"New here\"}'";

const PUT_HELP: &str =
    "A value in field=value is JSON where it is JSON (true, 12, \"12\", [1]) and text where it is not.

Examples:
  headwater put item milk title=Milk done=false
  headwater put item milk '{\"title\":\"Milk\"}'
  headwater put item milk @milk.json --inc bought=1 --add tags=shop --unset note
  curl …/milk.json | headwater put item milk -";

const IMPORT_HELP: &str = "What a file can be:
  an array of records                    type: the name of the file
  {\"639-3\": [records], …}                type: each key
  {\"milk\": {…}, \"tea\": {…}}              objects by id; type: the name of the file
  one record                             type: the name of the file
Without --id-field, the id of a record is the first of these fields that all records have:
id, alpha_3, alpha_2, code, name. Every record is checked before anything is written. JSON Schema
files of a directory are left out.

Example:
  headwater import /usr/share/iso-codes/json/iso_639-3.json";

const EXPORT_HELP: &str = "DIR/TYPE.json is the canonical JSON of an array of the records, sorted by id: byte for byte the
canonical form of what was imported. `export -` prints {\"TYPE\": [records], …}, or with --type the one array, and a line
feed. Types that begin with \"headwater.\" are left out unless --type names them.

Examples:
  headwater export ./backup
  headwater export --check /usr/share/iso-codes/json/iso_639-3.json";

impl Command {
    /// Whether it is done with the account of the data directory, and so by the daemon that has it open.
    pub(crate) fn needs_account(&self) -> bool {
        match self {
            Self::Init(_)
            | Self::Recover(Recover { node: Some(_), .. })
            | Self::Receipt(Receipt::Verify { .. } | Receipt::Show { file: Some(_) })
            | Self::Invite(Invite { command: Some(InviteCommand::Show { .. }), .. })
            | Self::Daemon(_)
            | Self::Demo(_)
            | Self::Completions { .. }
            | Self::ExitCodes => false,
            Self::Recover(Recover { node: None, .. })
            | Self::Receipt(
                Receipt::Show { file: None }
                | Receipt::Accusations
                | Receipt::Evidence { .. }
                | Receipt::Compare { .. }
                | Receipt::Dismiss { .. },
            )
            | Self::Invite(_)
            | Self::Whoami
            | Self::Account(_)
            | Self::Devices(_)
            | Self::Node(_)
            | Self::Space(_)
            | Self::Members
            | Self::Role(_)
            | Self::Add(_)
            | Self::Remove(_)
            | Self::Leave(_)
            | Self::Transfer(_)
            | Self::Rotate
            | Self::Reseal { .. }
            | Self::Acl(_)
            | Self::Put(_)
            | Self::Get(_)
            | Self::List(_)
            | Self::Rm(_)
            | Self::Purge(_)
            | Self::Watch(_)
            | Self::Join(_)
            | Self::Requests(_)
            | Self::Approve(_)
            | Self::Decline(_)
            | Self::AwaitSynced(_)
            | Self::Status(_)
            | Self::Why(_)
            | Self::Sync(_)
            | Self::Events(_)
            | Self::Refused(_)
            | Self::Lost(_)
            | Self::Dismiss(_)
            | Self::Tree(_)
            | Self::Import(_)
            | Self::Export(_)
            | Self::ImportGit(_) => true,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// unix: a socket in the data directory; loopback or loopback:PORT: a port of 127.0.0.1, with a token in the data directory
    #[arg(long, value_name = "WHERE", default_value = "unix", value_parser = ListenOn::parse)]
    pub(crate) listen: ListenOn,
}

/// Where a daemon is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenOn {
    Unix,
    Loopback { port: u16 },
}

impl ListenOn {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("loopback:")) {
            ("unix", _) => Ok(Self::Unix),
            ("loopback", _) => Ok(Self::Loopback { port: 0 }),
            (_, Some(port)) => match port.parse() {
                Ok(port) => Ok(Self::Loopback { port }),
                Err(_) => Err(format!("{port:?} is no port")),
            },
            (_, None) => Err("it is unix, loopback or loopback:PORT".to_owned()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Uses another address from now on
    #[command(after_help = "Example:\n  headwater node set headwater://auth_…@node.example:4710")]
    Set { address: NodeAddress },
    /// Prints the address
    Show,
}

/// How long a write is followed.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Settle {
    /// Fail if the node does not have it on disk in time
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) wait: bool,
    /// Return as soon as it is kept here
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: String,
    pub(crate) id: String,
    /// field=value, a JSON object, @FILE, or - for stdin
    pub(crate) fields: Vec<String>,
    /// Adds to a counter
    #[arg(long, value_name = "FIELD=NUMBER")]
    pub(crate) inc: Vec<String>,
    /// Adds an element to a set
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) add: Vec<String>,
    /// Removes an element from a set
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) remove: Vec<String>,
    /// Removes a field
    #[arg(long, value_name = "FIELD")]
    pub(crate) unset: Vec<String>,
    #[command(flatten)]
    pub(crate) settle: Settle,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: String,
    pub(crate) id: String,
    /// Waits until it is here, even if nobody wrote it yet
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: Option<String>,
    /// At most so many objects
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: String,
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) settle: Settle,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: Option<String>,
    /// Only changes from now on
    #[arg(long)]
    pub(crate) new: bool,
    /// Ends after so many lines
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct AwaitSynced {
    /// Writes the receipt to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// A line for every change, until Ctrl-C
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// A space, by name or id; every space without it. Or what stands after it, where the space is clear
    space: Option<String>,
    /// An object as TYPE/ID, or a tree's id
    object: Option<String>,
}

impl Why {
    /// The space and the object that are meant: one word alone may be either.
    pub(crate) fn target(&self) -> (Option<&str>, Option<&str>) {
        match (self.space.as_deref(), self.object.as_deref()) {
            (Some(only), None) if only.contains('/') || only.starts_with(TreeId::PREFIX) => (None, Some(only)),
            other => other,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Ends when everything is pushed and here
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Lost {
    /// Forgets one, by its number
    #[arg(long, value_name = "NUMBER", conflicts_with = "dismiss_all")]
    pub(crate) dismiss: Option<u64>,
    /// Forgets all that are listed
    #[arg(long)]
    pub(crate) dismiss_all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Receipt {
    /// Judges a receipt or evidence offline; exit code 5 when it proves nothing
    #[command(after_help = "Example:\n  headwater receipt verify synced.receipt --authority auth_…")]
    Verify {
        /// A file, or - for stdin
        file: PathBuf,
        /// Fails unless it is by this authority
        #[arg(long, value_name = "AUTHORITY")]
        authority: Option<client_sdk::AuthorityId>,
        /// Fails unless it is for this space
        #[arg(long = "of-space", value_name = "SPACE_ID")]
        of_space: Option<client_sdk::SpaceId>,
    },
    /// Prints what the node was ever accused of in the space, and what became of it
    #[command(after_help = "Example:\n  headwater receipt accusations --json")]
    Accusations,
    /// Prints the evidence for an accusation, for others to verify
    #[command(after_help = "Example:\n  headwater receipt evidence > rollback.evidence")]
    Evidence {
        /// Its number [default: the latest that has some]
        number: Option<u64>,
    },
    /// Compares a receipt that another member holds with the log here
    #[command(after_help = "Example:\n  headwater receipt compare bobs.receipt")]
    Compare {
        /// A file, or - for stdin
        file: PathBuf,
    },
    /// Settles an accusation that somebody has seen; it is kept
    #[command(after_help = "Example:\n  headwater receipt dismiss 1")]
    Dismiss {
        /// Its number
        number: u64,
    },
    /// Prints a receipt: of a file, or a new one from the node
    #[command(after_help = "Example:\n  headwater receipt show synced.receipt")]
    Show {
        /// A file, or - for stdin
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tree {
    /// Prints the trees of the space
    #[command(after_help = "Example:\n  headwater tree list --all")]
    List {
        /// Those of objects, too
        #[arg(long)]
        all: bool,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Prints the changes without children
    #[command(after_help = "Example:\n  headwater tree heads item/milk")]
    Heads {
        /// A tree id or TYPE/ID
        tree: String,
    },
    /// Prints the changes in the order of the tree, parents first
    #[command(after_help = "Example:\n  headwater tree log item/milk")]
    Log {
        /// A tree id or TYPE/ID
        tree: String,
        /// Only the last so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Drops the content of a tree everywhere, for good
    #[command(after_help = "Example:\n  headwater tree purge tree_… --yes")]
    Purge {
        /// A tree id or TYPE/ID
        tree: String,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        settle: Settle,
    },
    /// Compares a tree with the git history that it was made from
    #[command(after_help = "Example:\n  headwater tree verify-git tree_… . --all")]
    VerifyGit {
        /// A tree id
        tree: String,
        repo: PathBuf,
        #[command(flatten)]
        refs: Refs,
    },
}

/// Which commits.
#[derive(Debug, Clone, Args)]
pub(crate) struct Refs {
    /// Commits that can be reached from this ref [default: HEAD]
    #[arg(long = "ref", value_name = "REF", conflicts_with = "all_refs")]
    pub(crate) refs: Vec<String>,
    /// Commits that can be reached from any ref
    #[arg(long = "all")]
    pub(crate) all_refs: bool,
}

/// How records become objects.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecordArgs {
    /// The type of every object
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "type_field")]
    pub(crate) object_type: Option<String>,
    /// The field that holds the type
    #[arg(long, value_name = "FIELD")]
    pub(crate) type_field: Option<String>,
    /// The field that holds the id
    #[arg(long, value_name = "FIELD")]
    pub(crate) id_field: Option<String>,
    /// Stands before every type
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// JSON files, or directories of them
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    #[command(flatten)]
    pub(crate) settle: Settle,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A directory, or - for stdout
    #[arg(value_name = "DIR", required_unless_present = "check")]
    pub(crate) to: Option<PathBuf>,
    /// Writes nothing: compares with the canonical form of these files, and names the first difference
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "to")]
    pub(crate) check: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) records: RecordArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportGit {
    pub(crate) repo: PathBuf,
    #[command(flatten)]
    pub(crate) refs: Refs,
    #[command(flatten)]
    pub(crate) settle: Settle,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keeps the directory of the demo
    #[arg(long)]
    pub(crate) keep: bool,
    /// At most so many records [default: all that are there]
    #[arg(long, value_name = "N")]
    pub(crate) records: Option<usize>,
    /// The node's program [default: sync-node beside this one]
    #[arg(long, value_name = "FILE")]
    pub(crate) node_binary: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|e| e.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_can_be_typed() {
        for line in [
            "headwater whoami --json",
            "headwater --json whoami",
            "headwater put item milk title=Milk done=false --inc n=1 --add tags=a --unset x --no-wait",
            "headwater put item milk -",
            "headwater put item milk -s Shopping @milk.json",
            "headwater get item milk --wait --timeout 2m",
            "headwater list",
            "headwater list item --limit 3",
            "headwater watch item --count 2 --new",
            "headwater invite",
            "headwater invite --open --role reader --expires 7d --uses 3 --must-see a/b --must-see c/d --requires e/f",
            "headwater invite list",
            "headwater invite show headwater1abc",
            "headwater join - --no-wait --name Bo",
            "headwater approve --all --role admin --promise profile/{account}",
            "headwater await-synced --receipt r",
            "headwater receipt verify -",
            "headwater receipt show",
            "headwater tree verify-git tree_a . --ref main --ref dev",
            "headwater import a b --type t --id-field k --prefix p- --wait",
            "headwater export -",
            "headwater export --check a b --type t",
            "headwater import-git . --all",
            "headwater demo --keep --records 10 --node-binary x",
            "headwater completions fish",
            "headwater exit-codes",
            "headwater sync --once",
            "headwater status --watch",
            "headwater space rotate-keys -s Shopping",
            "headwater space create Club --history since-join",
            "headwater space options",
            "headwater space delete -y",
            "headwater invite create --label x --also Garden --also Work",
            "headwater invite revoke x",
            "headwater join --cancel space_a --no-wait",
            "headwater join --resume space_a",
            "headwater recover --node headwater://auth_25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena@h:1 --name Ada",
            "headwater recover --timeout 10m",
            "headwater devices",
            "headwater devices list",
            "headwater devices revoke phone --yes",
            "headwater space forget Club -y",
            "headwater approve --all --write a/b={\"x\":1} --write c/d=@f",
            "headwater members",
            "headwater role Bo reader",
            "headwater remove Bo Cy --yes",
            "headwater leave --no-wait",
            "headwater transfer Bo -y",
            "headwater rotate",
            "headwater reseal Bo",
            "headwater acl plan remove Bo Cy",
            "headwater acl plan role Bo admin",
            "headwater acl plan options --history all",
            "headwater acl plan delete --json",
            "headwater purge item milk --yes --wait",
            "headwater tree purge item/milk",
            "headwater refused",
            "headwater refused list",
            "headwater refused retry 3 --no-wait",
            "headwater refused retry --all",
            "headwater refused export -",
            "headwater dismiss 17",
            "headwater dismiss --all",
            "headwater events --count 2",
            "headwater account show",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn what_cannot_be_typed() {
        use clap::error::ErrorKind as E;
        for (line, kind) in [
            ("headwater", E::DisplayHelpOnMissingArgumentOrSubcommand),
            ("headwater put item", E::MissingRequiredArgument),
            ("headwater put item milk a=1 --wait --no-wait", E::ArgumentConflict),
            ("headwater init", E::MissingRequiredArgument),
            ("headwater init --node nowhere", E::ValueValidation),
            ("headwater approve", E::MissingRequiredArgument),
            ("headwater approve acct_a --all", E::ArgumentConflict),
            ("headwater import a --type t --type-field f", E::ArgumentConflict),
            ("headwater export", E::MissingRequiredArgument),
            ("headwater tree verify-git t . --all --ref main", E::ArgumentConflict),
            ("headwater invite --role owner", E::InvalidValue),
            ("headwater get item milk --timeout soon", E::ValueValidation),
            ("headwater remove", E::MissingRequiredArgument),
            ("headwater role Bo owner", E::InvalidValue),
            ("headwater add Bo", E::ValueValidation),
            ("headwater join", E::MissingRequiredArgument),
            ("headwater join x --cancel y", E::ArgumentConflict),
            ("headwater join --resume x --cancel y", E::ArgumentConflict),
            ("headwater recover --name Ada", E::MissingRequiredArgument),
            ("headwater dismiss", E::MissingRequiredArgument),
            ("headwater dismiss 1 --all", E::ArgumentConflict),
            ("headwater invite --role reader list", E::ArgumentConflict),
            ("headwater acl plan", E::DisplayHelpOnMissingArgumentOrSubcommand),
            ("headwater space options --history some", E::InvalidValue),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }

    #[test]
    fn every_command_that_acts_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let nested: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            let shown = |c: &clap::Command| c.get_after_help().is_some_and(|h| h.to_string().contains("xample"));
            let excused = ["exit-codes"].contains(&command.get_name());
            assert!(excused || shown(command) || nested.iter().any(|c| shown(c)), "{}", command.get_name());
        }
    }
}
