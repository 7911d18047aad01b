//! Crashes of native code, which no panic tells of: engines run in this process.

/// End with a sentence and exit code 2 where a signal would have ended the command without a word.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn tell() {
    macro_rules! sentence {
        ($signal:literal) => {
            concat!(
                "error: native code crashed (",
                $signal,
                "), most likely ONNX Runtime on inputs that the model does not take\n",
                "hint: give it inputs with `--samples`, or another engine with `--engine tract`\n"
            )
        };
    }
    let signals = [
        (libc::SIGABRT, sentence!("SIGABRT")),
        (libc::SIGBUS, sentence!("SIGBUS")),
        (libc::SIGFPE, sentence!("SIGFPE")),
        (libc::SIGILL, sentence!("SIGILL")),
        (libc::SIGSEGV, sentence!("SIGSEGV")),
    ];
    for (signal, text) in signals {
        // SAFETY: what is done in the handler is allowed there (signal-safety(7)): it writes and exits.
        let _ = unsafe {
            signal_hook_registry::register_signal_unchecked(signal, move || {
                libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                libc::_exit(2)
            })
        };
    }
}

#[cfg(not(unix))]
pub fn tell() {}
