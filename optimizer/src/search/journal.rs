//! The record of a search, from which an interrupted one continues.

use super::trial::Trial;
use crate::{Error, hash};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Trials in a file of the cache, one JSON object a line.
pub(super) struct Journal {
    path: Option<PathBuf>,
    trials: Vec<Trial>,
}

/// Everything that the outcome of a trial depends on.
#[derive(Clone)]
pub(super) struct JournalKey(Sha256);

impl JournalKey {
    pub fn new() -> Self {
        let mut hasher = Sha256::new();
        hasher.update(env!("CARGO_PKG_VERSION"));
        Self(hasher)
    }

    /// Adds text, such as options in canonical form.
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds the content of a file; of a folder, that of its files.
    pub fn file(mut self, path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::File { action: "read", path: path.to_owned(), error };
        if path.is_dir() {
            let entries =
                fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
            let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
            paths.sort();
            return paths.iter().try_fold(self, |key, path| key.file(path));
        }
        hash::add_file(&mut self.0, path).map_err(failed)?;
        Ok(self)
    }

    fn name(self) -> String {
        hash::hex(self.0)[..32].to_owned()
    }
}

impl Journal {
    /// Opens the journal of a key in a folder; without a folder nothing is kept.
    pub fn open(folder: Option<PathBuf>, key: JournalKey) -> Self {
        let path = folder.map(|folder| folder.join("search").join(format!("{}.jsonl", key.name())));
        let text = path.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        // The last line may be cut off.
        let trials = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Self { path, trials }
    }

    /// The earlier trial of a pipeline that was calibrated on this number of samples.
    pub fn find(&self, pipeline: &str, samples: usize) -> Option<&Trial> {
        self.trials.iter().rev().find(|trial| trial.pipeline == pipeline && trial.samples == samples)
    }

    /// Adds a trial. A cache that cannot be written is not an error: it only costs time.
    pub fn add(&self, trial: &Trial) {
        let Some(path) = &self.path else { return };
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
            let line = serde_json::to_string(trial).map_err(io::Error::other)? + "\n";
            // A line that was cut off ends here.
            let start = if fs::read(path)?.last().is_some_and(|&last| last != b'\n') { "\n" } else { "" };
            file.write_all((start.to_owned() + &line).as_bytes())
        };
        let _: io::Result<()> = write();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{family::Combination, trial::TrialOutcome},
        *,
    };

    #[test]
    fn continues_after_a_line_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(Some(folder.path().to_owned()), JournalKey::new().text("model"));
        let trial = |pipeline: &str| Trial {
            pipeline: pipeline.into(),
            strengths: Combination::default(),
            samples: 5,
            seconds: 1.0,
            infeasible: None,
            outcome: TrialOutcome::Skipped("no".into()),
        };
        open().add(&trial("a"));
        let path = open().path.unwrap();
        let cut = &fs::read(&path).unwrap()[..5];
        fs::write(&path, [&fs::read(&path).unwrap(), cut].concat()).unwrap();
        open().add(&trial("b"));
        assert!(
            open().find("a", 5).is_some() && open().find("b", 5).is_some() && open().find("b", 6).is_none()
        );
        // Another key is another journal.
        assert!(
            Journal::open(Some(folder.path().to_owned()), JournalKey::new().text("other"))
                .find("a", 5)
                .is_none()
        );
    }

    #[test]
    fn keys_depend_on_text_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        fs::write(&file, "1").unwrap();
        let key = |text: &str| JournalKey::new().text(text).file(folder.path()).unwrap().name();
        let first = key("a");
        assert_eq!((first.clone(), first.len()), (key("a"), 32));
        assert_ne!(first, key("b"));
        fs::write(&file, "2").unwrap();
        assert_ne!(first, key("a"));
    }
}
