//! One text for one JSON value (RFC 8785), and the values that have none.

use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

use super::op::Op;

/// How deep arrays and objects may nest: `[]` has depth 1, `[[]]` has 2, a scalar has 0.
pub const DEPTH_MAX: usize = 64;

/// RFC 8785 writes numbers as JavaScript does, and there every integer in this range has its own double.
const SAFE_INTEGERS: RangeInclusive<i64> = -(1 << 53)..=1 << 53;

/// serde_json spells numbers in its own data model as objects under such a name, and would read an object that has it first
/// as a number, or not at all.
const RESERVED_PREFIX: &str = "$serde_json::private::";

/// Why a value has no canonical text.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// The canonical text would name another integer.
    #[error("{number} is an integer that JSON numbers cannot hold exactly; write it as a string")]
    Inexact { number: String },
    /// The number is too large for a double.
    #[error("{number} is out of range for a JSON number")]
    Range { number: String },
    /// Arrays and objects nest too deep.
    #[error("the value nests deeper than {depth_max} levels")]
    Depth { depth_max: usize },
    /// A name that the JSON library keeps for itself.
    #[error("{name:?} cannot be a name in a JSON object here")]
    Reserved { name: String },
    /// The value could not be written as JSON.
    #[error("the value cannot be written as canonical JSON")]
    Write(#[source] serde_json::Error),
}

/// The canonical text of a value, by RFC 8785: sorted names, no spaces, numbers as JavaScript prints them.
///
/// # Errors
///
/// Those of [`check_exact`].
///
/// ```
/// use client_sdk::object::canonical_json;
/// use serde_json::json;
///
/// assert_eq!(canonical_json(&json!({ "b": [1.0, 2.50], "a": "é" }))?, r#"{"a":"é","b":[1,2.5]}"#);
/// # Ok::<(), client_sdk::object::CanonicalError>(())
/// ```
pub fn canonical_json(value: &Value) -> Result<String, CanonicalError> {
    check_exact(value)?;
    serde_json_canonicalizer::to_string(value).map_err(CanonicalError::Write)
}

/// Whether the canonical text of a value names the same integers.
///
/// An integer is refused when its canonical text would name another one. That is the case for 2^53 + 1, which no double holds,
/// and for 2^60, which RFC 8785 writes as 1152921504606847000. Numbers with a fraction are rounded to the nearest double, as
/// everywhere in JSON.
///
/// # Errors
///
/// [`CanonicalError::Inexact`] and [`CanonicalError::Range`] name the number; [`CanonicalError::Depth`] for more than
/// [`DEPTH_MAX`] levels; [`CanonicalError::Reserved`] for names that begin with `$serde_json::private::`.
///
/// ```
/// use client_sdk::object::{CanonicalError, check_exact};
/// use serde_json::json;
///
/// assert!(check_exact(&json!({ "n": 9_007_199_254_740_992_u64 })).is_ok());
/// let error = check_exact(&json!({ "n": 9_007_199_254_740_993_u64 }));
/// assert!(matches!(error, Err(CanonicalError::Inexact { number }) if number == "9007199254740993"));
/// ```
pub fn check_exact(value: &Value) -> Result<(), CanonicalError> {
    check_within(value, DEPTH_MAX)
}

/// The operations that make `current` say what `wanted` says: a `set` for every field that is new or differs.
///
/// A merge: a field that `wanted` does not name stays as it is. Values are compared by their canonical text, so 1.0 does not
/// differ from 1. A value without canonical text always differs, and [`op::check`](super::op::check) refuses its `set`.
///
/// ```
/// use client_sdk::object::{Op, diff};
/// use serde_json::{Map, json};
///
/// let current = Map::from_iter([("name".to_owned(), json!("Ada")), ("age".to_owned(), json!(36))]);
/// let wanted = Map::from_iter([("age".to_owned(), json!(37))]);
/// assert_eq!(diff(&current, &wanted), [Op::Set { field: "age".into(), value: json!(37) }]);
/// ```
#[must_use]
pub fn diff(current: &Map<String, Value>, wanted: &Map<String, Value>) -> Vec<Op> {
    let differs = |field: &String, value: &Value| !current.get(field).is_some_and(|old| is_same(old, value));
    wanted
        .iter()
        .filter(|(field, value)| differs(field, value))
        .map(|(field, value)| Op::Set { field: field.clone(), value: value.clone() })
        .collect()
}

/// The canonical text of a value: proof that there is one. Every device reads the same out of it, whatever the writer's
/// spelling was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Canonical(String);

impl Canonical {
    pub(super) fn of(value: &Value) -> Result<Self, CanonicalError> {
        canonical_json(value).map(Self)
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.0).expect("canonical text is the JSON text of a value")
    }
}

pub(super) fn check_name(name: &str) -> Result<(), CanonicalError> {
    if name.starts_with(RESERVED_PREFIX) {
        return Err(CanonicalError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

fn is_same(a: &Value, b: &Value) -> bool {
    match (canonical_json(a), canonical_json(b)) {
        (Ok(a), Ok(b)) => a == b,
        (Err(_), Ok(_) | Err(_)) | (Ok(_), Err(_)) => false,
    }
}

fn check_within(value: &Value, levels: usize) -> Result<(), CanonicalError> {
    let deeper = || levels.checked_sub(1).ok_or(CanonicalError::Depth { depth_max: DEPTH_MAX });
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => check_number(number),
        Value::Array(items) => {
            let levels = deeper()?;
            items.iter().try_for_each(|item| check_within(item, levels))
        }
        Value::Object(members) => {
            let levels = deeper()?;
            members.iter().try_for_each(|(name, member)| {
                check_name(name)?;
                check_within(member, levels)
            })
        }
    }
}

fn check_number(number: &Number) -> Result<(), CanonicalError> {
    if number.as_i64().is_some_and(|n| SAFE_INTEGERS.contains(&n)) {
        return Ok(());
    }
    let text = number.to_string();
    let Ok(canonical) = serde_json_canonicalizer::to_string(number) else {
        return Err(CanonicalError::Range { number: text });
    };
    let written = Decimal::of(&text);
    if written.is_integer() && written != Decimal::of(&canonical) {
        return Err(CanonicalError::Inexact { number: text });
    }
    Ok(())
}

/// What the text of a JSON number says, whatever its spelling: `digits` × 10^`exponent`, digits without outer zeros.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let unsigned = mantissa.trim_start_matches('-');
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_end_matches('0');
        let zeros = all.len() - digits.len();
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Self { negative: false, digits: String::new(), exponent: 0 };
        }
        // Out of i64 only far below the least double (above, the number is out of range): not an integer.
        let exponent = exponent.parse().unwrap_or(i64::MIN);
        let exponent = shift(shift(exponent, zeros, i64::saturating_add), fraction.len(), i64::saturating_sub);
        Self { negative: mantissa.starts_with('-'), digits: digits.to_owned(), exponent }
    }

    fn is_integer(&self) -> bool {
        self.exponent >= 0
    }
}

fn shift(exponent: i64, places: usize, by: impl Fn(i64, i64) -> i64) -> i64 {
    by(exponent, i64::try_from(places).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn canonical_text_is_rfc_8785() {
        // The first case is the example of section 3.2.2.
        for (input, expected) in [
            (
                r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#,
                r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#,
            ),
            ("-0", "0"),
            ("-0.0", "0"),
            ("1.0", "1"),
            ("100000000000000000000", "100000000000000000000"),
            ("1000000000000000000000", "1e+21"),
            // UTF-16 order, which is not the order of UTF-8.
            ("{\"\u{fb33}\":1,\"\u{1f600}\":2}", "{\"\u{1f600}\":2,\"\u{fb33}\":1}"),
        ] {
            let canonical = canonical_json(&parse(input)).unwrap();
            assert_eq!(canonical, expected, "{input}");
            assert_eq!(canonical_json(&parse(&canonical)).unwrap(), canonical, "twice: {input}");
        }
    }

    #[test]
    fn an_integer_is_never_rounded() {
        for text in [
            "9007199254740993",
            "-9007199254740993",
            "9007199254740993.0",
            "1152921504606846976",
            "18446744073709551615",
            "123456789012345678901234567890",
        ] {
            let error = check_exact(&json!([{ "deep": parse(text) }])).unwrap_err();
            assert!(matches!(&error, CanonicalError::Inexact { number } if number == text), "{text}: {error}");
        }
        for text in ["9007199254740992", "-9007199254740992", "1152921504606847000", "1e22", "0.1", "0e999", "1e-400"] {
            check_exact(&parse(text)).unwrap();
        }
    }

    #[test]
    fn a_number_beyond_the_doubles_is_refused() {
        for text in ["1e400", "-1e400", "1e99999999999999999999"] {
            let value = serde_json::from_str::<Value>(text).unwrap();
            assert!(matches!(check_exact(&value), Err(CanonicalError::Range { .. })), "{text}");
        }
    }

    #[test]
    fn a_name_that_would_be_read_as_a_number_is_refused() {
        // Sorted, the reserved name stands first, and the text could not be read again.
        let value = parse(r#"{"a":1,"$serde_json::private::Number":"abc"}"#);
        assert!(matches!(check_exact(&json!([value])), Err(CanonicalError::Reserved { .. })));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]));
        check_exact(&nested(DEPTH_MAX)).unwrap();
        assert!(matches!(canonical_json(&nested(DEPTH_MAX + 1)), Err(CanonicalError::Depth { depth_max: 64 })));
        assert!(matches!(check_exact(&nested(1_000)), Err(CanonicalError::Depth { .. })));
    }

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn diff_sets_what_differs_and_clears_nothing() {
        let current = map(json!({ "same": 1, "other": "a", "kept": [1], "nested": { "x": 1, "y": 2 } }));
        let wanted = map(json!({ "same": 1.0, "other": "b", "new": null, "nested": { "y": 2, "x": 1 } }));
        let expected =
            [Op::Set { field: "new".into(), value: Value::Null }, Op::Set { field: "other".into(), value: json!("b") }];
        assert_eq!(diff(&current, &wanted), expected);
        assert_eq!(diff(&current, &Map::new()), []);
    }
}
