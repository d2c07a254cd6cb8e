//! Core to wire. We do not lie: everything is `From`.

use bytes::Bytes;
use sync_core::log::Position;
use sync_core::reconcile::Element;

use crate::{peer_v1, v1};

impl From<&Position> for v1::ChainPoint {
    fn from(position: &Position) -> Self {
        Self { seq: position.seq.0, chain: position.chain.to_bytes() }
    }
}

impl From<&Element> for peer_v1::PeerElement {
    fn from(element: &Element) -> Self {
        use peer_v1::peer_element::State;
        let tree = element.key().map_or_else(Bytes::new, |tree| tree.to_bytes());
        let state = match element {
            Element::AclHead(head) => State::AclHead(head.to_bytes()),
            Element::Tree { heads_hash, .. } => State::HeadsHash(Bytes::copy_from_slice(heads_hash)),
            Element::Purged { by, .. } => State::PurgedBy(by.to_bytes()),
        };
        Self { tree, state: Some(state) }
    }
}

impl From<&Element> for v1::HeadSyncElement {
    fn from(element: &Element) -> Self {
        use v1::head_sync_element::State;
        let key = element.key().map_or_else(Bytes::new, |tree| tree.to_bytes());
        let state = match element {
            Element::AclHead(head) => State::AclHead(head.to_bytes()),
            Element::Tree { heads_hash, .. } => State::HeadsHash(Bytes::copy_from_slice(heads_hash)),
            Element::Purged { by, .. } => State::PurgedBy(by.to_bytes()),
        };
        Self { key, state: Some(state) }
    }
}
