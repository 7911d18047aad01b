//! Several nodes that are one operator of the standard, where the model's operator set has it.

mod fuse_gelu;
mod fuse_gemm;
mod fuse_hard_swish;
mod fuse_layer_norm;
mod fuse_softplus;
mod fuse_space_to_depth;

pub use fuse_gelu::FuseGelu;
pub use fuse_gemm::FuseGemm;
pub use fuse_hard_swish::FuseHardSwish;
pub use fuse_layer_norm::FuseLayerNorm;
pub use fuse_softplus::FuseSoftplus;
pub use fuse_space_to_depth::FuseSpaceToDepth;
