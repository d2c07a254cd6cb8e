//! What happens, and how spaces stand.

use std::collections::BTreeSet;

use sync_core::ids::SpaceId;
use sync_proto::client_v1 as pb;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;

use super::pages::page_token;
use super::{members, spaces};
use crate::account::ClientEvent;
use crate::client::Client;
use crate::error::ReadError;
use crate::events::{EventCursor, Events, LoggedEvents};
use crate::local::failure::LocalError;
use crate::local::from_wire::{BadRequest, PageRequest, reason_code, required};
use crate::local::to_wire;
use crate::space::Space;
use crate::status::SpaceStatus;

/// Events that wait for a slow reader, beside those that each feed keeps.
const HEARD_MAX: usize = 16;

pub(super) fn events(
    client: Client,
    request: pb::EventsRequest,
) -> Result<impl Stream<Item = Result<pb::Event, LocalError>> + Send + 'static, LocalError> {
    let feed = match (&request.cursor, request.space.as_str()) {
        (None, "") => Feed::Live(Feeds::of_everything(client)?),
        (None, space) => {
            let space = spaces::of(&client, space)?;
            Feed::Live(Feeds::of_one(client, &space))
        }
        (Some(cursor), space) => {
            let space = spaces::of(&client, space)?;
            let events = Box::new(space.events_from(cursor_of(&space, cursor)?));
            Feed::Logged { events, _client: client }
        }
    };
    Ok(async_stream::try_stream! {
        let mut feed = feed;
        let listening = pb::event::Event::Listening(pb::event::Listening {});
        yield pb::Event { space: request.space, event: Some(listening), cursor: feed.cursor(), seq: 0 };
        while let Some(event) = feed.next().await? {
            yield event;
        }
    })
}

fn cursor_of(space: &Space, text: &str) -> Result<EventCursor, LocalError> {
    Ok(match text {
        "start" => EventCursor::START,
        "now" => space.event_cursor()?,
        text => text.parse().map_err(|_| BadRequest::Cursor)?,
    })
}

/// What a reader of events wants to be told.
enum Feed {
    /// What happens, at once.
    Live(Feeds),
    /// What the log says, from a cursor on.
    Logged { events: Box<LoggedEvents>, _client: Client },
}

impl Feed {
    /// Where the reader is.
    fn cursor(&self) -> String {
        match self {
            Self::Live(_) => String::new(),
            Self::Logged { events, .. } => events.cursor().to_string(),
        }
    }

    async fn next(&mut self) -> Result<Option<pb::Event>, ReadError> {
        match self {
            Self::Live(feeds) => feeds.next().await,
            Self::Logged { events, .. } => Ok(events.next().await?.map(Into::into)),
        }
    }
}

/// Several feeds as one. What listens for it ends with it.
struct Feeds {
    client: Client,
    heard: mpsc::Receiver<Heard>,
    say: mpsc::Sender<Heard>,
    listening: JoinSet<()>,
    spaces: BTreeSet<SpaceId>,
}

enum Heard {
    Space(pb::Event),
    Account(ClientEvent),
    /// The client was closed.
    End,
}

impl Feeds {
    fn new(client: Client) -> Self {
        let (say, heard) = mpsc::channel(HEARD_MAX);
        Self { client, heard, say, listening: JoinSet::new(), spaces: BTreeSet::new() }
    }

    fn of_one(client: Client, space: &Space) -> Self {
        let mut feeds = Self::new(client);
        feeds.listen(space);
        feeds
    }

    fn of_everything(client: Client) -> Result<Self, ReadError> {
        let mut feeds = Self::new(client);
        // Before the spaces are listed: one that comes in between is heard of twice, and listened to once.
        let (mut events, say) = (feeds.client.events(), feeds.say.clone());
        feeds.listening.spawn(async move {
            while let Some(event) = events.next().await {
                if say.send(Heard::Account(event)).await.is_err() {
                    return;
                }
            }
            let _ = say.send(Heard::End).await;
        });
        for info in feeds.client.spaces()? {
            let space = feeds.client.space(info.id)?;
            feeds.listen(&space);
        }
        Ok(feeds)
    }

    fn listen(&mut self, space: &Space) {
        if self.spaces.insert(space.id()) {
            self.listening.spawn(hear(space.id(), space.events(), self.say.clone()));
        }
    }

    async fn next(&mut self) -> Result<Option<pb::Event>, ReadError> {
        match self.heard.recv().await {
            Some(Heard::Space(event)) => Ok(Some(event)),
            Some(Heard::Account(event)) => {
                match event {
                    ClientEvent::SpaceAppeared { space } => match self.client.space(space) {
                        Ok(space) => self.listen(&space),
                        // It was forgotten again meanwhile.
                        Err(ReadError::UnknownSpace(_)) => {}
                        Err(error) => return Err(error),
                    },
                    ClientEvent::SpaceGone { space } => drop(self.spaces.remove(&space)),
                    ClientEvent::JoinsChanged
                    | ClientEvent::DevicesChanged
                    | ClientEvent::DeviceRevoked
                    | ClientEvent::Lagged { .. } => {}
                }
                Ok(Some(event.into()))
            }
            Some(Heard::End) | None => Ok(None),
        }
    }
}

async fn hear(space: SpaceId, mut events: Events, say: mpsc::Sender<Heard>) {
    while let Some(event) = events.next().await {
        let mut event = pb::Event::from(event);
        // A feed that lagged does not say of which space it is.
        event.space = space.to_string();
        if say.send(Heard::Space(event)).await.is_err() {
            return;
        }
    }
}

pub(super) async fn status(client: Client, request: pb::GetStatusRequest) -> Result<pb::SpaceStatus, LocalError> {
    message(&client, &spaces::of(&client, &request.space)?)
}

fn message(client: &Client, space: &Space) -> Result<pb::SpaceStatus, LocalError> {
    let status: SpaceStatus = space.status()?;
    Ok(to_wire::status(&status, space.acl()?.role(&client.account())))
}

pub(super) fn watch_status(
    client: Client,
    request: pb::WatchStatusRequest,
) -> Result<impl Stream<Item = Result<pb::SpaceStatus, LocalError>> + Send + 'static, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    Ok(async_stream::try_stream! {
        let mut statuses = space.status_stream();
        while let Some(status) = statuses.next().await? {
            yield to_wire::status(&status, space.acl()?.role(&client.account()));
        }
    })
}

pub(super) async fn tree_status(
    client: Client,
    request: pb::GetTreeStatusRequest,
) -> Result<pb::TreeStatus, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let tree = members::tree(&space, required("tree", request.tree)?)?;
    Ok(space.tree_status(tree)?.into())
}

pub(super) async fn peers(client: Client, request: pb::ListPeersRequest) -> Result<pb::ListPeersResponse, LocalError> {
    let peers = spaces::of(&client, &request.space)?.peers()?;
    Ok(pb::ListPeersResponse { peers: peers.into_iter().map(Into::into).collect() })
}

pub(super) async fn explain(
    client: Client,
    request: pb::ExplainSyncRequest,
) -> Result<pb::ExplainSyncResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let reasons = match request.tree {
        None => space.explain()?,
        Some(named) => space.tree_status(members::tree(&space, named)?)?.reasons,
    };
    Ok(pb::ExplainSyncResponse { reasons: reasons.iter().map(Into::into).collect() })
}

pub(super) async fn reason_items(
    client: Client,
    request: pb::ListReasonItemsRequest,
) -> Result<pb::ListReasonItemsResponse, LocalError> {
    let space = spaces::of(&client, &request.space)?;
    let wanted = PageRequest::new(request.page_size, &request.page_token)?;
    let skip = wanted.after.as_deref().map_or(Ok(0), str::parse).map_err(|_| BadRequest::PageToken)?;
    // One more than is wanted: whether there are more.
    let mut items = space.reason_items(reason_code(&request.code)?, skip, wanted.size + 1)?;
    let more = items.len() > wanted.size;
    items.truncate(wanted.size);
    let next_page_token = if more { page_token(&(skip + items.len()).to_string()) } else { String::new() };
    Ok(pb::ListReasonItemsResponse { items: items.iter().map(Into::into).collect(), next_page_token })
}
