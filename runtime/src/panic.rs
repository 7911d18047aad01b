//! Panics of engines and parsers, as errors.

use crate::message::one_line;
use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if a panic of this thread would be caught and returned as an error. The panic hook belongs to
/// the program: it may print nothing then.
pub fn is_catching_panics() -> bool {
    CATCHING.try_with(Cell::get).unwrap_or(false)
}

/// Runs `f`, and returns the message of its panic as the error.
pub(crate) fn catch_panic<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    one_line(text.unwrap_or("panic without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_message_of_a_panic() {
        assert_eq!(catch_panic(is_catching_panics), Ok(true));
        assert_eq!(catch_panic(|| panic!("bad {}", 2)), Err::<(), _>("bad 2".to_owned()));
        let other = catch_panic(|| std::panic::panic_any(3_u8));
        assert_eq!(other, Err::<(), _>("panic without a message".into()));
        assert!(!is_catching_panics());
    }
}
