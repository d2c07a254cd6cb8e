//! The demo: two people, one node, one kill, and proofs at the end.
//!
//! Everything in it goes through the SDK, as an application would; nothing waits by sleeping. It fails loudly: whatever is
//! off ends it with an error.

mod node;
mod story;
mod timeline;
mod world;

use std::path::PathBuf;

use crate::app::App;
use crate::args::Demo;
use crate::error::CliError;
use crate::output::Answer;
use story::Story;
use timeline::Timeline;

pub(crate) async fn demo(app: &App, args: Demo) -> Result<Answer, CliError> {
    let binary = node_binary(args.node_binary)?;
    let dir = tempfile::Builder::new()
        .prefix("headwater-demo-")
        .tempdir()
        .map_err(CliError::file("a temporary directory"))?;
    let records = world::records(args.records).await?;
    let timeline = Timeline::new(app.out.clone());
    let told = Box::pin(Story::new(timeline, dir.path(), &binary, records).tell()).await;
    if args.keep {
        let kept = dir.keep();
        app.out.note(format!("kept: {}", kept.display())).await;
    }
    told
}

/// The node's program: the one that was named, or the one beside this one.
fn node_binary(named: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let binary = match named {
        Some(binary) => binary,
        None => {
            let own = std::env::current_exe().map_err(CliError::file("this program"))?;
            own.with_file_name("sync-node")
        }
    };
    if binary.is_file() {
        return Ok(binary);
    }
    let text = format!("there is no node at {}: build sync-node, or name it with --node-binary", binary.display());
    Err(CliError::NotFound(text))
}
