//! OpenSession and ProveSession.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use sync_core::code::Code;
use sync_core::ids::{AccountId, DeviceId};
use sync_core::limits;
use sync_core::pb::SignedRecord;
use sync_core::record::{DeviceCertificate, DeviceList, Verified};
use sync_core::session::{Nonces, sign_challenge, verify_proof};
use sync_proto::status::Failure;
use sync_proto::v1::{Challenge, Hello, Limits, Proof, SessionToken, VersionRange};
use sync_proto::{array, id, read_verified, required};

use tracing::{Instrument as _, Span};

use super::State;
use crate::failure::CallError;
use crate::incoming::Link;
use crate::metrics;
use crate::session::{Candidate, millis, revoked};

/// The protocol versions that this node speaks.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=1;
/// A longer Hello is refused: two small records and a few names are far shorter.
const HELLO_BYTES_MAX: usize = 128 << 10;
/// Optional parts of the protocol that this node has. None yet: everything in version 1 is always there.
const FEATURES: [&str; 0] = [];

pub(super) fn open(state: &State, link: &Link, hello: Hello) -> Result<Challenge, CallError> {
    if hello.encoded_len() > HELLO_BYTES_MAX {
        return Err(CallError::new(Code::TooLarge, format!("a Hello is longer than {HELLO_BYTES_MAX} bytes")));
    }
    check_versions(required("versions", hello.versions)?)?;
    let account: AccountId = id(&hello.account)?;
    let device: DeviceId = id(&hello.device)?;
    let client = array("client_nonce", &hello.client_nonce)?;
    let certificate: Verified<DeviceCertificate> = read_verified("certificate", hello.certificate)?;
    let device_list: Verified<DeviceList> = read_verified("device_list", hello.device_list.map(copied))?;
    check_papers(account, device, &certificate, &device_list)?;

    let handshake = state.host.random();
    let nonces = Nonces { client, server: state.host.random() };
    let signature = sign_challenge(&state.identity.node_key, &nonces, &account, &device);
    state.sessions.begin(state.host.now(), handshake, Candidate { account, device, device_list, nonces }, link)?;
    Ok(Challenge {
        session: Bytes::copy_from_slice(&handshake),
        authority: state.identity.authority().to_bytes(),
        node_certificate: Some(state.identity.certificate.raw().clone().into()),
        server_nonce: Bytes::copy_from_slice(&nonces.server),
        limits: Some(announced_limits()),
        features: common_features(&hello.features),
        versions: Some(VersionRange { min: *VERSIONS.start(), max: *VERSIONS.end() }),
        signature: Bytes::copy_from_slice(&signature),
    })
}

/// Goes on when its caller is gone: a list that is kept must also end the sessions that it leaves out.
pub(super) async fn prove(state: Arc<State>, link: Link, proof: Proof) -> Result<SessionToken, CallError> {
    let tasks = state.tasks.clone();
    let span = Span::current();
    let proving = tasks.spawn(async move { prove_to_the_end(&state, &link, proof).await }.instrument(span));
    proving.await.unwrap_or_else(|_| Err(CallError::shutting_down()))
}

async fn prove_to_the_end(state: &State, link: &Link, proof: Proof) -> Result<SessionToken, CallError> {
    let candidate = state.sessions.take(state.host.now(), &array("session", &proof.session)?, link)?;
    verify_proof(&candidate.device, &candidate.nonces, &state.identity.authority(), &proof.signature).map_err(
        |_| CallError::new(Code::SessionRefused, "the proof is not the device's signature for this session"),
    )?;
    let (device, device_list) = (candidate.device, candidate.device_list.clone());
    // The session is in the table before the list is looked at: a newer list that comes in between ends it.
    let token = state.sessions.admit(state.host.now(), state.host.random(), candidate, link)?;
    let counts = match state.gate.keep_device_list(device_list).await {
        Ok(counts) => counts,
        Err(error) => {
            state.sessions.discard(&token);
            return Err(error);
        }
    };
    if let Some(counts) = &counts {
        let is_named = counts.body().names(&device);
        if !is_named {
            state.sessions.discard(&token);
        }
        metrics::sessions_revoked(state.sessions.apply_device_list(counts.body()));
        if !is_named {
            let device_list = Some(Box::new(counts.raw().clone().into()));
            return Err(Failure { device_list, ..revoked() }.into());
        }
    }
    metrics::session_opened();
    link.note_proven();
    let expires_in_ms = millis(limits::SESSION_IDLE_MAX);
    let device_list = counts.map(|list| list.into_raw().into());
    Ok(SessionToken { token: Bytes::copy_from_slice(token.as_bytes()), expires_in_ms, device_list })
}

/// What is kept must not keep the whole message: its parts are slices of one buffer.
fn copied(record: SignedRecord) -> SignedRecord {
    let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    SignedRecord {
        body: copy(&record.body),
        signature: copy(&record.signature),
        payload: record.payload.as_ref().map(copy),
        ..record
    }
}

fn check_versions(theirs: VersionRange) -> Result<(), Failure> {
    if theirs.min <= *VERSIONS.end() && theirs.max >= *VERSIONS.start() {
        return Ok(());
    }
    let text = format!(
        "the client speaks protocol versions {} to {}, the node {} to {}: upgrade the older one",
        theirs.min,
        theirs.max,
        VERSIONS.start(),
        VERSIONS.end()
    );
    Err(Failure::new(Code::VersionMismatch, text))
}

fn check_papers(
    account: AccountId,
    device: DeviceId,
    certificate: &Verified<DeviceCertificate>,
    list: &Verified<DeviceList>,
) -> Result<(), Failure> {
    let certified = certificate.body();
    if certified.account != account || certified.device != device {
        return Err(Failure::new(Code::SessionRefused, "the device certificate is for another account or device"));
    }
    if list.body().account != account {
        return Err(Failure::new(Code::SessionRefused, "the device list is another account's"));
    }
    Ok(())
}

fn announced_limits() -> Limits {
    Limits {
        message_bytes_max: u32::try_from(limits::MESSAGE_BYTES_MAX).unwrap_or(u32::MAX),
        heartbeat_interval_ms: u32::try_from(limits::HEARTBEAT_INTERVAL.as_millis()).unwrap_or(u32::MAX),
        ids_per_request_max: u32::try_from(limits::IDS_PER_REQUEST_MAX).unwrap_or(u32::MAX),
    }
}

fn common_features(theirs: &[String]) -> Vec<String> {
    FEATURES.iter().filter(|ours| theirs.iter().any(|t| t == *ours)).map(ToString::to_string).collect()
}
