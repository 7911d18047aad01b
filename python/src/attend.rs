//! Work on a thread of its own, attended by the thread that called it.
//!
//! The calling thread releases the interpreter while it waits, looks for signals, and runs all Python code that the work
//! needs: progress, metrics, passes. So callbacks run where the caller expects them, and Ctrl-C works.

use crate::errors::{defect, raised};
use onnx_pare::{Error, Event, Progress};
use onnx_pare_cli::{Interface, event};
use pyo3::{exceptions::PyKeyboardInterrupt, prelude::*};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::Builder,
    time::{Duration, Instant},
};

/// Interval at which signals are looked for.
const SIGNALS: Duration = Duration::from_millis(50);
/// Interval at which progress is reported.
const STEPS: Duration = Duration::from_millis(100);
/// Models nest subgraphs, and the main thread of programs has this much by default.
const STACK: usize = 8 << 20;

/// The effect of the first interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interrupts {
    /// The work ends, and `KeyboardInterrupt` is raised.
    End,
    /// The work ends early with its result.
    EndEarly,
}

enum Message {
    Step { stage: String, done: u64, total: u64 },
    Note(String),
    Call(Box<dyn FnOnce(Python<'_>) -> PyResult<()> + Send>),
    Done,
}

/// The connection from the work to the calling thread.
#[derive(Clone)]
pub struct Line {
    messages: Sender<Message>,
    cancelled: Arc<AtomicBool>,
    last_step: Arc<Mutex<Option<Instant>>>,
}

impl Line {
    /// Runs Python code on the calling thread, and waits for its result. The caller raises its exception.
    pub fn call<R: Send + 'static>(
        &self,
        code: impl FnOnce(Python<'_>) -> PyResult<R> + Send + 'static,
    ) -> Result<R, String> {
        let (reply, answer) = channel();
        let code = move |py: Python<'_>| {
            // The work waits for the reply.
            let _ = reply.send(code(py)?);
            Ok(())
        };
        let failed = || "the Python function failed".to_owned();
        self.messages.send(Message::Call(Box::new(code))).map_err(|_| failed())?;
        answer.recv().map_err(|_| failed())
    }

    fn is_due(&self) -> bool {
        let Ok(mut last) = self.last_step.lock() else { return false };
        let due = last.is_none_or(|last| last.elapsed() >= STEPS);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

impl Progress for Line {
    fn step(&self, stage: &str, done: u64, total: u64) {
        if done >= total || self.is_due() {
            let _ = self.messages.send(Message::Step { stage: stage.to_owned(), done, total });
        }
    }

    fn event(&self, happened: &Event<'_>) {
        if let Some(text) = event(happened, Interface::Python) {
            let _ = self.messages.send(Message::Note(text));
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Ends the attendance, also after a panic.
struct Done(Sender<Message>);

impl Drop for Done {
    fn drop(&mut self) {
        let _ = self.0.send(Message::Done);
    }
}

/// Runs `work`, and returns its result or raises its error. `host` receives progress: `step(stage, done, total)` and
/// `note(text)`.
///
/// After the first exception of Python code the work is asked to end; after the second it is left behind.
pub fn attend<T: Send + 'static>(
    py: Python<'_>,
    host: &Bound<'_, PyAny>,
    interrupts: Interrupts,
    work: impl FnOnce(Line) -> Result<T, Error> + Send + 'static,
) -> PyResult<T> {
    let (messages, mut inbox) = channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let line = Line { messages: messages.clone(), cancelled: cancelled.clone(), last_step: Arc::default() };
    let worker = Builder::new().name("pare".into()).stack_size(STACK).spawn(move || {
        let _done = Done(messages);
        work(line)
    })?;
    let exception = serve(py, host, &mut inbox, &cancelled)?;
    let result = py.detach(|| worker.join()).unwrap_or_else(|panic| Err(defect(&*panic)));
    match (result, exception) {
        (Ok(result), None) => Ok(result),
        (Ok(result), Some(exception))
            if interrupts == Interrupts::EndEarly && exception.is_instance_of::<PyKeyboardInterrupt>(py) =>
        {
            Ok(result)
        }
        (_, Some(exception)) => Err(exception),
        (Err(error), None) => Err(raised(py, &error)),
    }
}

/// Serves messages until the work is done. Returns the exception of Python code, if there was one; a second one is an
/// error.
fn serve(
    py: Python<'_>,
    host: &Bound<'_, PyAny>,
    inbox: &mut Receiver<Message>,
    cancelled: &AtomicBool,
) -> PyResult<Option<PyErr>> {
    let mut exception = None;
    loop {
        let waiting = &mut *inbox;
        let message = py.detach(move || waiting.recv_timeout(SIGNALS));
        let served = match message {
            Ok(Message::Done) | Err(RecvTimeoutError::Disconnected) => return Ok(exception),
            Ok(Message::Step { stage, done, total }) => {
                host.call_method1("step", (stage, done, total)).map(drop)
            }
            Ok(Message::Note(text)) => host.call_method1("note", (text,)).map(drop),
            // Work that is asked to end gets no more answers.
            Ok(Message::Call(code)) if exception.is_none() => code(py),
            Ok(Message::Call(_)) | Err(RecvTimeoutError::Timeout) => Ok(()),
        };
        if let Err(error) = served.and_then(|()| py.check_signals()) {
            if exception.is_some() {
                return Err(error);
            }
            exception = Some(error);
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}
