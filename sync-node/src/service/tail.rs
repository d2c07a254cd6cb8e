//! HeadUpdates: the tail of the log of every space that a session subscribes to, on one stream.
//!
//! Each subscription is a task with a cursor. It is level-triggered: the store says "there is something up to seq n", the task
//! reads what lies after its cursor. Nothing is queued for a subscriber, so nothing overflows and nothing is lost when it is
//! slow; the stream's bounded channel is what slows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sync_core::code::Code;
use sync_core::ids::{Seq, SpaceId};
use sync_core::limits;
use sync_core::log::Position;
use sync_core::record::{Receipt, Verified};
use sync_proto::status::Failure;
use sync_proto::v1::{
    DurableTo, ErrorDetail, HeadUpdate, HeadUpdatesRequest, HeadUpdatesResponse, Heartbeat, LogEntry, Pong, Rewound,
    Subscribe, Subscribed, SubscriptionRefused, head_updates_request, head_updates_response, log_entry,
};
use sync_proto::{id, required};
use sync_store::{LogRow, Watermarks};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{Instrument as _, debug, info_span};

use super::{State, next};
use crate::answers::Answers;
use crate::failure::CallError;
use crate::gate::{IsAll, TailPage};
use crate::metrics;
use crate::session::Session;

type Frame = head_updates_response::Message;

pub(super) async fn head_updates(
    state: Arc<State>,
    session: Session,
    mut requests: Streaming<HeadUpdatesRequest>,
    answers: Answers<HeadUpdatesResponse>,
) -> Result<(), CallError> {
    let mut subscriptions = Subscriptions { state, session, answers, running: BTreeMap::new() };
    while let Some(request) = next(&mut requests).await? {
        match required("message", request.message)? {
            head_updates_request::Message::Subscribe(subscribe) => subscriptions.begin(subscribe).await?,
            head_updates_request::Message::Unsubscribe(unsubscribe) => {
                subscriptions.end(&id(&unsubscribe.space)?).await;
            }
            head_updates_request::Message::Ping(ping) => {
                send(&subscriptions.answers, Frame::Pong(Pong { number: ping.number })).await?;
            }
        }
    }
    Ok(())
}

/// The subscriptions of one stream. Dropping it ends them.
struct Subscriptions {
    state: Arc<State>,
    session: Session,
    answers: Answers<HeadUpdatesResponse>,
    running: BTreeMap<SpaceId, Running>,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
    }
}

impl Subscriptions {
    async fn begin(&mut self, subscribe: Subscribe) -> Result<(), CallError> {
        let space: SpaceId = id(&subscribe.space)?;
        // The earlier one is over before the new one's first frame.
        self.end(&space).await;
        self.running.retain(|_, running| !running.task.is_finished());
        let Some(room) = self.session.subscription_room() else {
            let max = limits::SUBSCRIPTIONS_MAX;
            let failure = Failure::new(Code::LimitReached, format!("a connection carries at most {max} subscriptions"));
            return send(&self.answers, refused(space, &failure)).await;
        };
        let stop = CancellationToken::new();
        let tail = Tail {
            state: Arc::clone(&self.state),
            session: self.session.clone(),
            answers: self.answers.clone(),
            space,
            cursor: Seq(subscribe.cursor),
            durable_sent: Seq::ZERO,
        };
        let (task_stop, node_stop) = (stop.clone(), self.state.tasks.clone());
        let span = info_span!("subscription", space = %space.short(), cursor = subscribe.cursor);
        let work = async move {
            let _counted = (metrics::Subscribed::begin(), room);
            let run = node_stop.unless_stopped(tail.run(subscribe));
            // Both ends mean that nobody waits for this subscription's frames any more.
            let _ = task_stop.run_until_cancelled(run).await;
        };
        let task = self.state.tasks.spawn(work.instrument(span));
        self.running.insert(space, Running { stop, task });
        Ok(())
    }

    async fn end(&mut self, space: &SpaceId) {
        let Some(running) = self.running.remove(space) else { return };
        running.stop.cancel();
        if let Err(error) = running.task.await {
            debug!(%error, "a subscription ended badly");
        }
    }
}

/// One subscription.
struct Tail {
    state: Arc<State>,
    session: Session,
    answers: Answers<HeadUpdatesResponse>,
    space: SpaceId,
    /// The last entry that was sent, or that the subscriber said it has.
    cursor: Seq,
    /// The last `durable_seq` that the subscriber was told.
    durable_sent: Seq,
}

/// Where a subscriber's log meets the node's.
enum Meeting {
    AtTheCursor(Subscribed),
    Rewound(Rewound),
}

impl Tail {
    async fn run(mut self, subscribe: Subscribe) {
        let frame = match self.follow(&subscribe).await {
            Ok(End::Rewound(rewound)) => Frame::Rewound(rewound),
            Ok(End::MembershipEnded) => refused(self.space, &CallError::forbidden(&self.space).into_failure()),
            Err(CallError::HungUp) => return,
            Err(error @ (CallError::Failed(_) | CallError::Store(_))) => refused(self.space, &error.into_failure()),
        };
        // If the stream is gone there is nobody to tell.
        let _ = send(&self.answers, frame).await;
    }

    async fn follow(&mut self, subscribe: &Subscribe) -> Result<End, CallError> {
        match self.meet(subscribe.read_ladder()?).await? {
            Meeting::AtTheCursor(subscribed) => send(&self.answers, Frame::Subscribed(subscribed)).await?,
            Meeting::Rewound(rewound) => return Ok(End::Rewound(rewound)),
        }
        let mut marks = self.state.gate.watch(self.space).await?;
        let mut beats = heartbeats();
        let mut beat = None;
        loop {
            let mark = *marks.borrow_and_update();
            if self.catch_up(mark).await? == IsAll::Yes {
                return Ok(End::MembershipEnded);
            }
            self.tell_durable(mark).await?;
            self.tell_heartbeat(&mut beat).await?;
            tokio::select! {
                // In this order: a log that moves all the time has heartbeats, too.
                biased;
                _ = beats.tick() => beat = self.heartbeat(&mut marks).await?,
                moved = marks.changed() => moved.map_err(|_| CallError::shutting_down())?,
            }
        }
    }

    /// Compares the subscriber's ladder with the node's chain.
    async fn meet(&self, ladder: Vec<Position>) -> Result<Meeting, CallError> {
        let cursor = self.cursor;
        let space = self.space;
        let meet = move |view: &crate::gate::TailView<'_, '_>| {
            let end = view.position()?;
            let holds = |point: &Position| Ok::<_, CallError>(view.position_at(point.seq)? == Some(*point));
            let continues = match ladder.first() {
                Some(first) if first.seq == cursor => holds(first)?,
                Some(_) => return Err(CallError::new(Code::Malformed, "the ladder begins with the cursor")),
                None => cursor <= end.seq,
            };
            if continues && view.is_all(cursor) == IsAll::Yes {
                return Err(CallError::forbidden(&space));
            }
            if continues {
                let history = Bytes::copy_from_slice(&view.history()?.0);
                let histories = view.histories()?;
                return Ok(Meeting::AtTheCursor(Subscribed { space: space.to_bytes(), history, histories }));
            }
            let mut common = Seq::ZERO;
            for point in &ladder {
                if point.seq > common && holds(point)? {
                    common = point.seq;
                }
            }
            Ok(Meeting::Rewound(Rewound {
                space: space.to_bytes(),
                common_seq: common.0,
                node_seq: end.seq.0,
                node_chain: end.chain.to_bytes(),
                history: Bytes::copy_from_slice(&view.history()?.0),
                histories: view.histories()?,
            }))
        };
        self.state.gate.as_subscriber(&self.session, self.space, meet).await
    }

    /// Sends what lies between the cursor and the durable end of the log.
    async fn catch_up(&mut self, mark: Watermarks) -> Result<IsAll, CallError> {
        while self.cursor < mark.durable_seq {
            let cursor = self.cursor;
            // A page is read when there is a place for it: what waits for a slow reader is not in memory.
            let answers = self.answers.clone();
            let place = answers.reserve().await?;
            let read = move |view: &crate::gate::TailView<'_, '_>| view.page(cursor, mark.durable_seq);
            let page = self.state.gate.as_subscriber(&self.session, self.space, read).await?;
            let is_all = page.is_all;
            let Some(last) = page.rows.last() else { return Ok(is_all) };
            self.cursor = last.position.seq;
            place.send(self.page_to_wire(page));
            if is_all == IsAll::Yes {
                return Ok(IsAll::Yes);
            }
        }
        Ok(IsAll::No)
    }

    fn page_to_wire(&mut self, page: TailPage) -> HeadUpdatesResponse {
        let durable_seq = page.durable_seq;
        metrics::entries_sent(page.rows.len());
        let heads = page.heads.iter().map(Into::into).collect();
        let entries = page.rows.into_iter().map(|row| self.entry(row)).collect();
        let update = HeadUpdate { space: self.space.to_bytes(), entries, heads, durable_seq: durable_seq.0 };
        self.durable_sent = durable_seq;
        HeadUpdatesResponse { message: Some(Frame::Update(update)) }
    }

    /// What this very session pushed comes back as its id alone.
    fn entry(&self, row: LogRow) -> LogEntry {
        let entry = if self.session.has_pushed(&row.id) {
            log_entry::Entry::Id(row.id.to_bytes())
        } else {
            log_entry::Entry::Record(row.record.into())
        };
        LogEntry { seq: row.position.seq.0, entry: Some(entry) }
    }

    async fn tell_durable(&mut self, mark: Watermarks) -> Result<(), CallError> {
        if mark.durable_seq <= self.durable_sent {
            return Ok(());
        }
        self.durable_sent = mark.durable_seq;
        let durable = DurableTo { space: self.space.to_bytes(), durable_seq: mark.durable_seq.0 };
        send(&self.answers, Frame::Durable(durable)).await
    }

    /// A receipt is made when it is due; the right to see it is shown anew.
    async fn heartbeat(
        &self,
        marks: &mut watch::Receiver<Watermarks>,
    ) -> Result<Option<Arc<Verified<Receipt>>>, CallError> {
        let gate = &self.state.gate;
        let still = gate.as_member(&self.session, self.space, |_| Ok(())).await;
        if still.is_err() {
            // The next round sends the entry that ended the membership, and ends. It must come round.
            marks.mark_changed();
            return Ok(None);
        }
        self.state.receipts.heartbeat(gate, self.space).await.map(Some)
    }

    /// A receipt is sent after the entries that it speaks of.
    async fn tell_heartbeat(&self, due: &mut Option<Arc<Verified<Receipt>>>) -> Result<(), CallError> {
        let Some(receipt) = due.take_if(|receipt| receipt.body().seq <= self.cursor) else { return Ok(()) };
        let receipt = Some(receipt.raw().clone().into());
        send(&self.answers, Frame::Heartbeat(Heartbeat { space: self.space.to_bytes(), receipt })).await
    }
}

/// How a subscription ends that nobody ended.
enum End {
    Rewound(Rewound),
    MembershipEnded,
}

fn heartbeats() -> Interval {
    let mut beats =
        tokio::time::interval_at(tokio::time::Instant::now() + limits::HEARTBEAT_INTERVAL, limits::HEARTBEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

fn refused(space: SpaceId, failure: &Failure) -> Frame {
    Frame::Refused(SubscriptionRefused { space: space.to_bytes(), error: Some(ErrorDetail::from(failure)) })
}

async fn send(answers: &Answers<HeadUpdatesResponse>, frame: Frame) -> Result<(), CallError> {
    answers.send(HeadUpdatesResponse { message: Some(frame) }).await
}
