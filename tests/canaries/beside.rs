//! Collectors that never stop, beside all who work: nothing that anybody
//! builds, launches, exports or pins is ever gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use smolcellar_store::Digest;
use smolcellar_tests::cellar::{Ran, ran};
use smolcellar_tests::lab::{Known, Lab, Random};
use smolcellar_tests::needs::{Need, have};

/// Where somebody is slowed down, so that others come in between.
const DELAYS: [&str; 5] = [
    "rename,renameat,renameat2:delay_enter=6ms",
    "rename,renameat,renameat2:delay_exit=15ms",
    "unlink,unlinkat,rmdir:delay_exit=4ms",
    "flock:delay_exit=3ms:when=1+3",
    "flock:delay_enter=5ms:when=20+2",
];

/// So many that most are held by nobody when a collection is planned: the plan
/// must be long for others to come in while it is carried out.
const AGENTS: usize = 24;

/// What all who work share.
struct Field<'a> {
    lab: &'a Lab,
    known: Vec<Known>,
    until: Instant,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Field<'_> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_insert(0) += 1;
    }

    fn any(&self, random: &mut Random) -> &Known {
        &self.known[random.below(self.known.len())]
    }

    /// The program, slowed down.
    fn slowly<'a>(&self, random: &mut Random, words: impl IntoIterator<Item = &'a str>) -> Command {
        let inject = DELAYS[random.below(DELAYS.len())];
        let trace = format!("trace={}", inject.split(':').next().unwrap());
        let inject = format!("inject={inject}");
        self.lab.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject], words)
    }

    /// Runs it. Once in a while it is slowed down, or killed within so many
    /// milliseconds; `None`: killed.
    fn run(&self, words: &[&str], random: &mut Random, within: usize) -> Option<Ran> {
        let fate = random.below(8);
        let mut command = match fate {
            0 => self.slowly(random, words.iter().copied()),
            _ => self.lab.command(words.iter().copied()),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if fate == 1 || fate == 2 {
            std::thread::sleep(Duration::from_millis(random.below(within) as u64));
            child.kill().unwrap();
        }
        let ran = ran(child.wait_with_output().unwrap());
        (ran.code != 128 + 9).then_some(ran)
    }
}

#[test]
fn beside_builds_launches_exports_and_pins_collectors_take_nothing_that_anybody_has() {
    if !have(&[Need::Program("strace")]) {
        return;
    }
    let lab = Lab::new();
    let known: Vec<_> =
        (0..AGENTS).map(|n| lab.agent(&format!("a{n}"), if n == 5 { 3_000_000 } else { 40_000 })).collect();
    let seconds = crate::number("SMOLCELLAR_CANARY_SECONDS", 10);
    let until = Instant::now() + Duration::from_secs(seconds);
    let field = Field { lab: &lab, known, until, counts: Mutex::default() };
    std::thread::scope(|scope| {
        let field = &field;
        let mut seed = 0;
        let mut many = |count: usize, work: fn(&Field<'_>, &str, Random)| {
            for _ in 0..count {
                seed += 1;
                scope.spawn(move || work(field, &format!("w{seed}"), Random::new(seed)));
            }
        };
        many(2, build);
        many(4, launch);
        many(1, launch_in_the_background);
        many(2, export);
        many(2, pin);
        many(1, look);
        many(1, collect);
        many(1, collect_slowly);
    });
    let counts = field.counts.into_inner().unwrap();
    // What the killed left goes with the next run of each kind.
    let last = &field.known[0];
    lab.ok(["build-agent", "--archive", &last.archive]);
    lab.ok(["launch", &last.agent, "--yes", "--", "true"]);
    lab.ok(["cache", "gc", "--all", "--yes"]);
    crate::say(&format!("{seconds} s of {counts:?}; looked at by the stand-in: {:?}", lab.checks()));
    lab.assert_clean();
    let mut left = lab.cellar.stored();
    left.retain(|path| !path.starts_with(lab.cellar.cache().join("pointers-v1")));
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "nothing holds these");
    for work in ["builds", "launches", "exports", "pins", "looks", "gcs", "slow gcs", "killed"] {
        assert!(counts.get(work).is_some_and(|count| *count > 0), "no {work}: {counts:?}");
    }
    // It collected, or all of this proved nothing.
    assert!(counts["removed"] > counts["gcs"], "{counts:?}");
}

fn build(field: &Field<'_>, _: &str, mut random: Random) {
    while field.goes_on() {
        let known = field.any(&mut random);
        let words = ["build-agent", "--format", "json", "--archive", &known.archive];
        match field.run(&words, &mut random, 50) {
            None => field.count("killed"),
            Some(ran) => {
                assert_eq!(ran.code, 0, "{ran:?}");
                let result: Value = serde_json::from_str(&ran.stdout).unwrap();
                assert_eq!(result["sha256"], format!("sha256:{}", known.sha256), "{ran:?}");
                field.count("builds");
            }
        }
    }
}

/// Whether there was an artifact; any other failure is a bug.
fn launched(ran: &Ran, code: i32) -> bool {
    let gone = ran.code == 2 && ran.stderr.contains("there is no artifact of");
    assert!(ran.code == code || gone, "{ran:?}");
    !gone
}

fn launch(field: &Field<'_>, _: &str, mut random: Random) {
    while field.goes_on() {
        let known = field.any(&mut random);
        let work = format!("sleep 0.{}; exit 3", random.below(5));
        let words = ["launch", &known.agent, "--yes", "--", "sh", "-c", &work];
        match field.run(&words, &mut random, 500) {
            None => field.count("killed"),
            Some(ran) if launched(&ran, 3) => field.count("launches"),
            Some(_) => {
                field.count("misses");
                field.lab.ok(["build-agent", "--archive", &known.archive]);
            }
        }
    }
}

/// Its launcher ends and the machine stays: only the lease holds the artifact.
fn launch_in_the_background(field: &Field<'_>, name: &str, mut random: Random) {
    while field.goes_on() {
        let known = field.any(&mut random);
        let words = ["launch", &known.agent, "--yes", "--detach", "--name", name, "--", "sleep", "0.2"];
        if !launched(&field.lab.run(words), 0) {
            field.count("misses");
            field.lab.ok(["build-agent", "--archive", &known.archive]);
            continue;
        }
        for _ in 0..random.below(60) {
            assert!(known.is_whole(), "{name} lost {known:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        field.lab.ok(["rm", "--force", name]);
        field.count("background launches");
    }
}

fn export(field: &Field<'_>, name: &str, mut random: Random) {
    let file = field.lab.cellar.path(&format!("{name}.export"));
    while field.goes_on() {
        let known = field.any(&mut random);
        let mut words = vec!["cache", "export", &known.key, "-o", file.to_str().unwrap()];
        let with_image = random.below(2) == 0;
        words.extend(with_image.then_some("--with-image"));
        let ran = field.lab.run(words);
        if ran.code == 2 || ran.code == 3 {
            field.count("nothing to export");
            field.lab.ok(["build-agent", "--archive", &known.archive]);
            continue;
        }
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(exported(&file), known.sha256);
        field.count(if with_image { "exports with images" } else { "exports" });
    }
}

/// The digest of the artifact in an export file.
fn exported(file: &Path) -> String {
    let mut archive = tar::Archive::new(File::open(file).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().starts_with("machines") {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            return Digest::of(&bytes).hex();
        }
    }
    panic!("{} holds no artifact", file.display());
}

/// Each has artifacts of its own to pin: nobody else takes a pin away.
fn pin(field: &Field<'_>, name: &str, mut random: Random) {
    let own: Vec<_> =
        field.known.iter().skip(usize::from(name.ends_with(['1', '3', '5', '7', '9']))).step_by(2).collect();
    while field.goes_on() {
        let known = own[random.below(own.len())];
        let ran = field.lab.run(["cache", "pin", &known.key]);
        if ran.code == 2 {
            field.lab.ok(["build-agent", "--archive", &known.archive]);
            continue;
        }
        assert_eq!(ran.code, 0, "{ran:?}");
        for _ in 0..random.below(40) {
            assert!(known.is_whole(), "pinned, and lost: {known:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(known.is_whole(), "pinned, and lost: {known:?}");
        field.lab.ok(["cache", "unpin", &known.key]);
        field.count("pins");
    }
}

/// Those who only look are not disturbed, and find nothing wrong.
fn look(field: &Field<'_>, _: &str, mut random: Random) {
    while field.goes_on() {
        let commands: [&[&str]; 6] = [
            &["cache", "verify"],
            &["cache", "ls"],
            &["cache", "du"],
            &["cache", "gc", "--dry-run"],
            &["cache", "gc", "--roots"],
            &["ps"],
        ];
        field.lab.ok(commands[random.below(commands.len())].iter().copied());
        field.count("looks");
    }
}

const GC: [&str; 6] = ["cache", "gc", "--all", "--yes", "--format", "json"];

fn collect(field: &Field<'_>, _: &str, _: Random) {
    while field.goes_on() {
        collected(field, field.lab.command(GC));
        field.count("gcs");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn collect_slowly(field: &Field<'_>, _: &str, mut random: Random) {
    while field.goes_on() {
        collected(field, field.slowly(&mut random, GC));
        field.count("slow gcs");
    }
}

fn collected(field: &Field<'_>, mut command: Command) {
    let began = Instant::now();
    let ran = ran(command.output().unwrap());
    let took = began.elapsed().as_millis() as u64;
    assert_eq!(ran.code, 0, "{ran:?}");
    let result: Value = serde_json::from_str(&ran.stdout).unwrap();
    let removed = result["done"]["removed"].as_array().map_or(0, Vec::len);
    let mut counts = field.counts.lock().unwrap();
    *counts.entry("removed").or_insert(0) += removed as u64;
    let longest = counts.entry("longest gc, ms").or_insert(0);
    *longest = took.max(*longest);
}
