//! Random histories of a space: members, invites, joins, removals, roles, keys, writes, purges and partitions.
//!
//! Each history is a script whose lines chance picks, played in the pure world. After every line the log, every replica and
//! everybody's keys are compared with a second implementation of membership, which is as plain as it can be.
//!
//! `HEADWATER_ROUNDS` and `HEADWATER_SEED` choose how many and which; a failure prints the seed and the script up to there.

mod plain;

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sync_core::acl::AclState;
use sync_core::ids::{AccountId, AclId, Epoch, Seq};
use sync_core::log::{EntryKind, Genesis, NewEntry, Reject, Submission};
use sync_core::record::{Role, verify};
use sync_tests::rules::{Judged, MapLog, PureWorld, Taken};
use sync_tests::script::{Act, Script, Trouble, World as _};

use crate::plain::{Plain, Records};

const SPACE: &str = "club";
const PEOPLE: [&str; 6] = ["ann", "bob", "carol", "dave", "erin", "fred"];
const OBJECTS: [&str; 5] = ["note/1", "note/2", "ballot/1", "notice/1", "profile/bob"];
const ROLES: [&str; 4] = ["guest", "reader", "writer", "admin"];
const STEPS: usize = 80;

#[tokio::test]
async fn random_histories_keep_every_rule() {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = setting("HEADWATER_SEED").unwrap_or_else(rand::random);
    let rounds = setting("HEADWATER_ROUNDS").unwrap_or(20);
    let mut tally = Tally::default();
    for seed in (0..rounds).map(|round| seed.wrapping_add(round)) {
        let mut history = History::begin(seed);
        history.play().await;
        history.end(&mut tally);
    }
    eprintln!("{tally:?}");
    assert!(rounds < 20 || tally.is_telling(), "this tested too little: {tally:?}");
}

/// What came of all rounds, so that a test which tests nothing is noticed.
#[derive(Debug, Default)]
struct Tally {
    lines: usize,
    acl_entries: usize,
    changes: usize,
    tombstones: usize,
    rotations: usize,
    refused: usize,
    hidden_from_somebody: usize,
}

impl Tally {
    const fn is_telling(&self) -> bool {
        self.acl_entries > 150
            && self.changes > 70
            && self.tombstones > 0
            && self.rotations > 20
            && self.refused > 150
            && self.hidden_from_somebody > 20
    }
}

struct History {
    seed: u64,
    rng: StdRng,
    world: PureWorld,
    lines: Vec<String>,
    records: Records,
    /// The ACL at every head that any replica ever had.
    states: BTreeMap<AclId, AclState>,
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nHEADWATER_SEED={} HEADWATER_ROUNDS=1\n{}\n", self.seed, self.lines.join("\n"));
        }
    }
}

impl History {
    fn begin(seed: u64) -> Self {
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            world: PureWorld::new(seed),
            lines: Vec::new(),
            records: Records::default(),
            states: BTreeMap::new(),
        }
    }

    async fn play(&mut self) {
        let history = if self.rng.random_bool(0.25) { "since-join" } else { "all" };
        self.line(format!("ann creates {SPACE} history {history}")).await;
        self.line("ann adds bob as admin".to_owned()).await;
        self.line("ann adds carol as writer".to_owned()).await;
        for _ in 0..STEPS {
            let line = self.draw();
            self.line(line).await;
            self.check();
        }
        for who in PEOPLE {
            self.line(format!("{who} goes online")).await;
        }
        // What is refused while all settle is set aside, until nothing is.
        for _ in 0..2 {
            self.line("settle".to_owned()).await;
            for who in PEOPLE {
                self.line(format!("{who} dismisses")).await;
            }
        }
        self.line("settle".to_owned()).await;
        self.line("everyone agrees".to_owned()).await;
        self.check();
    }

    /// Plays a line. It may be refused, and must not go wrong.
    async fn line(&mut self, line: String) {
        self.lines.push(line.clone());
        let script = Script::parse("history", &line).unwrap_or_else(|problem| panic!("{problem}"));
        for step in &script.steps {
            match (self.world.act(step).await, &step.act) {
                (Ok(()) | Err(Trouble::Refused { .. }), _) => {}
                (Err(Trouble::Wrong { expected, happened }), Act::Settles | Act::Agrees) => {
                    panic!("{line}: expected {expected}, happened {happened}");
                }
                // There is no such invite, or nothing to do it with.
                (Err(Trouble::Wrong { .. }), _) => self.lines.truncate(self.lines.len() - 1),
            }
        }
    }

    // ---- what happens next ------------------------------------------------------------------------------------------

    fn one<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.rng.random_range(0..from.len())]
    }

    /// Often somebody who may do a lot.
    fn actor(&mut self) -> String {
        let acl = self.world.node_log_of(SPACE).map(|log| log.acl_state().clone());
        let is_admin = |account| acl.as_ref().and_then(|a| a.role(&account)).is_some_and(|role| role >= Role::Admin);
        let accounts: Vec<_> = self.world.accounts().map(|(who, account)| (who.to_owned(), account)).collect();
        let admins: Vec<_> = accounts.into_iter().filter(|(_, a)| is_admin(*a)).map(|(who, _)| who).collect();
        if admins.is_empty() || self.rng.random_bool(0.3) {
            return self.one(&PEOPLE).to_owned();
        }
        admins[self.rng.random_range(0..admins.len())].clone()
    }

    /// A patched client, where it gives away no keys: with what it gives, the second implementation could not reckon.
    fn maybe_forces(&mut self, who: &str) -> &'static str {
        let acl = self.world.node_log_of(SPACE).map(MapLog::acl_state);
        let account = self.world.accounts().find(|(name, _)| *name == who).map(|(_, account)| account);
        let role = account.and_then(|account| acl?.role(&account));
        if role < Some(Role::Admin) && self.rng.random_bool(0.5) { "forces " } else { "" }
    }

    fn draw(&mut self) -> String {
        let (who, whom, role) = (self.actor(), self.one(&PEOPLE), self.one(&ROLES));
        let (object, forces, n) = (self.one(&OBJECTS), self.maybe_forces(&who), self.lines.len());
        let anybody = self.one(&PEOPLE);
        match self.rng.random_range(0..100) {
            0..21 => format!("{anybody} writes {object} text={n}"),
            21..25 => format!("{anybody} forces writes {object} text={n}"),
            25..29 => format!("{anybody} forces writes {object} text={n} citing {}", self.rng.random_range(0..20)),
            29..31 => format!("{anybody} deletes {object}"),
            31..33 => format!("{anybody} purges {object}"),
            33..34 => format!("{anybody} forces purges {object}"),
            34..37 => format!("{anybody} goes offline"),
            37..48 => format!("{anybody} goes online"),
            48..50 => "settle".to_owned(),
            50..51 => "node restarts".to_owned(),
            51..52 => format!("{anybody} restarts"),
            52..57 => format!("{who} {forces}invites {whom} as {role} open"),
            57..62 => format!("{who} {forces}invites {whom} as {role} approval uses 1"),
            62..67 => format!("{anybody} joins"),
            67..69 => format!("{anybody} forces joins by {whom}"),
            69..70 => format!("{anybody} cancels"),
            70..74 => format!("{who} {forces}approves {whom}"),
            74..75 => format!("{who} {forces}declines {whom}"),
            75..80 => format!("{who} {forces}adds {whom} as {role}"),
            80..84 => format!("{who} {forces}makes {whom} {role}"),
            84..89 => format!("{who} {forces}removes {whom}"),
            89..91 => format!("{anybody} leaves"),
            91..93 => format!("{who} {forces}revokes {whom}"),
            93..96 => format!("{who} {forces}rotates"),
            96..97 => format!("{who} {forces}reseals {whom}"),
            97..98 => format!("{who} transfers to {whom}"),
            98..99 => format!("{who} sets history {}", ["all", "since-join"][self.rng.random_range(0..2)]),
            // Seldom, as it is the end.
            _ if self.rng.random_bool(0.1) => format!("{who} deletes the space"),
            _ => format!("{anybody} forces a change of {object} on nothing"),
        }
    }

    // ---- what must hold ---------------------------------------------------------------------------------------------

    fn check(&mut self) {
        let Some(node) = self.world.node_log_of(SPACE) else { return };
        let plain = Plain::of(node.entries(), &mut self.records);
        plain.is_what_the_rules_say(node.acl_state());
        self.states.entry(node.acl_state().head).or_insert_with(|| node.acl_state().clone());
        for (who, account) in self.world.accounts() {
            let held = plain.epochs_of(&account, &self.world.invites_seen_by(who));
            assert_eq!(self.world.opened_by(who, SPACE), held, "epochs that {who} opens, and may");
            let Some((log, epochs)) = self.world.replica_of(who, SPACE) else { continue };
            self.check_replica(who, &account, log, &epochs);
        }
    }

    fn check_replica(&self, who: &str, account: &AccountId, log: &MapLog, epochs: &BTreeSet<Epoch>) {
        let node = self.world.node_log_of(SPACE).expect("the caller has it");
        assert!(node.entries().starts_with(log.entries()), "{who} has the beginning of the node's log");
        let plain = Plain::of(log.entries(), &mut self.records.clone());
        plain.is_what_the_rules_say(log.acl_state());
        assert_eq!(*epochs, plain.epochs_of(account, &BTreeSet::new()), "epochs of {who}'s own copy");
        if let Some(known) = self.states.get(&log.acl_state().head) {
            assert_eq!(known, log.acl_state(), "one ACL at one head");
        }
    }

    fn end(mut self, tally: &mut Tally) {
        let node = self.world.node_log_of(SPACE).expect("ann is online at the end").clone();
        let genesis = self.world.genesis_of(SPACE).expect("it was made").clone();
        let judged = self.world.judged().to_vec();
        the_same_log_gives_the_same_verdicts(&genesis, &judged, &node);
        let submissions: Vec<_> = judged.iter().map(|j| j.submission.clone()).collect();
        for order in self.orders(&submissions) {
            let log = judged_in_this_order(&genesis, &order);
            Plain::of(log.entries(), &mut self.records).is_what_the_rules_say(log.acl_state());
        }
        let of_kind = |kind| node.entries().iter().filter(|e| e.kind == kind).count();
        tally.lines += self.lines.len();
        tally.acl_entries += of_kind(EntryKind::Acl);
        tally.changes += of_kind(EntryKind::Change);
        tally.tombstones += of_kind(EntryKind::Tombstone);
        tally.rotations += node.acl_state().epochs.len() - 1;
        tally.refused += judged.iter().filter(|j| j.verdict.is_err()).count();
        let epochs = node.acl_state().epochs.len();
        let held = self.world.accounts().map(|(who, _)| self.world.opened_by(who, SPACE).len());
        tally.hidden_from_somebody += held.filter(|held| *held < epochs).count();
    }

    /// The same records as they might also have arrived: at random, and with the ACL in its order and the rest anywhere.
    fn orders(&mut self, submissions: &[Submission]) -> Vec<Vec<Submission>> {
        let mut random = submissions.to_vec();
        random.shuffle(&mut self.rng);
        let (acl, mut rest): (Vec<_>, Vec<_>) =
            submissions.iter().cloned().partition(|s| matches!(s, Submission::Acl(_)));
        rest.shuffle(&mut self.rng);
        let mut among = acl;
        for submission in rest {
            let at = self.rng.random_range(0..=among.len());
            among.insert(at, submission);
        }
        let mut reversed = submissions.to_vec();
        reversed.reverse();
        vec![random, among, reversed]
    }
}

// ---- one log, many ways to it ---------------------------------------------------------------------------------------

/// Entry by entry, from a copy half-way, and from the bytes of the log alone: every submission is judged as it was.
fn the_same_log_gives_the_same_verdicts(genesis: &Genesis, judged: &[Judged], node: &MapLog) {
    let mut one_by_one = MapLog::found(genesis);
    let half = judged.len() / 2;
    let mut copies = Vec::new();
    for (index, judged) in judged.iter().enumerate() {
        if index % half.max(1) == 0 {
            copies.push(from_bytes(genesis, one_by_one.entries()));
        }
        assert_eq!(Seq(one_by_one.entries().len() as u64), judged.after);
        for copy in &mut copies {
            assert_eq!(copy.take(&judged.submission), judged.verdict, "on a copy: {:?}", judged.submission.id());
        }
        assert_eq!(one_by_one.take(&judged.submission), judged.verdict, "{:?}", judged.submission.id());
    }
    assert_eq!(one_by_one, *node);
    assert!(copies.iter().all(|copy| copy == node));
    assert_eq!(from_bytes(genesis, node.entries()), *node);
}

/// Whatever the order in which records arrive: who follows the log gets the verdict of who makes it, everywhere.
fn judged_in_this_order(genesis: &Genesis, order: &[Submission]) -> MapLog {
    let (mut home, mut follower) = (MapLog::found(genesis), MapLog::found(genesis));
    let mut follower_reads = follower.entries().len();
    for submission in order {
        let verdict = home.take(submission);
        let mut trial = follower.clone();
        assert_eq!(trial.take(submission), verdict, "{:?}", submission.id());
        // The follower reads what the home wrote, not what it tried itself.
        for submission in submissions_of(&home.entries()[follower_reads..]) {
            assert!(matches!(follower.take(&submission), Ok(Taken::Appended(_))));
        }
        follower_reads = home.entries().len();
        assert_eq!(follower, home);
    }
    home.heads_are_the_changes_without_children();
    home.parents_stand_before_their_children();
    home.summaries_are_those_of_the_log();
    home
}

fn from_bytes(genesis: &Genesis, entries: &[NewEntry]) -> MapLog {
    let mut log = MapLog::found(genesis);
    for submission in submissions_of(&entries[2..]) {
        let taken: Result<Taken, Reject> = log.take(&submission);
        assert!(matches!(taken, Ok(Taken::Appended(_))), "what was logged is valid: {taken:?}");
    }
    log
}

fn submissions_of(entries: &[NewEntry]) -> Vec<Submission> {
    let mut root = None;
    let mut submissions = Vec::new();
    for entry in entries {
        let record = verify(entry.record.clone()).expect("what was logged verifies");
        match entry.kind {
            EntryKind::Root => root = Some(record),
            EntryKind::Acl | EntryKind::Change | EntryKind::Tombstone => {
                submissions.push(Submission::pair(root.take(), record).expect("what was logged fits together"));
            }
        }
    }
    submissions
}
