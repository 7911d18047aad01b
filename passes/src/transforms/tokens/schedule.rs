//! Distribution of merged tokens over blocks.

use super::{
    emit::{max_folded, max_merged},
    merge::MergePlan,
    options::MergeMethod,
    token_analysis::TokenAnalysis,
};

/// Returns the number of tokens that each block merges: `r`, one number or one for each block, distributed by
/// the method.
pub(super) fn distribute(
    method: MergeMethod,
    r: &[usize],
    blocks: &[usize],
    analysis: &TokenAnalysis,
) -> Vec<usize> {
    let all = analysis.blocks;
    let mut counts = vec![0; all];
    let count_of = |i: usize| if r.len() == 1 { r[0] } else { r.get(i).copied().unwrap_or(0) };
    let chosen: Vec<usize> = match (method, blocks.is_empty()) {
        (_, false) => blocks.to_vec(),
        // At a quarter, a half and three quarters of the model.
        (MergeMethod::Ppt, true) => [1, 2, 3].iter().map(|q| q * all / 4).collect(),
        _ => (0..all).collect(),
    };
    if method == MergeMethod::Folder && blocks.is_empty() && r.len() == 1 {
        // The budget of all blocks, distributed over the last three as 1 : 0 : 10.
        let budget = r[0] * all;
        let late = budget * 10 / 11;
        counts[all - 1] = late;
        if all >= 3 {
            counts[all - 3] = budget - late;
        }
        return counts;
    }
    for (i, block) in chosen.into_iter().enumerate() {
        if let Some(count) = counts.get_mut(block) {
            *count = count_of(if r.len() == all && blocks.is_empty() { block } else { i });
        }
    }
    counts
}

/// Returns the counts, limited to the number of tokens that remain in each block.
pub(super) fn capped(counts: &[usize], plan: &MergePlan, analysis: &TokenAnalysis) -> Vec<usize> {
    let mut tokens = analysis.tokens[0];
    let limit = |tokens: usize| match plan.method {
        MergeMethod::Folder => max_folded(tokens, analysis.protected),
        _ => max_merged(tokens, analysis.protected),
    };
    let mut take = |&r: &usize| {
        let r = r.min(limit(tokens));
        tokens -= r;
        r
    };
    counts.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis(blocks: usize, tokens: usize) -> TokenAnalysis {
        TokenAnalysis { blocks, tokens: vec![tokens; blocks], protected: 1, unread: true }
    }

    #[test]
    fn distributes_tokens_by_method() {
        let counts =
            |method, r: &[usize], blocks: &[usize], all| distribute(method, r, blocks, &analysis(all, 65));
        assert_eq!(counts(MergeMethod::Tome, &[8], &[], 4), [8, 8, 8, 8]);
        assert_eq!(counts(MergeMethod::Tome, &[4, 3, 2, 1], &[], 4), [4, 3, 2, 1]);
        assert_eq!(counts(MergeMethod::Tome, &[4, 3], &[1, 3], 4), [0, 4, 0, 3]);
        // 10/11 of the 8 tokens in the last block, the others two blocks before.
        assert_eq!(counts(MergeMethod::Folder, &[2], &[], 4), [0, 1, 0, 7]);
        let ppt = counts(MergeMethod::Ppt, &[50], &[], 12);
        assert_eq!((ppt[3], ppt[6], ppt[9], ppt.iter().sum::<usize>()), (50, 50, 50, 150));
    }
}
