//! Operations, and the payload that carries them.
//!
//! A payload is a JSON array of operations, each an object with one member:
//!
//! ```json
//! [{"set":{"field":"name","value":"Ada"}},{"inc":{"field":"visits","by":1}},{"exists":"deleted"}]
//! ```
//!
//! Unknown operations and unknown members are refused.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical::{CanonicalError, check_exact, check_name};

/// The data type of a payload of operations.
pub const DATA_TYPE: &str = "headwater.ops/1";

/// Operations in one change.
pub const OPS_MAX: usize = 1_000;

/// Bytes (UTF-8) of a field name. It has at least one.
pub const FIELD_BYTES_MAX: usize = 256;

/// One operation. The table of what wins is in the documentation of [the module](super).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// The field has this value.
    Set { field: String, value: Value },
    /// The field has no value.
    Unset { field: String },
    /// The value is an element of the field.
    AddToSet { field: String, value: Value },
    /// The value is not an element of the field.
    RemoveFromSet { field: String, value: Value },
    /// The field counts by this much, up or down.
    Inc { field: String, by: i64 },
    /// The object exists, or it does not.
    Exists(Existence),
}

/// Whether an object exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Existence {
    Present,
    Deleted,
}

/// Why bytes or operations cannot be the payload of a change.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// Not a JSON array of known operations.
    #[error("the payload is not a list of operations")]
    Malformed(#[source] serde_json::Error),
    /// Too many operations for one change.
    #[error("a change holds at most {ops_max} operations, not {ops}")]
    TooMany { ops: usize, ops_max: usize },
    /// An empty field name, or one that is too long.
    #[error("a field name has 1 to {bytes_max} bytes, not {bytes}")]
    FieldName { bytes: usize, bytes_max: usize },
    /// A field name that is not acceptable in a JSON object.
    #[error("the field name is not acceptable")]
    FieldReserved(#[source] CanonicalError),
    /// A value that has no canonical text.
    #[error("the value for field {field:?} is not acceptable")]
    Value {
        field: String,
        #[source]
        source: CanonicalError,
    },
}

/// The payload for these operations, as compact JSON.
///
/// Whoever makes a payload calls [`check`] first: others refuse what it refuses.
///
/// ```
/// use client_sdk::object::{Existence, Op, op};
///
/// let ops = [Op::Inc { field: "visits".into(), by: 1 }, Op::Exists(Existence::Present)];
/// op::check(&ops)?;
/// let payload = op::encode(&ops);
/// assert_eq!(&payload[..], br#"[{"inc":{"field":"visits","by":1}},{"exists":"present"}]"#);
/// assert_eq!(op::decode(&payload)?, ops);
/// # Ok::<(), client_sdk::object::OpError>(())
/// ```
#[must_use]
pub fn encode(ops: &[Op]) -> Bytes {
    let json = serde_json::to_vec(ops).expect("operations are JSON values under names that are strings");
    Bytes::from(json)
}

/// The operations in a payload, each within the limits of this module.
///
/// # Errors
///
/// [`OpError::Malformed`] when the bytes are not a list of operations, and those of [`check`].
pub fn decode(bytes: &[u8]) -> Result<Vec<Op>, OpError> {
    let ops: Vec<Op> = serde_json::from_slice(bytes).map_err(OpError::Malformed)?;
    check(&ops)?;
    Ok(ops)
}

/// Whether these operations may be the payload of a change.
///
/// # Errors
///
/// More than [`OPS_MAX`] operations, a field name of no or more than [`FIELD_BYTES_MAX`] bytes, or a name or value that
/// [`check_exact`] refuses.
pub fn check(ops: &[Op]) -> Result<(), OpError> {
    if ops.len() > OPS_MAX {
        return Err(OpError::TooMany { ops: ops.len(), ops_max: OPS_MAX });
    }
    ops.iter().try_for_each(check_op)
}

fn check_op(op: &Op) -> Result<(), OpError> {
    match op {
        Op::Set { field, value } | Op::AddToSet { field, value } | Op::RemoveFromSet { field, value } => {
            check_field(field)?;
            check_exact(value).map_err(|source| OpError::Value { field: field.clone(), source })
        }
        Op::Unset { field } | Op::Inc { field, by: _ } => check_field(field),
        Op::Exists(Existence::Present | Existence::Deleted) => Ok(()),
    }
}

fn check_field(field: &str) -> Result<(), OpError> {
    match field.len() {
        1..=FIELD_BYTES_MAX => check_name(field).map_err(OpError::FieldReserved),
        bytes => Err(OpError::FieldName { bytes, bytes_max: FIELD_BYTES_MAX }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_operation_round_trips() {
        let ops = [
            Op::Set { field: "a".into(), value: json!({ "n": [1, 2.5, null, "x"] }) },
            Op::Unset { field: "a".into() },
            Op::AddToSet { field: "a".into(), value: json!(1) },
            Op::RemoveFromSet { field: "a".into(), value: json!(1) },
            Op::Inc { field: "a".into(), by: i64::MIN },
            Op::Exists(Existence::Present),
            Op::Exists(Existence::Deleted),
        ];
        assert_eq!(decode(&encode(&ops)).unwrap(), ops);
    }

    #[test]
    fn what_is_not_a_list_of_known_operations_is_malformed() {
        for text in [
            "",
            "{}",
            "null",
            "[1]",
            "[] []",
            r#"[{"move":{"field":"a"}}]"#,
            r#"[{"set":{"field":"a"}}]"#,
            r#"[{"set":{"field":"a","value":1,"at":2}}]"#,
            r#"[{"set":{"field":"a","field":"b","value":1}}]"#,
            r#"[{"set":{"field":"a","value":1},"unset":{"field":"a"}}]"#,
            r#"[{"inc":{"field":"a","by":1.5}}]"#,
            r#"[{"inc":{"field":"a","by":9223372036854775808}}]"#,
            r#"[{"exists":true}]"#,
            "[{\"unset\":{\"field\":\"\u{fffd}",
        ] {
            assert!(matches!(decode(text.as_bytes()), Err(OpError::Malformed(_))), "{text}");
        }
        assert!(matches!(decode(b"[{\"unset\":{\"field\":\"\xff\"}}]"), Err(OpError::Malformed(_))));
        assert!(matches!(decode("[".repeat(100_000).as_bytes()), Err(OpError::Malformed(_))));
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let unset = |bytes: usize| Op::Unset { field: "x".repeat(bytes) };
        check(&vec![unset(1); OPS_MAX]).unwrap();
        check(&[unset(FIELD_BYTES_MAX)]).unwrap();
        let many = encode(&vec![unset(1); OPS_MAX + 1]);
        assert!(matches!(decode(&many), Err(OpError::TooMany { ops: 1001, ops_max: OPS_MAX })));
        for bytes in [0, FIELD_BYTES_MAX + 1] {
            let error = decode(&encode(&[unset(bytes)])).unwrap_err();
            assert!(matches!(error, OpError::FieldName { bytes: b, .. } if b == bytes));
        }
        let reserved = Op::Unset { field: "$serde_json::private::Number".into() };
        assert!(matches!(decode(&encode(&[reserved])), Err(OpError::FieldReserved(_))));
    }

    #[test]
    fn a_value_without_canonical_text_is_refused_by_name() {
        const RESERVED: &str = r#"{"a":1,"$serde_json::private::Number":"abc"}"#;
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        for value in ["9007199254740993", "123456789012345678901234567890", "1e400", RESERVED, &deep] {
            for op in ["set", "add_to_set", "remove_from_set"] {
                let payload = format!(r#"[{{"{op}":{{"field":"n","value":{value}}}}}]"#);
                let error = decode(payload.as_bytes()).unwrap_err();
                assert!(matches!(&error, OpError::Value { field, .. } if field == "n"), "{op} {value}: {error}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_a_typed_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            // Random bytes are never a list of operations, but for an empty one.
            if let Ok(ops) = decode(&bytes) {
                assert_eq!(ops, []);
            }
        }
    }
}
