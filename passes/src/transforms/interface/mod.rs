//! Passes that change the inputs and outputs of a model, as requested.

mod add_outputs;
mod declare;
mod drop_outputs;
mod extract;
mod free_dims;
mod names;
mod rename;
mod set_dims;

pub use add_outputs::AddOutputs;
pub use drop_outputs::DropOutputs;
pub use extract::Extract;
pub use free_dims::FreeDims;
pub use names::Names;
pub use rename::Rename;
pub use set_dims::SetDims;
