//! Reports of crashes in native code, which engines run in this process.

/// Installs signal handlers that print one sentence and exit with code 2.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn report_crashes() {
    macro_rules! sentence {
        ($signal:literal) => {
            concat!(
                "error: native code crashed (",
                $signal,
                "), most likely ONNX Runtime on inputs that the model does not accept\n",
                "hint: give samples with `--samples`, or use another engine with `--engine tract`\n"
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
        // SAFETY: the handler calls write and _exit only, which are async-signal-safe (signal-safety(7)).
        let _ = unsafe {
            signal_hook_registry::register_signal_unchecked(signal, move || {
                libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                libc::_exit(2)
            })
        };
    }
}

#[cfg(not(unix))]
pub fn report_crashes() {}
