//! What others could see: a relay that records every byte between clients and a node, a node whose log is kept, and a search
//! for what must not be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use client_sdk::NodeAddress;

use crate::harness::binary;

// ---- the wire -------------------------------------------------------------------------------------------------------

type Recording = Arc<Mutex<Vec<u8>>>;

/// A TCP relay that keeps what passes. It ends with the runtime that it was started on.
#[derive(Debug)]
pub struct Relay {
    listens: SocketAddr,
    streams: Arc<Mutex<Vec<(String, Recording)>>>,
}

impl Relay {
    /// Begins to relay to `target`, a `host:port`.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listens = listener.local_addr().expect("a bound socket has an address");
        let streams = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(relay(listener, target.to_owned(), streams.clone()));
        Self { listens, streams }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.listens.to_string()
    }

    /// The address of a node, by way of the relay.
    #[must_use]
    pub fn address(&self, node: &NodeAddress) -> NodeAddress {
        NodeAddress { endpoint: self.endpoint(), ..node.clone() }
    }

    /// Everything that has passed, one haystack per connection and direction: as it was, and the HTTP/2 data of each of its
    /// streams put together.
    #[must_use]
    pub fn haystacks(&self) -> Vec<Haystack> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        for (name, bytes) in streams.iter() {
            let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let data = http2_data(&bytes);
            found.push(Haystack { name: format!("the wire, {name}, without frames"), bytes: data });
            found.push(Haystack { name: format!("the wire, {name}"), bytes });
        }
        found
    }
}

async fn relay(listener: TcpListener, target: String, streams: Arc<Mutex<Vec<(String, Recording)>>>) {
    let mut number = 0;
    while let Ok((client, _)) = listener.accept().await {
        // A node that is down: the client sees its connection end.
        let Ok(node) = TcpStream::connect(&target).await else { continue };
        number += 1;
        let (from_client, to_client) = client.into_split();
        let (from_node, to_node) = node.into_split();
        for (direction, from, to) in [("to the node", from_client, to_node), ("from the node", from_node, to_client)] {
            let recording = Recording::default();
            let name = format!("connection {number} {direction}");
            streams.lock().unwrap_or_else(PoisonError::into_inner).push((name, recording.clone()));
            tokio::spawn(copy(from, to, recording));
        }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, recording: Recording) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        recording.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
        if to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    // The other side learns that nothing comes any more; it may be gone itself.
    let _ = to.shutdown().await;
}

/// The payloads of DATA frames, stream by stream, so that no frame header lies in the middle of a message. RFC 9113,
/// section 4.1: nine bytes of header, length (3), type, flags, stream.
fn http2_data(bytes: &[u8]) -> Vec<u8> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const DATA: u8 = 0;
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut streams: BTreeMap<[u8; 4], Vec<u8>> = BTreeMap::new();
    while let [a, b, c, kind, _flags, s1, s2, s3, s4, after @ ..] = rest {
        let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let (payload, next) = after.split_at(len.min(after.len()));
        if *kind == DATA {
            streams.entry([*s1, *s2, *s3, *s4]).or_default().extend_from_slice(payload);
        }
        rest = next;
    }
    streams.into_values().flatten().collect()
}

// ---- a node whose log is kept ---------------------------------------------------------------------------------------

/// A node process with its standard error in a file. Killed when dropped.
#[derive(Debug)]
pub struct LoggedNode {
    dir: TempDir,
    log: TempDir,
    child: Child,
    address: NodeAddress,
}

impl LoggedNode {
    /// Starts a node without TLS that logs everything.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = tempfile::tempdir().expect("a temporary directory");
        let stderr = File::create(log.path().join("stderr")).expect("a file");
        let mut child = Command::new(binary("sync-node"))
            .arg("--data")
            .arg(dir.path())
            .args(["--listen", "127.0.0.1:0", "--plaintext", "--log", "trace"])
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the node starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
        let address = line.trim().parse().unwrap_or_else(|e| panic!("not an address: {line:?}: {e}"));
        Self { dir, log, child, address }
    }

    /// Where it listens, and who it is.
    #[must_use]
    pub fn address(&self) -> &NodeAddress {
        &self.address
    }

    /// Its data directory and its log, as they are now.
    #[must_use]
    pub fn haystacks(&self) -> Vec<Haystack> {
        let mut found = files(self.dir.path());
        found.extend(files(self.log.path()));
        found
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// If it does not stop cleanly.
    pub fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .expect("a running child takes a signal");
        assert!(self.child.wait().expect("a child can be waited for").success(), "the node stops as asked");
    }
}

impl Drop for LoggedNode {
    fn drop(&mut self) {
        // It may have stopped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the search -----------------------------------------------------------------------------------------------------

/// Bytes that somebody else holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Haystack {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Haystack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// Every file below a directory.
///
/// # Panics
/// If one cannot be read.
#[must_use]
pub fn files(dir: &Path) -> Vec<Haystack> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.push(Haystack { name: path.display().to_string(), bytes });
        }
    }
    found
}

/// Something that must not be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    pub name: String,
    /// The bytes themselves and their usual text forms.
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Needle {
    /// These bytes, as they are and in hexadecimal, base32 and base64, wherever they stand in what was encoded.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        let mut forms = vec![("raw", bytes.to_vec())];
        forms.push(("hexadecimal", HEXLOWER.encode(bytes).into_bytes()));
        forms.push(("HEXADECIMAL", HEXUPPER.encode(bytes).into_bytes()));
        for text in aligned(&BASE32_NOPAD, 5, bytes) {
            forms.push(("base32", text.to_ascii_lowercase()));
            forms.push(("BASE32", text));
        }
        forms.extend(aligned(&BASE64_NOPAD, 3, bytes).into_iter().map(|text| ("base64", text)));
        forms.extend(aligned(&BASE64URL_NOPAD, 3, bytes).into_iter().map(|text| ("base64url", text)));
        Self { name: name.into(), forms }
    }

    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::new(format!("{text:?}"), text.as_bytes())
    }
}

/// What the encoding of any text that holds `bytes` must hold, for each place that they can have in a group.
fn aligned(encoding: &Encoding, group_bytes: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for before in 0..group_bytes {
        let padded = [&vec![0; before], bytes].concat();
        let text = encoding.encode(&padded).into_bytes();
        let bits = encoding.bit_width();
        // Characters that hold bits of neighbours are left out at both ends.
        let (from, to) = ((before * 8).div_ceil(bits), padded.len() * 8 / bits);
        forms.push(text[from..to].to_vec());
    }
    forms
}

/// Everything that was found, in words. One pass over each haystack, however many needles there are.
#[must_use]
pub fn findings(needles: &[Needle], haystacks: &[Haystack]) -> Vec<String> {
    let by_start = Starts::of(needles);
    let mut found = BTreeSet::new();
    for haystack in haystacks {
        for at in 0..haystack.bytes.len() {
            for (needle, form, bytes) in by_start.at(&haystack.bytes[at..]) {
                if haystack.bytes[at..].starts_with(bytes) {
                    found.insert(format!("{} ({form}) is in {}", needle.name, haystack.name));
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Every form of every needle by its first two bytes.
struct Starts<'a>(Vec<Vec<(&'a Needle, &'static str, &'a [u8])>>);

impl<'a> Starts<'a> {
    fn of(needles: &'a [Needle]) -> Self {
        let mut starts = vec![Vec::new(); 1 << 16];
        for needle in needles {
            for (form, bytes) in &needle.forms {
                assert!(bytes.len() >= 6, "{} is too short to be told from chance", needle.name);
                starts[usize::from(bytes[0]) << 8 | usize::from(bytes[1])].push((needle, *form, bytes.as_slice()));
            }
        }
        Self(starts)
    }

    fn at(&self, bytes: &[u8]) -> &[(&'a Needle, &'static str, &'a [u8])] {
        match bytes {
            [first, second, ..] => &self.0[usize::from(*first) << 8 | usize::from(*second)],
            [] | [_] => &[],
        }
    }
}
