//! As many processes as no machine has processors for, all at once, on a store
//! that is not there yet.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use smolcellar_tests::cellar::{Ran, ran, statuses};
use smolcellar_tests::lab::Lab;

const PROCESSES: usize = 64;
/// Longer than any wait can be, unless somebody waits for ever.
const DEADLOCK: Duration = Duration::from_secs(300);

#[test]
fn of_64_processes_on_one_key_one_builds_and_all_have_the_same_bytes() {
    rounds("on one key", 1);
}

#[test]
fn of_64_processes_on_32_keys_one_builds_each_and_all_have_the_same_bytes() {
    rounds("on 32 keys", 32);
}

fn rounds(name: &str, keys: usize) {
    for round in 1..=crate::number("SMOLCELLAR_CANARY_ROUNDS", 1) {
        let lab = Lab::new();
        let archives: Vec<String> =
            (0..keys).map(|key| lab.archive(&format!("a{key}"), 12_000_000 / keys)).collect();
        let began = Instant::now();
        let children: Vec<Child> =
            (0..PROCESSES).map(|process| start(&lab, &archives[process % keys])).collect();
        let results = finish(children);
        let took = began.elapsed().as_secs_f64();
        let mut by_image: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for ran in results {
            assert_eq!(ran.code, 0, "round {round} {name}: {ran:?}");
            let result: Value = serde_json::from_str(&ran.stdout).unwrap();
            by_image.entry(result["image_id"].as_str().unwrap().to_owned()).or_default().push(result);
        }
        assert_eq!(by_image.len(), keys);
        for results in by_image.values() {
            assert_eq!(results.len(), PROCESSES / keys);
            // One took the image in, one packed it: the same one, or two.
            for stage in [1, 3] {
                let missed = |result: &&Value| statuses(result)[stage].ends_with(":miss");
                let missed = results.iter().filter(missed).count();
                assert_eq!(
                    missed,
                    1,
                    "round {round} {name}: {:?}",
                    results.iter().map(statuses).collect::<Vec<_>>()
                );
            }
            for field in ["sha256", "artifact", "size"] {
                assert!(results.iter().all(|result| result[field] == results[0][field]), "{results:?}");
            }
        }
        lab.assert_clean();
        crate::say(&format!("round {round}: {PROCESSES} processes {name}: {took:.2} s"));
    }
}

fn start(lab: &Lab, archive: &str) -> Child {
    let mut command = lab.command(["build-agent", "--format", "json", "--archive", archive]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// All of them, or who still waits for whom. What they print fits into a pipe.
fn finish(mut children: Vec<Child>) -> Vec<Ran> {
    let began = Instant::now();
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        if began.elapsed() > DEADLOCK {
            children.iter_mut().for_each(|child| child.kill().unwrap());
            let said: Vec<_> =
                children.into_iter().map(|child| ran(child.wait_with_output().unwrap())).collect();
            panic!("deadlock: {said:#?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    children.into_iter().map(|child| ran(child.wait_with_output().unwrap())).collect()
}
