//! What can be typed about members, invites, joins and the account.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use client_sdk::{AccountId, HistoryMode, NodeAddress, SpaceId};

use super::Settle;

/// A role that can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// Reads what is written from now on
    Guest,
    /// Reads everything
    Reader,
    /// Reads and writes
    Writer,
    /// Lets others in and out, too
    Admin,
}

/// What members read who join later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HistoryArg {
    /// Everything, from the beginning
    All,
    /// Only what is written after they joined
    SinceJoin,
}

impl From<HistoryArg> for HistoryMode {
    fn from(history: HistoryArg) -> Self {
        match history {
            HistoryArg::All => Self::All,
            HistoryArg::SinceJoin => Self::SinceJoin,
        }
    }
}

/// Whether something that cannot be taken back is done without asking.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Confirm {
    /// Does it without asking; needed where there is no terminal
    #[arg(short, long)]
    pub(crate) yes: bool,
}

// ---- members ------------------------------------------------------------------------------------------------------------

/// Whom a command is about.
const WHO: &str = "ACCOUNT";

#[derive(Debug, Args)]
pub(crate) struct ChangeRole {
    /// A member: the account, the beginning of it, or a name that only one has
    #[arg(value_name = WHO)]
    pub(crate) who: String,
    #[arg(value_enum)]
    pub(crate) role: RoleArg,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Members: accounts, beginnings of them, or names that only one has
    #[arg(value_name = WHO, required = true)]
    pub(crate) who: Vec<String>,
    #[command(flatten)]
    pub(crate) confirm: Confirm,
}

#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// Done, too, if the node is not reached now: it goes out by itself
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AddMember {
    /// The account, whole, as its owner's `headwater whoami` prints it
    #[arg(value_name = WHO)]
    pub(crate) account: AccountId,
    #[arg(long, value_enum, default_value_t = RoleArg::Writer)]
    pub(crate) role: RoleArg,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// A member: the account, the beginning of it, or a name that only one has
    #[arg(value_name = WHO)]
    pub(crate) who: String,
    #[command(flatten)]
    pub(crate) confirm: Confirm,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Acl {
    /// Prints who would gain and lose what, and does nothing
    #[command(subcommand, after_help = "Example:\n  headwater acl plan remove Bo")]
    Plan(Plan),
}

/// A change of the ACL that is only thought of.
#[derive(Debug, Subcommand)]
pub(crate) enum Plan {
    /// Members go
    Remove {
        #[arg(value_name = WHO, required = true)]
        who: Vec<String>,
    },
    /// A member has another role
    Role(ChangeRole),
    /// An account becomes a member
    Add(AddMember),
    /// We leave
    Leave,
    /// The space gets new keys
    Rotate,
    /// An invite ends
    Revoke {
        /// The invite: its id, the beginning of it, or its label
        invite: String,
    },
    /// A member becomes the owner
    Transfer {
        #[arg(value_name = WHO)]
        who: String,
    },
    /// The space ends
    Delete,
    /// A new account stands in the place of another
    Replace {
        #[arg(value_name = "OLD")]
        old: String,
        #[arg(value_name = "NEW")]
        new: AccountId,
    },
    /// New members read other things
    Options {
        #[arg(long, value_enum)]
        history: HistoryArg,
    },
}

// ---- invites and joins --------------------------------------------------------------------------------------------------

const INVITE_HELP: &str = "An object that --must-see or --requires names need not exist yet.

Examples:
  headwater invite --expires 7d --uses 1 --label \"for Bo\"
  headwater invite --must-see profile/acct_…
  headwater invite create -s Shopping --also Garden
  headwater invite --open --role reader
  headwater invite revoke \"for Bo\"";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = INVITE_HELP)]
pub(crate) struct Invite {
    #[command(subcommand)]
    pub(crate) command: Option<InviteCommand>,
    #[command(flatten)]
    pub(crate) offer: Offer,
}

/// What an invite offers.
#[derive(Debug, Args)]
pub(crate) struct Offer {
    /// Whoever holds it joins by itself, and can read the space without joining
    #[arg(long)]
    pub(crate) open: bool,
    #[arg(long, value_enum, default_value_t = RoleArg::Writer)]
    pub(crate) role: RoleArg,
    /// When it ends, from now; judged by the node
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) expires: Option<Duration>,
    /// How often it can be used
    #[arg(long, value_name = "N")]
    pub(crate) uses: Option<u32>,
    /// What a joiner waits for: an object or a tree
    #[arg(long, value_name = "TYPE/ID")]
    pub(crate) must_see: Vec<String>,
    /// Open invites: what the node insists on having before it takes a join
    #[arg(long, value_name = "TYPE/ID")]
    pub(crate) requires: Vec<String>,
    /// What the members call it; encrypted to them
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Another space that the same token is for
    #[arg(long, value_name = "SPACE")]
    pub(crate) also: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InviteCommand {
    /// Makes an invite and prints its token, as `headwater invite` does
    Create(Offer),
    /// Prints the invites of the space
    List,
    /// Ends an invite
    Revoke {
        /// The invite: its id, the beginning of it, or its label
        invite: String,
    },
    /// Explains a token without asking anybody; never its secret
    Show {
        /// The token, or - for stdin
        token: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, or - for stdin
    #[arg(required_unless_present_any = ["resume", "cancel"], conflicts_with_all = ["resume", "cancel"])]
    pub(crate) token: Option<String>,
    /// Goes on with a join, whichever device of the account began it
    #[arg(long, value_name = "SPACE", conflicts_with = "cancel")]
    pub(crate) resume: Option<String>,
    /// Takes a join back that is not decided yet
    #[arg(long, value_name = "SPACE")]
    pub(crate) cancel: Option<String>,
    /// What others see as your name; encrypted
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Return when the node has the join or the request; with --cancel, as soon as it is kept here
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Requests {
    /// Those that were decided, too
    #[arg(long)]
    pub(crate) all: bool,
    /// Waits until somebody asks
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// The account or the request
    #[arg(value_name = "ACCOUNT|REQUEST", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) who: Option<String>,
    /// Everybody who is waiting
    #[arg(long)]
    pub(crate) all: bool,
    /// Another role than the invite offers
    #[arg(long, value_enum)]
    pub(crate) role: Option<RoleArg>,
    /// What the new member is meant to see first; {account} stands for the new member
    #[arg(long, value_name = "TYPE/ID")]
    pub(crate) promise: Vec<String>,
    /// Writes fields of an object first, and promises it; {account} stands for the new member
    #[arg(long, value_name = "TYPE/ID={…}|@FILE")]
    pub(crate) write: Vec<String>,
    /// Waits until the request is there
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Decline {
    /// The account or the request
    #[arg(value_name = "ACCOUNT|REQUEST")]
    pub(crate) who: String,
}

/// An account or a request, as it was typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Account(AccountId),
    Request(client_sdk::AclId),
}

// ---- spaces -------------------------------------------------------------------------------------------------------------

#[derive(Debug, Subcommand)]
pub(crate) enum Space {
    /// Makes a space
    #[command(after_help = "Example:\n  headwater space create Shopping --wait")]
    Create {
        name: String,
        /// What members read who join later
        #[arg(long, value_enum, default_value_t = HistoryArg::All)]
        history: HistoryArg,
        #[command(flatten)]
        settle: Settle,
    },
    /// Prints the spaces, and the joins that are not ready yet
    #[command(after_help = "Example:\n  headwater space list")]
    List,
    /// Opens a space that somebody added this account to
    #[command(after_help = "Example:\n  headwater space open space_…")]
    Open {
        #[arg(value_name = "SPACE_ID")]
        id: SpaceId,
    },
    /// Prints what new members read, or changes it
    #[command(after_help = "Example:\n  headwater space options --history since-join")]
    Options {
        #[arg(long, value_enum)]
        history: Option<HistoryArg>,
    },
    /// Prints who is in the space, as `headwater members` does
    #[command(after_help = "Example:\n  headwater space members -s Shopping")]
    Members,
    /// Gives the space new keys, as `headwater rotate` does
    #[command(after_help = "Example:\n  headwater space rotate-keys")]
    RotateKeys,
    /// Ends the space for everybody, for good
    #[command(after_help = "Example:\n  headwater space delete -s Shopping --yes")]
    Delete(Confirm),
    /// Drops what is here of a space that this account is not in any more, or that was deleted
    #[command(after_help = "Example:\n  headwater space forget Shopping --yes")]
    Forget {
        /// Its id, the beginning of its id, or its name
        #[arg(value_name = "SPACE")]
        which: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

// ---- the account --------------------------------------------------------------------------------------------------------

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The address that the node printed
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node: NodeAddress,
    /// What others see as your name; encrypted
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What your other devices call this one [default: the name of the host]
    #[arg(long, value_name = "NAME")]
    pub(crate) device_name: Option<String>,
    /// Lock the account with a passphrase instead of a key file
    #[arg(long)]
    pub(crate) passphrase: bool,
    /// Reads the 24 words of an account from stdin instead of making a new one; `recover` waits for its spaces, too
    #[arg(long)]
    pub(crate) restore: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The address of the account's node; without it a recovery that was begun here goes on
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node: Option<NodeAddress>,
    /// What others see as your name; encrypted
    #[arg(long, requires = "node")]
    pub(crate) name: Option<String>,
    /// What your other devices call this one [default: the name of the host]
    #[arg(long, value_name = "NAME", requires = "node")]
    pub(crate) device_name: Option<String>,
    /// Lock the account with a passphrase instead of a key file
    #[arg(long, requires = "node")]
    pub(crate) passphrase: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  headwater devices\n  headwater devices revoke phone --yes")]
pub(crate) struct Devices {
    #[command(subcommand)]
    pub(crate) command: Option<DevicesCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// Prints them, as `headwater devices` does
    List,
    /// Takes a device off the account's list: the node refuses it from then on
    Revoke {
        /// The device, the beginning of it, or a name that only one has
        device: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Account {
    /// Who this is, as `headwater whoami` says
    #[command(after_help = "Example:\n  headwater account show")]
    Show,
    /// Puts a new account in the place of one whose keys were stolen
    #[command(after_help = "Example:\n  headwater account replace Bo acct_… --all-spaces")]
    Replace {
        /// The member that goes: the account, the beginning of it, or a name that only one has
        #[arg(value_name = "OLD")]
        old: String,
        /// The account that comes, whole
        #[arg(value_name = "NEW")]
        new: AccountId,
        /// In every space where OLD is a member and this account may do it
        #[arg(long, conflicts_with = "space")]
        all_spaces: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

// ---- refused writes, purges, events -------------------------------------------------------------------------------------

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  headwater refused\n  headwater refused export lost.json\n  headwater refused retry 17"
)]
pub(crate) struct Refused {
    #[command(subcommand)]
    pub(crate) command: Option<RefusedCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RefusedCommand {
    /// Prints them, as `headwater refused` does
    List,
    /// Makes a refused write anew and sends it again
    Retry {
        #[command(flatten)]
        which: WhichWrite,
        #[command(flatten)]
        settle: Settle,
    },
    /// Writes them, with everything in them, to a file as JSON
    Export {
        /// A file, or - for stdout
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WhichWrite {
    /// The number of the write, as `headwater refused` shows it
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) write: Option<u64>,
    /// All that were refused
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[arg(value_name = "TYPE")]
    pub(crate) object_type: String,
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) confirm: Confirm,
    #[command(flatten)]
    pub(crate) settle: Settle,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Ends after so many events
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}
