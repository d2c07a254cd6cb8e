//! What happens, as it happens.

use std::time::Instant;

use serde_json::{Value, json};

use crate::error::CliError;
use crate::output::{Form, Output, Paint};

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    Node,
    Admin,
    Member,
    Anyone,
}

impl Actor {
    const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Anyone => "anyone",
        }
    }

    fn painted(self, paint: Paint) -> String {
        let text = format!("{:<6}", self.name());
        match self {
            Self::Node => paint.yellow(text),
            Self::Admin => paint.cyan(text),
            Self::Member => paint.magenta(text),
            Self::Anyone => paint.green(text),
        }
    }
}

/// Prints events with the time since the beginning.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) out: Output,
    began: Instant,
    proven: Vec<String>,
}

impl Timeline {
    pub(super) fn new(out: Output) -> Self {
        Self { out, began: Instant::now(), proven: Vec::new() }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) async fn say(&self, actor: Actor, what: impl AsRef<str>) -> Result<(), CliError> {
        let (ms, what) = (self.elapsed_ms(), what.as_ref());
        let paint = self.out.paint();
        let text = format!("{} {}  {what}", paint.dim(format!("{ms:>7} ms")), actor.painted(paint));
        self.out.line(&text, &json!({ "event": "step", "ms": ms, "who": actor.name(), "what": what })).await
    }

    /// Something that holds now, for the summary.
    pub(super) fn proven(&mut self, what: impl Into<String>) {
        self.proven.push(what.into());
    }

    pub(super) async fn finish(&self, facts: &Value) -> Result<(), CliError> {
        let paint = self.out.paint();
        let ms = self.elapsed_ms();
        if self.out.form() == Form::Json {
            return self
                .out
                .line("", &json!({ "event": "proven", "ms": ms, "proven": self.proven, "facts": facts }))
                .await;
        }
        let title = paint.bold(format!("Proven in {ms} ms:"));
        let lines: String = self.proven.iter().map(|what| format!("\n  {} {what}", paint.green("✓"))).collect();
        self.out.line(&format!("\n{title}{lines}"), &Value::Null).await
    }
}
