//! The passes and presets that pipelines refer to by name.

use super::PassInfo;

/// A set of passes and presets.
#[derive(Clone, Copy)]
pub struct Registry {
    /// The passes, in the order in which they are listed.
    pub passes: &'static [&'static PassInfo],
    /// The presets.
    pub presets: &'static [Preset],
}

/// A named pipeline.
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its purpose.
    pub docs: &'static str,
    /// The pipeline in text form.
    pub text: &'static str,
    /// Its options.
    pub options: &'static [PresetOption],
}

/// An option of a preset that omits a pass.
pub struct PresetOption {
    /// Its name in pipelines.
    pub name: &'static str,
    /// The pass that is omitted if the option is true.
    pub omits: &'static str,
    /// Its documentation.
    pub docs: &'static str,
}

impl Registry {
    /// A registry without passes.
    pub const EMPTY: Self = Self { passes: &[], presets: &[] };

    /// The pass of this name.
    pub fn find(&self, name: &str) -> Option<&'static PassInfo> {
        self.passes.iter().find(|p| p.name == name).copied()
    }

    /// The preset of this name.
    pub fn find_preset(&self, name: &str) -> Option<&'static Preset> {
        self.presets.iter().find(|p| p.name == name)
    }

    /// The names of all passes and presets.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.passes.iter().map(|p| p.name).chain(self.presets.iter().map(|p| p.name))
    }
}
