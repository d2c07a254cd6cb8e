//! The account and its devices.

use sync_proto::client_v1 as pb;

use crate::client::Client;
use crate::local::failure::LocalError;
use crate::local::from_wire::id;

pub(super) async fn me(client: Client, _: pb::GetMeRequest) -> Result<pb::Me, LocalError> {
    Ok(pb::Me {
        account: client.account().to_string(),
        device: client.device().to_string(),
        node: client.node().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device_revoked: client.is_revoked(),
    })
}

pub(super) async fn devices(client: Client, _: pb::ListDevicesRequest) -> Result<pb::ListDevicesResponse, LocalError> {
    Ok(pb::ListDevicesResponse { devices: client.devices()?.into_iter().map(Into::into).collect() })
}

pub(super) async fn revoke_device(
    client: Client,
    request: pb::RevokeDeviceRequest,
) -> Result<pb::RevokeDeviceResponse, LocalError> {
    client.revoke_device(id("device", &request.device)?).await?;
    Ok(pb::RevokeDeviceResponse {})
}
