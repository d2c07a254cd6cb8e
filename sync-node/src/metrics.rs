//! What a node counts, by its stable names. Nothing is counted where no recorder is installed: the binary installs one when
//! `metrics` is set, a library user its own.
//!
//! Never a space, account or object in a label: metrics say how much, not who.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use metrics::Unit;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

const RECORDS: &str = "headwater_records_total";
const SESSIONS: &str = "headwater_sessions_opened_total";
const SESSIONS_REVOKED: &str = "headwater_sessions_revoked_total";
const SUBSCRIPTIONS: &str = "headwater_subscriptions";
const ENTRIES_SENT: &str = "headwater_entries_sent_total";
const CERTIFY_SECONDS: &str = "headwater_certify_seconds";
const REPUSHED: &str = "headwater_repushed_entries_total";
const RECOVERING: &str = "headwater_recovering";
const COMPARISONS: &str = "headwater_headsync_total";
const CELLS_SENT: &str = "headwater_headsync_cells_sent_total";
const SKETCHES_BUILT: &str = "headwater_sketches_built_total";
const SKETCHES: &str = "headwater_sketches";
const SKETCH_BYTES: &str = "headwater_sketch_bytes";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("{0:?} is not a host and port for metrics")]
    Address(String),
    #[error("metrics cannot be served")]
    Serve(#[from] BuildError),
}

/// Serves the process's metrics in the Prometheus text format on `listen`. For the binary: there is one recorder a process.
///
/// # Errors
/// If the address is wrong or taken.
pub fn serve(listen: &str) -> Result<(), MetricsError> {
    let address: Option<SocketAddr> = listen.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address = address.ok_or_else(|| MetricsError::Address(listen.to_owned()))?;
    PrometheusBuilder::new().with_http_listener(address).install()?;
    describe();
    Ok(())
}

fn describe() {
    describe_counter!(RECORDS, "pushed records by outcome: accepted, known, or the code of the refusal");
    describe_counter!(SESSIONS, "sessions that were proven");
    describe_counter!(SESSIONS_REVOKED, "sessions that a newer device list ended");
    describe_gauge!(SUBSCRIPTIONS, "spaces that are followed now, over all sessions");
    describe_counter!(ENTRIES_SENT, "log entries sent to subscribers");
    describe_histogram!(CERTIFY_SECONDS, Unit::Seconds, "time to a durable receipt");
    describe_counter!(REPUSHED, "lost log entries that clients brought back");
    describe_gauge!(RECOVERING, "1 while nothing new is taken after a restore");
    describe_counter!(COMPARISONS, "HeadSync comparisons by outcome: equal, different, not_comparable");
    describe_counter!(CELLS_SENT, "cells sent to replicas that differ");
    describe_counter!(SKETCHES_BUILT, "spaces that were read through to make a sketch");
    describe_gauge!(SKETCHES, "sketches that follow the log of their space now");
    describe_gauge!(SKETCH_BYTES, Unit::Bytes, "memory of all sketches, those that are being sent included");
}

pub(crate) fn record(outcome: &'static str) {
    counter!(RECORDS, "outcome" => outcome).increment(1);
}

pub(crate) fn session_opened() {
    counter!(SESSIONS).increment(1);
}

pub(crate) fn sessions_revoked(count: u64) {
    counter!(SESSIONS_REVOKED).increment(count);
}

pub(crate) fn entries_sent(count: usize) {
    counter!(ENTRIES_SENT).increment(count as u64);
}

pub(crate) fn certified(took: Duration) {
    histogram!(CERTIFY_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn repushed(count: usize) {
    counter!(REPUSHED).increment(count as u64);
}

pub(crate) fn recovery_began() {
    gauge!(RECOVERING).set(1.0);
}

pub(crate) fn recovery_over() {
    gauge!(RECOVERING).set(0.0);
}

pub(crate) fn compared(outcome: &'static str) {
    counter!(COMPARISONS, "outcome" => outcome).increment(1);
}

pub(crate) fn cells_sent(count: usize) {
    counter!(CELLS_SENT).increment(count as u64);
}

pub(crate) fn sketch_built() {
    counter!(SKETCHES_BUILT).increment(1);
}

pub(crate) fn sketches_hot(count: usize) {
    gauge!(SKETCHES).set(count as f64);
}

pub(crate) fn sketch_bytes(bytes: usize) {
    gauge!(SKETCH_BYTES).set(bytes as f64);
}

/// Counts one subscription for as long as it lives.
#[derive(Debug)]
pub(crate) struct Subscribed(());

impl Subscribed {
    pub(crate) fn begin() -> Self {
        gauge!(SUBSCRIPTIONS).increment(1.0);
        Self(())
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        gauge!(SUBSCRIPTIONS).decrement(1.0);
    }
}
