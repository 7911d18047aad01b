//! The trait of all passes and the macro that declares one.

use super::{Context, Counter, PassError};
use pare_graph::Model;
use std::fmt;

/// The promise of a pass about the outputs of the changed model, from strongest to weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The same arithmetic: bitwise equal, up to what the engine's own optimizations change.
    Exact,
    /// The same function of real numbers, rounded differently.
    Rounding,
    /// Another function, close on the data.
    Lossy,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Rounding => "rounding",
            Self::Lossy => "lossy",
        })
    }
}

/// The declaration of an option of a pass.
pub struct OptionInfo {
    /// Its name in pipelines.
    pub name: &'static str,
    /// Its Rust type.
    pub ty: &'static str,
    /// Returns its default as written in pipelines; empty if there is none.
    pub default: fn() -> String,
    /// Its documentation.
    pub docs: &'static str,
}

/// The declaration of a pass.
pub struct PassInfo {
    /// Its name in pipelines.
    pub name: &'static str,
    /// Its promise about the outputs.
    pub effect: Effect,
    /// The name under which reports count its patches, such as `batch norms folded`; `None` if the pass
    /// counts itself.
    pub counts: Option<Counter>,
    /// Its documentation; the first line is a summary.
    pub docs: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// The option that receives all keys that are not names of options, such as those of `rename{a=b}`; its
    /// type is a table.
    pub open: Option<&'static str>,
    /// True if it trains weights: an interrupt ends the training early, with the best weights so far.
    pub trains: bool,
    /// Its source file.
    pub source: &'static str,
    /// Builds the pass from its options.
    #[doc(hidden)]
    pub build: fn(pass_support::Options) -> Result<Box<dyn Pass>, String>,
}

impl PassInfo {
    /// Returns true if the pass runs without options.
    pub fn has_defaults(&self) -> bool {
        (self.build)(pass_support::Options::default()).is_ok()
    }

    /// The first line of its documentation.
    pub fn summary(&self) -> &'static str {
        self.docs.lines().next().unwrap_or("").trim()
    }
}

/// Access to the declaration of a pass. Implemented by [`pass!`](crate::pass!).
pub trait Declared {
    /// The declaration.
    fn info(&self) -> &'static PassInfo;
}

/// One transformation of a model, declared by [`pass!`](crate::pass!).
///
/// ```
/// use pare_graph::{Decline, Model, NodeRef, Patch, expect};
/// use pare_passes::{Context, Pass, PassError, pass};
///
/// pass! {
///     /// Drop a negation of a negation.
///     ///
///     /// `-(-x) = x`, to the bit.
///     #[pass("drop-double-negation", Exact, "double negation dropped", "double negations dropped")]
///     pub struct DropDoubleNegation {}
/// }
///
/// impl Pass for DropDoubleNegation {
///     fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
///         cx.rewrite(model, &["Neg"], double_negation)
///     }
/// }
///
/// fn double_negation(at: NodeRef<'_>) -> Result<Patch, Decline> {
///     let (inner, y) = (at.input(0)?.produced_by("Neg")?, at.output()?);
///     expect(!y.value().is_output())?;
///     let mut patch = Patch::at(at);
///     patch.replace(y, inner.input(0)?);
///     Ok(patch)
/// }
/// ```
pub trait Pass: Declared + Send + Sync {
    /// Checks that the options are consistent. The error is one sentence.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// Transforms the model. Rewrites go through [`Context::rewrite`] or [`Context::apply`], which check and
    /// number them.
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError>;
}

/// Declares a pass: its documentation, name, effect and options with their defaults.
///
/// The declaration generates rustdoc, defaults, (de)serialisation, the entry in the list of passes, and the
/// errors for invalid options. After the effect, the name of a patch in reports may follow, in the singular
/// and in the plural; without it the pass counts its changes itself through [`Context::count`]. `open =
/// option` names an option that receives all keys that are not names of options, as in `rename{a=b}`, and
/// `trains = true` marks a pass that trains weights. Crates outside this workspace can declare passes too (they need
/// a dependency on `serde`) and run them through [`Pipeline::push`](crate::framework::Pipeline::push).
#[macro_export]
macro_rules! pass {
    ($(#[doc = $doc:literal])+ #[pass($name:literal, $effect:ident $(, $one:literal, $many:literal)? $(, open = $open:ident)? $(, trains = $trains:literal)?)] pub struct $Pass:ident {
        $($(#[doc = $fdoc:literal])+ pub $field:ident: $ty:ty = $default:expr,)*
    }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Pass { $($(#[doc = $fdoc])+ pub $field: $ty,)* }

        impl $crate::framework::Declared for $Pass {
            fn info(&self) -> &'static $crate::framework::PassInfo { &Self::INFO }
        }

        impl Default for $Pass {
            fn default() -> Self { Self { $($field: $default,)* } }
        }

        impl $Pass {
            /// The declaration.
            pub const INFO: $crate::framework::PassInfo = $crate::framework::PassInfo {
                name: $name,
                effect: $crate::framework::Effect::$effect,
                counts: $crate::framework::pass_support::counts(&[$($crate::framework::Counter::new($one, $many))?]),
                docs: concat!($($doc, "\n"),+),
                open: $crate::framework::pass_support::open(&[$(stringify!($open))?]),
                trains: false $(|| $trains)?,
                source: file!(),
                options: &[$($crate::framework::OptionInfo {
                    name: $crate::framework::pass_support::option(stringify!($field)),
                    ty: stringify!($ty),
                    docs: concat!($($fdoc, "\n"),+),
                    default: || $crate::framework::pass_support::shown(
                        &<$Pass as Default>::default(),
                        $crate::framework::pass_support::option(stringify!($field)),
                    ),
                }),*],
                build: |options| $crate::framework::pass_support::build::<$Pass>(options),
            };
        }
    };
}

/// Functions that the expansion of `pass!` calls.
#[doc(hidden)]
pub mod pass_support {
    use super::Pass;
    use crate::framework::{Counter, pipeline::show_value};
    use serde::{Serialize, de::DeserializeOwned};

    /// The options of a step as written.
    #[derive(Clone, Debug, Default)]
    pub struct Options(pub(in crate::framework) toml::Table);

    /// The declared counter, if any.
    pub const fn counts(declared: &[Counter]) -> Option<Counter> {
        if let [what] = declared { Some(*what) } else { None }
    }

    /// The name of an option: that of its field, which may be written as a raw identifier.
    pub const fn option(field: &'static str) -> &'static str {
        match field.as_bytes() {
            [b'r', b'#', ..] => field.split_at(2).1,
            _ => field,
        }
    }

    /// The option that takes free keys, if any.
    pub const fn open(declared: &[&'static str]) -> Option<&'static str> {
        if let [option] = declared { Some(*option) } else { None }
    }

    /// Builds and validates a pass.
    pub fn build<P: Pass + DeserializeOwned + 'static>(options: Options) -> Result<Box<dyn Pass>, String> {
        let pass: P = toml::Value::Table(options.0)
            .try_into()
            .map_err(|e: toml::de::Error| without_rust_types(e.message()))?;
        pass.validate()?;
        Ok(Box::new(pass))
    }

    /// Replaces the names of Rust types in an error of serde.
    fn without_rust_types(message: &str) -> String {
        [("f64", "a number"), ("u64", "an integer"), ("i64", "an integer"), ("usize", "an integer")]
            .iter()
            .fold(message.to_owned(), |text, (ty, name)| {
                text.replace(&format!("expected {ty}"), &format!("expected {name}"))
            })
    }

    /// The value of an option as written in pipelines; empty if it is absent.
    pub fn shown<P: Serialize>(pass: &P, option: &str) -> String {
        let table = toml::Table::try_from(pass).unwrap_or_default();
        table.get(option).map_or_else(String::new, show_value)
    }
}
