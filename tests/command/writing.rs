//! Outputs are written atomically.

#![cfg(unix)]

use super::{code, fixture, is_valid, large, names, pare, run, stderr};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const MEGABYTE: usize = 1 << 20;

/// Runs `pare optimize in.onnx -o out.onnx` and sends a signal after some time; returns whether it was still
/// running.
fn interrupted(folder: &Path, signal: &str, after: Duration) -> bool {
    let mut child = pare(folder)
        .args(["optimize", "in.onnx", "-o", "out.onnx", "--no-prove", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(after);
    let running = child.try_wait().unwrap().is_none();
    if running {
        let id = child.id().to_string();
        // It may have ended by now.
        let _ = Command::new("kill").args([&format!("-{signal}"), &id]).stderr(Stdio::null()).status();
    }
    child.wait().unwrap();
    running
}

fn temporary_files(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|n| n.starts_with(".pare-")).collect()
}

#[test]
fn keeps_the_old_or_the_new_output_when_killed() {
    for external in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        large(at, "in.onnx", 24 * MEGABYTE, external);
        let old = fs::read(fixture(at, "digits-fold.onnx")).unwrap();
        let whole = run(at, &["optimize", "in.onnx", "-o", "out.onnx", "--no-prove", "--quiet"]);
        assert_eq!(code(&whole), 0, "{}", stderr(&whole));
        let start = Instant::now();
        run(at, &["optimize", "in.onnx", "-o", "out.onnx", "--no-prove", "--quiet"]);
        let mut takes = start.elapsed();
        let (mut cut, mut kept) = (0, 0);
        for step in 1..=12_u32 {
            fs::write(at.join("out.onnx"), &old).unwrap();
            let running = interrupted(at, "9", takes * step / 12);
            cut += u32::from(running);
            // The machine is faster than when the run was timed.
            takes = if running { takes } else { takes * 3 / 4 };
            let now = fs::read(at.join("out.onnx")).unwrap();
            kept += u32::from(now == old);
            assert!(is_valid(&at.join("out.onnx")), "killed after {step}/12 of {takes:?}");
            assert!(temporary_files(at).len() <= 2, "{:?}", names(at));
        }
        assert!(cut > 3 && kept > 3, "{cut} were cut short, {kept} left the old file");
        // The next run removes the temporary files.
        run(at, &["optimize", "in.onnx", "-o", "out.onnx", "--no-prove", "--quiet"]);
        assert_eq!(temporary_files(at), Vec::<String>::new());
        assert!(is_valid(&at.join("out.onnx")));
    }
}

#[test]
fn removes_temporary_files_on_interrupt() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    large(at, "in.onnx", 24 * MEGABYTE, false);
    let start = Instant::now();
    run(at, &["optimize", "in.onnx", "-o", "out.onnx", "--no-prove", "--quiet"]);
    let takes = start.elapsed();
    for (signal, step) in [("INT", 2), ("INT", 4), ("INT", 6), ("TERM", 5), ("INT", 7)] {
        let _ = fs::remove_file(at.join("out.onnx"));
        interrupted(at, signal, takes * step / 8);
        assert_eq!(temporary_files(at), Vec::<String>::new(), "after {step}/8");
        assert!(!at.join("out.onnx").exists() || is_valid(&at.join("out.onnx")));
    }
}

#[test]
fn reports_crashes_of_native_code() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["FPE", "SEGV", "ABRT"] {
        // The command waits for a model on stdin once its handlers are installed, which may take a moment.
        let crashed = |after: u64| {
            let mut command = pare(folder.path());
            command.args(["inspect", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            sleep(Duration::from_millis(after));
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
            child.wait_with_output().unwrap()
        };
        let ended =
            [200, 1000, 5000].into_iter().map(crashed).find(|out| out.status.code().is_some()).unwrap();
        let message = stderr(&ended);
        assert!(
            code(&ended) == 2 && message.contains(&format!("native code crashed (SIG{signal})")),
            "{message}"
        );
    }
}

/// A temporary file system, unmounted on drop.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, options: &str) -> Self {
        let mount = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(at).output().unwrap();
        assert!(mounted.status.success(), "{}", stderr(&mounted));
        Self(at.to_owned())
    }

    fn read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "mounting needs root"]
fn keeps_the_old_output_on_a_full_device() {
    let folder = tempfile::tempdir().unwrap();
    large(folder.path(), "in.onnx", 4 * MEGABYTE, false);
    large(folder.path(), "data.onnx", 4 * MEGABYTE, true);
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let _mount = Mount::new(&small, "size=2m");
    fs::write(small.join("out.onnx"), "old").unwrap();
    for input in ["in.onnx", "data.onnx"] {
        let full = run(folder.path(), &["optimize", input, "-o", "small/out.onnx", "--no-prove"]);
        assert_eq!(code(&full), 2);
        assert!(stderr(&full).contains("No space left on device"), "{}", stderr(&full));
        assert_eq!(names(&small), ["out.onnx"]);
        assert_eq!(fs::read(small.join("out.onnx")).unwrap(), b"old");
    }
}

#[test]
#[ignore = "mounting needs root"]
fn keeps_the_old_output_in_a_read_only_folder() {
    let folder = tempfile::tempdir().unwrap();
    large(folder.path(), "in.onnx", MEGABYTE, false);
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let mount = Mount::new(&inside, "size=2m");
    fs::write(inside.join("out.onnx"), "old").unwrap();
    mount.read_only();
    let refused = run(folder.path(), &["optimize", "in.onnx", "-o", "inside/out.onnx", "--no-prove"]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("Read-only file system"), "{}", stderr(&refused));
    assert_eq!(fs::read(inside.join("out.onnx")).unwrap(), b"old");
}

#[test]
fn overwrites_its_input() {
    for external in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = large(folder.path(), "m.onnx", MEGABYTE, external);
        let done = run(folder.path(), &["optimize", "m.onnx", "-o", "m.onnx"]);
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        assert!(is_valid(&path));
        let again = run(folder.path(), &["optimize", "m.onnx", "-o", "m.onnx"]);
        assert_eq!(code(&again), 0, "{}", stderr(&again));
        assert!(names(folder.path()).len() <= 3, "{:?}", names(folder.path()));
    }
}

#[test]
fn ignores_a_closed_pipe() {
    let folder = tempfile::tempdir().unwrap();
    fixture(folder.path(), "digits-vit.onnx");
    for args in [&["inspect", "digits-vit.onnx", "--text"][..], &["passes"], &["--help"]] {
        let mut child =
            pare(folder.path()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        child.wait().unwrap();
        assert_eq!(message, "", "{args:?}");
    }
}

#[test]
fn writes_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-cnn.onnx", "digits-calibration.npz"] {
        fixture(at, name);
    }
    let mut outputs = vec![];
    for (i, threads) in ["1", "2", "1", "2"].into_iter().enumerate() {
        let out = format!("{i}.onnx");
        let args = [
            "optimize",
            "digits-cnn.onnx",
            "-o",
            &out,
            "--no-prove",
            "--threads",
            threads,
            "--passes",
            // A step that is measured may differ between runs.
            "safe,prune-channels{ratio=0.3,multiple=1}",
            "--samples",
            "digits-calibration.npz",
        ];
        let done = run(at, &args);
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        assert!(stderr(&done).contains("calibrating on 512 samples"), "{}", stderr(&done));
        outputs.push(fs::read(at.join(out)).unwrap());
    }
    assert!(outputs[0] == outputs[2], "two runs on one thread differ");
    assert!(outputs[1] == outputs[3], "two runs on two threads differ");
    assert!(outputs[0] == outputs[1], "one thread and two threads differ");
}
