//! Random chains of convolutions.

use super::{
    By,
    build::{Conv, Net},
    count, exact,
};
use pare_graph::DataType;

/// A chain of two or three random convolutions with a non-empty output, over 1 to 3 axes.
pub fn chain(seed: u64, dtype: DataType) -> Option<(Net, Vec<Conv>)> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let spatial = rng.usize(1..4);
    let most = [24, 14, 10][spatial - 1];
    let mut sizes: Vec<_> = (0..spatial).map(|_| rng.usize(most / 2..most)).collect();
    let shape = [vec![1, 6], sizes.iter().map(|&n| n as i64).collect()].concat();
    let (mut convs, mut channels) = (vec![], 6);
    for i in 0..rng.usize(2..4) {
        let padded = i == 0 || seed.is_multiple_of(2);
        let conv = Conv::random(&mut rng, channels, spatial, padded);
        sizes = (0..spatial).map(|i| conv.size(i, sizes[i])).collect::<Option<_>>()?;
        channels = conv.outputs;
        convs.push(conv);
    }
    let mut net = Net::new(seed, dtype, &shape);
    for conv in &convs {
        net.conv(conv);
    }
    Some((net.finish(), convs))
}

#[test]
fn random_chains_match_the_reference() {
    let (mut seen, mut composed, mut tiled, mut unchanged) = (0, 0, 0, 0);
    for seed in 0..1500 {
        let Some((net, convs)) = chain(seed, DataType::Double) else { continue };

        let after = exact(&net, By::Always);
        seen += 1;
        match (count(&after, "Conv"), count(&after, "Concat")) {
            (1, 0) => composed += 1,
            (_, 1..) => tiled += 1,
            (n, 0) => {
                assert!(seed % 2 == 0 && n <= convs.len(), "an unpadded chain was not composed: {convs:?}");
                unchanged += 1;
            }
        }
    }
    assert!(seen >= 400 && composed >= 200 && tiled >= 100, "{seen} {composed} {tiled} {unchanged}");
}
