//! HeadSync, the client's side: proves on every connect that what was derived here equals what the node derived.

use std::sync::Arc;

use sync_core::ids::{Seq, TreeId};
use sync_core::limits;
use sync_core::reconcile::{Difference, Element, difference};
use sync_proto::v1::{self, head_sync_request::Message as Ask, head_sync_response::Message as Answer};
use sync_store::{Rebuilt, WriteTx};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::SpaceInner;
use crate::connect::{Conn, failure};
use crate::error::{CallError, ReadError};
use crate::status::Confirmed;

pub(super) async fn run(space: Arc<SpaceInner>, conn: Conn, superseded: CancellationToken) {
    let compared = tokio::select! {
        biased;
        () = space.closed.cancelled() => return,
        () = superseded.cancelled() => return,
        compared = space.compare(&conn) => compared,
    };
    if let Err(error) = compared {
        tracing::debug!(space = %space.id.short(), error = %error, "HeadSync did not finish");
    }
}

/// What one comparison found.
enum Compared {
    Equal(Seq),
    /// The two stood at different places; digests are compared at equal seq only.
    Apart {
        ours: Seq,
        node: Seq,
    },
    Different(Difference),
}

impl SpaceInner {
    /// Compares until both sides stood at one seq; repairs what differs, once.
    async fn compare(&self, conn: &Conn) -> Result<(), CallError> {
        let mut repaired = false;
        loop {
            match self.compare_once(conn).await? {
                Compared::Equal(seq) => {
                    self.note_trouble(|t| t.different = None);
                    self.note_confirmed(Confirmed { seq: seq.0, at_ms: self.shared.host.wall_ms() });
                    return Ok(());
                }
                Compared::Apart { ours, node } => {
                    self.saw_node_seq(node);
                    self.comes_closer(ours, node).await;
                }
                Compared::Different(found) if repaired => {
                    let text = format!("{} tree(s) still differ after a rebuild", found.trees.len());
                    self.note_trouble(|t| t.different = Some(text));
                    return Ok(());
                }
                Compared::Different(found) => {
                    let text = format!("{} tree(s) differ", found.trees.len());
                    self.note_trouble(|t| t.different = Some(text));
                    self.repair(found).await.map_err(|e| CallError::Broken(e.to_string()))?;
                    repaired = true;
                }
            }
        }
    }

    /// Waits until another comparison may find both at one place.
    async fn comes_closer(&self, ours: Seq, node: Seq) {
        let mut watermarks = self.shared.store.watch(self.id);
        let mut node_moves = self.node_seq.subscribe();
        tokio::select! {
            biased;
            _ = watermarks.wait_for(|w| w.seq >= node && w.seq != ours) => {}
            // We were ahead of an answer that crossed an entry: ask again when the node is known to have moved.
            _ = node_moves.changed(), if ours > node => {}
            () = tokio::time::sleep(limits::HEARTBEAT_INTERVAL) => {}
        }
    }

    async fn compare_once(&self, conn: &Conn) -> Result<Compared, CallError> {
        let local = |e: ReadError| CallError::Broken(e.to_string());
        let (seq, digest) = self.own_digest().map_err(local)?;
        let (requests, outgoing) = mpsc::channel(1);
        let open = v1::HeadSyncOpen { space: self.id.to_bytes(), seq: seq.0, digest: digest.to_vec().into() };
        ask(&requests, Ask::Open(open)).await?;
        let answers = conn.rpc().head_sync(ReceiverStream::new(outgoing)).await;
        let mut answers = answers.map_err(|s| CallError::from(failure(&s)))?.into_inner();
        match next(&mut answers).await? {
            Answer::Equal(_) => Ok(Compared::Equal(seq)),
            Answer::NotComparable(v1::HeadSyncNotComparable { seq: node }) => {
                Ok(Compared::Apart { ours: seq, node: Seq(node) })
            }
            Answer::Different(_) => {
                let theirs = read_pages(&requests, &mut answers, seq.0 + 1).await?;
                match self.own_elements(seq).map_err(local)? {
                    Some(ours) => Ok(Compared::Different(difference(&ours, &theirs))),
                    // Our log moved meanwhile: what was compared is no longer.
                    None => Ok(Compared::Apart { ours: seq, node: seq }),
                }
            }
            Answer::Page(_) => Err(CallError::BadAnswer("a HeadSync page that nobody asked for".to_owned())),
        }
    }

    fn own_digest(&self) -> Result<(Seq, [u8; 32]), ReadError> {
        self.shared.store.read(|tx| {
            let row = tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let digest = tx.digest(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            Ok((row.position.seq, digest.finish()))
        })
    }

    /// Everything that is compared, if our log still stands at `seq`.
    fn own_elements(&self, seq: Seq) -> Result<Option<Vec<Element>>, ReadError> {
        self.shared.store.read(|tx| {
            let row = tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            if row.position.seq != seq {
                return Ok(None);
            }
            let mut elements = Vec::new();
            let mut after: Option<TreeId> = None;
            loop {
                let page = tx.elements(self.id, after, limits::HEADSYNC_PAGE_MAX)?;
                let last = page.len() < limits::HEADSYNC_PAGE_MAX;
                after = page.last().and_then(Element::key);
                elements.extend(page);
                if last {
                    return Ok(Some(elements));
                }
            }
        })
    }

    /// Derives the named trees and the digest again from the log, which both sides agree on.
    async fn repair(&self, found: Difference) -> Result<(), crate::error::WriteError> {
        let space = self.id;
        let trees = found.trees.clone();
        let job = move |tx: &mut WriteTx<'_>| -> Result<usize, ReadError> {
            let mut repaired = 0;
            for tree in found.trees {
                if tx.tree(space, tree)?.is_some() && tx.rebuild_tree(space, tree)? == Rebuilt::Repaired {
                    repaired += 1;
                }
            }
            tx.rebuild_digest(space)?;
            Ok(repaired)
        };
        let written = self.shared.store.write(job).await;
        let repaired = written.map_err(crate::error::from_store_write)?.value;
        tracing::warn!(space = %self.id.short(), differing = trees.len(), repaired, "HeadSync found a difference");
        for tree in trees {
            self.refresh(tree);
        }
        Ok(())
    }
}

async fn ask(requests: &mpsc::Sender<v1::HeadSyncRequest>, message: Ask) -> Result<(), CallError> {
    let request = v1::HeadSyncRequest { message: Some(message) };
    requests.send(request).await.map_err(|_| CallError::Broken("the HeadSync stream ended".to_owned()))
}

async fn next(answers: &mut Streaming<v1::HeadSyncResponse>) -> Result<Answer, CallError> {
    let message = answers.message().await.map_err(|s| CallError::from(failure(&s)))?;
    message.and_then(|m| m.message).ok_or_else(|| CallError::Broken("the HeadSync stream ended".to_owned()))
}

async fn read_pages(
    requests: &mpsc::Sender<v1::HeadSyncRequest>,
    answers: &mut Streaming<v1::HeadSyncResponse>,
    elements_max: u64,
) -> Result<Vec<Element>, CallError> {
    let mut elements: Vec<Element> = Vec::new();
    loop {
        let after = elements.last().and_then(Element::key).map_or_else(Vec::new, |t| t.as_bytes().to_vec());
        ask(requests, Ask::NextPage(v1::HeadSyncNextPage { after: after.into() })).await?;
        let Answer::Page(page) = next(answers).await? else {
            return Err(CallError::BadAnswer("HeadSync answered something else than a page".to_owned()));
        };
        for element in &page.elements {
            let element = Element::try_from(element).map_err(|e| CallError::BadAnswer(e.to_string()))?;
            if elements.last().is_some_and(|last| last.key() >= element.key()) {
                return Err(CallError::BadAnswer("HeadSync pages out of order".to_owned()));
            }
            elements.push(element);
        }
        if elements.len() as u64 > elements_max {
            return Err(CallError::BadAnswer("more trees than the log has entries".to_owned()));
        }
        if page.last || page.elements.is_empty() {
            return Ok(elements);
        }
    }
}
