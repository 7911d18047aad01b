//! Ctrl-C and SIGTERM.

use std::sync::atomic::{AtomicBool, Ordering};

/// The first interrupt ends an operation early instead of the process.
static DEFERRED: AtomicBool = AtomicBool::new(false);
static REQUESTED: AtomicBool = AtomicBool::new(false);
/// It ends training only; the rest of the operation goes on.
static TRAINING: AtomicBool = AtomicBool::new(false);

/// On an interrupt, temporary files are removed and the process exits.
#[allow(clippy::exit)] // a signal handler cannot return from `main`
pub fn install() {
    // Without a handler the command ends too, and the next run removes the files.
    let _ = ctrlc::set_handler(|| {
        if DEFERRED.load(Ordering::Relaxed) && !REQUESTED.swap(true, Ordering::Relaxed) {
            return;
        }
        onnx_pare::remove_temporary_files();
        std::process::exit(130);
    });
}

/// Lets the first interrupt end the operation early, with what it has so far.
pub fn defer() {
    DEFERRED.store(true, Ordering::Relaxed);
}

/// Lets the first interrupt end training early, with the best weights so far.
pub fn defer_training() {
    TRAINING.store(true, Ordering::Relaxed);
    defer();
}

/// Returns whether the operation is to end.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed) && !TRAINING.load(Ordering::Relaxed)
}

/// Returns whether training is to end.
pub fn ends_training() -> bool {
    REQUESTED.load(Ordering::Relaxed) && TRAINING.load(Ordering::Relaxed)
}
