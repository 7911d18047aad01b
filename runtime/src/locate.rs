//! Search for an ONNX Runtime library on this machine.
//!
//! Order: the path given, `ORT_DYLIB_PATH`, the folder in `PARE_ONNXRUNTIME`, which the Python package sets to that of the
//! Python that runs it, the folder of the installed library, `onnxruntime/capi` of the
//! active virtual environment and of the Python in `PATH`, the system's library folders. The first two are
//! requests: if they cannot be used, nothing else takes their place. Among the others, the first library that has
//! the requested execution provider is preferred.

use crate::{
    Provider, cache::folder_in, error::EngineError, hint::Tried, message::one_line, provider::short_name,
};
use std::{
    cmp::Reverse,
    ffi::{CStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The oldest 1.x release with the interface that this crate uses.
const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// A usable library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The library file.
    pub path: PathBuf,
    /// Its version, such as `1.32.0`.
    pub version: String,
    /// The kind of place where it was found, such as `VIRTUAL_ENV`.
    pub from: String,
    /// The execution providers that it has, by their short names.
    pub providers: Vec<String>,
}

/// A library file, usable or not.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The library file.
    pub path: PathBuf,
    /// The kind of place where it was found, such as `VIRTUAL_ENV`.
    pub from: String,
    /// Its version, or the reason why it cannot be used.
    pub version: Result<String, String>,
}

/// Returns the first usable library, if possible one that has `provider`. `requested` is a library file or a folder
/// that contains one.
///
/// # Errors
/// [`EngineError::Library`] if the requested library cannot be used, [`EngineError::NotFound`] if there is
/// none.
pub fn locate(requested: Option<&Path>, provider: &Provider) -> Result<Located, EngineError> {
    locate_in(requested, provider, &|name| std::env::var_os(name))
}

/// Returns every library found, in search order.
pub fn candidates(requested: Option<&Path>) -> Vec<Candidate> {
    let lookup = |name: &str| std::env::var_os(name);
    let places = requested_places(requested, &lookup).into_iter().chain(default_places(&lookup));
    let files = places.flat_map(|place| {
        let from = place.from;
        place.files.into_iter().map(move |path| (path, from.clone()))
    });
    files.map(|(path, from)| Candidate { version: probe(&path), path, from }).collect()
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A place to search, and its library files.
struct SearchPlace {
    from: String,
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl SearchPlace {
    fn new(from: &str, root: PathBuf) -> Self {
        let files = if root.is_dir() { libraries_in(&root) } else { vec![root.clone()] };
        Self { from: from.to_owned(), root, files }
    }

    fn folder(from: &str, root: PathBuf) -> Self {
        Self { from: from.to_owned(), files: libraries_in(&root), root }
    }

    /// The first usable file, or the reasons why there is none.
    fn first(&self) -> Result<Located, String> {
        let mut reasons = Vec::new();
        for path in &self.files {
            match open(path) {
                Ok((version, providers)) => {
                    return Ok(Located { path: path.clone(), version, from: self.from.clone(), providers });
                }
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            return Err(format!("no library in `{}`", self.root.display()));
        }
        Err(reasons.join("; "))
    }
}

fn locate_in(requested: Option<&Path>, provider: &Provider, lookup: Lookup) -> Result<Located, EngineError> {
    if let Some(place) = requested_places(requested, lookup).first() {
        let (path, from) = (place.root.clone(), place.from.clone());
        return place.first().map_err(|reason| EngineError::Library { path, from, reason });
    }
    let (mut tried, mut usable) = (Vec::new(), None);
    for place in default_places(lookup) {
        match place.first() {
            Ok(located) if located.providers.iter().any(|name| name == provider.name()) => {
                return Ok(located);
            }
            Ok(located) => usable = usable.or(Some(located)),
            Err(reason) => tried.push(Tried { from: place.from, reason }),
        }
    }
    usable.ok_or(EngineError::NotFound(tried))
}

/// The places that the user requested; only the first counts.
fn requested_places(requested: Option<&Path>, lookup: Lookup) -> Vec<SearchPlace> {
    let option = requested.map(|path| SearchPlace::new("the path given", path.to_owned()));
    let variable = lookup("ORT_DYLIB_PATH").filter(|value| !value.is_empty());
    let variable = variable.map(|value| SearchPlace::new("ORT_DYLIB_PATH", value.into()));
    option.into_iter().chain(variable).collect()
}

/// The places searched without a request. Lazy, because starting Python takes a moment.
fn default_places(lookup: Lookup<'_>) -> impl Iterator<Item = SearchPlace> + '_ {
    let package = lookup("PARE_ONNXRUNTIME");
    let package = package.map(|folder| SearchPlace::folder("the package onnxruntime", folder.into()));
    let own = folder_in(lookup).map(|folder| SearchPlace::folder("installed by pare", folder));
    let environment = lookup("VIRTUAL_ENV").into_iter().flat_map(|root| environment_sites(root.as_ref()));
    let environment = environment.map(|site| SearchPlace::folder("VIRTUAL_ENV", capi(&site)));
    let python = std::iter::once_with(python_sites).flatten();
    let python = python.map(|site| SearchPlace::folder("Python's site-packages", capi(&site)));
    let system =
        system_folders(lookup).into_iter().map(|folder| SearchPlace::folder("system libraries", folder));
    package.into_iter().chain(own).chain(environment).chain(python).chain(system)
}

fn capi(site_packages: &Path) -> PathBuf {
    site_packages.join("onnxruntime").join("capi")
}

/// `site-packages` of a virtual environment.
fn environment_sites(root: &Path) -> Vec<PathBuf> {
    if cfg!(windows) {
        return vec![root.join("Lib").join("site-packages")];
    }
    let versions = fs::read_dir(root.join("lib")).into_iter().flatten().flatten();
    let versions = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with("python"));
    versions.map(|entry| entry.path().join("site-packages")).collect()
}

/// `site-packages` of the Python in `PATH`. Isolated mode keeps modules of the current folder out.
fn python_sites() -> Vec<PathBuf> {
    const SCRIPT: &str = "import site, sysconfig\n\
        for p in (sysconfig.get_path('platlib'), sysconfig.get_path('purelib'), site.getusersitepackages()): print(p)";
    let run = |python: &&str| {
        let mut command = Command::new(python);
        let output = command.args(["-I", "-c", SCRIPT]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    let Some(output) = ["python3", "python"].iter().find_map(run) else { return Vec::new() };
    let mut sites: Vec<_> = String::from_utf8_lossy(&output).lines().map(PathBuf::from).collect();
    sites.dedup();
    sites
}

fn system_folders(lookup: Lookup) -> Vec<PathBuf> {
    let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let listed = lookup(variable).unwrap_or_default();
    let listed: Vec<_> = std::env::split_paths(&listed).filter(|path| path.is_absolute()).collect();
    let standard: &[&str] = if cfg!(target_os = "macos") {
        &["/opt/homebrew/lib", "/usr/local/lib"]
    } else if cfg!(windows) {
        // Windows' own copy in System32 is too old.
        &[]
    } else {
        &[
            "/usr/local/lib",
            "/usr/lib",
            "/usr/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
            "/opt/onnxruntime/lib",
        ]
    };
    listed.into_iter().chain(standard.iter().map(PathBuf::from)).collect()
}

/// ONNX Runtime's library files in a folder, newest first.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_library(path)).collect();
    // Compared as numbers: 1.32 is newer than 1.9. A name without a version is a link to one with a version.
    found.sort_by_cached_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
        Reverse(numbers.collect::<Vec<_>>())
    });
    found
}

/// Returns true if `path` has the file name of ONNX Runtime's main library on this system.
pub(crate) fn is_library(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    if cfg!(windows) {
        return name.eq_ignore_ascii_case("onnxruntime.dll");
    }
    let Some(rest) = name.strip_prefix("libonnxruntime.") else { return false };
    if cfg!(target_os = "macos") { rest.ends_with("dylib") } else { rest == "so" || rest.starts_with("so.") }
}

/// Returns the version of the library at `path`, or the reason why it cannot be used. Loads the library,
/// which runs its initializers.
pub fn probe(path: &Path) -> Result<String, String> {
    open(path).map(|(version, _)| version)
}

/// The version and the execution providers of the library at `path`.
#[allow(unsafe_code)]
fn open(path: &Path) -> Result<(String, Vec<String>), String> {
    if !path.is_file() {
        return Err(format!("no file `{}`", path.display()));
    }
    // SAFETY: loading runs the library's initializers, which is documented.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        // The system's message is the source of the error.
        let system = std::error::Error::source(&error).map(ToString::to_string);
        one_line(&system.unwrap_or_else(|| error.to_string()))
    })?;
    type Base = unsafe extern "C" fn() -> *const ort::sys::OrtApiBase;
    // SAFETY: ONNX Runtime exports the function with this type in every version.
    let base = unsafe { library.get::<Base>(b"OrtGetApiBase\0") };
    let base = base.map_err(|_| format!("`{}` is not ONNX Runtime", path.display()))?;
    // SAFETY: the function takes no arguments and returns a table that is valid as long as the library; the
    // version is a string constant in it.
    let (version, api) = unsafe {
        let Some(base) = base().as_ref() else { return Err("it has no interface".to_owned()) };
        let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
        (version, (base.GetApi)(ort::sys::ORT_API_VERSION).as_ref())
    };
    // Unloading would run destructors of a library that is about to be used.
    std::mem::forget(library);
    if minor(&version).is_some_and(|minor| minor >= OLDEST_MINOR) {
        return Ok((version, api.map(providers).unwrap_or_default()));
    }
    Err(format!("`{}` is version {version}, and 1.{OLDEST_MINOR} or later is needed", path.display()))
}

/// The execution providers of a library, by their short names; none if it does not list them.
#[allow(unsafe_code)]
pub(crate) fn providers(api: &ort::sys::OrtApi) -> Vec<String> {
    let (mut names, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: the function writes an array of `count` strings, or returns an error and writes nothing. The strings are
    // copied before they are released.
    unsafe {
        let status = (api.GetAvailableProviders)(&raw mut names, &raw mut count);
        if !status.0.is_null() || names.is_null() {
            return vec![];
        }
        let listed = std::slice::from_raw_parts(names, usize::try_from(count).unwrap_or_default());
        let listed = listed.iter().map(|&name| short_name(&CStr::from_ptr(name).to_string_lossy())).collect();
        // It fails only if the array is none.
        let _ = (api.ReleaseAvailableProviders)(names, count);
        listed
    }
}

/// 32 of `1.32.0`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hint;

    #[test]
    fn rejects_unusable_requests_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("libonnxruntime.so.1.99.0");
        fs::write(&broken, "no library").unwrap();
        let missing = folder.path().join("missing.so");
        for path in [&broken, &missing] {
            let error = locate_in(Some(path), &Provider::default(), &|_| None).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("the ONNX Runtime library `"), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
            assert!(!text.contains("dlopen failed"), "{text}");
            assert_eq!(error.hint(), Some(Hint::ReplaceRuntime));
        }
        let variable = |name: &str| (name == "ORT_DYLIB_PATH").then(|| missing.clone().into_os_string());
        let text = locate_in(None, &Provider::default(), &variable).unwrap_err().to_string();
        assert!(text.contains("(ORT_DYLIB_PATH)"), "{text}");
    }

    #[test]
    fn searches_all_default_places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let capi = root.join("lib/python3.12/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        let name = if cfg!(windows) { "onnxruntime.dll" } else { "libonnxruntime.so.1.32.0" };
        fs::write(capi.join(name), "no library").unwrap();
        let lookup = |name: &str| match name {
            "VIRTUAL_ENV" | "PARE_CACHE" => Some(root.clone().into_os_string()),
            _ => None,
        };
        let places: Vec<_> = default_places(&lookup).collect();
        assert_eq!(places[0].from, "installed by pare");
        if cfg!(target_os = "linux") {
            assert_eq!(places[1].files, [capi.join(name)]);
            assert!(places[1].first().is_err());
        }
        assert!(places[0].first().unwrap_err().starts_with("no library in `"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn prefers_the_newest_library() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime.so"];
        for name in names.iter().chain(&["libonnxruntime_providers_shared.so", "libonnxruntime.txt"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = libraries_in(folder.path());
        let found: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(found, [names[1], names[0], names[2]]);
    }

    #[test]
    fn parses_versions() {
        assert_eq!(minor("1.32.0"), Some(32));
        assert_eq!(minor("2.1"), None);
        assert_eq!(minor("1.x"), None);
    }
}
