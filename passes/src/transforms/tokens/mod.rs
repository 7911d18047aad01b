//! Token merging in vision transformers.

mod decline;
mod emit;
mod latency;
mod merge;
mod merge_tokens;
mod options;
mod schedule;
mod search;
#[cfg(test)]
mod tests;
mod token_analysis;
mod token_statistics;
mod trace;

pub use decline::MergeDecline;
pub use emit::Lowering;
pub use merge_tokens::MergeTokens;
pub use options::{MergeMethod, MergeSchedule, TokenCounts, TokenMetric};
pub use token_analysis::TokenAnalysis;
pub use token_statistics::{BlockTokens, token_statistics};
