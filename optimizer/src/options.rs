//! Setters of the option structs, and defaults that several share.

use std::time::Duration;

/// Defines one consuming setter per field; `some` wraps the value of an optional field.
macro_rules! setters {
    ($ty:ident { $($(#[doc = $doc:literal])* $field:ident: $value:ty,)* $(; $($(#[doc = $some_doc:literal])* $some:ident: $inner:ty,)*)? }) => {
        impl $ty {
            $($(#[doc = $doc])* #[must_use]
            pub fn $field(mut self, $field: impl Into<$value>) -> Self {
                self.$field = $field.into();
                self
            })*
            $($($(#[doc = $some_doc])* #[must_use]
            pub fn $some(mut self, $some: impl Into<$inner>) -> Self {
                self.$some = Some($some.into());
                self
            })*)?
        }
    };
}
pub(crate) use setters;

/// The time of a comparison on samples, unless options set another: hundreds of samples show what thousands would.
pub(crate) const PROVE_TIME: Duration = Duration::from_secs(20);

/// Bytes that activations may occupy, unless options set another limit.
pub(crate) const MEMORY: u64 = 2 << 30;
