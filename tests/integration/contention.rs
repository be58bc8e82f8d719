//! Many processes at once, and processes that are killed.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, statuses};

/// An archive of some 20 MB that zstd cannot shrink, different for each seed.
fn archive(cellar: &Cellar, seed: u64, megabytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let entries: Vec<_> = (0..megabytes)
        .map(|n| {
            let data: Vec<u8> = (0..131_072).flat_map(|_| noise()).collect();
            file(&format!("f{n}"), &data)
        })
        .collect();
    let path = cellar.path(&format!("image-{seed}.tar"));
    File::create(&path).unwrap().write_all(&tar(&docker_save(&[tar(&entries)]))).unwrap();
    path.to_str().unwrap().to_owned()
}

fn start(cellar: &Cellar, archive: &str) -> Child {
    let mut command = cellar.command(["build-agent", "--format", "json", "--archive", archive]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn of_many_processes_on_one_key_one_builds_and_the_others_wait_and_hit() {
    let cellar = Cellar::new();
    let archive = archive(&cellar, 1, 20);
    let children: Vec<Child> = (0..16).map(|_| start(&cellar, &archive)).collect();
    let results: Vec<Value> = children.into_iter().map(finish).collect();
    let built = results.iter().filter(|result| statuses(result)[3] == "smolmachine:miss").count();
    assert_eq!(built, 1);
    assert!(results.iter().all(|result| result["sha256"] == results[0]["sha256"]));
    cellar.assert_sound();
}

#[test]
fn processes_on_different_keys_build_each_its_own() {
    let cellar = Cellar::new();
    let archives: Vec<String> = (1..=4).map(|seed| archive(&cellar, seed, 4)).collect();
    let children: Vec<Child> = (0..12).map(|n| start(&cellar, &archives[n % 4])).collect();
    let results: Vec<Value> = children.into_iter().map(finish).collect();
    let built = results.iter().filter(|result| statuses(result)[3] == "smolmachine:miss").count();
    assert_eq!(built, 4);
    cellar.assert_sound();
}

#[test]
fn a_waiter_says_for_whom_it_waits_and_gives_up_when_told_to() {
    let cellar = Cellar::new();
    let archive = archive(&cellar, 1, 2);
    let image = cellar.json(["build-agent", "--archive", &archive]);
    std::fs::remove_file(image["artifact"].as_str().unwrap()).unwrap();
    let hex = image["image_id"].as_str().unwrap().trim_start_matches("sha256:");
    let lock = File::options().write(true).open(cellar.cache().join(format!("locks/build-{hex}"))).unwrap();
    lock.lock().unwrap();
    let ran = cellar.run(["build-agent", "--lock-timeout", "2.5", "--archive", &archive]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stderr.contains("waiting for ") && ran.stderr.contains("held by pid "), "{ran:?}");
    assert!(ran.stderr.contains("--lock-timeout"), "{ran:?}");
    lock.unlock().unwrap();
    assert_eq!(statuses(&cellar.json(["build-agent", "--archive", &archive]))[3], "smolmachine:miss");
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_that_the_next_run_trusts() {
    let cellar = Cellar::new();
    let whole = Cellar::new();
    let archive_path = archive(&whole, 7, 12);
    let began = Instant::now();
    let reference = whole.json(["build-agent", "--archive", &archive_path]);
    let mut span = began.elapsed();
    let (mut killed, mut trial) = (0, 0_u32);
    while killed < 32 {
        assert!(trial < 400, "only {killed} of {trial} runs could be killed at work");
        let mut child = start(&cellar, &archive_path);
        let began = Instant::now();
        // Spread over the length of a build, by a step that hits no rhythm.
        std::thread::sleep(span.mul_f64(f64::from((trial * 37 + 1) % 100) / 100.0));
        child.kill().unwrap();
        trial += 1;
        if child.wait().unwrap().success() {
            // It was faster than thought: machines vary while a test runs. What it
            // made must go, or the runs after it would have nothing left to do.
            span = began.elapsed().max(Duration::from_millis(50)).mul_f64(0.95);
            std::fs::remove_dir_all(cellar.cache()).unwrap();
            continue;
        }
        killed += 1;
        if killed % 8 == 0 {
            let began = Instant::now();
            let result = cellar.json(["build-agent", "--archive", &archive_path]);
            assert_eq!(result["sha256"], reference["sha256"]);
            assert!(began.elapsed() < span * 10 + Duration::from_secs(5), "a dead process held a lock");
            cellar.assert_sound();
            std::fs::remove_dir_all(cellar.cache()).unwrap();
        }
    }
}
