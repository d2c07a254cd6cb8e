//! The rules without IO: real records, real decisions, real keys, over ordered maps, with messages in seeded order.

mod map_log;
mod world;

pub use map_log::{MapLog, Taken};
pub use world::{Judged, PureWorld};
