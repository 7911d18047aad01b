//! Reading and writing of ONNX files. The protobuf types are private.
//!
//! [`read`] maps the file, rejects unknown fields, which would be lost, and decodes the rest; weights are
//! slices of the mapping. [`write`](write()) encodes the same messages and streams them. Fields that the
//! graph does not represent are kept, so writing an unchanged model changes no field.

mod attribute;
mod constant_inputs;
mod encode;
mod error;
mod external;
mod file;
mod read;
mod sample;
mod tensor;
mod types;
mod wire;
mod write;

#[cfg(test)]
mod tests;

pub use error::{ReadError, WriteError};
pub use file::abandon;
pub use read::{ReadOptions, bytes_on_disk, read, read_bytes};
pub use sample::{Item, tensor_from_bytes, tensor_name, tensor_to_bytes, value_from_bytes};
pub use write::{DataFiles, ExternalData, WriteOptions, Written, to_bytes, write, write_to};

use crate::{Metadata, proto};
use proto::StringStringEntryProto;

fn metadata_from(entries: Vec<StringStringEntryProto>) -> Metadata {
    entries.into_iter().map(|e| (e.key, e.value)).collect()
}

fn metadata_to(metadata: &Metadata) -> Vec<StringStringEntryProto> {
    metadata.iter().cloned().map(|(key, value)| StringStringEntryProto { key, value }).collect()
}

/// Domains and versions; absent ones have the default values of protobuf.
fn opsets_from(imports: &[proto::OperatorSetIdProto]) -> Vec<(String, i64)> {
    imports.iter().map(|o| (o.domain().to_owned(), o.version())).collect()
}

/// The messages of `opsets`; entries that are unchanged keep the spelling of the file.
fn opsets_to(opsets: &[(String, i64)], file: &[proto::OperatorSetIdProto]) -> Vec<proto::OperatorSetIdProto> {
    let message = |(i, (domain, version)): (usize, &(String, i64))| match file.get(i) {
        Some(same) if same.domain() == domain && same.version() == *version => same.clone(),
        _ => proto::OperatorSetIdProto { domain: Some(domain.clone()), version: Some(*version) },
    };
    opsets.iter().enumerate().map(message).collect()
}
