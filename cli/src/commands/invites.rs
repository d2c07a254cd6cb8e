//! Invites: making, listing, ending, explaining them.

use client_sdk::{
    Client, InviteInfo, InviteMode, InviteOptions, InviteStatus, NotSyncedCode, ReceiptError, SignedReceipt, Space,
    SpaceId, token_from_text,
};
use serde_json::{Value, json};

use crate::app::App;
use crate::args::Offer;
use crate::error::CliError;
use crate::output::{Answer, pairs, table};
use crate::text;
use crate::who::is_beginning;

pub(crate) async fn create(app: &App, offer: Offer) -> Result<Answer, CliError> {
    app.with_client(async |client: &Client| {
        let first = app.space(client)?;
        let mut spaces = vec![(first.clone(), options(app, &first, &offer)?)];
        for typed in &offer.also {
            let space = app.space_typed(client, typed)?;
            if spaces.iter().any(|(other, _)| other.id() == space.id()) {
                return Err(CliError::Usage(format!("{typed:?} is in the token already")));
            }
            // What must be seen and is required are objects of the first space.
            let options = InviteOptions { must_see: Vec::new(), requires: Vec::new(), ..spaces[0].1.clone() };
            spaces.push((space, options));
        }
        let spinner = app.out.spinner("pushing what the invite is for");
        for (space, _) in &spaces {
            pushed_before(app, space).await?;
        }
        spinner.say("making the invite");
        let invite = client.invite_to(&spaces).await?;
        drop(spinner);
        for reason in &invite.not_pushed {
            app.out.note(format!("not on the node yet: {reason}")).await;
        }
        let each: Vec<_> = spaces
            .iter()
            .zip(&invite.ids)
            .map(|((space, _), id)| json!({ "space": space.id().to_string(), "invite": id.to_string() }))
            .collect();
        let json = json!({
            "space": first.id().to_string(),
            "invite": invite.id().to_string(),
            "invites": each,
            "label": offer.label,
            "token": invite.token,
            "not_pushed": invite.not_pushed,
        });
        Ok(Answer::new(invite.token, json))
    })
    .await
}

fn options(app: &App, space: &Space, offer: &Offer) -> Result<InviteOptions, CliError> {
    let trees = |typed: &[String]| typed.iter().map(|t| app.tree_id(space, t)).collect::<Result<Vec<_>, _>>();
    Ok(InviteOptions {
        mode: if offer.open { InviteMode::Open } else { InviteMode::Approval },
        role: offer.role.into(),
        expires_in: offer.expires,
        max_uses: offer.uses,
        must_see: trees(&offer.must_see)?,
        requires: trees(&offer.requires)?,
        label: offer.label.clone(),
    })
}

/// An invite speaks of what the node has, so ours goes there first. What cannot is named.
async fn pushed_before(app: &App, space: &Space) -> Result<(), CliError> {
    match space.await_synced_within(app.timeout()).await {
        Err(error) if error.code == NotSyncedCode::NoNode => Err(error.into()),
        // The invite says itself what is not there.
        Ok(_) | Err(_) => Ok(()),
    }
}

pub(crate) async fn list(app: &App) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let invites = space.invites()?;
        if invites.is_empty() {
            app.out.note("there are no invites: headwater invite makes one").await;
        }
        let rows = invites.iter().map(|i| {
            vec![
                i.id.to_string(),
                i.label.as_deref().map(text::plain).unwrap_or_default(),
                text::mode(i.mode).to_owned(),
                i.role.to_string(),
                i.max_uses.map_or_else(|| i.uses.to_string(), |max| format!("{} of {max}", i.uses)),
                i.expires_ms.map_or_else(|| "never".to_owned(), text::moment),
                status(i, text::now_ms()).to_owned(),
            ]
        });
        let said = match invites.as_slice() {
            [] => String::new(),
            _ => table(&["invite", "label", "mode", "role", "uses", "expires", "status"], rows),
        };
        let json: Vec<_> = invites.iter().map(invite_json).collect();
        Ok(Answer::new(said, json!({ "space": space.id().to_string(), "invites": json })))
    })
    .await
}

fn invite_json(invite: &InviteInfo) -> Value {
    json!({
        "invite": invite.id.to_string(),
        "label": invite.label,
        "mode": text::mode(invite.mode),
        "role": invite.role.to_string(),
        "creator": invite.creator.to_string(),
        "uses": invite.uses,
        "max_uses": invite.max_uses,
        "expires_ms": invite.expires_ms,
        "status": status(invite, text::now_ms()),
    })
}

/// Whether it can be used, as far as can be told here: it is the node's clock that counts.
fn status(invite: &InviteInfo, now_ms: u64) -> &'static str {
    match invite.status {
        InviteStatus::Revoked => "revoked",
        InviteStatus::Dead => "dead",
        InviteStatus::Live if invite.max_uses.is_some_and(|max| invite.uses >= max) => "used up",
        InviteStatus::Live if invite.expires_ms.is_some_and(|at| at <= now_ms) => "expired",
        InviteStatus::Live => "live",
    }
}

pub(crate) async fn revoke(app: &App, typed: &str) -> Result<Answer, CliError> {
    app.with_space(async |_: &Client, space: &Space| {
        app.refresh(space).await?;
        let invites = space.invites()?;
        let invite = choose(&invites, typed)?;
        {
            let _spinner = app.out.spinner("asking the node");
            space.revoke_invite(invite.id).await?;
        }
        let label = invite.label.as_deref().map_or_else(String::new, |label| format!(" ({})", text::plain(label)));
        let json = json!({
            "space": space.id().to_string(),
            "invite": invite.id.to_string(),
            "label": invite.label,
            "status": "revoked",
        });
        Ok(Answer::new(format!("revoked {}{label}", invite.id), json))
    })
    .await
}

/// The invite that was meant: by its id, the beginning of it, or a label that only one has.
pub(crate) fn choose<'a>(invites: &'a [InviteInfo], typed: &str) -> Result<&'a InviteInfo, CliError> {
    let labelled: Vec<_> = invites.iter().filter(|i| i.label.as_deref() == Some(typed)).collect();
    let live: Vec<_> = labelled.iter().copied().filter(|i| i.status == InviteStatus::Live).collect();
    let by_id = || {
        let is_meant = |i: &&InviteInfo| is_beginning(&i.id.to_string(), client_sdk::InviteId::PREFIX, typed);
        invites.iter().filter(is_meant).collect::<Vec<_>>()
    };
    // A label may be used again when its invite is over; an id never is.
    let found = match (by_id(), live.is_empty()) {
        (ids, _) if !ids.is_empty() => ids,
        (_, true) => labelled,
        (_, false) => live,
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(CliError::NotFound(format!("there is no invite {typed:?} here: headwater invite list"))),
        several => {
            let all: Vec<_> = several.iter().map(|i| i.id.to_string()).collect();
            let n = several.len();
            Err(CliError::Usage(format!("{typed:?} could be {n} invites; use the id: {}", all.join(", "))))
        }
    }
}

/// What a token says, offline. Its secret is not printed.
pub(crate) async fn show(app: &App, typed: &str) -> Result<Answer, CliError> {
    let token = token_from_text(&app.caller.read_token(typed).await?)?;
    let token = token.body();
    let expires = match token.expires_ms {
        0 => "never".to_owned(),
        at if at <= text::now_ms() => format!("{}: it is over", text::moment(at)),
        at => text::moment(at),
    };
    let mut rows = vec![
        ("authority", token.authority.to_string()),
        ("node", token.addresses.iter().map(|a| text::plain(a)).collect::<Vec<_>>().join(", ")),
        ("inviter", token.inviter.to_string()),
        ("created", text::moment(token.created_ms)),
        ("expires", expires),
    ];
    let mut spaces = Vec::new();
    for space in &token.spaces {
        let how = match space.mode {
            InviteMode::Open => "whoever holds this joins by itself, and can read the space without joining",
            InviteMode::Approval => "an admin accepts or declines",
        };
        let receipt = Known::of(space.space, space.receipt.clone().map(SignedReceipt::from_export));
        rows.push(("space", space.space.to_string()));
        rows.push(("  mode", format!("{}: {how}", text::mode(space.mode))));
        rows.push(("  role", space.role.to_string()));
        let must_see: Vec<_> = space.must_see.iter().map(|t| t.tree.to_string()).collect();
        rows.push(("  must see", text::count(must_see.len(), "object")));
        rows.extend(must_see.iter().map(|tree| ("", tree.clone())));
        rows.push(("  receipt", receipt.text()));
        spaces.push(json!({
            "space": space.space.to_string(),
            "mode": text::mode(space.mode),
            "role": space.role.to_string(),
            "must_see": must_see,
            "has_receipt": space.receipt.is_some(),
            "receipt_seq": receipt.seq(),
        }));
    }
    let json = json!({
        "authority": token.authority.to_string(),
        "addresses": token.addresses,
        "inviter": token.inviter.to_string(),
        "created_ms": token.created_ms,
        "expires_ms": (token.expires_ms != 0).then_some(token.expires_ms),
        "spaces": spaces,
    });
    Ok(Answer::new(pairs(app.out.paint(), rows), json))
}

/// What the inviter knew of the log.
enum Known {
    Nothing,
    UpTo(u64),
    Unproven,
}

impl Known {
    fn of(space: SpaceId, receipt: Option<Result<SignedReceipt, ReceiptError>>) -> Self {
        match receipt {
            None => Self::Nothing,
            Some(Ok(receipt)) if receipt.body().space == space => Self::UpTo(receipt.body().seq.0),
            Some(_) => Self::Unproven,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Nothing => "none: the joiner has only the node's word for how long the log is".to_owned(),
            Self::UpTo(seq) => format!("the node signed the log up to entry {seq}; it cannot show the joiner less"),
            Self::Unproven => "it proves nothing: ask for another invite".to_owned(),
        }
    }

    const fn seq(&self) -> Option<u64> {
        match self {
            Self::UpTo(seq) => Some(*seq),
            Self::Nothing | Self::Unproven => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use client_sdk::{InviteId, Role, Seq};

    use super::*;
    use crate::who::tests::account;

    fn invite(n: usize, label: Option<&str>) -> InviteInfo {
        InviteInfo {
            // The same keys as accounts, under another prefix.
            id: account(n).to_string().replacen("acct_", InviteId::PREFIX, 1).parse().expect("an invite"),
            mode: InviteMode::Approval,
            role: Role::Writer,
            creator: account(0),
            uses: 0,
            max_uses: None,
            expires_ms: None,
            status: InviteStatus::Live,
            label: label.map(str::to_owned),
            created: Seq(3),
        }
    }

    #[test]
    fn an_invite_by_id_beginning_or_label() {
        let mut all = [invite(0, Some("Bo")), invite(1, Some("Bo")), invite(2, None)];
        let id = all[2].id.to_string();
        assert_eq!(choose(&all, &id).map(|i| i.id).ok(), Some(all[2].id));
        assert_eq!(choose(&all, &id[..InviteId::PREFIX.len() + 4]).map(|i| i.id).ok(), Some(all[2].id));
        assert_eq!(choose(&all, "Bo").map_err(|e| e.code()).err(), Some("USAGE"));
        assert_eq!(choose(&all, "Cy").map_err(|e| e.code()).err(), Some("NOT_FOUND"));
        all[0].status = InviteStatus::Revoked;
        assert_eq!(choose(&all, "Bo").map(|i| i.id).ok(), Some(all[1].id), "the one that lives");
    }

    #[test]
    fn what_can_be_used() {
        let mut one = invite(0, None);
        assert_eq!(status(&one, 10), "live");
        one.expires_ms = Some(10);
        assert_eq!((status(&one, 9), status(&one, 10)), ("live", "expired"));
        (one.uses, one.max_uses) = (2, Some(2));
        assert_eq!(status(&one, 9), "used up");
        one.status = InviteStatus::Dead;
        assert_eq!(status(&one, 9), "dead");
    }
}
