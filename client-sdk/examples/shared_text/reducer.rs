//! Yjs documents over trees, by Yrs: a change of the tree carries one Yjs update.

use bytes::Bytes;
use client_sdk::{Order, ReducedChange, Reducer};
use yrs::updates::decoder::Decode as _;
use yrs::{Doc, GetString as _, ReadTxn as _, StateVector, TextRef, Transact as _, TransactionMut, Update};

/// What the payloads of the tree are.
pub(crate) const DATA_TYPE: &str = "yjs-update-v1";
const TEXT: &str = "text";

/// A tree as one shared text.
#[derive(Debug)]
pub(crate) struct Text;

/// The text at one moment, and the document that it is of: a Yrs document is a shared handle, so readers get its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextView {
    pub(crate) text: String,
    pub(crate) document: Vec<u8>,
}

/// Why an update could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TextError {
    #[error("it is no Yjs update")]
    Decode(#[from] yrs::encoding::read::Error),
    #[error("it does not fit the document")]
    Apply(#[from] yrs::error::UpdateError),
}

impl Reducer for Text {
    type State = Doc;
    type View = TextView;
    type Error = TextError;
    // Yjs puts updates in their place by itself, and knows those that it has.
    const ORDER: Order = Order::Any;

    fn start() -> Doc {
        Doc::new()
    }

    fn append(document: &mut Doc, change: &ReducedChange) -> Result<(), TextError> {
        let update = Update::decode_v1(&change.payload)?;
        Ok(document.transact_mut().apply_update(update)?)
    }

    fn view(document: &Doc) -> TextView {
        let text = document.get_or_insert_text(TEXT);
        let read = document.transact();
        TextView { text: text.get_string(&read), document: read.encode_state_as_update_v1(&StateVector::default()) }
    }
}

/// What an edit of a text is as the payload of a change.
pub(crate) fn edit(view: &TextView, edit: impl FnOnce(&TextRef, &mut TransactionMut<'_>)) -> Result<Bytes, TextError> {
    // A document of its own has a client id of its own, so two edits of one view do not collide.
    let document = Doc::new();
    let text = document.get_or_insert_text(TEXT);
    let mut transaction = document.transact_mut();
    transaction.apply_update(Update::decode_v1(&view.document)?)?;
    let before = transaction.state_vector();
    edit(&text, &mut transaction);
    Ok(transaction.encode_diff_v1(&before).into())
}

/// The view of a text that nobody wrote yet.
pub(crate) fn empty() -> TextView {
    Text::view(&Text::start())
}
