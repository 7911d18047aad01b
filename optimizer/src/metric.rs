//! Quality as a number from the caller's own program or function.

use crate::{Error, Hint};
use process_wrap::std::{ChildWrapper, CommandWrap};
use std::{
    fmt,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// A measure of quality that the caller defines: higher is better.
///
/// ```
/// use onnx_pare::Metric;
/// let size = Metric::function(|model| {
///     let bytes = std::fs::metadata(model).map_err(|e| e.to_string())?;
///     Ok(-(bytes.len() as f64))
/// });
/// assert!(size.measure("no-such-file.onnx".as_ref()).is_err());
/// ```
#[derive(Clone)]
pub struct Metric {
    name: String,
    function: Arc<Function>,
}

/// Measures a model file; the error is one sentence.
type Function = dyn Fn(&Path) -> Result<f64, String> + Send + Sync;

impl Metric {
    /// A function of the model file.
    pub fn function(function: impl Fn(&Path) -> Result<f64, String> + Send + Sync + 'static) -> Self {
        Self { name: "the metric".into(), function: Arc::new(function) }
    }

    /// A command line for the system's shell, in which `{model}` is replaced by the path of the model. The last line
    /// that it prints is the number. It is ended after `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if `{model}` is missing.
    pub fn command(line: &str, timeout: Duration) -> Result<Self, Error> {
        if !line.contains(PLACEHOLDER) {
            let message = format!("the command `{line}` does not name the model");
            return Err(Error::invalid_with(message, Hint::NameModel));
        }
        let command = line.to_owned();
        let function = move |model: &Path| run(&command, model, timeout);
        Ok(Self { name: format!("`{line}`"), function: Arc::new(function) })
    }

    /// Measures a model file.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it fails, or if its value is not a finite number.
    pub fn measure(&self, model: &Path) -> Result<f64, Error> {
        let value = (self.function)(model).map_err(|why| Error::invalid(format!("{}: {why}", self.name)))?;
        if !value.is_finite() {
            return Err(Error::invalid(format!("{}: the result {value} is not finite", self.name)));
        }
        Ok(value)
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metric({})", self.name)
    }
}

/// Replaced by the path of the model.
const PLACEHOLDER: &str = "{model}";
/// Interval at which a running command is looked at.
const POLL: Duration = Duration::from_millis(10);

fn run(line: &str, model: &Path, timeout: Duration) -> Result<f64, String> {
    let line = line.replace(PLACEHOLDER, &quoted(model));
    let mut command = CommandWrap::from(shell(&line));
    command.command_mut().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The shell starts further processes, which have to end with it.
    #[cfg(unix)]
    command.wrap(process_wrap::std::ProcessGroup::leader());
    #[cfg(windows)]
    command.wrap(process_wrap::std::JobObject);
    let mut child = command.spawn().map_err(|e| format!("it cannot be started: {e}"))?;
    let (printed, complaints) = (drain(child.stdout().take()), drain(child.stderr().take()));
    let status = wait(&mut *child, timeout)?;
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    let (printed, complaints) = (text(printed), text(complaints));
    if !status.success() {
        let last = complaints.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed no reason");
        return Err(format!("it failed with {status}: {}", last.trim()));
    }
    let Some(last) = printed.lines().rfind(|line| !line.trim().is_empty()) else {
        return Err("it printed nothing; its last line has to be a number".into());
    };
    let last = last.trim();
    last.parse().map_err(|_| format!("its last line `{last}` is not a number"))
}

/// Waits for a process, and ends it with its group after `timeout`.
fn wait(child: &mut dyn ChildWrapper, timeout: Duration) -> Result<std::process::ExitStatus, String> {
    let failed = |e: std::io::Error| format!("it cannot be waited for: {e}");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if start.elapsed() > timeout {
            let _ = child.start_kill();
            let _ = child.wait();
            return Err(format!("it took longer than {} s", timeout.as_secs_f64()));
        }
        thread::sleep(POLL);
    }
}

/// Reads a pipe to its end, so that the process never waits for a reader.
fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = vec![];
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(unix)]
fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    command
}

#[cfg(windows)]
fn shell(line: &str) -> Command {
    use std::os::windows::process::CommandExt;
    let mut command = Command::new("cmd");
    command.raw_arg(format!("/C {line}"));
    command
}

#[cfg(unix)]
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(windows)]
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn measure(line: &str) -> Result<f64, String> {
        let metric = Metric::command(line, Duration::from_secs(2)).map_err(|e| e.to_string())?;
        metric.measure(Path::new("a 'b'.onnx")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_last_line_is_the_number() {
        assert_eq!(measure("echo words; echo 0.75; echo; : {model}"), Ok(0.75));
        // Quotes in paths reach the program.
        assert_eq!(measure("test {model} = \"a 'b'.onnx\" && echo 1"), Ok(1.0));
    }

    #[test]
    fn failures_are_one_sentence() {
        let error = |line: &str| measure(line).unwrap_err();
        assert!(error("echo 1").ends_with("does not name the model"));
        assert!(error(": {model}").ends_with("it printed nothing; its last line has to be a number"));
        assert!(error("echo good {model}").contains("is not a number"));
        assert!(
            error("echo nan; : {model}").is_empty() || error(": {model}; echo nan").contains("not finite")
        );
        let failed = error(": {model}; echo 'no data' >&2; exit 3");
        assert!(failed.contains("exit status: 3: no data"), "{failed}");
    }

    #[test]
    fn commands_that_hang_are_ended_with_their_children() {
        let start = Instant::now();
        let metric = Metric::command("sleep 60 | cat; : {model}", Duration::from_millis(200)).unwrap();
        let error = metric.measure(Path::new("m")).unwrap_err().to_string();
        assert!(error.ends_with("it took longer than 0.2 s"), "{error}");
        // The readers of the pipes end only when all processes have.
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
