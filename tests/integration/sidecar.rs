//! The sidecar of a launch, with real networks: what reaches it, and what is
//! said when it does not come up.

use std::io::Write;
use std::time::{Duration, Instant};

use smolcellar_tests::engine::docker;
use smolcellar_tests::launches::{Tidy, agent_project, assert_nothing_left, launched, left, sidecar};
use smolcellar_tests::needs::{Need, have};

#[test]
fn the_guest_reaches_its_sidecar_and_nothing_else() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("reach", &sidecar("reach"));
    let _tidy = Tidy::after(&cellar, "reach");
    // Something to be reached at every address of this host.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        listener.incoming().flatten().for_each(|mut s| drop(s.write_all(b"the host\n")))
    });
    let detached = launched(&cellar, &["--detach", "--", "/agent", "exit", "0"]);
    assert_eq!(detached.code, 0, "{detached:?}");
    let name = detached.stdout.trim();
    let exec = |words: &[&str]| cellar.run([&["exec", name, "--", "/agent"][..], words].concat());
    let env = exec(&["env"]).stdout;
    let line =
        |key: &str| env.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap().to_owned();
    let proxy = line("HTTP_PROXY");
    let address = proxy.strip_prefix("http://").unwrap();
    assert!(address.parse::<std::net::SocketAddr>().is_ok(), "{proxy} is no literal");
    assert_eq!((line("SMOLCELLAR_SERVICES"), line("AGENT")), ("egress-proxy".into(), "sample".into()));
    assert_eq!(line("SMOLCELLAR_SIDECAR_HTTP_PROXY"), address);
    let ip = address.strip_suffix(":7000").unwrap();
    let gateway = format!("{}.1", ip.strip_suffix(".2").unwrap());
    assert_eq!(exec(&["connect", address]).stdout, format!("{address}: hello from the sample agent\n"));
    let host = docker(&["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"]);
    let host = if host.trim().is_empty() { "172.17.0.1" } else { host.trim() };
    for other in [
        format!("{ip}:7001"),
        format!("127.0.0.1:{port}"),
        format!("{gateway}:{port}"),
        format!("{host}:{port}"),
        "169.254.169.254:80".to_owned(),
    ] {
        let began = Instant::now();
        let ran = exec(&["connect", &other]);
        assert!(ran.code == 1 && ran.stdout.contains("no answer"), "{other}: {ran:?}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    // The sidecar itself has a way out, here as far as the host.
    let networks =
        docker(&["inspect", &format!("{name}-sidecar"), "--format", "{{json .NetworkSettings.Networks}}"]);
    assert!(networks.contains("\"bridge\"") && networks.contains(name), "{networks}");
    // And is no way from one network to the other, even for packets that the guest would make up itself.
    let forwards =
        docker(&["exec", &format!("{name}-sidecar"), "/agent", "cat", "/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!(forwards, "0\n");
    let status = exec(&["cat", "/proc/self/status"]).stdout;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    assert_eq!(u64::from_str_radix(bounding, 16).unwrap() & (1 << 13), 0, "CAP_NET_RAW");
    // Again after a stop and a start: it is the network's doing, not the start's.
    docker(&["restart", "-t", "0", name]);
    assert_eq!(exec(&["connect", address]).code, 0);
    assert_eq!(exec(&["connect", &format!("{gateway}:{port}")]).code, 1);
    assert_eq!(cellar.run(["rm", "--force", name]).code, 0);
    assert_nothing_left(&cellar, "reach");
}

#[test]
fn a_sidecar_that_is_not_ready_is_shown_with_its_log_and_nothing_stays() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("unready", &sidecar("unready"));
    let _tidy = Tidy::after(&cellar, "unready");
    let gate = "FROM scratch\nCOPY own agent /\nENTRYPOINT [\"/agent\"]\nCMD [\"cat\", \"/no-such-key\"]\n";
    cellar.write("gate/Dockerfile", gate);
    let ran = launched(&cellar, &["--", "/agent", "echo", "never"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{ran:?}");
    assert!(
        ran.stderr.contains("exit code 1") && ran.stderr.contains("/no-such-key: No such file"),
        "{ran:?}"
    );
    assert_nothing_left(&cellar, "unready");
    cellar.write("gate/Dockerfile", "FROM scratch\nCOPY nothing /\n");
    let ran = launched(&cellar, &["--", "/agent", "echo", "never"]);
    assert!(ran.code == 125 && ran.stderr.contains("docker build"), "{ran:?}");
    assert_nothing_left(&cellar, "unready");
    std::fs::remove_file(cellar.project().join("gate/Dockerfile")).unwrap();
    let ran = launched(&cellar, &["--", "/agent", "echo", "never"]);
    assert!(ran.code == 2 && ran.stderr.contains("Dockerfile"), "{ran:?}");
    assert_nothing_left(&cellar, "unready");
}

#[test]
fn by_loopback_the_sidecars_ports_are_published_before_the_guest_begins() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("byloop", &format!("{}reach = \"loopback\"\n", sidecar("byloop")));
    let _tidy = Tidy::after(&cellar, "byloop");
    let detached = launched(&cellar, &["--detach", "--", "/agent", "sleep", "600"]);
    assert_eq!(detached.code, 0, "{detached:?}");
    let name = detached.stdout.trim();
    let published = docker(&["port", &format!("{name}-sidecar"), "7000"]);
    let mut answer = String::new();
    let mut stream = std::net::TcpStream::connect(published.trim()).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert_eq!(answer, "hello from the sample agent\n");
    assert!(published.starts_with("127.0.0.1:"), "{published}");
    assert_eq!(cellar.run(["rm", "--force", name]).code, 0);
    assert_nothing_left(&cellar, "byloop");
}

#[test]
fn a_dry_run_with_a_sidecar_makes_nothing_and_names_every_command() {
    if !have(&[Need::Docker]) {
        return;
    }
    let cellar = agent_project("dry", &sidecar("dry"));
    let networks = || docker(&["network", "ls", "--quiet"]);
    let plan = cellar.json(["launch", "--backend", "docker", "--dry-run"]);
    assert!(!cellar.cache().exists() && left("dry").is_empty() && !networks().contains("dry"));
    let ip = plan["sidecar"]["ip"].as_str().unwrap();
    assert_eq!(plan["egress"]["allow_cidr"][0], format!("{ip}/32"));
    assert_eq!(plan["sidecar"]["ports"][0]["address"], format!("{ip}:7000"));
    let lines: Vec<String> = plan["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|words| {
            words
                .as_array()
                .unwrap()
                .iter()
                .skip(1)
                .take(2)
                .map(|word| word.as_str().unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let name = plan["machine"].as_str().unwrap();
    assert_eq!(
        lines,
        [
            "build --iidfile",
            "network create",
            "create --pull",
            "network connect",
            &format!("start {name}-sidecar"),
            "create --pull",
            &format!("start {name}"),
            "exec -i",
            "rm --force",
            "rm --force",
            "network rm",
        ]
    );
}
