//! Installation of the ONNX Runtime version that this crate is tested with.
//!
//! The library comes from the wheel that the ONNX Runtime project publishes on PyPI. The user's own `pip`
//! downloads it (mirrors and proxies are configured there), and its SHA-256 must be the one below.

pub use crate::{cache::VERSION, error::InstallError};

use crate::{cache::folder_in, locate, message::one_line};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A wheel of [`VERSION`]. The library does not depend on the version of Python: one wheel per platform is
/// enough.
struct Wheel {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
}

const WHEELS: [Wheel; 4] = [
    Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
    },
    Wheel {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
    },
    Wheel {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        sha256: "d52510bbbcc880c13b826f7d75cdf33ac5cf0bb864d960000fc29ce73f0cb83e",
    },
    Wheel {
        os: "windows",
        arch: "x86_64",
        platform: "win_amd64",
        sha256: "efe7456952c243a05a53d5b8732953625144642c2f3989094277f6217f0c0c40",
    },
];

/// Limit for an unpacked library, against hostile archives.
const MAX_LIBRARY: u64 = 1 << 30;

fn library_in(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(|path| locate::is_library(path) && locate::probe(path).is_ok())
}

/// Installs the library unless it is there already, and returns its path. `progress` receives one line before
/// the download.
pub fn install(progress: &mut dyn FnMut(&str)) -> Result<PathBuf, InstallError> {
    let folder = folder_in(&|name| std::env::var_os(name)).ok_or(InstallError::NoCache)?;
    install_to(&folder, progress)
}

fn install_to(folder: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, InstallError> {
    if let Some(path) = library_in(folder) {
        return Ok(path);
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let wheel = WHEELS.iter().find(|wheel| (wheel.os, wheel.arch) == (os, arch));
    let wheel = wheel.ok_or_else(|| InstallError::Platform(format!("{os} on {arch}")))?;

    let root = folder.parent().ok_or(InstallError::NoCache)?;
    fs::create_dir_all(root).map_err(io_error(root))?;
    // In the same file system as the target, for the rename.
    let work = tempfile::tempdir_in(root).map_err(io_error(root))?;
    progress(&format!("fetching ONNX Runtime {VERSION} with pip (once, into {})", folder.display()));
    let file = download(wheel, work.path())?;
    check_hash(&file, wheel.sha256)?;

    let unpacked = work.path().join("unpacked");
    fs::create_dir(&unpacked).map_err(io_error(&unpacked))?;
    unpack(&file, &unpacked)?;
    let path = library_in(&unpacked).ok_or_else(|| unusable_reason(&unpacked))?;
    let name = path.file_name().unwrap_or_default().to_owned();
    // A folder without a usable library is left from an interrupted installation; a usable one comes from a
    // process that was faster.
    if folder.exists() && library_in(folder).is_none() {
        fs::remove_dir_all(folder).map_err(io_error(folder))?;
    }
    match fs::rename(&unpacked, folder) {
        Err(error) if library_in(folder).is_none() => Err(io_error(folder)(error)),
        _ => Ok(folder.join(name)),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |error| InstallError::Io { path, error }
}

fn unusable_reason(folder: &Path) -> InstallError {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    match files.into_iter().find(|path| locate::is_library(path)) {
        Some(path) => InstallError::Library(locate::probe(&path).err().unwrap_or_default()),
        None => InstallError::Archive("it contains no library".to_owned()),
    }
}

/// Downloads the wheel into `folder` with `pip`, which also runs there: Python must not import modules from
/// the user's current folder.
fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf, InstallError> {
    let wanted = format!("onnxruntime=={VERSION}");
    let options =
        ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary=:all:"];
    let target = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"];
    let start = |python: &str| {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "download"]).args(options).args(target);
        command.args(["--platform", wheel.platform, "--dest", ".", &wanted]);
        command.current_dir(folder).stdin(Stdio::null()).output()
    };
    let output = match start("python3") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => start("python"),
        result => result,
    };
    let output = output.map_err(|_| InstallError::NoPython)?;
    if !output.status.success() {
        return Err(InstallError::Pip(last_error(&output.stderr)));
    }
    let file = folder.join(format!("onnxruntime-{VERSION}-cp312-cp312-{}.whl", wheel.platform));
    if file.is_file() { Ok(file) } else { Err(InstallError::Pip("it returned another file".to_owned())) }
}

/// The last line of pip's output that is marked as an error, or else its last line.
fn last_error(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let mut lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.reverse();
    let marked = lines.iter().find_map(|line| line.strip_prefix("ERROR: "));
    one_line(marked.or(lines.first().copied()).unwrap_or_default())
}

fn check_hash(file: &Path, wanted: &str) -> Result<(), InstallError> {
    let mut hash = Sha256::new();
    let mut reader = File::open(file).map_err(io_error(file))?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer).map_err(io_error(file))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let hash = hash.finalize();
    let digits = hash.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let got: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    if got == wanted {
        return Ok(());
    }
    let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(InstallError::Hash { file, wanted: wanted.to_owned(), got })
}

/// Unpacks the library and its helper from a wheel, and no other file.
fn unpack(file: &Path, to: &Path) -> Result<(), InstallError> {
    let broken = |error: zip::result::ZipError| InstallError::Archive(one_line(&error.to_string()));
    let mut archive = zip::ZipArchive::new(File::open(file).map_err(io_error(file))?).map_err(broken)?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(broken)?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let Some(name) = name.strip_prefix("onnxruntime/capi/") else { continue };
        let helper = name.contains("onnxruntime_providers_shared");
        if name.contains(['/', '\\']) || !(helper || locate::is_library(Path::new(name))) {
            continue;
        }
        let path = to.join(name);
        let mut out = File::create(&path).map_err(io_error(&path))?;
        let size = io::copy(&mut entry.take(MAX_LIBRARY), &mut out).map_err(io_error(&path))?;
        if size == MAX_LIBRARY {
            return Err(InstallError::Archive(format!("`{name}` is larger than any release")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hint;
    use std::io::Write;

    #[test]
    fn rejects_another_hash() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.whl");
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(check_hash(&file, abc).is_ok());
        let error = check_hash(&file, "00").unwrap_err();
        assert_eq!(error.to_string(), format!("the wheel `a.whl` has SHA-256 {abc}, not 00"));
    }

    #[test]
    fn unpacks_only_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.whl");
        let mut archive = zip::ZipWriter::new(File::create(&file).unwrap());
        let library = match std::env::consts::OS {
            "windows" => "onnxruntime.dll",
            "macos" => "libonnxruntime.1.32.0.dylib",
            _ => "libonnxruntime.so.1.32.0",
        };
        let inside = format!("onnxruntime/capi/{library}");
        for name in [inside.as_str(), "onnxruntime/capi/x.py", "onnxruntime/capi/../../evil.so", "evil.so"] {
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(b"data").unwrap();
        }
        archive.finish().unwrap();
        let to = folder.path().join("to");
        fs::create_dir(&to).unwrap();
        unpack(&file, &to).unwrap();
        let found: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, [library]);
        assert!(matches!(unusable_reason(&to), InstallError::Library(_)));
    }

    #[test]
    #[ignore = "downloads 30 MB from the package index"]
    fn downloads_the_library_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("onnxruntime");
        let mut lines = Vec::new();
        let path = install_to(&folder, &mut |line| lines.push(line.to_owned())).unwrap();
        assert_eq!((locate::probe(&path).as_deref(), lines.len()), (Ok(VERSION), 1));
        assert_eq!(install_to(&folder, &mut |_| unreachable!()).unwrap(), path);
        let entries: Vec<_> = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(entries, [folder]);
    }

    #[test]
    fn reports_pip_errors_in_one_line() {
        let output = b"WARNING: retrying\nERROR: Could not find a version.\nERROR: No matching distribution found.\n\n[notice] x";
        assert_eq!(last_error(output), "No matching distribution found");
        let missing = last_error(b"/usr/bin/python3: No module named pip\n");
        assert_eq!(missing, "/usr/bin/python3: No module named pip");
        assert_eq!(InstallError::Pip(missing).hint(), Hint::InstallPip);
    }
}
