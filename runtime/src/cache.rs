//! The folder for files that are kept between runs: the ONNX Runtime that is installed on request, journals.

use std::{ffi::OsString, path::PathBuf};

/// The version of ONNX Runtime that is installed on request; this crate is tested with it.
pub const VERSION: &str = "1.32.0";

/// The folder for files that are kept between runs: `$PARE_CACHE`, or `pare` in the system's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    root_in(&|name| std::env::var_os(name))
}

/// The folder for [`VERSION`] in the cache.
pub(crate) fn folder_in(lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    root_in(lookup).map(|root| root.join(format!("onnxruntime-{VERSION}")))
}

fn root_in(lookup: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let system = || {
        let base = if cfg!(windows) {
            path("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            path("HOME").map(|home| home.join("Library").join("Caches"))
        } else {
            let xdg = path("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
            xdg.or_else(|| path("HOME").map(|home| home.join(".cache")))
        };
        base.map(|base| base.join("pare"))
    };
    path("PARE_CACHE").or_else(system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn follows_the_environment() {
        let lookup = |name: &str| match name {
            "PARE_CACHE" => Some("/cache".into()),
            "HOME" => Some("/home".into()),
            _ => None,
        };
        assert_eq!(folder_in(&lookup), Some(Path::new("/cache").join("onnxruntime-1.32.0")));
        if cfg!(target_os = "linux") {
            let home = |name: &str| (name == "HOME").then(|| "/home".into());
            assert_eq!(folder_in(&home), Some("/home/.cache/pare/onnxruntime-1.32.0".into()));
        }
        assert_eq!(folder_in(&|_| None), None);
    }
}
