//! S85: the whole story of a membership through the command line, with real processes: exit codes, and the keys of what
//! `--json` prints, which programs rely on. Each story is told twice: every command on its own, and every command done by a
//! daemon on the same data directory, which prints the same and ends the same.

use std::collections::BTreeSet;
use std::io::{BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use sync_tests::harness::{NodeProcess, PATIENCE, binary};
use tempfile::TempDir;

// ---- people -------------------------------------------------------------------------------------------------------------

/// A data directory and who it belongs to.
struct Person {
    dir: TempDir,
    account: String,
    words: String,
    /// Does what this person types, where the story is told so.
    _daemon: Option<Daemon>,
}

/// Who does what is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    ByCommands,
    ByDaemons,
}

struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> Self {
        let mut command = Command::new(binary("headwater"));
        command.arg("--data").arg(dir).args(["--json", "daemon"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.env_remove("HEADWATER_DATA").spawn().expect("the daemon starts");
        let said = line(&mut BufReader::new(child.stdout.take().expect("stdout is piped")));
        assert_eq!(said["event"], "listening", "{said}");
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    json: Value,
}

impl Person {
    fn init(name: &str, node: &NodeProcess, told: Told) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let address = node.address().to_string();
        let made = run(dir.path(), &["init", "--node", &address, "--name", name, "--device-name", name], "").ok();
        assert_eq!(shape(&made), "{account,data,device,node,words}");
        let daemon = (told == Told::ByDaemons).then(|| Daemon::start(dir.path()));
        Self { dir, account: text(&made["account"]), words: text(&made["words"]), _daemon: daemon }
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(self.dir.path(), args, "")
    }

    /// Runs a command that succeeds.
    fn ok(&self, args: &[&str]) -> Value {
        self.run(args).ok()
    }

    /// Runs a command that fails with an exit code and the code of an error.
    fn fails(&self, args: &[&str], exit: i32, code: &str) -> Value {
        let ran = self.run(args);
        assert_eq!(ran.json["error"]["code"], code, "{args:?}: {ran:?}");
        assert_eq!(ran.code, Some(exit), "{args:?}: {ran:?}");
        ran.json["error"].clone()
    }

    /// Runs a command until what it prints is as it should be: what a node tells comes when it comes.
    fn until(&self, args: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let ran = self.run(args);
            if is_so(&ran.json) {
                return ran.json;
            }
            assert!(begun.elapsed() < PATIENCE, "{args:?} says at last: {ran:?}");
        }
    }

    /// Starts `events`, and returns when it listens.
    fn listen(&self, count: &str) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut child = headwater(self.dir.path(), &["events", "--count", count]).spawn().expect("events start");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        assert_eq!(shape(&line(&mut lines)), "{event,spaces[]}");
        (child, lines)
    }
}

impl Ran {
    fn ok(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.json
    }
}

fn headwater(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary("headwater"));
    command.arg("--data").arg(dir).arg("--json").args(args);
    if !args.contains(&"--timeout") {
        command.args(["--timeout", "60s"]);
    }
    command.env_remove("HEADWATER_DATA").env_remove("HEADWATER_PASSPHRASE");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(dir: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = headwater(dir, args).spawn().expect("headwater starts");
    // Not every command reads it.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("headwater ends");
    assert!(output.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ran { code: output.status.code(), json }
}

fn line(lines: &mut impl std::io::BufRead) -> Value {
    let mut text = String::new();
    lines.read_line(&mut text).expect("a line");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// The keys of a document, sorted: `{members[{account,name}],space}`. What is in `fields` is the user's, and
/// what is there or not as it happens is left out.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|(key, _)| *key);
            let one = |(key, value): (&String, &Value)| match key.as_str() {
                "fields" | "reason" | "confirmed" | "budget" => key.clone(),
                _ => format!("{key}{}", shape(value)),
            };
            format!("{{{}}}", keys.into_iter().map(one).collect::<Vec<_>>().join(","))
        }
        Value::Array(all) => {
            let shapes: BTreeSet<String> = all.iter().map(shape).collect();
            format!("[{}]", shapes.into_iter().collect::<Vec<_>>().join("|"))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => String::new(),
    }
}

/// The role of everybody, by name; a founder tells nobody a name.
fn roles(members: &Value) -> Value {
    let all = members["members"].as_array().expect("members");
    all.iter().map(|m| (text(m["name"].as_str().map_or(&m["account"], |_| &m["name"])), m["role"].clone())).collect()
}

// ---- the stories --------------------------------------------------------------------------------------------------------

const EFFECTS: &str = "effects[{account,effect,role}|{effect,epoch,invites,members}]";

#[test]
fn s85_members_come_change_and_go() {
    members_come_change_and_go(Told::ByCommands);
}

#[test]
fn s85_members_come_change_and_go_by_daemons() {
    members_come_change_and_go(Told::ByDaemons);
}

fn members_come_change_and_go(told: Told) {
    let mut node = NodeProcess::start();
    let (ada, bo, cy) =
        (Person::init("Ada", &node, told), Person::init("Bo", &node, told), Person::init("Cy", &node, told));
    let made = ada.ok(&["space", "create", "Club", "--wait"]);
    assert_eq!(shape(&made), "{history,name,reason,space,state}");
    let club = text(&made["space"]);

    // Bo asks, and finds what was written for him before he came.
    let invite = ada.ok(&["invite", "create", "--label", "for Bo", "--uses", "1", "--must-see", "note/hi"]);
    assert_eq!(shape(&invite), "{invite,invites[{invite,space}],label,not_pushed[],space,token}");
    let token = text(&invite["token"]);
    let shown = bo.ok(&["invite", "show", &token]);
    let space = "{has_receipt,mode,must_see[],receipt_seq,role,space}";
    assert_eq!(shape(&shown), format!("{{addresses[],authority,created_ms,expires_ms,inviter,spaces[{space}]}}"));
    assert_eq!(
        (&shown["inviter"], &shown["spaces"][0]["must_see"]),
        (&json!(ada.account), &json!([tree(&ada, "note", "hi")]))
    );
    assert!(shown["spaces"][0]["receipt_seq"].as_u64() > Some(2), "{shown}");
    let asked = bo.ok(&["join", &token, "--no-wait"]);
    assert_eq!(shape(&asked), "{spaces[{name,role,space,state}]}");
    assert_eq!(asked["spaces"][0]["state"], "requested");
    let requests = ada.ok(&["requests", "--wait"]);
    assert_eq!(shape(&requests), "{requests[{account,at_ms,name,request,role,status}],space}");
    let written = [r#"profile/{account}={"title":"New here","self":"{account}"}"#, r#"note/hi={"text":"Hello"}"#];
    ada.fails(&["approve", &bo.account, "--write", "profile={}"], 2, "USAGE");
    let accepted = ada.ok(&["approve", &bo.account, "--write", written[0], "--write", written[1]]);
    assert_eq!(accepted, json!({ "space": club, "accepted": [bo.account] }));
    assert_eq!(bo.ok(&["join", &token])["spaces"][0]["state"], "ready");
    let profile = bo.ok(&["get", "profile", &bo.account]);
    assert_eq!(profile["fields"], json!({ "title": "New here", "self": bo.account }));
    assert_eq!(bo.ok(&["get", "note", "hi"])["fields"], json!({ "text": "Hello" }));
    let invites = ada.ok(&["invite", "list"]);
    let one = "{creator,expires_ms,invite,label,max_uses,mode,role,status,uses}";
    assert_eq!(shape(&invites), format!("{{invites[{one}],space}}"));
    assert_eq!(
        (&invites["invites"][0]["label"], &invites["invites"][0]["status"]),
        (&json!("for Bo"), &json!("used up"))
    );

    // Roles, by name and by the beginning of an account.
    let members = ada.ok(&["members"]);
    assert_eq!(shape(&members), "{members[{account,joined,name,role,you}],space}");
    assert_eq!(members, ada.ok(&["space", "members"]), "the other name of the same");
    assert_eq!(roles(&members), json!({ "Ada": "owner", "Bo": "writer" }));
    let changed = ada.ok(&["role", "Bo", "reader"]);
    assert_eq!(shape(&changed), "{account,effects[{account,effect,from,to}],space}");
    bo.ok(&["sync", "--once"]);
    bo.fails(&["put", "item", "milk", "a=1"], 1, "NOT_A_WRITER");
    ada.ok(&["role", &bo.account[..16], "writer"]);
    bo.ok(&["sync", "--once"]);
    let put = bo.ok(&["put", "item", "milk", "a=1", "--wait"]);
    assert_eq!(shape(&put), "{id,seq,space,state,tree,type,writes[]}");
    ada.fails(&["role", "Dee", "reader"], 3, "NOT_FOUND");
    ada.fails(&["role", &bo.account[..8], "reader"], 3, "NOT_FOUND");
    bo.fails(&["role", &ada.account, "reader"], 1, "ROLE_TOO_LOW");

    // Nothing that cannot be taken back is done without a yes.
    let plan = ada.ok(&["acl", "plan", "remove", "Bo"]);
    assert_eq!(shape(&plan), format!("{{contents[],{EFFECTS},sentences[],space}}"));
    assert_eq!(plan["effects"][0], json!({ "effect": "goes", "account": bo.account, "role": "writer" }));
    ada.fails(&["remove", "Bo"], 2, "NEEDS_YES");
    assert_eq!(roles(&ada.ok(&["members"])), json!({ "Ada": "owner", "Bo": "writer" }), "nothing was done");

    // What Bo wrote offline while he was removed is refused, kept and exported.
    node.kill();
    let kept = bo.ok(&["put", "item", "milk", "offline=true", "--no-wait"]);
    assert_eq!(kept["state"], "kept");
    node.restart();
    let removed = ada.ok(&["remove", "Bo", "--yes"]);
    assert_eq!(shape(&removed), format!("{{{EFFECTS},removed[],space}}"));
    let status = bo.until(&["status"], |s| s["spaces"][0]["refused"] == 1);
    assert_eq!(shape(&status), format!("{{device_revoked,spaces[{STATUS}]}}"));
    assert_eq!((&status["spaces"][0]["role"], &status["spaces"][0]["state"]), (&Value::Null, &json!("attention")));
    let why = bo.ok(&["why"]);
    assert_eq!(shape(&why["spaces"][0]), format!("{{code,deleted,name,reasons[{REASON}],space,synced}}"));
    assert_eq!(
        (&why["spaces"][0]["code"], &why["spaces"][0]["reasons"][0]["code"]),
        (&json!("FORBIDDEN"), &json!("NOT_A_MEMBER"))
    );
    let refused = bo.ok(&["refused"]);
    assert_eq!(shape(&refused), "{refused[{code,fields,id,message,tree,type,what,write}],space}");
    let first = &refused["refused"][0];
    assert_eq!((&first["code"], &first["fields"]), (&json!("NOT_A_MEMBER"), &json!({ "offline": true })));
    let write = first["write"].to_string();
    bo.fails(&["refused", "retry", &write], 1, "NOT_A_MEMBER");
    let again = bo.run(&["refused", "retry", "--all"]);
    assert_eq!(
        (again.code, shape(&again.json)),
        (Some(1), "{refused[{code,message,write}],retried[],state}".to_owned())
    );
    let file = bo.dir.path().join("lost.json").display().to_string();
    assert_eq!(shape(&bo.ok(&["refused", "export", &file])), "{file,space,writes}");
    let exported: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
    assert_eq!(exported, refused);
    assert_eq!(bo.ok(&["dismiss", &write]), json!({ "write": first["write"], "state": "dismissed" }));
    bo.fails(&["dismiss", "9999"], 3, "NOT_FOUND");
    assert_eq!(bo.ok(&["refused", "list"])["refused"], json!([]));

    // He forgets the space, is added without asking, and opens it again.
    bo.fails(&["space", "forget", "Club"], 2, "NEEDS_YES");
    assert_eq!(bo.ok(&["space", "forget", "Club", "--yes"]), json!({ "space": club, "forgotten": true }));
    assert_eq!(bo.ok(&["space", "list"]), json!({ "spaces": [], "joins": [] }));
    let added = ada.ok(&["add", &bo.account, "--role", "writer"]);
    assert_eq!(shape(&added), "{account,effects[{account,effect,reads_history,role}],open_with[],role,space}");
    let typed: Vec<String> = added["open_with"].as_array().expect("words").iter().skip(1).map(text).collect();
    let opened = bo.ok(&typed.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(opened, json!({ "space": club, "name": "Club", "role": "writer", "state": "synced" }));
    assert_eq!(bo.ok(&["get", "item", "milk"])["fields"], json!({ "a": 1 }));
    let spaces = bo.ok(&["space", "list"]);
    assert_eq!(shape(&spaces), "{joins[],spaces[{deleted,members,name,registered,role,seq,space}]}");
    ada.fails(&["add", &bo.account], 1, "ALREADY_MEMBER");

    // He leaves while the node is away: it is kept, and goes out by itself.
    node.kill();
    assert_eq!(bo.ok(&["leave", "--no-wait"]), json!({ "space": club, "state": "kept" }));
    node.restart();
    bo.until(&["status"], |s| s["spaces"][0]["role"].is_null());
    ada.until(&["members"], |m| m["members"].as_array().is_some_and(|all| all.len() == 1));

    // Cy comes by an open invite, which Ada hears of, and becomes the owner.
    let token = text(&ada.ok(&["invite", "--open", "--role", "admin"])["token"]);
    let (mut listening, mut lines) = ada.listen("1");
    cy.ok(&["join", &token]);
    let event = line(&mut lines);
    assert_eq!(shape(&event), "{account,event,name,role,space}");
    assert_eq!((&event["event"], &event["account"]), (&json!("member_joined"), &json!(cy.account)));
    assert_eq!(listening.wait().expect("events end").code(), Some(0));
    ada.fails(&["leave"], 1, "OWNER_CANNOT_LEAVE");
    ada.fails(&["transfer", "Cy"], 2, "NEEDS_YES");
    assert_eq!(
        shape(&ada.ok(&["transfer", "Cy", "--yes"])),
        "{effects[{account,effect,from,to}|{effect,invite}|{effect}],owner,space}"
    );
    assert_eq!(roles(&cy.ok(&["members"])), json!({ ada.account.as_str(): "admin", "Cy": "owner" }));
    assert_eq!(cy.ok(&["reseal", &ada.account]), json!({ "space": club, "account": ada.account }));
    assert_eq!(ada.ok(&["leave"]), json!({ "space": club, "state": "left" }));

    // The owner turns the keys, changes the options, purges and ends it.
    let epoch = |rotated: Value| rotated["epoch"].as_u64();
    assert!(epoch(cy.ok(&["rotate"])) < epoch(cy.ok(&["space", "rotate-keys"])));
    let options = cy.ok(&["space", "options", "--history", "since-join"]);
    assert_eq!(options, json!({ "space": club, "history": "since-join", "min_version": options["min_version"] }));
    assert_eq!(cy.ok(&["space", "options"]), options);
    cy.fails(&["purge", "item", "milk"], 2, "NEEDS_YES");
    let purged = cy.ok(&["purge", "item", "milk", "--yes", "--wait"]);
    assert_eq!(shape(&purged), "{id,purged,seq,space,state,tree,type}");
    cy.fails(&["get", "item", "milk"], 3, "NOT_FOUND");
    cy.fails(&["put", "item", "milk", "a=2"], 1, "TREE_PURGED");
    let purged = cy.ok(&["tree", "purge", "note/hi", "--yes", "--wait"]);
    assert_eq!(shape(&purged), "{purged,seq,space,state,tree}");
    cy.fails(&["space", "delete"], 2, "NEEDS_YES");
    let deleted = cy.ok(&["space", "delete", "--yes"]);
    assert_eq!(deleted, json!({ "space": club, "deleted": true, "effects": [{ "effect": "space_ends" }] }));
    assert_eq!(cy.ok(&["status"])["spaces"][0]["deleted"], true);
    cy.fails(&["put", "item", "tea", "a=1", "-s", &club], 1, "SPACE_DELETED");
}

const REASON: &str = "{attempts,causes[],code,count,detail,examples[],next_retry_ms,scope,since_ms,suggestion}";
const STATUS: &str = "{changes,confirmed,deleted,durable_seq,failing,fresh_ms,hidden,misplaced,missing,name,node_seq,\
peers[{budget,confirmed,connected,durable_seq,fresh_ms,kind,missing,peer,pending,receipt_seq,seq,trees_apart}],pending,\
projection_lag,quarantined,reasons[{attempts,causes[],code,count,detail,examples[],next_retry_ms,scope,since_ms,\
suggestion}],refused,role,seq,space,state,trees,void,wanted}";

fn tree(person: &Person, object_type: &str, id: &str) -> String {
    let list = person.ok(&["invite", "create", "--must-see", &format!("{object_type}/{id}")]);
    text(&person.ok(&["invite", "show", &text(&list["token"])])["spaces"][0]["must_see"][0])
}

/// Every way in which a token is not good has an error of its own (S54, too).
#[test]
fn s85_tokens_that_are_no_good_say_why() {
    tokens_that_are_no_good_say_why(Told::ByCommands);
}

#[test]
fn s85_tokens_that_are_no_good_say_why_by_daemons() {
    tokens_that_are_no_good_say_why(Told::ByDaemons);
}

fn tokens_that_are_no_good_say_why(told: Told) {
    let node = NodeProcess::start();
    let (ada, bo, cy) =
        (Person::init("Ada", &node, told), Person::init("Bo", &node, told), Person::init("Cy", &node, told));
    ada.ok(&["space", "create", "Club", "--wait"]);
    let token = |args: &[&str]| text(&ada.ok(&[&["invite"], args].concat())["token"]);

    let used_up = token(&["--open", "--uses", "1"]);
    bo.ok(&["join", &used_up]);
    let error = cy.fails(&["join", &used_up], 1, "INVITE_USED_UP");
    assert_eq!(error["hint"], "ask for a new invite");
    cy.fails(&["join", &token(&["--expires", "1ms"])], 1, "INVITE_EXPIRED");

    let revoked = token(&["--label", "summer"]);
    let gone = ada.ok(&["invite", "revoke", "summer"]);
    assert_eq!(shape(&gone), "{invite,label,space,status}");
    cy.fails(&["join", &revoked], 1, "INVITE_REVOKED");
    let open = token(&["--open", "--label", "door"]);
    let plan = ada.ok(&["acl", "plan", "revoke", "door"]);
    assert_eq!(shape(&plan), "{contents[],effects[{effect,epoch,invites,members}|{effect,invite}],sentences[],space}");
    ada.ok(&["invite", "revoke", "door"]);
    cy.fails(&["join", &open], 1, "INVITE_REVOKED");
    ada.fails(&["invite", "revoke", "door"], 1, "INVITE_REVOKED");
    ada.fails(&["invite", "revoke", "window"], 3, "NOT_FOUND");

    // A removal closes what the removed one may hold, and what was made by them.
    ada.ok(&["role", "Bo", "admin"]);
    bo.ok(&["sync", "--once"]);
    let dead = text(&bo.ok(&["invite"])["token"]);
    ada.ok(&["remove", "Bo", "--yes"]);
    cy.fails(&["join", &dead], 1, "INVITE_DEAD");

    for garbage in ["headwater1garbage", "hello", &revoked[..60]] {
        cy.fails(&["join", garbage], 5, "BAD_TOKEN");
        cy.fails(&["invite", "show", garbage], 5, "BAD_TOKEN");
    }
    let other = NodeProcess::start();
    let dee = Person::init("Dee", &other, told);
    dee.fails(&["join", &revoked], 1, "WRONG_AUTHORITY");

    // Declined, and taken back; each leaves nothing behind.
    let token = token(&[]);
    cy.ok(&["join", &token, "--no-wait"]);
    assert_eq!(ada.ok(&["requests", "--wait"])["requests"][0]["account"], cy.account.as_str());
    ada.ok(&["decline", &cy.account]);
    cy.fails(&["join", &token], 1, "DECLINED");
    let asked = cy.ok(&["join", &token, "--no-wait"]);
    let club = text(&asked["spaces"][0]["space"]);
    let joins = cy.ok(&["space", "list"]);
    assert_eq!(shape(&joins), "{joins[{here,mode,role,space,stage}],spaces[]}");
    assert_eq!(cy.ok(&["join", "--cancel", &club[..16]]), json!({ "space": club, "state": "cancelled" }));
    assert_eq!(cy.ok(&["space", "list"])["joins"], json!([]));
    cy.fails(&["join", "--cancel", &club], 3, "NO_JOIN");
    cy.fails(&["join", "--resume", &club], 3, "NO_JOIN");
    assert_eq!(ada.ok(&["requests"])["requests"], json!([]));
}

/// Two spaces in one token, a lost machine, a stolen account.
#[test]
fn s85_an_account_is_brought_back_and_replaced() {
    an_account_is_brought_back_and_replaced(Told::ByCommands);
}

#[test]
fn s85_an_account_is_brought_back_and_replaced_by_daemons() {
    an_account_is_brought_back_and_replaced(Told::ByDaemons);
}

fn an_account_is_brought_back_and_replaced(told: Told) {
    let mut node = NodeProcess::start();
    let (ada, bo, cy) =
        (Person::init("Ada", &node, told), Person::init("Bo", &node, told), Person::init("Cy", &node, told));
    ada.ok(&["space", "create", "Club", "--wait"]);
    ada.ok(&["space", "create", "Garden", "--history", "since-join", "--wait"]);
    ada.fails(&["members"], 2, "USAGE");
    let token = text(&ada.ok(&["-s", "Club", "invite", "--open", "--also", "Garden"])["token"]);
    ada.fails(&["-s", "Club", "invite", "--also", "Club"], 2, "USAGE");
    assert_eq!(bo.ok(&["invite", "show", &token])["spaces"].as_array().map(Vec::len), Some(2));
    assert_eq!(bo.ok(&["join", &token])["spaces"].as_array().map(Vec::len), Some(2));
    for n in 0..3 {
        ada.ok(&["-s", "Club", "put", "item", &format!("{n}"), "a=1"]);
    }
    bo.ok(&["space", "create", "Own", "--wait"]);
    let asked = ada.ok(&["join", &text(&bo.ok(&["-s", "Own", "invite"])["token"]), "--no-wait"]);
    let own = text(&asked["spaces"][0]["space"]);
    ada.ok(&["sync", "--once"]);

    // The machine is lost; the words are not.
    let found = tempfile::tempdir().expect("a temporary directory");
    let address = node.address().to_string();
    let wrong = run(found.path(), &["recover", "--node", &address], "twenty four other words");
    assert_eq!((wrong.code, &wrong.json["error"]["code"]), (Some(5), &json!("BAD_WORDS")));
    let nothing = run(found.path(), &["recover"], "");
    assert_eq!((nothing.code, &nothing.json["error"]["code"]), (Some(6), &json!("NO_ACCOUNT")));
    let recover = ["recover", "--node", &address, "--device-name", "new"];
    // The words are enough while the node is away; what it has is waited for again.
    node.kill();
    let away = run(found.path(), &[&recover[..], &["--timeout", "1s"]].concat(), &ada.words);
    assert_eq!((away.code, &away.json["error"]["code"]), (Some(4), &json!("NO_NODE")), "{away:?}");
    node.restart();
    let back = run(found.path(), &["recover"], "").ok();
    let space = "{members,name,objects,role,seq,space,synced}";
    assert_eq!(shape(&back), format!("{{account,device,joins[{{here,mode,role,space,stage}}],spaces[{space}]}}"));
    assert_eq!((&back["joins"][0]["space"], &back["joins"][0]["here"]), (&json!(own), &json!(false)));
    assert_eq!(back["account"], ada.account.as_str());
    let spaces = back["spaces"].as_array().expect("spaces");
    let club = spaces.iter().find(|s| s["name"] == "Club").expect("the club is back");
    assert_eq!(
        (spaces.len(), &club["role"], &club["members"], &club["objects"]),
        (2, &json!("owner"), &json!(2), &json!(3))
    );
    let again = run(found.path(), &recover, &ada.words);
    assert_eq!((again.code, &again.json["error"]["code"]), (Some(6), &json!("ACCOUNT_EXISTS")));
    let daemon = (told == Told::ByDaemons).then(|| Daemon::start(found.path()));
    let new = Person { dir: found, account: ada.account.clone(), words: String::new(), _daemon: daemon };
    assert_eq!(new.ok(&["recover"]), back, "once more says the same");

    // The old one is revoked.
    let devices = new.until(&["devices"], |d| {
        d["devices"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|d| d["name"].is_string()))
    });
    assert_eq!(shape(&devices), "{account,device_revoked,devices[{added_ms,device,name,this}]}");
    let names: BTreeSet<String> =
        devices["devices"].as_array().expect("devices").iter().map(|d| text(&d["name"])).collect();
    assert_eq!(names, BTreeSet::from(["Ada".to_owned(), "new".to_owned()]));
    new.fails(&["devices", "revoke", "Ada"], 2, "NEEDS_YES");
    new.fails(&["devices", "revoke", "new", "--yes"], 1, "THIS_DEVICE");
    new.fails(&["devices", "revoke", "other", "--yes"], 3, "NOT_FOUND");
    assert_eq!(shape(&new.ok(&["devices", "revoke", "Ada", "--yes"])), "{device,name,revoked}");
    ada.until(&["status"], |s| s["device_revoked"] == true);
    assert_eq!(ada.ok(&["-s", "Club", "get", "item", "0"])["fields"], json!({ "a": 1 }), "what it has it shows");
    assert_eq!(ada.ok(&["-s", "Club", "put", "item", "0", "b=2"])["reason"]["code"], "SESSION_REFUSED");
    assert_eq!(new.ok(&["devices"])["devices"].as_array().map(Vec::len), Some(1));

    // What the old one had asked for, the new one gets.
    bo.ok(&["-s", "Own", "approve", &ada.account, "--wait"]);
    let ready = json!({ "space": own, "name": "Own", "role": "writer", "state": "ready" });
    assert_eq!(new.ok(&["join", "--resume", &own[..16]])["spaces"], json!([ready]));

    // Bo's keys were stolen: Cy stands in his place, everywhere.
    let plan = new.ok(&["-s", "Club", "acl", "plan", "replace", "Bo", &cy.account]);
    assert_eq!(plan["contents"], json!(["RemoveMembers", "AddMembers"]));
    // In a space of Bo's own nobody can do that for him; all others are done, and the exit code tells.
    new.fails(&["account", "replace", "Bo", &cy.account, "--all-spaces"], 2, "NEEDS_YES");
    let ran = new.run(&["account", "replace", "Bo", &cy.account, "--all-spaces", "--yes"]);
    let replaced = &ran.json;
    assert_eq!(ran.code, Some(1), "{replaced}");
    assert_eq!((&replaced["old"], &replaced["new"]), (&json!(bo.account), &json!(cy.account)));
    assert_eq!(shape(&replaced["not_replaced"]), "[{code,message,name,space}]");
    assert_eq!(replaced["not_replaced"][0]["code"], "ROLE_TOO_LOW", "{replaced}");
    assert_eq!(replaced["replaced"].as_array().map(Vec::len), Some(2));
    for space in replaced["replaced"].as_array().expect("spaces") {
        let opened = cy.ok(&["space", "open", &text(&space["space"])]);
        assert_eq!((&opened["role"], &opened["state"]), (&json!("writer"), &json!("synced")), "{opened}");
    }
    new.fails(&["account", "replace", &bo.account, &cy.account, "--all-spaces", "--yes"], 1, "ROLE_TOO_LOW");
    new.ok(&["-s", "Own", "leave"]);
    new.fails(&["account", "replace", &bo.account, &cy.account, "--all-spaces", "--yes"], 3, "NOT_FOUND");
    let members = new.ok(&["-s", "Club", "members"]);
    let accounts: BTreeSet<String> =
        members["members"].as_array().expect("members").iter().map(|m| text(&m["account"])).collect();
    assert_eq!(accounts, BTreeSet::from([ada.account.clone(), cy.account.clone()]));
    assert_eq!(new.ok(&["account", "show"])["account"], new.ok(&["whoami"])["account"]);
}
