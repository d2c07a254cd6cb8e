//! What an operator can set: flags, then `HEADWATER_NODE_*`, then a TOML file, then defaults.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use sync_core::limits;

/// What the environment variables of the node begin with.
pub const ENV_PREFIX: &str = "HEADWATER_NODE_";

/// Every setting of a node. The names are those of the TOML file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The data directory: keys, store, and the address file while the node runs.
    pub data: PathBuf,
    /// Where to listen, `host:port`. Port 0 takes any free one.
    pub listen: String,
    /// The `host:port` that clients are told. Absent: where the node listens.
    pub advertise: Option<String>,
    /// No TLS. Taken on loopback, or together with `behind_proxy`.
    pub plaintext: bool,
    /// The operator's word that a proxy it trusts stands between this node and the network.
    pub behind_proxy: bool,
    /// Serve gRPC reflection.
    pub reflection: bool,
    /// How log lines look on stderr.
    pub log_format: LogFormat,
    /// Which log lines: a filter as of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Spaces that one account may found here.
    pub max_spaces_per_account: u64,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Seconds after a restore in which nothing new is taken.
    pub recovery_window: u64,
    /// Where to serve metrics, `host:port`, in the Prometheus text format. Absent: nowhere.
    pub metrics: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("headwater-node"),
            listen: "127.0.0.1:4710".into(),
            advertise: None,
            plaintext: false,
            behind_proxy: false,
            reflection: false,
            log_format: LogFormat::Text,
            log: "info".into(),
            max_spaces_per_account: 1000,
            max_connections: 4096,
            recovery_window: limits::RECOVERY_WINDOW.as_secs(),
            metrics: None,
        }
    }
}

/// The Headwater sync node: keeps encrypted spaces in order, and proves what it holds.
///
/// Prints one line on stdout when it is ready: the address that clients need. Logs go to stderr.
///
/// Exit codes: 0 stopped as asked; 2 wrong usage or configuration; 70 internal error; 74 the storage failed;
/// 75 the data directory is in use by another process.
#[derive(Debug, Clone, Default, Parser, Serialize)]
#[command(version, args_override_self = true)]
pub struct Flags {
    /// What to do instead of serving
    #[command(subcommand)]
    #[serde(skip)]
    pub command: Option<NodeCommand>,

    /// A TOML file with the settings below, dashes written as underscores [env: HEADWATER_NODE_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The data directory; made if it is not there [default: headwater-node]
    #[arg(long, value_name = "DIR", global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,

    /// Where to listen; port 0 takes any free one [default: 127.0.0.1:4710]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,

    /// The host and port to put into the printed address [default: where the node listens]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,

    /// Serve without TLS: on loopback only, unless --behind-proxy is given
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<bool>,

    /// A proxy that I trust stands between this node and the network
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_proxy: Option<bool>,

    /// Serve gRPC reflection
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflection: Option<bool>,

    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,

    /// Which log lines, for example "info,sync_node=debug" [default: info]
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,

    /// Spaces that one account may found here [default: 1000]
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_spaces_per_account: Option<u64>,

    /// Connections at the same time [default: 4096]
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<usize>,

    /// Seconds after a restore in which nothing new is taken; the file "recovering" in the data directory ends it [default: 600]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_window: Option<u64>,

    /// Serve metrics here, in the Prometheus text format [default: nowhere]
    #[arg(long, value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
}

/// What the binary can do besides serving.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum NodeCommand {
    /// Copy the store into a new file, while the node runs or not; the keys are not in it
    Backup {
        /// The new file
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Make an older store a recognised restore, with the node stopped: clients then accuse nobody and bring back what was lost
    Restore {
        /// A backup that takes the place of the store [default: the store that is in the data directory]
        #[arg(long, value_name = "FILE")]
        backup: Option<PathBuf>,
    },
}

/// The settings do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration is wrong")]
    Settings(#[source] Box<figment::Error>),
    #[error("the configuration file {} cannot be read", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The names that are read from the environment; anything else that begins alike is somebody else's.
const ENV_NAMES: [&str; 12] = [
    "data",
    "listen",
    "advertise",
    "plaintext",
    "behind_proxy",
    "reflection",
    "log_format",
    "log",
    "max_spaces_per_account",
    "max_connections",
    "recovery_window",
    "metrics",
];

impl NodeConfig {
    /// The defaults with another data directory, any free port on loopback, and the rest as it is: for tests and embedding.
    #[must_use]
    pub fn on_loopback(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), listen: "127.0.0.1:0".into(), ..Self::default() }
    }

    /// Puts flags over the environment over the file over the defaults.
    ///
    /// # Errors
    /// A file that is not there, or a setting that is unknown or has the wrong form; the text says which.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let file = flags.config.clone().or_else(|| std::env::var_os(format!("{ENV_PREFIX}CONFIG")).map(PathBuf::from));
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            figment = figment.merge(Toml::string(&read(&path)?));
        }
        figment
            .merge(Env::prefixed(ENV_PREFIX).only(&ENV_NAMES))
            .merge(Serialized::defaults(flags))
            .extract()
            .map_err(|e| ConfigError::Settings(Box::new(e)))
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })
}
