//! The devices of the account.

use client_sdk::{Client, DeviceId, DeviceInfo};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::Confirm;
use crate::commands::plan;
use crate::error::CliError;
use crate::output::{Answer, table};
use crate::text;
use crate::who::is_beginning;

pub(crate) async fn list(app: &App) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        known(app, client).await;
        let devices = client.devices()?;
        let rows = devices.iter().map(|d| {
            vec![
                d.name.as_deref().map_or_else(|| "(not here yet)".to_owned(), text::plain),
                d.id.to_string(),
                if d.is_this { "yes".to_owned() } else { String::new() },
                d.added_ms.map_or_else(String::new, text::moment),
            ]
        });
        let said = table(&["name", "device", "this one", "added"], rows);
        let each: Vec<_> = devices.iter().map(device_json).collect();
        let revoked = client.is_revoked();
        if revoked {
            app.out.note("this device was revoked: what stands here is what it knew last").await;
        }
        let json = json!({
            "account": client.account().to_string(),
            "device_revoked": revoked,
            "devices": each,
        });
        Ok(Answer::new(said, json))
    })
    .await
}

/// Learns which devices there are, if the node can be reached.
async fn known(app: &App, client: &Client) {
    app.tell_devices(client).await;
    if client.connected(std::time::Duration::ZERO).await.is_err() && !client.is_revoked() {
        app.out.note("the node could not be asked: these are the devices that are known here").await;
    }
}

fn device_json(device: &DeviceInfo) -> Value {
    json!({
        "device": device.id.to_string(),
        "name": device.name,
        "added_ms": device.added_ms,
        "this": device.is_this,
    })
}

pub(crate) async fn revoke(app: &App, typed: &str, confirm: Confirm) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        known(app, client).await;
        let devices = client.devices()?;
        let id = choose(&devices, typed)?;
        let name = devices.iter().find(|d| d.id == id).and_then(|d| d.name.clone());
        let shown = name.as_deref().map_or_else(|| id.to_string(), |name| format!("{} ({id})", text::plain(name)));
        let plan = [
            format!("the node ends the sessions of {shown} and opens no more for it"),
            "what is on that device stays there: if it holds the 24 words, move to a new account".to_owned(),
        ];
        plan::ask(app, confirm, "Revoking a device", &plan).await?;
        {
            let _spinner = app.out.spinner("asking the node");
            client.revoke_device(id).await?;
        }
        app.tell_devices(client).await;
        let json = json!({ "device": id.to_string(), "name": name, "revoked": true });
        Ok(Answer::new(format!("revoked {shown}"), json))
    })
    .await
}

/// The device that was meant: by its id, the beginning of it, or a name that only one has.
fn choose(devices: &[DeviceInfo], typed: &str) -> Result<DeviceId, CliError> {
    if let Ok(device) = typed.parse() {
        return Ok(device);
    }
    let is_meant = |d: &&DeviceInfo| match typed.starts_with(DeviceId::PREFIX) {
        true => is_beginning(&d.id.to_string(), DeviceId::PREFIX, typed),
        false => d.name.as_deref() == Some(typed),
    };
    match devices.iter().filter(is_meant).collect::<Vec<_>>().as_slice() {
        [one] => Ok(one.id),
        [] => Err(CliError::NotFound(format!("the account has no device {typed:?}: headwater devices"))),
        several => {
            let all: Vec<_> = several.iter().map(|d| d.id.to_string()).collect();
            let n = several.len();
            Err(CliError::Usage(format!("{typed:?} could be {n} devices; use the id: {}", all.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::who::tests::account;

    fn device(n: usize, name: &str) -> DeviceInfo {
        // The same keys as accounts, under another prefix.
        let id = account(n).to_string().replacen("acct_", DeviceId::PREFIX, 1).parse().expect("a device");
        DeviceInfo { id, name: Some(name.to_owned()), added_ms: None, is_this: false }
    }

    #[test]
    fn a_device_by_id_beginning_or_name() {
        let all = [device(0, "phone"), device(1, "laptop"), device(2, "laptop")];
        let id = all[1].id.to_string();
        assert_eq!(choose(&all, &id).ok(), Some(all[1].id));
        assert_eq!(choose(&all, &id[..DeviceId::PREFIX.len() + 4]).ok(), Some(all[1].id));
        assert_eq!(choose(&all, "phone").ok(), Some(all[0].id));
        assert_eq!(choose(&all, "laptop").map_err(|e| e.code()).err(), Some("USAGE"));
        assert_eq!(choose(&all, "tablet").map_err(|e| e.code()).err(), Some("NOT_FOUND"));
    }
}
