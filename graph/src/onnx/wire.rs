//! Detection of unknown fields in the protobuf wire format.
//!
//! prost skips unknown fields, so they would be lost. Comparing the length of the file with that of the
//! encoded message is not sufficient, since encodings differ (packed lists, long varints). The walk skips the
//! bytes of weights.

use super::ReadError;
use schema::SCHEMA;

mod schema {
    use super::{Field, Message};
    include!(concat!(env!("OUT_DIR"), "/schema.rs"));
}

/// The maximal depth of messages, as in prost and other implementations of protobuf.
pub(crate) const MAX_DEPTH: usize = 100;

pub(crate) struct Message {
    name: &'static str,
    fields: &'static [Field],
}

pub(crate) struct Field {
    number: u64,
    name: &'static str,
    /// Index of the type of a nested message in the table; `None` for numbers, strings and bytes.
    nested: Option<usize>,
}

/// Checks that `bytes` are a message `name` without unknown fields.
pub(crate) fn check(bytes: &[u8], name: &str) -> Result<(), ReadError> {
    let message = SCHEMA.iter().find(|m| m.name == name).expect("the message is in the proto files");
    if bytes.is_empty() {
        return Err(ReadError::Empty);
    }
    let mut unknown = None;
    walk(bytes, message, 0, &mut unknown)?;
    unknown.map_or(Ok(()), Err)
}

/// The first unknown field is recorded in `unknown`: invalid messages, which are errors, may seem to contain
/// some.
fn walk(
    mut bytes: &[u8],
    message: &Message,
    depth: usize,
    unknown: &mut Option<ReadError>,
) -> Result<(), ReadError> {
    if depth >= MAX_DEPTH {
        return Err(ReadError::TooDeep);
    }
    while !bytes.is_empty() {
        let garbage = || ReadError::NotOnnx(format!("a field of {} is invalid", message.name));
        let key = varint(&mut bytes).ok_or_else(garbage)?;
        let (number, wire) = (key >> 3, key & 7);
        // Wire types 3 and 4 are groups, which ONNX does not use; 6 and 7 do not exist.
        if number == 0 || number >= 1 << 29 || !matches!(wire, 0 | 1 | 2 | 5) {
            return Err(garbage());
        }
        let field = message.fields.iter().find(|f| f.number == number);
        let length = match wire {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut bytes),
            _ => Some(4),
        };
        let length = length.and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= bytes.len());
        let cut = || match field {
            Some(field) => ReadError::NotOnnx(format!("it ends within {}.{}", message.name, field.name)),
            None => garbage(),
        };
        let (content, rest) = bytes.split_at(length.ok_or_else(cut)?);
        match field {
            Some(Field { nested: Some(nested), .. }) if wire == 2 => {
                walk(content, &SCHEMA[*nested], depth + 1, unknown)?;
            }
            Some(_) => {}
            None => {
                unknown.get_or_insert(ReadError::UnknownField { message: message.name, number });
            }
        }
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        check(bytes, "ModelProto").unwrap_err().to_string()
    }

    #[test]
    fn reports_unknown_fields_at_any_depth() {
        assert_eq!(error(&[0xf8, 0x07, 1]), "ModelProto has the unknown field 127, which would be lost");
        // graph (7) > node (1) > 99: varint
        assert_eq!(
            error(&[0x3a, 5, 0x0a, 3, 0x98, 0x06, 7]),
            "NodeProto has the unknown field 99, which would be lost"
        );
        assert!(check(&[0x08, 8, 0x3a, 0], "ModelProto").is_ok());
        // Varints need not be minimal.
        assert!(check(&[0x08, 0x88, 0x80, 0x00], "ModelProto").is_ok());
    }

    #[test]
    fn rejects_truncated_and_invalid_files() {
        assert_eq!(error(&[]), "the file is empty");
        assert_eq!(
            error(&[0x3a, 200, 1, 0x0a]),
            "the file is damaged or not an ONNX file: it ends within ModelProto.graph"
        );
        let garbage = "the file is damaged or not an ONNX file: a field of ModelProto is invalid";
        for bytes in [&b"PK\x03\x04"[..], b"\x89PNG\r\n", b"<html>", &[0xff; 20]] {
            assert_eq!(error(bytes), garbage);
        }
    }

    #[test]
    fn rejects_deep_nesting() {
        // training_info (20) > algorithm (2) > node (1) > attribute (5) > g (6) > node …
        let mut bytes = vec![];
        for i in 0..10_000 {
            let key = [0x32, 0x2a, 0x0a][i % 3];
            let mut outer = vec![key];
            prost::encode_length_delimiter(bytes.len(), &mut outer).unwrap();
            outer.extend(&bytes);
            bytes = outer;
        }
        // The outermost key is an attribute's graph (9,999 % 3 = 0): three more complete a model.
        for key in [0x2a, 0x0a, 0x3a] {
            let mut outer = vec![key];
            prost::encode_length_delimiter(bytes.len(), &mut outer).unwrap();
            outer.extend(&bytes);
            bytes = outer;
        }
        assert_eq!(error(&bytes), "messages are nested deeper than 100 levels");
    }
}
