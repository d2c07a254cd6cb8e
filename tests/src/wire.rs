//! A cable between a client and a node, below everything else: bytes of one way or both are swallowed or held back, and nobody
//! is told. What a peer sees is a connection that stands, and says nothing.

use std::sync::Arc;

use client_sdk::NodeAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What becomes of bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Pass,
    /// Taken and thrown away, the end of the stream included. What of a stream is lost cannot come later: that way of that
    /// connection stays dead.
    Swallow,
    /// Not taken: they wait, and so does the sender once the buffers between are full.
    Hold,
}

/// How the cable is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    to_node: Flow,
    from_node: Flow,
    /// Counts the moments at which all connections were reset.
    cuts: u64,
}

/// A TCP relay that can fail. It ends with this handle.
#[derive(Debug)]
pub struct Wire {
    endpoint: String,
    state: Arc<watch::Sender<State>>,
    task: AbortHandle,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    /// A cable to `target`, a `host:port`.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = listener.local_addr().expect("a bound socket has an address").to_string();
        let whole = State { to_node: Flow::Pass, from_node: Flow::Pass, cuts: 0 };
        let state = Arc::new(watch::channel(whole).0);
        let task = tokio::spawn(accept(listener, target.to_owned(), state.clone())).abort_handle();
        Self { endpoint, state, task }
    }

    /// The address of a node, by way of this cable.
    #[must_use]
    pub fn address(&self, node: &NodeAddress) -> NodeAddress {
        NodeAddress { endpoint: self.endpoint.clone(), ..node.clone() }
    }

    /// What becomes of bytes from now on.
    pub fn set(&self, to_node: Flow, from_node: Flow) {
        self.state.send_modify(|state| (state.to_node, state.from_node) = (to_node, from_node));
    }

    /// New connections are whole from now on, and those that lost nothing go on.
    pub fn heal(&self) {
        self.set(Flow::Pass, Flow::Pass);
    }

    /// Ends all connections, in the way that both sides notice.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

async fn accept(listener: TcpListener, target: String, state: Arc<watch::Sender<State>>) {
    while let Ok((client, _)) = listener.accept().await {
        // A node that is down: the client sees its connection end.
        let Ok(node) = TcpStream::connect(&target).await else { continue };
        // Small messages are not kept waiting here.
        if client.set_nodelay(true).and(node.set_nodelay(true)).is_err() {
            continue;
        }
        tokio::spawn(connection(client, node, state.subscribe()));
    }
}

async fn connection(client: TcpStream, node: TcpStream, mut state: watch::Receiver<State>) {
    let cuts = state.borrow_and_update().cuts;
    let (from_client, to_client) = client.into_split();
    let (from_node, to_node) = node.into_split();
    let up = carry(from_client, to_node, state.clone(), |s| s.to_node);
    let down = carry(from_node, to_client, state.clone(), |s| s.from_node);
    tokio::select! {
        // Both sockets are closed with this task.
        _ = async { tokio::join!(up, down) } => {}
        _ = state.wait_for(|s| s.cuts != cuts) => {}
    }
}

/// One way of a connection.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    flow: impl Fn(&State) -> Flow,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut dead = false;
    loop {
        if state.wait_for(|s| flow(s) != Flow::Hold).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            // Nothing more is taken once bytes are to be held.
            _ = state.changed() => continue,
        };
        dead |= flow(&state.borrow()) == Flow::Swallow;
        match read {
            Ok(n @ 1..) if !dead => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
            Ok(1..) => {}
            // Nobody hears of the end either. The other way ends when its own side does.
            Ok(0) | Err(_) if dead => return to.forget(),
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}
