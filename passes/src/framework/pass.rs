//! What a pass is, and the declaration that makes one.

use super::Counter;
use crate::framework::{Context, PassError};
use pare_graph::Model;
use std::fmt;

/// What a pass promises about the outputs of the model it leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The same arithmetic: equal to the bit, but for what the engine does with it.
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

/// An option of a pass, as declared.
pub struct OptionInfo {
    /// Its name in pipelines.
    pub name: &'static str,
    /// Its Rust type.
    pub ty: &'static str,
    /// Its default, as written in pipelines; empty if there is none.
    pub default: fn() -> String,
    /// What it does.
    pub docs: &'static str,
}

/// A pass, as declared.
pub struct PassInfo {
    /// Its name in pipelines.
    pub name: &'static str,
    /// What it promises.
    pub effect: Effect,
    /// What its patches are counted as in reports, such as `batch norms folded`; `None` if it counts by itself.
    pub counts: Option<Counter>,
    /// What it does, when it declines; the first line is a summary.
    pub docs: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
    /// Its source file.
    pub source: &'static str,
    /// Make the pass from a table of options.
    pub build: fn(toml::Table) -> Result<Box<dyn Pass>, String>,
}

impl PassInfo {
    /// The first line of its documentation.
    pub fn summary(&self) -> &'static str {
        self.docs.lines().next().unwrap_or("").trim()
    }
}

/// Written by `pass!`, never by hand.
pub trait Declared {
    /// The declaration.
    fn info(&self) -> &'static PassInfo;
}

/// One transformation of a model.
pub trait Pass: Declared + Send + Sync {
    /// Whether the options make sense together; the error is a sentence.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }

    /// Transform the model. Rewrites go through [`Context::rewrite`] or [`Context::apply`], which check and count.
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError>;
}

/// Declare a pass: its documentation, name, effect and options with their defaults.
///
/// One declaration gives rustdoc, defaults, (de)serialisation, the text of `pare passes NAME`, and the error for
/// a wrong option. A third word after the effect says what patches are counted as in reports. It works outside this workspace too, in a crate that depends on `serde`; such a pass runs
/// through [`Pipeline::push`](crate::framework::Pipeline::push).
#[macro_export]
macro_rules! pass {
    ($(#[doc = $doc:literal])+ #[pass($name:literal, $effect:ident $(, $one:literal, $many:literal)?)] pub struct $Pass:ident {
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
                source: file!(),
                options: &[$($crate::framework::OptionInfo {
                    name: stringify!($field),
                    ty: stringify!($ty),
                    docs: concat!($($fdoc, "\n"),+),
                    default: || $crate::framework::pass_support::shown(&<$Pass as Default>::default(), stringify!($field)),
                }),*],
                build: |options| $crate::framework::pass_support::build::<$Pass>(options),
            };
        }
    };
}

/// What the code that `pass!` writes calls.
#[doc(hidden)]
pub mod pass_support {
    use super::Pass;
    use crate::framework::Counter;
    use serde::{Serialize, de::DeserializeOwned};

    /// What was declared, if anything was.
    pub const fn counts(declared: &[Counter]) -> Option<Counter> {
        if let [what] = declared { Some(*what) } else { None }
    }

    /// A pass from its options, checked.
    pub fn build<P: Pass + DeserializeOwned + 'static>(
        options: toml::Table,
    ) -> Result<Box<dyn Pass>, String> {
        let pass: P =
            toml::Value::Table(options).try_into().map_err(|e: toml::de::Error| plain(e.message()))?;
        pass.validate()?;
        Ok(Box::new(pass))
    }

    /// What serde says, in words for people who know no Rust.
    fn plain(message: &str) -> String {
        let words = [("expected f64", "expected a number"), ("expected u64", "expected a whole number")];
        let words = words.into_iter().chain([("expected usize", "expected a whole number")]);
        words.fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// The value of an option as written in pipelines; empty for an absent one.
    pub fn shown<P: Serialize>(pass: &P, option: &str) -> String {
        let table = toml::Table::try_from(pass).unwrap_or_default();
        table.get(option).map_or_else(String::new, crate::framework::pipeline::show_value)
    }
}
