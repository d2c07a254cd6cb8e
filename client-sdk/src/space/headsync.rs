//! HeadSync, the client's side: proves on every connect, and where a heartbeat says otherwise, that what was derived here equals
//! what the node derived.

use std::collections::BTreeSet;
use std::sync::Arc;

use sync_core::ids::{Seq, SpaceId, TreeId};
use sync_core::limits;
use sync_core::log::EntryKind;
use sync_core::reconcile::{Asking, Decoded, Difference, Element, Next, Sketch, SymbolKey, TreePrefix, difference};
use sync_core::session::pause;
use sync_core::syncer::Priority;
use sync_proto::v1::{self, head_sync_request::Message as Ask, head_sync_response::Message as Answer};
use sync_store::{ReadTx, Rebuilt, SyncItemKind, WriteTx};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::SpaceInner;
use crate::connect::{Conn, failure};
use crate::error::{CallError, ReadError, from_store_write, local};
use crate::status::Confirmed;

pub(super) async fn run(space: Arc<SpaceInner>, conn: Conn, superseded: CancellationToken) {
    let mut failures = 0;
    loop {
        let compared = tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            () = superseded.cancelled() => return,
            compared = space.compare(&conn) => compared,
        };
        let Err(error) = compared else { return };
        tracing::debug!(space = %space.id.short(), error = %error, "HeadSync did not finish");
        if !error.is_transient() {
            // The node compares nothing with us any more, and what differed once may not.
            space.note_trouble(|t| t.different = None);
            return;
        }
        failures += 1;
        let [jitter] = space.shared.host.random();
        tokio::select! {
            biased;
            () = space.closed.cancelled() => return,
            () = superseded.cancelled() => return,
            // The next connection compares for itself.
            _ = space.shared.parted(&conn) => return,
            () = tokio::time::sleep(pause(failures, jitter)) => {}
        }
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
    /// Compares until both sides are found equal. What differs is judged again from the log, which both agree on; as long as
    /// the same still differs then, it is compared again, and no more is done about it: it is not ours.
    async fn compare(self: &Arc<Self>, conn: &Conn) -> Result<(), CallError> {
        let mut judged: Option<Difference> = None;
        let mut failures = 0;
        loop {
            // At one place of two logs nothing is alike.
            self.tail_stands(conn).await?;
            let rewinds = self.recovery.rewinds();
            match self.compare_once(conn).await? {
                _ if self.recovery.rewinds() != rewinds => {}
                Compared::Equal(seq) => {
                    self.note_trouble(|t| t.different = None);
                    self.note_confirmed(Confirmed { seq: seq.0, at_ms: self.shared.host.wall_ms() }).await;
                    return Ok(());
                }
                Compared::Apart { ours, node } => {
                    self.saw_node_seq(node);
                    self.comes_closer(ours, node).await;
                }
                Compared::Different(found) if judged.as_ref() == Some(&found) => {
                    let text = format!("{} still after they were derived again", in_words(&found));
                    self.note_trouble(|t| t.different = Some(text));
                    failures += 1;
                    let [jitter] = self.shared.host.random();
                    tokio::time::sleep(pause(failures, jitter)).await;
                }
                Compared::Different(found) => {
                    let text = in_words(&found);
                    self.note_trouble(|t| t.different = Some(text));
                    self.derive_again(&found).await?;
                    judged = Some(found);
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
        let (seq, digest) = self.own_digest().map_err(local)?;
        let (requests, outgoing) = mpsc::channel(1);
        let open = v1::HeadSyncOpen { space: self.id.to_bytes(), seq: seq.0, digest: digest.to_vec().into() };
        ask(&requests, Ask::Open(open)).await?;
        let mut rpc = conn.rpc();
        let answers = tokio::time::timeout(limits::UNARY_TIMEOUT, rpc.head_sync(ReceiverStream::new(outgoing))).await;
        let answers = answers.map_err(|_| CallError::TimedOut)?;
        let mut answers = answers.map_err(|s| CallError::from(failure(&s)))?.into_inner();
        match next(&mut answers).await? {
            Answer::Equal(_) => Ok(Compared::Equal(seq)),
            Answer::NotComparable(v1::HeadSyncNotComparable { seq: node }) => {
                Ok(Compared::Apart { ours: seq, node: Seq(node) })
            }
            Answer::Different(different) => self.find(Exchange { seq, requests, answers }, different).await,
            Answer::Page(_) | Answer::Cells(_) => {
                Err(CallError::BadAnswer("a part of HeadSync that nobody asked for".to_owned()))
            }
        }
    }

    /// From two digests that differ to what differs.
    async fn find(&self, mut with: Exchange, different: v1::HeadSyncDifferent) -> Result<Compared, CallError> {
        let seq = with.seq;
        match self.decode(&mut with, &different).await? {
            Coded::Found(found) => Ok(Compared::Different(found)),
            Coded::Moved { ours, node } => Ok(Compared::Apart { ours, node }),
            Coded::List => {
                let theirs = with.read_pages(seq.0 + 1).await?;
                Ok(match self.own_elements().await? {
                    (now, ours) if now == seq => Compared::Different(difference(&ours, &theirs)),
                    // Our log moved meanwhile: what was compared is no longer.
                    (now, _) => Compared::Apart { ours: now, node: seq },
                })
            }
        }
    }

    /// Decodes the difference from the node's cells, asking for more of them until it comes out.
    async fn decode(&self, with: &mut Exchange, first: &v1::HeadSyncDifferent) -> Result<Coded, CallError> {
        if first.cells.is_empty() {
            return Ok(Coded::List);
        }
        let bad = |e: &dyn std::fmt::Display| CallError::BadAnswer(e.to_string());
        let key: [u8; 32] = sync_proto::array("key", &first.key).map_err(|e| bad(&e))?;
        if first.elements > with.seq.0 + 1 {
            return Err(bad(&"more trees than the log has entries"));
        }
        let mut asking = Asking::new(SymbolKey::new(&key), first.elements);
        let mut block = first.cells.clone();
        let mut ours = self.own_sketch(asking.key().clone(), limits::HEADSYNC_SKETCH_CELLS).await?;
        loop {
            asking.take(&block).map_err(|e| bad(&e))?;
            if asking.cells() > ours.sketch.cells().len() {
                ours = self.own_sketch(asking.key().clone(), asking.cells() * 4).await?;
            }
            match asking.next(&ours.sketch) {
                Ok(Next::Decoded(decoded)) => return self.name_trees(with.seq, &ours, &decoded).map_err(local),
                Ok(Next::More) => {}
                // Elements that somebody made so that they do not decode are found in the list.
                Ok(Next::List) | Err(_) => return Ok(Coded::List),
            }
            block = match with.ask(Ask::More(v1::HeadSyncMore {})).await? {
                Answer::Cells(more) if more.cells.is_empty() => return Ok(Coded::List),
                Answer::Cells(more) => more.cells,
                Answer::NotComparable(v1::HeadSyncNotComparable { seq: node }) => {
                    return Ok(Coded::Moved { ours: with.seq, node: Seq(node) });
                }
                Answer::Equal(_) | Answer::Different(_) | Answer::Page(_) => {
                    return Err(bad(&"HeadSync answered something else than cells"));
                }
            };
        }
    }

    /// Which trees here the decoded symbols are. What our log touched since the digests were compared is no difference.
    fn name_trees(&self, compared: Seq, ours: &OwnSketch, decoded: &Decoded) -> Result<Coded, ReadError> {
        let (candidates, end) = self.elements_named(decoded)?;
        if end != ours.seq {
            return Ok(Coded::Moved { ours: end, node: compared });
        }
        let Ok(mut found) = decoded.resolve(ours.sketch.key(), &candidates) else { return Ok(Coded::List) };
        let touched = self.touched_since(compared)?;
        found.trees.retain(|tree| !touched.trees.contains(tree));
        found.elsewhere.retain(|prefix| !touched.trees.iter().any(|tree| TreePrefix::of(tree) == *prefix));
        found.acl &= !touched.acl;
        Ok(match found == Difference::default() {
            true => Coded::Moved { ours: end, node: compared },
            false => Coded::Found(found),
        })
    }

    /// Our elements that may be what was decoded, and the end of our log.
    pub(crate) fn elements_named(&self, decoded: &Decoded) -> Result<(Vec<Element>, Seq), ReadError> {
        self.shared.store.read(|tx| {
            let row = tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let mut candidates = vec![Element::AclHead(row.acl_head)];
            for prefix in decoded.prefixes() {
                candidates.extend(tx.elements_with(self.id, prefix)?);
            }
            Ok((candidates, row.position.seq))
        })
    }

    /// Everything that is compared, and the end of our log.
    pub(crate) async fn own_elements(&self) -> Result<(Seq, Vec<Element>), CallError> {
        let all = |tx: &ReadTx<'_>, space| {
            let mut elements = Vec::new();
            tx.each_element(space, |element| elements.push(element))?;
            Ok(elements)
        };
        self.read_whole(all).await
    }

    /// The coded form of everything that is compared, as of the end of our log.
    pub(crate) async fn own_sketch(&self, key: SymbolKey, cells: usize) -> Result<OwnSketch, CallError> {
        let mut sketch = Sketch::empty(key, cells.min(limits::HEADSYNC_CELLS_MAX));
        let read = move |tx: &ReadTx<'_>, space| {
            tx.each_element(space, |element| sketch.insert(&element))?;
            Ok(sketch)
        };
        let (seq, sketch) = self.read_whole(read).await?;
        Ok(OwnSketch { seq, sketch })
    }

    /// Reads through the space, out of the way of other tasks, and says where its log stood.
    async fn read_whole<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTx<'_>, SpaceId) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<(Seq, T), CallError> {
        let (store, space) = (self.shared.store.clone(), self.id);
        let read = move || {
            store.read(|tx| -> Result<_, ReadError> {
                let seq = tx.space(space)?.ok_or(ReadError::UnknownSpace(space))?.position.seq;
                Ok((seq, read(tx, space)?))
            })
        };
        let read = self.shared.host.blocking(read).await;
        read.map_err(local)?.map_err(local)
    }

    /// What the entries after `seq` touched.
    fn touched_since(&self, seq: Seq) -> Result<Touched, ReadError> {
        self.shared.store.read(|tx| {
            let mut touched = Touched::default();
            let mut after = seq;
            loop {
                let page = tx.entries(self.id, after, limits::PUSH_ITEMS_MAX, limits::BATCH_BYTES_MAX)?;
                let Some(last) = page.last() else { return Ok(touched) };
                after = last.position.seq;
                touched.acl |= page.iter().any(|entry| entry.kind == EntryKind::Acl);
                touched.trees.extend(page.iter().filter_map(|entry| entry.tree));
            }
        })
    }

    pub(super) fn own_digest(&self) -> Result<(Seq, [u8; 32]), ReadError> {
        self.shared.store.read(|tx| {
            let row = tx.space(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            let digest = tx.digest(self.id)?.ok_or(ReadError::UnknownSpace(self.id))?;
            Ok((row.position.seq, digest.finish()))
        })
    }

    /// Sums the digest up again, queues what differs or is missing here, and waits until the engine has judged all of it.
    async fn derive_again(self: &Arc<Self>, found: &Difference) -> Result<(), CallError> {
        let space = self.id;
        let job = move |tx: &mut WriteTx<'_>| -> Result<Rebuilt, ReadError> { Ok(tx.rebuild_digest(space)?) };
        let digest = self.shared.store.write(job).await.map_err(|e| local(from_store_write::<ReadError>(e)))?.value;
        let named: BTreeSet<TreeId> = found.trees.iter().copied().collect();
        // What only the node told of stands in our log, too, if the logs are one.
        let elsewhere = found.elsewhere.iter().copied().collect();
        let places = self.places_of(named.clone(), elsewhere).await.map_err(local)?;
        let trees: Vec<_> =
            named.into_iter().chain(places.of.into_keys()).collect::<BTreeSet<_>>().into_iter().collect();
        tracing::warn!(space = %space.short(), differing = trees.len(), ?digest, "HeadSync found a difference");
        self.want(trees, SyncItemKind::Judge, Priority::Gap).await.map_err(local)?;
        let mut moved = self.moved.subscribe();
        while self.is_judging().map_err(local)? {
            moved.changed().await.map_err(|_| self.shared.offline())?;
        }
        Ok(())
    }

    fn is_judging(&self) -> Result<bool, ReadError> {
        let counts = self.shared.store.read(|tx| tx.sync_item_counts(self.id))?;
        Ok(counts.iter().any(|(kind, count, _)| *kind == SyncItemKind::Judge && *count > 0))
    }
}

fn in_words(found: &Difference) -> String {
    let trees = found.trees_len();
    if found.acl { format!("the ACL and {trees} tree(s) differ") } else { format!("{trees} tree(s) differ") }
}

/// The stream of one comparison, of what both sides had at `seq`.
struct Exchange {
    seq: Seq,
    requests: mpsc::Sender<v1::HeadSyncRequest>,
    answers: Streaming<v1::HeadSyncResponse>,
}

/// What the node's cells said.
enum Coded {
    Found(Difference),
    /// What was compared is no longer.
    Moved {
        ours: Seq,
        node: Seq,
    },
    List,
}

/// Our sketch, as of entry `seq`.
pub(crate) struct OwnSketch {
    seq: Seq,
    pub(crate) sketch: Sketch,
}

/// What some entries touched.
#[derive(Default)]
struct Touched {
    trees: BTreeSet<TreeId>,
    acl: bool,
}

async fn ask(requests: &mpsc::Sender<v1::HeadSyncRequest>, message: Ask) -> Result<(), CallError> {
    let request = v1::HeadSyncRequest { message: Some(message) };
    requests.send(request).await.map_err(|_| CallError::Broken("the HeadSync stream ended".to_owned()))
}

async fn next(answers: &mut Streaming<v1::HeadSyncResponse>) -> Result<Answer, CallError> {
    let message = tokio::time::timeout(limits::UNARY_TIMEOUT, answers.message()).await;
    let message = message.map_err(|_| CallError::TimedOut)?.map_err(|s| CallError::from(failure(&s)))?;
    message.and_then(|m| m.message).ok_or_else(|| CallError::Broken("the HeadSync stream ended".to_owned()))
}

impl Exchange {
    async fn ask(&mut self, message: Ask) -> Result<Answer, CallError> {
        ask(&self.requests, message).await?;
        next(&mut self.answers).await
    }

    async fn read_pages(&mut self, elements_max: u64) -> Result<Vec<Element>, CallError> {
        let mut elements: Vec<Element> = Vec::new();
        loop {
            let after = elements.last().and_then(Element::key).map_or_else(Vec::new, |t| t.as_bytes().to_vec());
            let Answer::Page(page) = self.ask(Ask::NextPage(v1::HeadSyncNextPage { after: after.into() })).await?
            else {
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
}
