//! Lists in pages: bounded in number and in bytes, in the order of a key that stays with an item.

use data_encoding::BASE64URL_NOPAD;
use prost::Message;
use sync_core::limits;

use crate::local::from_wire::PageRequest;

/// One page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page<M> {
    pub(super) items: Vec<M>,
    /// Empty at the end of the list.
    pub(super) next: String,
}

/// The page of `all` that is wanted. Items are made into messages one by one, as far as they are needed.
pub(super) fn page<T, M: Message>(
    mut all: Vec<(String, T)>,
    wanted: &PageRequest,
    mut message: impl FnMut(T) -> M,
) -> Page<M> {
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rest = all.into_iter().filter(|(key, _)| wanted.after.as_ref().is_none_or(|after| key > after)).peekable();
    let (mut items, mut bytes, mut last) = (Vec::new(), 0, String::new());
    while items.len() < wanted.size
        && let Some((key, item)) = rest.next()
    {
        let item = message(item);
        bytes += item.encoded_len();
        items.push(item);
        last = key;
        if bytes >= limits::BATCH_BYTES_MAX {
            break;
        }
    }
    let next = if rest.peek().is_some() { page_token(&last) } else { String::new() };
    Page { items, next }
}

/// What leads to the page after the item of a key.
pub(super) fn page_token(key: &str) -> String {
    BASE64URL_NOPAD.encode(key.as_bytes())
}

/// A key by which later things stand behind earlier ones.
pub(super) fn at(moment: u64, id: impl std::fmt::Display) -> String {
    format!("{moment:020}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(n: usize) -> Vec<(String, String)> {
        (0..n).rev().map(|i| (format!("{i:04}"), "x".repeat(100 << 10))).collect()
    }

    fn wanted(size: u32, token: &str) -> PageRequest {
        PageRequest::new(size, token).expect("a page")
    }

    #[test]
    fn pages_follow_one_another_and_end() {
        let (mut seen, mut token) = (0, String::new());
        let mut pages = 0;
        loop {
            let page = page(all(7), &wanted(3, &token), |text| text);
            seen += page.items.len();
            pages += 1;
            token = page.next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((seen, pages), (7, 3));
    }

    #[test]
    fn a_page_ends_where_a_message_is_full() {
        let page = page(all(30), &wanted(30, ""), |text| text);
        assert_eq!(page.items.len(), 6);
        assert!(!page.next.is_empty());
    }

    #[test]
    fn the_last_page_has_no_token() {
        let last = page(all(4), &wanted(4, ""), |text| text);
        assert_eq!((last.items.len(), last.next.as_str()), (4, ""));
        assert_eq!(page(Vec::<(String, String)>::new(), &wanted(0, ""), |text| text).items, Vec::<String>::new());
    }
}
