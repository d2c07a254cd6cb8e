//! The commands in groups, so that `--help` can be read.

use clap::CommandFactory as _;

use super::Cli;
use crate::exit;

/// Every command stands in one group; a test sees to it.
const GROUPS: &[(&str, &[&str])] = &[
    ("This account", &["init", "recover", "whoami", "account", "devices", "node"]),
    (
        "Spaces and members",
        &["space", "members", "role", "add", "remove", "leave", "transfer", "rotate", "reseal", "acl"],
    ),
    ("Letting people in", &["invite", "join", "requests", "approve", "decline"]),
    ("Objects", &["put", "get", "list", "rm", "purge", "watch"]),
    ("Being synced", &["await-synced", "status", "why", "sync", "events", "refused", "lost", "dismiss", "receipt"]),
    ("Files and histories", &["import", "export", "import-git", "tree"]),
    ("More", &["daemon", "demo", "completions", "exit-codes", "help"]),
];

const TEMPLATE: &str =
    "{before-help}{about-with-newline}\n{usage-heading} {usage}{after-help}\n\nGlobal options:\n{options}";

/// The definition of what can be typed, with its help in groups.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let commands = listing(&command);
    let exits = format!("{}\n\n`headwater help COMMAND` says more, with examples.", exit::HELP);
    command
        .help_template(TEMPLATE)
        .after_help(commands.trim_end().to_owned())
        .after_long_help(format!("{commands}{exits}"))
}

fn listing(command: &clap::Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for name in *names {
            let about = match *name {
                "help" => "Explains a command".to_owned(),
                name => about(command, name),
            };
            text.push_str(&format!("  {name:<13} {about}\n"));
        }
        text.push('\n');
    }
    text
}

fn about(command: &clap::Command, name: &str) -> String {
    let found = command.find_subcommand(name).and_then(clap::Command::get_about);
    found.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_stands_in_one_group() {
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let once: BTreeSet<&str> = grouped.iter().copied().collect();
        assert_eq!(once.len(), grouped.len(), "{grouped:?}");
        let command = Cli::command();
        let names: BTreeSet<&str> = command.get_subcommands().map(clap::Command::get_name).chain(["help"]).collect();
        assert_eq!(once, names);
    }

    #[test]
    fn the_short_help_lists_every_command_with_what_it_does() {
        let help = command().render_help().to_string();
        for (_, names) in GROUPS {
            for name in *names {
                assert!(about(&command(), name).len() <= 63, "{name}: a terminal has 80 columns");
                let line = help.lines().find(|line| line.trim_start().split(' ').next() == Some(name));
                assert!(line.is_some_and(|line| line.trim().len() > name.len() + 8), "{name}: {line:?} in\n{help}");
            }
        }
        assert!(help.contains("Global options"), "{help}");
    }
}
