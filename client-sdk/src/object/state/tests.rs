use proptest::prelude::*;
use serde_json::json;
use sync_core::ids::ChangeId;
use sync_core::tree::Height;

use super::*;
use crate::object::{diff, op};

type Change = (OrderKey, Vec<Op>);

/// `2b`: height 2, an id that is greater than that of `2a`.
fn key(name: &str) -> OrderKey {
    let (height, id) = name.split_at(name.len() - 1);
    OrderKey { height: Height(height.parse().unwrap()), id: ChangeId::from_hash([id.as_bytes()[0]; 32]) }
}

fn op_of(word: &str) -> Op {
    let (field, rest) = word.split_at(1);
    let (sign, value) = rest.split_at(1.min(rest.len()));
    let field = field.to_owned();
    let json = || serde_json::from_str(value).unwrap();
    match sign {
        "=" => Op::Set { field, value: json() },
        "?" => Op::Unset { field },
        "+" => Op::AddToSet { field, value: json() },
        "-" => Op::RemoveFromSet { field, value: json() },
        "#" => Op::Inc { field, by: value.parse().unwrap() },
        "" if field == "!" => Op::Exists(Existence::Present),
        "" if field == "x" => Op::Exists(Existence::Deleted),
        _ => panic!("no operation: {word}"),
    }
}

/// Changes by `;`, words by spaces: the key of the change, then its operations.
fn history(script: &str) -> Vec<Change> {
    let change = |line: &str| {
        let mut words = line.split_whitespace();
        (key(words.next().unwrap()), words.map(op_of).collect())
    };
    script.split(';').map(change).collect()
}

fn fold<'a>(changes: impl IntoIterator<Item = &'a Change>) -> ObjectState {
    let mut state = ObjectState::new("note", "1");
    for (at, ops) in changes {
        state.apply(*at, ops);
    }
    state
}

fn permutations(of: &[Change]) -> Vec<Vec<&Change>> {
    let insert = |change, order: &Vec<_>, place| {
        let mut order = order.clone();
        order.insert(place, change);
        order
    };
    of.iter().fold(vec![vec![]], |orders, change| {
        orders.iter().flat_map(|order| (0..=order.len()).map(move |place| insert(change, order, place))).collect()
    })
}

/// The history gives these fields (`null`: the object does not exist) in every order, and when every change comes twice.
fn check(script: &str, expected: Value) {
    let changes = history(script);
    let reference = fold(&changes);
    for order in permutations(&changes) {
        let once = fold(order.iter().copied());
        assert_eq!(once.encode(), reference.encode(), "{script}: the order {order:?} gives another state");
        let twice = fold(order.iter().chain(&order).copied());
        assert_eq!(twice, once, "{script}: a duplicate gives another state");
    }
    assert_eq!(reference.exists(), !expected.is_null(), "{script}");
    let shown = if reference.exists() { Value::Object(reference.fields()) } else { Value::Null };
    assert_eq!(shown, expected, "{script}");
    assert_eq!(ObjectState::decode(&reference.encode()).unwrap(), reference, "{script}");
}

#[test]
fn set_and_unset() {
    check("1a f=1", json!({ "f": 1 }));
    check("1a f=1; 2a f=2", json!({ "f": 2 }));
    check("1a f=1; 1b f=2", json!({ "f": 2 }));
    check("1b f=1; 2a f=2", json!({ "f": 2 }));
    check("1a f=1 f=2", json!({ "f": 2 }));
    check("1a f=null", json!({ "f": null }));
    check("1a f=1; 2a f?", json!({}));
    check("1a f?; 2a f=1", json!({ "f": 1 }));
    check("1a f=1 f?", json!({}));
    check("1a f=1; 1b f?; 1c g=1", json!({ "g": 1 }));
    check(r#"1a f={"b":1.0,"a":[-0]}"#, json!({ "f": { "a": [0], "b": 1 } }));
}

#[test]
fn different_fields_both_survive_and_the_same_field_converges() {
    check("1a f=1; 2a f=2; 2b g=3", json!({ "f": 2, "g": 3 }));
    check("1a f=1; 2a f=2 g=3; 2b f=4", json!({ "f": 4, "g": 3 }));
}

#[test]
fn a_partial_write_clears_nothing() {
    let mut state = fold(&history("1a f=1 g=[1,2] h#3"));
    let wanted = Map::from_iter([("g".to_owned(), json!([2]))]);
    state.apply(key("2a"), &diff(&state.fields(), &wanted));
    assert_eq!(Value::Object(state.fields()), json!({ "f": 1, "g": [2], "h": 3 }));
    assert_eq!(diff(&state.fields(), &wanted), []);
}

#[test]
fn counters() {
    check("1a n#1; 1b n#2; 2a n#-5", json!({ "n": -2 }));
    check("1a n=10; 2a n#1; 2b n#1", json!({ "n": 12 }));
    // An inc that an older set overtakes, and one concurrent with the set on either side of it.
    check("1a n#1; 2a n=10; 3a n#1", json!({ "n": 11 }));
    check("2a n#1; 2b n=10; 2c n#1", json!({ "n": 11 }));
    // Two sets with an inc between: the older set, however late, brings nothing back.
    check("1a n=100; 2a n#1; 3a n=10; 4a n#1", json!({ "n": 11 }));
    check("1a n=10 n#1 n#1; 2a n#0", json!({ "n": 12 }));
    check("1a n#1 n=10", json!({ "n": 10 }));
    check("1a n=10; 2a n?; 3a n#1", json!({ "n": 1 }));
    check("1a n#1; 2a n?", json!({}));
    check(r#"1a n="ten"; 2a n#1"#, json!({ "n": 1 }));
}

#[test]
fn counter_arithmetic() {
    let max = i64::MAX;
    let min = i64::MIN;
    check(&format!("1a n#{max}; 2a n#{max}; 3a n#{max}"), json!({ "n": max }));
    check(&format!("1a n#{min}; 2a n#{min}"), json!({ "n": min }));
    // The bound is on the sum, not on the way there.
    check(&format!("1a n#{max}; 2a n#1; 3a n#-1"), json!({ "n": max }));
    check(&format!("1a n=1; 2a n#{max}; 3a n#-{max}"), json!({ "n": 1 }));
    check("1a n=1.5; 2a n#2", json!({ "n": 3.5 }));
    check("1a n=1.0; 2a n#2", json!({ "n": 3 }));
    let beyond = "9223372036854776000";
    check(&format!("1a n={beyond}; 2a n#1"), serde_json::from_str(&format!(r#"{{"n":{beyond}}}"#)).unwrap());
    let huge = fold(&history(&format!("1a n=1e308; 2a n#{max}"))).fields();
    assert_eq!(huge["n"].as_f64(), Some(1e308));
}

#[test]
fn sets() {
    check("1a s+2; 1b s+1", json!({ "s": [1, 2] }));
    check("1a s+1; 2a s+1; 2b s-1", json!({ "s": [] }));
    check("1a s+1; 2a s-1; 2b s+1", json!({ "s": [1] }));
    check("1a s+1; 2a s-2", json!({ "s": [1] }));
    check("1a s+1 s-1", json!({ "s": [] }));
    // Equal by canonical text.
    check(r#"1a s+{"a":1,"b":2.0}; 2a s-{"b":2,"a":1.0}"#, json!({ "s": [] }));
    check("1a s+1; 2a s+1.0", json!({ "s": [1] }));
    // A set is shown as written until an element changes, and then is its base elements.
    check("1a s=[3,1,3]", json!({ "s": [3, 1, 3] }));
    check("1a s=[3,1,3]; 2a s+2", json!({ "s": [1, 2, 3] }));
    check("1a s=[3,1,3]; 2a s-3; 2b s-4", json!({ "s": [1] }));
    check("1a s+1; 2a s=[2]; 3a s+3", json!({ "s": [2, 3] }));
    check("1a s-2; 2a s=[2]", json!({ "s": [2] }));
    check("2a s+1; 2b s=[2]; 2c s+3", json!({ "s": [2, 3] }));
    check("1a s+1; 2a s?; 3a s+2", json!({ "s": [2] }));
    check(r#"1a s="x"; 2a s+1"#, json!({ "s": [1] }));
}

#[test]
fn a_field_is_what_its_newest_operation_says() {
    check("1a f=5; 2a f#1; 3a f+7", json!({ "f": [7] }));
    check("1a f=5; 2a f+7; 3a f#1", json!({ "f": 6 }));
    check("1a f=5; 2a f+7; 3a f#1; 4a f-8", json!({ "f": [7] }));
    check("1a f=[5]; 2a f+7; 3a f#1", json!({ "f": 1 }));
    check("1a f=5; 2a f+7 f#1; 3a f=9", json!({ "f": 9 }));
    check("1a f=5; 2a f+7 f#1; 3a f?", json!({}));
}

#[test]
fn existence() {
    check("1a !", json!({}));
    check("1a f?", Value::Null);
    check("1a s-1", Value::Null);
    check("1a f=1; 2a x", Value::Null);
    check("1a f=1; 2a f=2; 2b x", Value::Null);
    // A concurrent put against a delete: the key decides.
    check("1a f=1; 2a x; 2b f=2", json!({ "f": 2 }));
    // Clearing does not revive.
    check("1a f=1; 2a x; 3a f? s-1", Value::Null);
    for put in ["!", "f=1", "f#1", "f+1"] {
        assert!(fold(&history(&format!("2a x; 3a {put}"))).exists(), "{put}");
        assert!(!fold(&history(&format!("3a x; 2a {put}"))).exists(), "{put}");
    }
    check("1a f=1 x", Value::Null);
    check("1a x f=1", json!({ "f": 1 }));
}

#[test]
fn a_revived_object_shows_only_what_is_newer_than_the_delete() {
    check("1a f=1 g=2; 2a x; 3a g=3", json!({ "g": 3 }));
    check("1a f=1; 2a x; 3a !", json!({}));
    check("1a n=10; 1b n#1; 2a x; 3a n#1", json!({ "n": 1 }));
    check("1a s=[1]; 1b s+2; 2a x; 3a s+3", json!({ "s": [3] }));
    check("1a f=1; 2a x; 3a g=1; 4a x", Value::Null);
    check("1a f=1; 2a x; 3a f=2; 2b g=5", json!({ "f": 2, "g": 5 }));
}

#[test]
fn what_cannot_count_is_not_kept() {
    let mut many = fold(&history("1a f=1 s+1 n#1 n#1; 2a s=[] n=0; 3a x"));
    assert!(many.fields.is_empty());
    many.apply(key("2b"), &[op_of("f=7")]);
    assert!(many.fields.is_empty());
    let settled = fold(&history("1a n#1; 1b n#1; 2a n=5")).fields["n"].clone();
    assert!(settled.increments.is_empty());
}

#[test]
fn an_operation_without_canonical_value_is_left_out() {
    let value = json!(9_007_199_254_740_993_u64);
    let field = "f".to_owned();
    let ops = [
        Op::Set { field: field.clone(), value: value.clone() },
        Op::AddToSet { field: field.clone(), value: value.clone() },
        Op::RemoveFromSet { field, value },
    ];
    assert_eq!(fold(&[(key("1a"), ops.to_vec())]), ObjectState::new("note", "1"));
}

#[test]
fn an_object_written_once_is_stored_in_few_bytes() {
    let state = fold(&history(r#"1a a="one" b="two" c="three" d=4 e=true"#));
    let content = "note1".len() + "abcde".len() + r#""one""two""three"4true"#.len();
    let overhead = state.encode().len() - content;
    assert!(overhead <= 100, "{overhead} bytes, of which one change id takes 32");
}

#[test]
fn the_stored_form_is_fixed() {
    let state = fold(&history("1a f=1"));
    let mut expected = b"\x08\x01\x12\x04note\x1a\x011\x22\x24\x08\x01\x12\x20".to_vec();
    expected.extend([b'a'; 32]);
    expected.extend(b"\x2a\x00\x3a\x06\x0a\x01f\x2a\x011");
    assert_eq!(state.encode(), expected);
}

#[test]
fn stored_bytes_that_were_never_written_are_refused() {
    let bytes = fold(&history("1a f=1 s+2; 2a n#1; 2b g?")).encode();
    let replaced = |from: &[u8], to: &[u8]| {
        let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
        [&bytes[..place], to, &bytes[place + from.len()..]].concat()
    };
    let refused = |bytes: &[u8]| ObjectState::decode(bytes).unwrap_err();
    assert!(matches!(refused(&[0xff; 8]), StateError::Malformed(_)));
    assert!(matches!(refused(b""), StateError::Version { found: 0 }));
    assert!(matches!(refused(&replaced(b"\x08\x01\x12\x04", b"\x08\x02\x12\x04")), StateError::Version { found: 2 }));
    // The base of f: another change, an unknown kind, other values.
    assert!(matches!(
        refused(&replaced(b"\x06\x0a\x01f\x2a", b"\x08\x0a\x01f\x18\x07\x2a")),
        StateError::Change { place: 7, changes: 3 }
    ));
    assert!(matches!(
        refused(&replaced(b"\x06\x0a\x01f\x2a", b"\x08\x0a\x01f\x10\x09\x2a")),
        StateError::Kind { kind: 9 }
    ));
    assert!(matches!(refused(&replaced(b"f\x2a\x011", b"f\x2a\x01x")), StateError::Json(_)));
    assert!(matches!(refused(&replaced(b"\x06\x0a\x01f\x2a\x011", b"\x08\x0a\x01f\x2a\x0301 ")), StateError::Json(_)));
    assert!(matches!(refused(&replaced(b"\x06\x0a\x01f\x2a\x011", b"\x08\x0a\x01f\x2a\x031.0")), StateError::Form));
    assert!(matches!(
        refused(&replaced(b"\x06\x0a\x01f\x2a\x011", b"\x0a\x0a\x01f\x2a\x051e400")),
        StateError::Value(_)
    ));
    // A field without anything, one out of order, an unknown member.
    assert!(matches!(refused(&[&bytes[..], b"\x3a\x05\x0a\x01z\x10\x02"].concat()), StateError::Form));
    assert!(matches!(refused(&[&bytes[..], b"\x3a\x06\x0a\x01a\x2a\x011"].concat()), StateError::Form));
    assert!(matches!(refused(&[&bytes[..], b"\x78\x01"].concat()), StateError::Form));
}

fn field() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["f", "g", "h"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Value> {
    let values =
        [json!(1), json!(2.5), json!("x"), json!(null), json!([1, "x"]), json!(["x", 3, 3]), json!({ "a": [1] })];
    prop::sample::select(values.to_vec())
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (field(), value()).prop_map(|(field, value)| Op::Set { field, value }),
        1 => field().prop_map(|field| Op::Unset { field }),
        3 => (field(), value()).prop_map(|(field, value)| Op::AddToSet { field, value }),
        2 => (field(), value()).prop_map(|(field, value)| Op::RemoveFromSet { field, value }),
        3 => (field(), prop_oneof![-3_i64..4, any::<i64>()]).prop_map(|(field, by)| Op::Inc { field, by }),
        1 => prop::sample::select(vec![Existence::Present, Existence::Deleted]).prop_map(Op::Exists),
    ]
}

/// What one of three writers does: reads what another has, or writes on all it has read.
#[derive(Debug, Clone)]
enum Step {
    Read(usize),
    Write([u8; 32], Vec<Op>),
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let write = (any::<[u8; 32]>(), prop::collection::vec(any_op(), 0..4)).prop_map(|(id, ops)| Step::Write(id, ops));
    (0..3_usize, prop_oneof![1 => (0..3_usize).prop_map(Step::Read), 2 => write])
}

/// A graph of changes: the height of each is 1 + the greatest that its writer had read.
fn run(steps: Vec<(usize, Step)>) -> Vec<Change> {
    let mut read = [None::<Height>; 3];
    let mut changes = Vec::new();
    for (writer, step) in steps {
        match step {
            Step::Read(other) => read[writer] = read[writer].max(read[other]),
            Step::Write(id, ops) => {
                let height = Height::above(read[writer]);
                changes.push((OrderKey { height, id: ChangeId::from_hash(id) }, ops));
                read[writer] = Some(height);
            }
        }
    }
    changes
}

/// A history, and the same with some changes repeated, in another order.
fn histories() -> impl Strategy<Value = (Vec<Change>, Vec<Change>)> {
    prop::collection::vec(step(), 1..24).prop_map(run).prop_flat_map(|changes| {
        let copies = prop::collection::vec(1..3_usize, changes.len());
        let history = changes.clone();
        let delivered = copies.prop_flat_map(move |copies| {
            let repeated = changes.iter().zip(copies).flat_map(|(change, n)| std::iter::repeat_n(change.clone(), n));
            Just(repeated.collect::<Vec<_>>()).prop_shuffle()
        });
        (Just(history), delivered)
    })
}

/// The rules, said again over the whole history: sorted, and without ever dropping anything.
fn shown_by_the_rules(changes: &[Change]) -> Option<Map<String, Value>> {
    let mut sorted = changes.to_vec();
    sorted.sort_by_key(|(at, _)| *at);
    let mut exists = false;
    let mut fields: BTreeMap<String, Vec<Op>> = BTreeMap::new();
    for op in sorted.into_iter().flat_map(|(_, ops)| ops) {
        match &op {
            Op::Exists(Existence::Present) => exists = true,
            Op::Exists(Existence::Deleted) => (exists, fields) = (false, BTreeMap::new()),
            Op::Set { field, .. } | Op::AddToSet { field, .. } | Op::Inc { field, .. } => {
                exists = true;
                fields.entry(field.clone()).or_default().push(op);
            }
            Op::Unset { field } | Op::RemoveFromSet { field, .. } => fields.entry(field.clone()).or_default().push(op),
        }
    }
    let shown = fields.into_iter().filter_map(|(name, ops)| Some((name, shown_field(&ops)?)));
    exists.then(|| shown.collect())
}

fn shown_field(ops: &[Op]) -> Option<Value> {
    let (mut base, mut sum, mut elements) = (None::<Value>, 0_i128, BTreeMap::new());
    let canonical = |value: &Value| Canonical::of(value).unwrap().text().to_owned();
    for op in ops {
        match op {
            Op::Set { value, .. } => {
                let items = value.as_array().into_iter().flatten().map(|item| (canonical(item), item.clone()));
                (base, sum, elements) = (Some(value.clone()), 0, items.collect());
            }
            Op::Unset { .. } => (base, sum, elements) = (None, 0, BTreeMap::new()),
            Op::Inc { by, .. } => sum += i128::from(*by),
            Op::AddToSet { value, .. } => drop(elements.insert(canonical(value), value.clone())),
            Op::RemoveFromSet { value, .. } => drop(elements.remove(&canonical(value))),
            Op::Exists(_) => unreachable!("not of a field"),
        }
    }
    match ops.last()? {
        Op::Set { .. } | Op::Unset { .. } => base,
        Op::AddToSet { .. } | Op::RemoveFromSet { .. } => Some(elements.into_values().collect()),
        Op::Inc { .. } => match base.filter(Value::is_number) {
            Some(base) if base.as_i64().is_none() => {
                let total = json!(base.as_f64().unwrap() + sum as f64);
                Some(serde_json::from_str(Canonical::of(&total).unwrap().text()).unwrap())
            }
            base => Some(json!(saturate(sum + i128::from(base.and_then(|b| b.as_i64()).unwrap_or(0))))),
        },
        Op::Exists(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn one_set_of_changes_gives_one_state((changes, delivered) in histories()) {
        let (here, there) = (fold(&changes), fold(&delivered));
        prop_assert_eq!(here.encode(), there.encode());
        prop_assert_eq!(here.fields(), there.fields());
        prop_assert_eq!(&here, &there);
    }

    #[test]
    fn the_state_shows_what_the_rules_say((changes, delivered) in histories()) {
        let state = fold(&delivered);
        let expected = shown_by_the_rules(&changes);
        prop_assert_eq!(state.exists(), expected.is_some());
        prop_assert_eq!(state.fields(), expected.unwrap_or_default());
    }

    #[test]
    fn folding_from_the_store_is_folding_from_scratch((_, delivered) in histories()) {
        let mut stored = ObjectState::new("note", "1").encode();
        for (at, ops) in &delivered {
            let mut state = ObjectState::decode(&stored).unwrap();
            state.apply(*at, &op::decode(&op::encode(ops)).unwrap());
            stored = state.encode();
        }
        prop_assert_eq!(stored, fold(&delivered).encode());
    }

    #[test]
    fn damaged_bytes_never_decode_to_another_encoding((changes, _) in histories(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut bytes = fold(&changes).encode();
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if let Ok(state) = ObjectState::decode(&bytes) {
            prop_assert_eq!(state.encode(), bytes);
        }
    }

    #[test]
    fn garbage_is_not_a_state(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(state) = ObjectState::decode(&bytes) {
            prop_assert_eq!(state.encode(), bytes);
        }
    }
}
