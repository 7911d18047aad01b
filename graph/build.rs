//! Compiles the protobuf files of ONNX to the messages (prost) and a table of their fields.

use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use std::{collections::BTreeMap, env, error::Error, fmt::Write, fs, path::Path};

const FILES: [&str; 2] = ["onnx/onnx-ml.proto", "onnx/onnx-data.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("schema.rs"), schema(&files)?)?;
    // `Bytes` are slices of the file, so reading does not copy weights.
    prost_build::Config::new().bytes(["."]).disable_comments(["."]).compile_fds(files)?;
    Ok(())
}

/// `SCHEMA`: the name of every message, and the number and name of its fields, with the index of the type of
/// a nested message. It is used to detect unknown fields, which prost drops.
fn schema(files: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut messages = BTreeMap::new();
    for file in &files.file {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|m| collect(&package, m, &mut messages));
    }
    let place: BTreeMap<_, _> = messages.keys().enumerate().map(|(i, name)| (name.clone(), i)).collect();
    let mut table = String::from("pub(crate) static SCHEMA: &[Message] = &[\n");
    for message in messages.values() {
        writeln!(table, "    Message {{ name: {:?}, fields: &[", message.name())?;
        for field in &message.field {
            let nested = match field.r#type() {
                Type::Message => {
                    Some(place.get(field.type_name()).ok_or_else(|| field.type_name().to_owned())?)
                }
                _ => None,
            };
            let (number, name) = (field.number(), field.name());
            writeln!(table, "        Field {{ number: {number}, name: {name:?}, nested: {nested:?} }},")?;
        }
        writeln!(table, "    ] }},")?;
    }
    table.push_str("];\n");
    Ok(table)
}

fn collect<'a>(scope: &str, message: &'a DescriptorProto, into: &mut BTreeMap<String, &'a DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    message.nested_type.iter().for_each(|m| collect(&name, m, into));
    into.insert(name, message);
}
