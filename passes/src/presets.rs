//! Named pipelines.

/// A named pipeline.
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub docs: &'static str,
    /// The pipeline.
    pub text: &'static str,
}

/// Every preset.
pub static PRESETS: &[Preset] = &[Preset {
    name: "safe",
    docs: "Everything exact or rounding that makes a model smaller or no slower; the default.",
    // Constants first, since folds ask for them. Then no-ops, so that patterns lie side by side. Twins last in
    // the round: folding makes more of them. Dead nodes go with whatever made them dead.
    text: "(lift-constants,fold-constants,drop-noops,fold-bn,merge-twins)*",
}];

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}
