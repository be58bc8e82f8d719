//! `launch` where no machine can boot. Where one can, see `vm`.

use smolcellar_tests::cellar::Cellar;

fn cpu_can() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") || cfg!(target_arch = "aarch64")
}

#[test]
fn without_virtualisation_it_says_exactly_that_and_makes_nothing() {
    if cpu_can() {
        // The launcher's own tests say it there, with a made-up cpuinfo.
        let line = "SKIPPED launch without virtualisation: this processor has it\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        return;
    }
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
    let ran = cellar.run(["launch", "--", "/agent"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("no hardware virtualisation") && ran.stderr.contains("vmx"), "{ran:?}");
    assert!(ran.stdout.is_empty());
    assert!(!cellar.cache().exists(), "nothing was made");
}

/// Everything in a folder, by path.
fn listing(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    for path in paths.clone() {
        if path.is_dir() && !path.is_symlink() {
            paths.extend(listing(&path));
        }
    }
    paths.sort();
    paths
}

#[test]
fn a_dry_run_shows_the_plan_and_makes_nothing() {
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\ncpus = 3\nimage = \"team/a:dev\"\n");
    let before = listing(&cellar.path(""));
    let options = [
        "launch",
        "--dry-run",
        "--format",
        "json",
        "-e",
        "MODE=x",
        "--secret-env",
        "TOKEN=NEEDLE_VARIABLE",
        "--allow-cidr",
        "10.9.0.2/32",
        "--allow-host",
        "api.example.org",
        "--volume",
        ".:/src:ro",
        "--port",
        "8080:80",
        "--mem",
        "300",
        "--",
        "/agent",
        "echo",
    ];
    let mut command = cellar.command(options);
    // Nothing of the plan needs the engine or smolvm: a PATH without them.
    command.env("NEEDLE_VARIABLE", "needle-value").env("PATH", cellar.path("nowhere"));
    let ran = smolcellar_tests::cellar::ran(command.output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stdout.contains("needle-value") && !ran.stderr.contains("needle-value"), "{ran:?}");
    let plan: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(plan["agent"], "a");
    assert_eq!(plan["image"], serde_json::json!({ "reference": "team/a:dev", "from": "config" }));
    assert_eq!((&plan["cpus"], &plan["memory_mib"]), (&3.into(), &300.into()));
    assert!(plan["artifact"].is_null());
    let lines: Vec<String> = plan["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|words| {
            let words: Vec<&str> =
                words.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
            words[1..].join(" ")
        })
        .collect();
    let (name, project) = (plan["machine"].as_str().unwrap(), cellar.project().canonicalize().unwrap());
    assert_eq!(
        lines[0],
        format!(
            "machine create --name {name} --from (the artifact, built first) --cpus 3 --mem 300 --allow-cidr \
         10.9.0.2/32 --allow-host api.example.org -v {}:/src:ro -p 8080:80 -e MODE=x --label \
         dev.smolcellar.launch={name}",
            project.display(),
        )
    );
    assert_eq!(
        lines[2],
        format!("machine exec --name {name} -e MODE=x --secret-env TOKEN=NEEDLE_VARIABLE -i -- /agent echo")
    );
    assert_eq!(lines.len(), 5);
    // For people: names of variables, not their values. The environment beats the configuration.
    let mut command =
        cellar.command(["launch", "--dry-run", "-e", "MODE=x-value", "--secret-env", "TOKEN=Y"]);
    let ran = smolcellar_tests::cellar::ran(command.env("SMOLCELLAR_IMAGE", "other:1").output().unwrap());
    assert!(ran.stdout.contains("MODE") && !ran.stdout.contains("x-value"), "{ran:?}");
    assert!(ran.stdout.contains("none yet: other:1 is built first"), "{ran:?}");
    assert_eq!(listing(&cellar.path("")), before, "a dry run made something");
}

#[test]
fn what_is_asked_wrongly_is_a_usage_error_before_anything_else() {
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
    for (words, said) in [
        (&["--allow-cidr", "10.0.0.2"][..], "10.0.0.2/32"),
        (&["--allow-host", "a b"], "no host name"),
        (&["--volume", "/nowhere"], "HOST:GUEST[:ro]"),
        (&["--port", "80"], "HOST:GUEST"),
        (&["--secret-env", "A=b c"], "GUEST_NAME=HOST_NAME"),
        (&["-e", "A"], "NAME=VALUE"),
        (&["--cpus", "0"], "at least 1"),
        (&["b"], "no agent 'b'"),
    ] {
        let ran = cellar.run([&["launch"], words].concat());
        assert!(ran.code == 2 && ran.stderr.contains(said), "{words:?}: {ran:?}");
    }
    let ran = cellar.run(["launch", "--require-cache", "--yes"]);
    assert!(ran.code == 3 && ran.stderr.contains("build-agent a"), "{ran:?}");
    assert!(!cellar.cache().exists(), "nothing was made");
}

#[test]
fn an_artifact_is_launched_by_its_key_from_any_folder() {
    use smolcellar_tests::archives::{docker_save, file, tar};
    let cellar = Cellar::new();
    let layer = tar(&[file("agent", b"x")]);
    std::fs::write(cellar.path("image.tar"), tar(&docker_save(&[layer]))).unwrap();
    let built = cellar.json(["build-agent", "--archive", "../image.tar"]);
    let elsewhere = cellar.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let image = built["image_id"].as_str().unwrap();
    let plan = |name: &str| {
        let words = ["launch", "--dry-run", "--format", "json", name, "--", "/agent"];
        smolcellar_tests::cellar::ran(cellar.command(words).current_dir(&elsewhere).output().unwrap())
    };
    for key in [image, &image["sha256:".len()..][..8]] {
        let ran = plan(key);
        let plan: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
        assert_eq!((&plan["artifact"]["path"], &plan["agent"]), (&built["artifact"], &"image".into()));
    }
    // Its agent's name is another folder's.
    assert_eq!(plan("image").code, 2);
}
