//! Fusion of patterns of nodes into operators of the standard, if the model's operator set has them.

mod fuse_attention;
mod fuse_clip;
mod fuse_div;
mod fuse_gelu;
mod fuse_gemm;
mod fuse_hard_swish;
mod fuse_layer_norm;
mod fuse_rotary_embedding;
mod fuse_softplus;
mod fuse_space_to_depth;

pub use fuse_attention::FuseAttention;
pub use fuse_clip::FuseClip;
pub use fuse_div::FuseDiv;
pub use fuse_gelu::FuseGelu;
pub use fuse_gemm::FuseGemm;
pub use fuse_hard_swish::FuseHardSwish;
pub use fuse_layer_norm::FuseLayerNorm;
pub use fuse_rotary_embedding::FuseRotaryEmbedding;
pub use fuse_softplus::FuseSoftplus;
pub use fuse_space_to_depth::FuseSpaceToDepth;
