//! Pure functions from what a container or a network is to be to the engine's
//! arguments. Docker and Podman take the same but where a function asks which.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use smolcellar_run::ExecIo;

use crate::cli::Kind;

/// What a container is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub name: String,
    /// The image's name or ID.
    pub image: String,
    /// Labels, for finding it again.
    pub labels: Vec<(String, String)>,
    /// Where it is connected.
    pub network: Attachment,
    /// The only resolver that it is to ask; `None`: the engine's choice.
    pub dns: Option<Ipv4Addr>,
    /// Processors; `None`: all.
    pub cpus: Option<u32>,
    /// Memory in MiB; `None`: no limit.
    pub memory_mib: Option<u32>,
    /// Its environment. On the command line and in the engine's records, so
    /// never for secrets.
    pub env: Vec<(String, String)>,
    /// Host folders in it: `HOST:GUEST[:ro]`.
    pub volumes: Vec<String>,
    /// Ports of it that get a random one of this host's loopback.
    pub publish: Vec<u16>,
    /// The working folder; `None`: as the image says.
    pub workdir: Option<String>,
    /// More options, as the engine has them.
    pub options: Vec<String>,
    /// What it runs; empty: as the image says.
    pub command: Vec<String>,
}

/// Where a container is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Attachment {
    /// Nowhere: it has a loopback of its own and nothing else.
    None,
    /// The engine's default network.
    #[default]
    Default,
    /// A network of this name, with this address.
    Network {
        /// The network's name.
        name: String,
        /// The container's address in it.
        ip: Ipv4Addr,
    },
}

/// What a network is to be: a bridge that leads nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// Labels, for finding it again.
    pub labels: Vec<(String, String)>,
    /// Its addresses: `10.0.0.0/24`.
    pub subnet: String,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Whether the host has that address. If not, nothing in the network
    /// reaches the host, nor the host anything in the network.
    pub host_joins: bool,
}

/// What is to be run in a container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerExec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the container's environment. On the command line, so never for
    /// secrets.
    pub env: Vec<(String, String)>,
    /// Names of variables whose values the engine's client takes from its own
    /// environment. They are in no record of the engine's.
    pub from_client: Vec<String>,
    /// The working folder; `None`: the container's.
    pub workdir: Option<String>,
    /// The user, a name or `uid[:gid]`; `None`: the container's.
    pub user: Option<String>,
}

/// `create`, of an image that is there: one that is not would be whatever a
/// registry has under that name.
pub fn create(spec: &ContainerSpec) -> Vec<OsString> {
    let mut args = words(&["create", "--pull", "never", "--name", &spec.name]);
    label(&mut args, &spec.labels);
    match &spec.network {
        Attachment::Default => {}
        Attachment::None => args.extend(words(&["--network", "none"])),
        Attachment::Network { name, ip } => {
            args.extend(words(&["--network", name, "--ip", &ip.to_string()]));
        }
    }
    let mut option = |name: &str, value: Option<String>| {
        args.extend(value.into_iter().flat_map(|value| [name.into(), OsString::from(value)]));
    };
    option("--dns", spec.dns.map(|ip| ip.to_string()));
    option("--cpus", spec.cpus.map(|cpus| cpus.to_string()));
    option("--memory", spec.memory_mib.map(|mib| format!("{mib}m")));
    for (name, value) in &spec.env {
        option("-e", Some(format!("{name}={value}")));
    }
    for volume in &spec.volumes {
        option("-v", Some(volume.clone()));
    }
    for port in &spec.publish {
        option("-p", Some(format!("127.0.0.1::{port}")));
    }
    option("-w", spec.workdir.clone());
    args.extend(spec.options.iter().map(OsString::from));
    args.push(spec.image.clone().into());
    args.extend(spec.command.iter().map(OsString::from));
    args
}

/// `start`.
pub fn start(name: &str) -> Vec<OsString> {
    words(&["start", name])
}

/// `exec`. `None` for `io`: no input, and its output is kept.
pub fn exec(name: &str, exec: &ContainerExec, io: Option<ExecIo>) -> Vec<OsString> {
    let mut args = words(&["exec"]);
    args.extend(match io {
        None | Some(ExecIo::Stream) => words(&[]),
        Some(ExecIo::Interactive) => words(&["-i"]),
        Some(ExecIo::Terminal) => words(&["-i", "-t"]),
    });
    for (name, value) in &exec.env {
        args.extend(["-e".into(), format!("{name}={value}").into()]);
    }
    for name in &exec.from_client {
        args.extend(["-e".into(), name.into()]);
    }
    for (option, value) in [("-w", &exec.workdir), ("-u", &exec.user)] {
        if let Some(value) = value {
            args.extend([option.into(), value.into()]);
        }
    }
    args.push(name.into());
    args.extend(exec.command.iter().map(OsString::from));
    args
}

/// `stop`: `grace` to end by itself, in whole seconds.
pub(crate) fn stop(name: &str, grace: Duration) -> Vec<OsString> {
    words(&["stop", "--time", &grace.as_secs().to_string(), name])
}

/// `rm`, running or not, with the volumes that are its own.
pub fn remove(kind: Kind, name: &str) -> Vec<OsString> {
    match kind {
        Kind::Docker => words(&["rm", "--force", "--volumes", name]),
        // Which would ask it to end first, for ten seconds.
        Kind::Podman => words(&["rm", "--force", "--volumes", "--time", "0", name]),
    }
}

/// `network create`.
pub fn create_network(spec: &NetworkSpec) -> Vec<OsString> {
    let mut args = words(&["network", "create", "--internal"]);
    if !spec.host_joins {
        args.extend(words(&["--opt", "com.docker.network.bridge.inhibit_ipv4=true"]));
    }
    args.extend(words(&["--subnet", &spec.subnet, "--gateway", &spec.gateway.to_string()]));
    label(&mut args, &spec.labels);
    args.push(spec.name.clone().into());
    args
}

/// `network connect`.
pub fn connect(network: &str, container: &str, ip: Ipv4Addr) -> Vec<OsString> {
    words(&["network", "connect", "--ip", &ip.to_string(), network, container])
}

/// `network rm`.
pub fn remove_network(name: &str) -> Vec<OsString> {
    words(&["network", "rm", name])
}

/// `cp` of a tar on standard input into a folder of a container.
pub fn copy_tar(container: &str, folder: &str) -> Vec<OsString> {
    words(&["cp", "-", &format!("{container}:{folder}")])
}

/// `import` of a tar on standard input as an image of one layer.
pub fn import(name: &str, labels: &[(String, String)]) -> Vec<OsString> {
    let mut args = words(&["import"]);
    for (name, value) in labels {
        args.extend(words(&["--change", &format!("LABEL {name}={value}")]));
    }
    args.extend(words(&["-", name]));
    args
}

/// `tag`: one more name for an image.
pub fn tag(image: &str, name: &str) -> Vec<OsString> {
    words(&["tag", image, name])
}

/// `rmi`, if nothing uses it.
pub fn remove_image(image: &str) -> Vec<OsString> {
    words(&["rmi", image])
}

fn label(args: &mut Vec<OsString>, labels: &[(String, String)]) {
    for (name, value) in labels {
        args.extend(["--label".into(), format!("{name}={value}").into()]);
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: Vec<OsString>) -> String {
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_container_has_this_command_line() {
        let spec = ContainerSpec {
            name: "c".into(),
            image: "i:1".into(),
            labels: pairs(&[("l", "c")]),
            network: Attachment::Network { name: "n".into(), ip: Ipv4Addr::new(10, 64, 1, 3) },
            dns: Some(Ipv4Addr::new(10, 64, 1, 2)),
            cpus: Some(2),
            memory_mib: Some(512),
            env: pairs(&[("A", "b c")]),
            volumes: vec!["/h:/g:ro".into()],
            publish: vec![3128],
            workdir: Some("/w".into()),
            options: vec!["--init".into()],
            command: vec!["run".into(), "-x".into()],
        };
        assert_eq!(
            line(create(&spec)),
            "create --pull never --name c --label l=c --network n --ip 10.64.1.3 --dns 10.64.1.2 --cpus 2 --memory 512m -e A=b c -v \
             /h:/g:ro -p 127.0.0.1::3128 -w /w --init i:1 run -x"
        );
        let bare = ContainerSpec { name: "c".into(), image: "i".into(), ..ContainerSpec::default() };
        assert_eq!(line(create(&bare)), "create --pull never --name c i");
        assert_eq!(
            line(create(&ContainerSpec { network: Attachment::None, ..bare })),
            "create --pull never --name c --network none i"
        );
    }

    #[test]
    fn a_secret_is_named_and_never_given() {
        let request = ContainerExec {
            command: vec!["a".into(), "-i".into()],
            env: pairs(&[("A", "b")]),
            from_client: vec!["TOKEN".into()],
            workdir: Some("/w".into()),
            user: Some("1:2".into()),
        };
        assert_eq!(
            line(exec("c", &request, Some(ExecIo::Terminal))),
            "exec -i -t -e A=b -e TOKEN -w /w -u 1:2 c a -i"
        );
        assert_eq!(
            line(exec("c", &ContainerExec { command: vec!["a".into()], ..Default::default() }, None)),
            "exec c a"
        );
    }

    #[test]
    fn a_network_leads_nowhere_and_to_the_host_only_when_told() {
        let mut spec = NetworkSpec {
            name: "n".into(),
            labels: pairs(&[("l", "n")]),
            subnet: "10.64.1.0/24".into(),
            gateway: Ipv4Addr::new(10, 64, 1, 1),
            host_joins: true,
        };
        assert_eq!(
            line(create_network(&spec)),
            "network create --internal --subnet 10.64.1.0/24 --gateway 10.64.1.1 --label l=n n"
        );
        spec.host_joins = false;
        assert!(line(create_network(&spec)).contains("--opt com.docker.network.bridge.inhibit_ipv4=true"));
        assert_eq!(
            line(connect("n", "c", Ipv4Addr::new(10, 64, 1, 2))),
            "network connect --ip 10.64.1.2 n c"
        );
        assert_eq!(line(import("i", &pairs(&[("l", "v")]))), "import --change LABEL l=v - i");
        assert_eq!(line(stop("c", Duration::from_secs(2))), "stop --time 2 c");
        assert_eq!(line(remove(Kind::Docker, "c")), "rm --force --volumes c");
        assert_eq!(line(remove_network("n")), "network rm n");
        assert_eq!(line(start("c")), "start c");
    }
}
