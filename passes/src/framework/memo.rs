//! Results of long computations that may be asked for again.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// Results by a fingerprint of everything that they depend on. A search that makes its result again from the
/// pipeline does not train it again.
#[derive(Default)]
pub struct Memo(Mutex<HashMap<u64, Arc<dyn Any + Send + Sync>>>);

impl Memo {
    /// Returns the result with this fingerprint, if it is of this type.
    pub fn get<T: Send + Sync + 'static>(&self, fingerprint: u64) -> Option<Arc<T>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&fingerprint).cloned()?.downcast().ok()
    }

    /// Keeps a result.
    pub fn put<T: Send + Sync + 'static>(&self, fingerprint: u64, result: Arc<T>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(fingerprint, result);
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Memo({} results)", known.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_was_put() {
        let memo = Memo::default();
        assert_eq!(memo.get::<f64>(7), None);
        memo.put(7, Arc::new(0.5_f64));
        assert_eq!(memo.get::<f64>(7), Some(Arc::new(0.5)));
        assert_eq!((memo.get::<f64>(8), memo.get::<f32>(7)), (None, None));
    }
}
