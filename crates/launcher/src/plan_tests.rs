//! See `plan`.

use super::*;
use crate::names::machine_name;
use crate::sidecar::SidecarSpec;
use smolcellar_engine::Engine;
use smolcellar_smolvm::Cli;
use smolcellar_store::Digest;
use std::collections::HashSet;

fn spec() -> LaunchSpec {
    LaunchSpec {
        agent: "My Agent".into(),
        backend: Backend::Smolvm,
        image: Some(ImageRef { reference: "my/agent:dev".into(), from: "config" }),
        artifact: Some(Artifact {
            key: "0123456789abcdef0123-fedcba9876543210fedc".into(),
            path: "/a.smolmachine".into(),
            sha256: Digest::of(b"x"),
        }),
        machine_name: "m".into(),
        name_chosen: false,
        image_env: vec![("PATH".into(), "/bin".into())],
        command: vec!["agent".into()],
        env: vec![("A".into(), "b".into())],
        secrets: vec!["TOKEN=GH_TOKEN".parse().unwrap()],
        workdir: Some("/w".into()),
        user: None,
        cpus: Some(1),
        memory_mib: Some(512),
        volumes: vec!["/src:/work:ro".parse().unwrap()],
        ports: vec!["8080:80".parse().unwrap()],
        egress: Egress {
            allow_cidr: vec!["10.0.0.2/32".into(), "fd00::/8".into()],
            allow_host: vec!["api.example.org".into()],
        },
        sidecar: None,
        prompt: None,
        keep: false,
        io: ExecIo::Stream,
    }
}

fn tools() -> Tools {
    let smolvm = Cli::assumed(smolcellar_smolvm::PINNED_VERSION);
    Tools { smolvm: Some(smolvm), engine: Some(Engine::assumed(None)) }
}

fn sidecar() -> SidecarSpec {
    SidecarSpec {
        image: "gate:1".into(),
        build: None,
        services: vec!["git-gate".into()],
        ports: BTreeMap::from([("http-proxy".into(), 3128)]),
        env: BTreeMap::new(),
        reach: crate::sidecar::Reach::Bridge,
    }
}

fn container_spec() -> LaunchSpec {
    LaunchSpec { backend: Backend::Docker, egress: Egress::default(), ports: vec![], ..spec() }
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.commands.iter().map(|words| words.join(" ")).collect()
}

#[test]
fn a_plan_is_everything_that_was_asked_and_every_command_line() {
    let plan = Plan::resolve(&spec(), &tools()).unwrap();
    assert_eq!(
        lines(&plan),
        [
            "smolvm machine create --name m --from /a.smolmachine --cpus 1 --mem 512 --allow-cidr 10.0.0.2/32 \
         --allow-cidr fd00::/8 --allow-host api.example.org -v /src:/work:ro -p 8080:80 -e A=b --label \
         dev.smolcellar.launch=m",
            "smolvm machine start --name m --no-workload",
            "smolvm machine exec --name m -w /w -e A=b --secret-env TOKEN=GH_TOKEN --stream -- agent",
            "smolvm machine stop --name m --timeout 2",
            "smolvm machine delete --name m -f",
        ]
    );
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["slug"], "my-agent");
    assert_eq!(json["secrets"][0]["host"], "GH_TOKEN");
    assert_eq!(json["volumes"][0]["read_only"], true);
    assert_eq!(json["egress"]["allow_host"][0], "api.example.org");
    assert_eq!((&json["backend"], &json["prompt_file"]), (&"smolvm".into(), &"launches/m/prompt".into()));
    let old = Tools { smolvm: Some(Cli::assumed("0.8.0".parse().unwrap())), engine: None };
    let old = Plan::resolve(&LaunchSpec { secrets: vec![], ..spec() }, &old).unwrap();
    assert!(!lines(&old)[0].contains("--label"));
}

#[test]
fn a_sidecar_is_made_first_and_is_all_that_the_guest_may_reach() {
    let spec = LaunchSpec { sidecar: Some(sidecar()), egress: Egress::default(), ..spec() };
    let plan = Plan::resolve(&spec, &tools()).unwrap();
    let (ip, lines) = (plan.sidecar.as_ref().unwrap().ip, lines(&plan));
    let subnet = plan.network.as_ref().unwrap().subnet.clone();
    let gateway = plan.network.as_ref().unwrap().gateway;
    assert_eq!(
        lines[..4],
        [
            format!(
                "docker network create --internal --subnet {subnet} --gateway {gateway} --label \
                 dev.smolcellar.launch=m m"
            ),
            "docker create --pull never --name m-sidecar --label dev.smolcellar.launch=m -e SMOLCELLAR_AGENT=My Agent -e \
             SMOLCELLAR_SERVICES=git-gate --sysctl net.ipv4.ip_forward=0 gate:1"
                .to_owned(),
            format!("docker network connect --ip {ip} m m-sidecar"),
            "docker start m-sidecar".to_owned(),
        ]
    );
    assert!(lines[4].contains(&format!("--allow-cidr {ip}/32 ")), "{}", lines[4]);
    assert!(lines[6].contains(&format!("-e HTTPS_PROXY=http://{ip}:3128")), "{}", lines[6]);
    assert_eq!(lines[lines.len() - 2..], ["docker rm --force --volumes m-sidecar", "docker network rm m"]);
    assert_eq!(plan.egress.allow_cidr, [format!("{ip}/32")]);
    // The user's own variable wins.
    let env = vec![("HTTPS_PROXY".to_owned(), "mine".to_owned())];
    let plan = Plan::resolve(&LaunchSpec { env, ..spec }, &tools()).unwrap();
    assert_eq!((plan.env["HTTPS_PROXY"].as_str(), plan.env.len()), ("mine", 8));
}

#[test]
fn a_container_is_the_same_launch_with_the_engines_words() {
    let plan = Plan::resolve(&container_spec(), &tools()).unwrap();
    let image = "smolcellar/artifact:0123456789abcdef-fedcba9876543210";
    let key = plan.artifact.as_ref().unwrap().key.clone();
    let sha256 = Digest::of(b"x");
    assert_eq!(
        lines(&plan),
        [
            format!(
                "docker import --change LABEL dev.smolcellar.artifact={key} --change LABEL \
                 dev.smolcellar.sha256={sha256} - {image}-loading"
            ),
            format!("docker tag {image}-loading {image}"),
            format!("docker rmi {image}-loading"),
            format!(
                "docker create --pull never --name m --label dev.smolcellar.launch=m --network none --cpus 1 --memory 512m -e \
                 PATH=/bin -e A=b -v /src:/work:ro --cap-drop NET_RAW {image} /.smolcellar-idle"
            ),
            "docker start m".to_owned(),
            "docker exec -e TOKEN -w /w m agent".to_owned(),
            "docker rm --force --volumes m".to_owned(),
        ]
    );
    // With a sidecar: in its network, which the host is not in, and with no other resolver.
    let plan = Plan::resolve(&LaunchSpec { sidecar: Some(sidecar()), ..container_spec() }, &tools()).unwrap();
    let lines = lines(&plan);
    let ip = plan.sidecar.as_ref().unwrap().ip;
    assert!(lines[0].contains("--opt com.docker.network.bridge.inhibit_ipv4=true"), "{}", lines[0]);
    assert!(lines[7].contains("--network m --ip 10.") && lines[7].contains(&format!("--dns {ip}")));
    let ports = vec!["8080:80".parse().unwrap()];
    let plan = Plan::resolve(&LaunchSpec { ports, ..container_spec() }, &tools()).unwrap();
    assert!(plan.network.is_some_and(|network| network.host_joins) && plan.sidecar.is_none());
}

#[test]
fn what_a_container_cannot_promise_is_refused() {
    let egress = Egress { allow_host: vec!["a.b".into()], ..Egress::default() };
    let refused = |spec: &LaunchSpec| Plan::resolve(spec, &tools()).unwrap_err().to_string();
    assert!(refused(&LaunchSpec { egress, ..container_spec() }).contains("sidecar"));
    let ports = vec!["8080:80".parse().unwrap()];
    assert!(refused(&LaunchSpec { ports, keep: true, ..container_spec() }).contains("--keep"));
}

#[test]
fn what_is_not_built_yet_is_planned_too() {
    let plan = Plan::resolve(&LaunchSpec { artifact: None, command: vec![], ..spec() }, &tools()).unwrap();
    assert_eq!(plan.commands[0][6], NOT_BUILT);
    assert_eq!(plan.commands[2].last().unwrap(), OF_IMAGE);
    assert!(plan.command.is_empty());
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_made() {
    let refused = |spec: LaunchSpec| Plan::resolve(&spec, &tools()).unwrap_err();
    assert!(matches!(refused(LaunchSpec { command: vec![], ..spec() }), LaunchError::NoCommand));
    let cidrs =
        ["", "10.0.0.2", "10.0.0.2/33", "10.0.0/8", "host/32", "::1/129", "10.0.0.2/", "10.0.0.2/+8", "-f/8"];
    for cidr in cidrs {
        let egress = Egress { allow_cidr: vec![cidr.into()], ..Egress::default() };
        refused(LaunchSpec { egress, ..spec() });
    }
    for host in ["", "a..b", "-f", "a b", "a/b", "a:1", &"x".repeat(64)] {
        let egress = Egress { allow_host: vec![host.into()], ..Egress::default() };
        refused(LaunchSpec { egress, ..spec() });
    }
    for name in ["", "a b", "a/b", "../a", "-a", "a-", "a--b", "a_b", "a.b", "é", &"x".repeat(65)] {
        refused(LaunchSpec { machine_name: name.into(), ..spec() });
    }
    refused(LaunchSpec { cpus: Some(0), ..spec() });
    refused(LaunchSpec { memory_mib: Some(0), ..spec() });
    refused(LaunchSpec { ports: vec!["1:2".parse().unwrap(), "1:3".parse().unwrap()], ..spec() });
    refused(LaunchSpec { volumes: vec!["/a:/x".parse().unwrap(), "/b:/x/".parse().unwrap()], ..spec() });
    refused(LaunchSpec { secrets: vec!["A=B".parse().unwrap()], ..spec() });
    let ports = BTreeMap::from([("a".into(), 1), ("b".into(), 1)]);
    refused(LaunchSpec { sidecar: Some(SidecarSpec { ports, ..sidecar() }), ..spec() });
}

#[test]
fn names_are_allowed_ones_whatever_the_slug_and_never_repeat() {
    for slug in ["sample", "", "My Agent/ü", "--x--", "a_b", &"long ".repeat(100), &"x".repeat(500)] {
        let name = machine_name(slug);
        assert!(name.starts_with("smolcellar-") && name.len() <= 64, "{name}");
        assert!(!name.contains("--") && !name.ends_with('-'), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
    }
    let names: HashSet<_> = (0..1000).map(|_| machine_name("a")).collect();
    assert_eq!(names.len(), 1000);
}
