//! The ONNX Runtime of the Python package `onnxruntime`.
//!
//! Its library is part of an extension module that exports nothing. But it loads libraries of custom operators and passes
//! its interface to them; so this library presents itself as one that registers no operators, and keeps the interface.

use crate::errors::invalid;
use onnx_pare::{Error, engines};
use std::{
    ffi::c_void,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

/// The result of `OrtGetApiBase` of the runtime that loaded this library.
static BASE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Called by ONNX Runtime when this library is registered as one of custom operators. A null status is success.
#[allow(unsafe_code, non_snake_case)]
// SAFETY: no other symbol of this library has this name, which ONNX Runtime asks for.
#[unsafe(no_mangle)]
extern "C" fn RegisterCustomOps(_options: *mut c_void, base: *mut c_void) -> *mut c_void {
    BASE.store(base, Ordering::Release);
    null_mut()
}

/// Runs models in the ONNX Runtime that registered this library.
#[allow(unsafe_code)]
pub fn adopt(owner: &str) -> Result<(), Error> {
    let base = BASE.load(Ordering::Acquire);
    if base.is_null() {
        return Err(invalid(format!("{owner} passed no interface")));
    }
    // SAFETY: ONNX Runtime passed its own interface; Python never unloads extension modules.
    unsafe { engines::adopt(base, owner) }
}
