//! `build-agent --registry`: images to a real registry, as people run it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use smolcellar_tests::cellar::{Ran, ran};
use smolcellar_tests::lab::Lab;
use smolcellar_tests::needs::{Need, have};
use smolcellar_tests::proxy::{Fault, Proxy};
use smolcellar_tests::registry::{Access, NEEDS, PASSWORD, Registry, USER, unused_address};
use smolcellar_tests::tokens::Tokens;

const MIB: usize = 1 << 20;

/// Builds from an archive and pushes; no login is found but what `environment` says.
fn push(lab: &Lab, archive: &str, reference: &str, environment: &[(&str, &str)]) -> Ran {
    let words = ["build-agent", "--archive", archive, "--registry", reference, "--format", "json"];
    let mut command = lab.command(words);
    for name in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    command.env("SMOLCELLAR_REMOTE_TIMEOUT", "2").envs(environment.iter().copied());
    ran(command.output().unwrap())
}

fn pushed(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{ran:?}");
    let value: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(value["pushed"]["digest"].is_string(), "{ran:?}");
    value
}

fn blobs(value: &Value) -> [u64; 3] {
    ["uploaded", "mounted", "present"].map(|what| value["pushed"][what]["blobs"].as_u64().unwrap())
}

fn basic() -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

#[test]
fn an_image_is_pushed_once_and_docker_and_skopeo_pull_the_same_image() {
    if !have(&[&NEEDS[..], &[Need::Docker, Need::Program("skopeo")]].concat()) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Plain));
    let proxy = Proxy::before(registry.address());
    let archive = lab.archive("one", 3 * MIB);
    let reference = format!("{}/team/one:v1", proxy.host());
    let first = pushed(&push(&lab, &archive, &reference, &[]));
    assert_eq!(blobs(&first), [3, 0, 0]);
    assert_eq!(first["pushed"]["reference"], json!(reference));
    let image = first["image_id"].as_str().unwrap();

    proxy.forget();
    let second = pushed(&push(&lab, &archive, &reference, &[]));
    assert_eq!((blobs(&second), &second["pushed"]["digest"]), ([0, 0, 3], &first["pushed"]["digest"]));
    assert_eq!(proxy.count("POST", ""), 0, "{:?}", proxy.seen());

    // Another repository takes what the registry has.
    proxy.forget();
    let other = pushed(&push(&lab, &archive, &format!("{}/other", proxy.host()), &[]));
    assert_eq!(blobs(&other), [0, 3, 0]);
    assert!(other["pushed"]["reference"].as_str().unwrap().ends_with("/other:latest"));
    assert!(proxy.up() < 10_000, "no more than the manifest: {}", proxy.up());
    // And another image of which it has a layer.
    let two = lab.archive("two", MIB);
    assert_eq!(blobs(&pushed(&push(&lab, &two, &format!("{}/two", proxy.host()), &[]))), [2, 1, 0]);

    let copy = lab.cellar.path("copy");
    let output = Command::new("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false"])
        .args([format!("docker://{reference}"), format!("dir:{}", copy.display())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest: Value = serde_json::from_slice(&fs::read(copy.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["config"]["digest"], json!(image));
    let by_digest = format!("{}/team/one@{}", registry.host(), first["pushed"]["digest"].as_str().unwrap());
    smolcellar_tests::engine::docker(&["pull", "--quiet", &by_digest]);
    let _gone = smolcellar_tests::engine::Image { tag: by_digest.clone() };
    let id = smolcellar_tests::engine::docker(&["image", "inspect", "--format", "{{.Id}}", &by_digest]);
    assert_eq!(id.trim(), image);
    lab.assert_clean();
}

#[test]
fn logins_are_found_where_docker_and_podman_keep_them_and_shown_nowhere() {
    if !have(&NEEDS) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Password));
    let archive = lab.archive("one", 1000);
    let reference = format!("{}/a", registry.host());
    let host = registry.host();
    let write = |path: &str, text: &str| {
        let path = lab.cellar.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let dir = |path: &str| lab.cellar.path(path).display().to_string();
    let secrets = [PASSWORD.to_owned(), basic()];
    let check = |ran: &Ran| {
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
    };

    let nobody = push(&lab, &archive, &reference, &[]);
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.stderr.contains(&format!("docker login {host}")), "{nobody:?}");
    check(&nobody);
    assert_eq!(lab.json(["cache", "ls"])["agent"], "one", "the artifact is there");

    write("docker/config.json", &json!({ "auths": { &host: { "auth": basic() } } }).to_string());
    write("podman.json", &json!({ "auths": { format!("{host}/a"): { "auth": basic() } } }).to_string());
    write("broken/config.json", "{\"auths\": {\"needle-4711");
    let wrong = json!({ "auths": { &host: { "username": USER, "password": "needle-4711-pass:word-not" } } });
    write("wrong/config.json", &wrong.to_string());
    for environment in [
        &[("DOCKER_CONFIG", dir("docker").as_str())][..],
        &[("REGISTRY_AUTH_FILE", dir("podman.json").as_str())],
        &[("SMOLCELLAR_REMOTE_USERNAME", USER), ("SMOLCELLAR_REMOTE_PASSWORD", PASSWORD)],
    ] {
        let ran = push(&lab, &archive, &reference, environment);
        pushed(&ran);
        check(&ran);
    }
    let broken = push(&lab, &archive, &reference, &[("DOCKER_CONFIG", &dir("broken"))]);
    assert!(broken.code == 1 && broken.stderr.contains(&dir("broken/config.json")), "{broken:?}");
    assert!(!broken.stderr.contains("needle"), "{broken:?}");
    let wrong = push(&lab, &archive, &reference, &[("DOCKER_CONFIG", &dir("wrong"))]);
    assert!(wrong.code == 1 && wrong.stderr.contains("as 'ada'"), "{wrong:?}");
    check(&wrong);
    let half = push(&lab, &archive, &reference, &[("SMOLCELLAR_REMOTE_USERNAME", USER)]);
    assert_eq!(half.code, 2, "{half:?}");

    // A helper: asked on its standard input, and never told anything.
    let helper = dir("bin/docker-credential-lab");
    let script = format!(
        "#!/bin/sh\necho \"$0 $@\" >> {0}\nread server; [ \"$1 $server\" = \"get {host}\" ] || exit 1\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n",
        dir("helper-log")
    );
    write("bin/docker-credential-lab", &script);
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    write("helper/config.json", &json!({ "credHelpers": { &host: "lab" } }).to_string());
    let helped = push(&lab, &archive, &reference, &[("DOCKER_CONFIG", &dir("helper"))]);
    pushed(&helped);
    check(&helped);
    let log = fs::read_to_string(dir("helper-log")).unwrap();
    assert_eq!(log, format!("{helper} get\n"), "once, and with nothing on its command line");
    for (script, says) in [("echo needle; exit 1", "it failed"), ("echo needle", "no credentials")] {
        write("bin/docker-credential-lab", &format!("#!/bin/sh\ncat > /dev/null\n{script}\n"));
        let failed = push(&lab, &archive, &reference, &[("DOCKER_CONFIG", &dir("helper"))]);
        assert!(failed.code == 1 && failed.stderr.contains(says), "{failed:?}");
        assert!(
            failed.stderr.contains("docker-credential-lab") && !failed.stderr.contains("needle"),
            "{failed:?}"
        );
    }
    write("helper/config.json", &json!({ "credsStore": "nowhere" }).to_string());
    let missing = push(&lab, &archive, &reference, &[("DOCKER_CONFIG", &dir("helper"))]);
    assert!(missing.code == 1 && missing.stderr.contains("docker-credential-nowhere"), "{missing:?}");
    lab.assert_clean();
}

#[test]
fn identity_tokens_and_tokens_that_end_let_an_image_in() {
    if !have(&NEEDS) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Plain));
    let archive = lab.archive("one", 2 * MIB);
    let tokens = Tokens::good_for(5).for_login("nobody").for_identity("needle/id=");
    let proxy = Proxy::with_tokens(registry.address(), tokens);
    let config = json!({ "auths": { proxy.host(): { "auth": "", "identitytoken": "needle/id=" } } });
    fs::create_dir(lab.cellar.path("docker")).unwrap();
    fs::write(lab.cellar.path("docker/config.json"), config.to_string()).unwrap();
    let dir = lab.cellar.path("docker").display().to_string();
    let ran = push(&lab, &archive, &format!("{}/a", proxy.host()), &[("DOCKER_CONFIG", &dir)]);
    assert_eq!(blobs(&pushed(&ran)), [3, 0, 0]);
    // Ten requests push, and one reads back.
    assert!(proxy.count("POST", "/token") > 2, "they ended");
    assert!(!format!("{ran:?}").contains("needle") && !format!("{ran:?}").contains("secret-token"));
}

#[test]
fn tls_is_spoken_with_the_systems_authorities_and_those_that_are_named() {
    if !have(&NEEDS) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Tls));
    let archive = lab.archive("one", 1000);
    let reference = format!("{}/a", registry.prefix());
    let authority = registry.authority().display().to_string();
    pushed(&push(&lab, &archive, &reference, &[("SSL_CERT_FILE", &authority)]));
    let began = Instant::now();
    let unknown =
        push(&lab, &archive, &reference, &[("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")]);
    assert!(unknown.code == 1 && unknown.stderr.contains("SSL_CERT_FILE"), "{unknown:?}");
    // In the clear to one that speaks TLS, and the other way round.
    let clear = push(&lab, &archive, &format!("{}/a", registry.host()), &[]);
    assert_eq!(clear.code, 1, "{clear:?}");
    let plain = Registry::start(Access::Plain);
    let tls = push(&lab, &archive, &format!("https://{}/a", plain.host()), &[]);
    assert!(tls.code == 1 && tls.stderr.contains("write http://"), "{tls:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_push_that_fails_is_an_error_in_time_and_the_artifact_is_kept() {
    if !have(&NEEDS) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Plain));
    let archive = lab.archive("one", MIB);
    let nobody = push(&lab, &archive, &format!("{}/a", unused_address()), &[]);
    assert!(nobody.code == 1 && nobody.stderr.contains("cannot reach"), "{nobody:?}");
    assert!(nobody.stdout.contains("\"artifact\""), "what was built is told: {nobody:?}");
    let proxy = Proxy::before(registry.address());
    for (fault, says) in [
        (Fault::Stall, "too slow"),
        (Fault::status(503), "503"),
        (Fault::Refuse(507), "disk is full"),
        (Fault::Drop, "broke"),
    ] {
        proxy.mend();
        proxy.fault("*", "", 0, 1000, fault);
        let began = Instant::now();
        let failed = push(&lab, &archive, &format!("{}/a", proxy.host()), &[]);
        assert!(failed.code == 1 && failed.stderr.contains(says), "{failed:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    // The registry takes the manifest for another.
    proxy.mend();
    proxy.fault("GET", "/manifests/", 0, 1, Fault::Flip(3));
    let moved = push(&lab, &archive, &format!("{}/a", proxy.host()), &[]);
    assert!(moved.code == 1 && moved.stderr.contains("somebody"), "{moved:?}");
    let reference = format!("{}/a", registry.host());
    for (words, says) in [
        (vec!["build-agent", "--archive", &archive, "--registry", &reference, "--offline"], "--offline"),
        (vec!["build-agent", "--archive", &archive, "--registry", "agent"], "name the registry"),
        (vec!["build-agent", "--archive", &archive, "--registry", &reference, "--plan"], "--plan"),
    ] {
        let ran = lab.run(words);
        assert!(ran.code == 2 && ran.stderr.contains(says), "{ran:?}");
    }
    lab.assert_clean();
}

#[test]
fn layers_that_are_damaged_or_gone_are_made_anew_and_never_pushed_as_they_are() {
    if !have(&NEEDS) {
        return;
    }
    let (lab, registry) = (Lab::new(), Registry::start(Access::Plain));
    let reference = format!("{}/a", registry.host());
    let known = lab.agent("one", 2 * MIB);
    let largest = || {
        let blobs = lab
            .cellar
            .stored()
            .into_iter()
            .filter(|path| path.starts_with(lab.cellar.cache().join("blobs-v1")));
        blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
    };
    let blob = largest();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[MIB] ^= 4;
    fs::write(&blob, bytes).unwrap();
    let damaged = push(&lab, &known.archive, &reference, &[]);
    assert!(damaged.code == 1 && damaged.stderr.contains("damaged"), "{damaged:?}");
    let hex = blob.file_name().unwrap().to_str().unwrap();
    assert!(!registry.blob(hex).exists(), "the registry does not have it");
    assert!(!blob.exists(), "it was set aside");
    pushed(&push(&lab, &known.archive, &reference, &[]));
    assert!(registry.blob(hex).exists());
    // Collected, as gc does first.
    fs::remove_file(largest()).unwrap();
    let again = pushed(&push(&lab, &known.archive, &format!("{}/b", registry.host()), &[]));
    assert_eq!(again["sha256"], json!(format!("sha256:{}", known.sha256)));
    let hit =
        lab.ok(["build-agent", "--archive", &known.archive, "--require-cache", "--registry", &reference]);
    assert!(hit.stdout.contains("there before"), "{hit:?}");
    fs::remove_file(largest()).unwrap();
    let miss =
        lab.run(["build-agent", "--archive", &known.archive, "--require-cache", "--registry", &reference]);
    assert_eq!(miss.code, 3, "{miss:?}");
}
