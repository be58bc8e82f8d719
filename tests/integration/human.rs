//! What people see, word for word. After a change on purpose:
//! `INSTA_UPDATE=always cargo xtask test -- --test integration human`, and
//! read the diff of `snapshots/`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use smolcellar_tests::archives::{docker_save, file, tar};
use smolcellar_tests::cellar::{Cellar, Ran};

/// A run as a text, with what differs from run to run replaced.
fn shown(cellar: &Cellar, words: &[&str], ran: &Ran) -> String {
    let mut text = format!("$ smolcellar {}\n", words.join(" "));
    for (name, stream) in [("", &ran.stdout), ("stderr: ", &ran.stderr)] {
        for line in stream.lines() {
            text.push_str(&format!("{name}{line}\n"));
        }
    }
    text.push_str(&format!("exit code {}\n", ran.code));
    let (cache, project) = (cellar.cache(), cellar.project());
    let beside = cellar.path("");
    for (path, name) in [(cache.as_path(), "CACHE"), (project.as_path(), "PROJECT"), (beside.as_path(), "")] {
        text = text.replace(path.to_str().unwrap().trim_end_matches('/'), name);
    }
    scrubbed(&text)
}

/// Digests become `HEX`, long numbers `NUMBER`, numbers with a unit lose their digits, in columns of
/// the same width.
fn scrubbed(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
            let run = rest[at..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - at);
            let (before, word, after) = (&rest[..at], &rest[at..at + run], &rest[at + run..]);
            out.push_str(before);
            let starts = before.chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let number = run >= 6 && word.bytes().all(|b| b.is_ascii_digit());
            out.push_str(match starts {
                true if run >= 12 => "HEX",
                true if number => "NUMBER",
                _ => word,
            });
            rest = after;
        }
        out.push_str(rest);
        out.push('\n');
    }
    let mut words: Vec<String> = Vec::new();
    for word in out.split_inclusive([' ', '\n']) {
        let unit = ["s", "B", "KiB", "MiB", "GiB"].contains(&word.trim().trim_end_matches([',', ':']));
        if unit && let Some(number) = words.last_mut() {
            *number = number.replace(|c: char| c.is_ascii_digit(), "0");
            // Its width would follow the number of digits.
            if let Some(cut) = number.find('.') {
                *number = format!("0{}", &number[cut..]);
            }
        }
        words.push(word.to_owned());
    }
    // Columns are right-aligned: keep one space.
    let lines = words.concat();
    let lines = lines.lines().map(|line| {
        let indent = line.len() - line.trim_start().len();
        format!("{}{}\n", &line[..indent], line.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    lines.collect()
}

fn check(cellar: &Cellar, name: &str, words: &[&str]) {
    let ran = cellar.run(words);
    insta::assert_snapshot!(name, shown(cellar, words, &ran));
}

fn with_image() -> Cellar {
    let cellar = Cellar::new();
    let layer = tar(&[file("agent", &[1; 50_000])]);
    let archive = tar(&docker_save(&[layer]));
    fs::File::create(cellar.path("image.tar")).unwrap().write_all(&archive).unwrap();
    cellar
}

#[test]
fn the_way_from_an_archive_to_a_verified_cache() {
    let cellar = with_image();
    let build = ["build-agent", "--archive", "../image.tar"];
    check(&cellar, "build-miss", &build);
    check(&cellar, "build-hit", &build);
    check(&cellar, "cache-ls", &["cache", "ls"]);
    check(&cellar, "cache-verify", &["cache", "verify"]);
    check(&cellar, "plan-changed", &["build-agent", "--archive", "../image.tar", "--plan"]);
    check(&cellar, "cache-why", &["cache", "why", "image"]);
    check(&cellar, "cache-stats", &["cache", "stats"]);
    check(&cellar, "cache-pin", &["cache", "pin", "image"]);
    check(&cellar, "cache-rm-pinned", &["cache", "rm", "image"]);
    check(&cellar, "cache-gc-roots", &["cache", "gc", "--roots"]);
    check(&cellar, "cache-unpin", &["cache", "unpin", "image"]);
    check(&cellar, "cache-gc-dry-run", &["cache", "gc", "--all", "--dry-run"]);
    check(&cellar, "cache-gc-nobody", &["cache", "gc", "--all"]);
    let artifact = cellar.json(["cache", "ls"])["artifact"].as_str().unwrap().to_owned();
    fs::set_permissions(&artifact, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().append(true).open(&artifact).unwrap().write_all(b"x").unwrap();
    check(&cellar, "cache-verify-damaged", &["cache", "verify", "--keep"]);
    check(&cellar, "build-damaged", &build);
    check(&cellar, "cache-gc-all", &["cache", "gc", "--all", "--yes"]);
}

#[test]
fn mistakes_are_named_with_their_place_and_remedy() {
    let cellar = with_image();
    check(&cellar, "no-config", &["build-agent"]);
    cellar.write("smolcellar.toml", "[agent.one]\ncontext = \"ctx\"\n[agent.two]\ncontext = \"ctx\"\n");
    check(&cellar, "no-such-agent", &["build-agent", "ona"]);
    check(&cellar, "no-context", &["build-agent", "one"]);
    check(&cellar, "no-engine", &["--engine", "no-such-engine", "build-agent", "one"]);
    check(&cellar, "no-archive", &["build-agent", "--archive", "../nowhere.tar"]);
    check(&cellar, "no-image", &["build-agent", "--archive", "smolcellar.toml"]);
    cellar.write("smolcellar.toml", "[agent.one]\ncontex = \"ctx\"\n");
    check(&cellar, "unknown-key", &["build-agent"]);
    cellar.write("smolcellar.toml", "[agent.one]\ncontext = \"ctx\"\nmemory = 0\n");
    check(&cellar, "bad-value", &["build-agent"]);
    let cellar = Cellar::new();
    fs::write(cellar.cache(), "a file").unwrap();
    check(&cellar, "cache-is-a-file", &["cache", "ls"]);
}
