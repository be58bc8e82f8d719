//! Pure functions from a request to smolvm's arguments, per dialect.
//!
//! Source: the clap definitions of smolvm 0.8.0 to 1.9.3 and `--help` of
//! 1.32.2. `machine create` never gets `--smolfile` here: it excludes `--from`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smolcellar_run::ExecIo;

use crate::error::{Error, Result};
use crate::request::{CreateRequest, ExecRequest, PackRequest};
use crate::version::{Dialect, Feature, Version};

/// The version spoken to, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speaker {
    pub(crate) version: Version,
    pub(crate) dialect: Dialect,
}

impl Speaker {
    pub(crate) fn create(self, request: &CreateRequest) -> Result<Vec<OsString>> {
        let mut args = words(&["machine", "create"]);
        args.extend(self.own_name(&request.name)?);
        args.push("--from".into());
        args.push(request.artifact.clone().into());
        for (option, value) in [("--cpus", request.cpus), ("--mem", request.memory_mib)] {
            if let Some(value) = value {
                args.extend([option.into(), value.to_string().into()]);
            }
        }
        for cidr in &request.allow_cidrs {
            args.extend(["--allow-cidr".into(), cidr.into()]);
        }
        for host in &request.allow_hosts {
            args.extend(["--allow-host".into(), host.into()]);
        }
        for volume in &request.volumes {
            args.extend(["-v".into(), volume.to_string().into()]);
        }
        for port in &request.ports {
            args.extend(["-p".into(), port.to_string().into()]);
        }
        args.extend(environment(&request.env)?);
        if !request.labels.is_empty() {
            self.needs(Feature::Labels)?;
        }
        for (name, value) in &request.labels {
            args.extend(["--label".into(), format!("{name}={value}").into()]);
        }
        Ok(args)
    }

    /// Without the image's own entrypoint where that can be said: a machine
    /// runs what is exec'd in it, and nothing beside that.
    pub(crate) fn start(self, name: &str) -> Result<Vec<OsString>> {
        let mut args = self.named("start", name)?;
        if self.version.supports(Feature::NoWorkload) {
            args.push("--no-workload".into());
        }
        Ok(args)
    }

    /// `grace`: what the workload gets to end by itself, where that can be
    /// said; in whole seconds.
    pub(crate) fn stop(self, name: &str, grace: Duration) -> Result<Vec<OsString>> {
        let mut args = self.named("stop", name)?;
        if self.version.supports(Feature::StopTimeout) {
            args.extend(["--timeout".into(), grace.as_secs().to_string().into()]);
        }
        Ok(args)
    }

    pub(crate) fn delete(self, name: &str) -> Result<Vec<OsString>> {
        let mut args = words(&["machine", "delete"]);
        args.extend(self.own_name(name)?);
        // Without it, it asks.
        args.push("-f".into());
        Ok(args)
    }

    /// Where smolvm keeps a machine: each process of it has an argument below.
    pub(crate) fn data_dir(self, name: &str) -> Result<Vec<OsString>> {
        let mut args = words(&["machine", "data-dir"]);
        args.extend(self.own_name(name)?);
        Ok(args)
    }

    pub(crate) fn exec(self, name: &str, request: &ExecRequest, io: Option<ExecIo>) -> Result<Vec<OsString>> {
        let mut args = self.named("exec", name)?;
        if let Some(workdir) = &request.workdir {
            args.extend(["-w".into(), workdir.into()]);
        }
        if let Some(user) = &request.user {
            self.needs(Feature::ExecUser)?;
            args.extend(["--user".into(), user.into()]);
        }
        args.extend(environment(&request.env)?);
        if !request.secrets.is_empty() {
            self.needs(Feature::SecretEnv)?;
        }
        for secret in &request.secrets {
            args.extend(["--secret-env".into(), secret.to_string().into()]);
        }
        args.extend(match io {
            None => words(&[]),
            Some(ExecIo::Stream) => words(&["--stream"]),
            Some(ExecIo::Interactive) => words(&["-i"]),
            Some(ExecIo::Terminal) => words(&["-i", "-t"]),
        });
        if request.command.is_empty() {
            return Err(Error::Argument { what: "guest command", value: String::new(), problem: "is empty" });
        }
        args.push("--".into());
        args.extend(request.command.iter().map(OsString::from));
        Ok(args)
    }

    pub(crate) fn list(self) -> Vec<OsString> {
        words(&["machine", "ls", "--json"])
    }

    pub(crate) fn status(self, name: &str) -> Result<Vec<OsString>> {
        let mut args = self.named("status", name)?;
        args.push("--json".into());
        Ok(args)
    }

    pub(crate) fn logs(self, name: &str, tail: Option<u32>) -> Result<Vec<OsString>> {
        self.needs(Feature::Logs)?;
        let mut args = self.named("logs", name)?;
        if let Some(lines) = tail {
            args.extend(["--tail".into(), lines.to_string().into()]);
        }
        Ok(args)
    }

    pub(crate) fn egress_events(self, name: &str) -> Result<Vec<OsString>> {
        self.needs(Feature::EgressEvents)?;
        let mut args = self.named("egress-events", name)?;
        args.push("--json".into());
        Ok(args)
    }

    pub(crate) fn copy(self, from: &CopyPath, to: &CopyPath) -> Result<Vec<OsString>> {
        let mut args = words(&["machine", "cp"]);
        args.extend([from.argument()?, to.argument()?]);
        Ok(args)
    }

    /// A file into a guest, readable for everybody there where that can be said.
    pub(crate) fn put(self, from: &Path, machine: &str, path: &str) -> Result<Vec<OsString>> {
        let to = CopyPath::Guest { machine: machine.to_owned(), path: path.to_owned() };
        let mut args = self.copy(&CopyPath::Host(from.to_owned()), &to)?;
        if self.version.supports(Feature::CopyMode) {
            args.extend(words(&["--mode", "444"]));
        }
        Ok(args)
    }

    /// `pack create`: the same words in every dialect (0.8.0 on).
    pub(crate) fn pack(self, request: &PackRequest) -> Vec<OsString> {
        let mut args = words(&["pack", "create", "--image", &request.image, "--output"]);
        args.push(request.output.clone().into());
        args.extend(words(&["--cpus", &request.cpus.to_string(), "--mem", &request.memory_mib.to_string()]));
        if let Some(platform) = &request.platform {
            args.extend(words(&["--oci-platform", platform]));
        }
        args
    }

    /// Without `--all`, which is `--keep 0`. Nothing can be named: smolvm takes
    /// all that is unused but the `keep` used last.
    pub(crate) fn prune(self, keep: usize) -> Result<Vec<OsString>> {
        self.needs(Feature::SharedExtractions)?;
        Ok(words(&["pack", "prune", "--keep", &keep.to_string()]))
    }

    fn needs(self, feature: Feature) -> Result<()> {
        if self.version.supports(feature) {
            Ok(())
        } else {
            Err(Error::Unsupported { feature, version: self.version })
        }
    }

    /// The name as `create` and `delete` take it.
    fn own_name(self, name: &str) -> Result<Vec<OsString>> {
        check_name(name)?;
        Ok(match self.dialect {
            Dialect::Positional => words(&[name]),
            Dialect::Named => words(&["--name", name]),
        })
    }

    /// A command that takes `--name` in every dialect.
    fn named(self, command: &str, name: &str) -> Result<Vec<OsString>> {
        check_name(name)?;
        Ok(words(&["machine", command, "--name", name]))
    }
}

/// One end of `machine cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyPath {
    /// On this machine.
    Host(PathBuf),
    /// In a guest.
    Guest {
        /// The machine's name.
        machine: String,
        /// The path in it, absolute.
        path: String,
    },
}

impl CopyPath {
    /// Nothing is to be copied from or to there.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Host(path) => path.as_os_str().is_empty(),
            Self::Guest { path, .. } => path.is_empty(),
        }
    }

    fn argument(&self) -> Result<OsString> {
        match self {
            // `a:b` would be a machine, `-a` an option: neither is with a `/` first.
            Self::Host(path) if path.is_absolute() => Ok(path.clone().into()),
            Self::Host(path) => Ok(Path::new(".").join(path).into()),
            Self::Guest { machine, path } => {
                check_name(machine)?;
                Ok(format!("{machine}:{path}").into())
            }
        }
    }
}

/// smolvm's own rule (`validate_vm_name`): letters, digits, `-` and `_`, no
/// hyphen twice or at an end, at most 128 bytes. Checked here too, since a name
/// is an argument that must never look like an option.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = |problem| Err(Error::Argument { what: "machine name", value: name.to_owned(), problem });
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return bad("must begin with a letter or a digit");
    }
    if name.len() > 128 {
        return bad("is longer than 128 bytes");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        return bad("has something else than letters, digits, '-' and '_'");
    }
    if name.ends_with('-') || name.contains("--") {
        return bad("has a hyphen at its end or two in a row");
    }
    Ok(())
}

fn environment(env: &[(String, String)]) -> Result<Vec<OsString>> {
    let mut args = Vec::with_capacity(env.len() * 2);
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let problem = "has an empty name, or a '=' or NUL where none may be";
            return Err(Error::Argument { what: "environment variable", value: name.clone(), problem });
        }
        args.extend(["-e".into(), format!("{name}={value}").into()]);
    }
    Ok(args)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker(version: &str) -> Speaker {
        let version = version.parse().unwrap();
        Speaker { version, dialect: Dialect::of(version, Path::new("smolvm")).unwrap() }
    }

    fn line(args: Result<Vec<OsString>>) -> String {
        args.unwrap().iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn full() -> CreateRequest {
        CreateRequest {
            name: "m1".into(),
            artifact: "/a/b.smolmachine".into(),
            cpus: Some(2),
            memory_mib: Some(512),
            allow_cidrs: vec!["10.0.0.2/32".into(), "10.0.1.0/24".into()],
            env: vec![("A".into(), "b c".into()), ("D".into(), String::new())],
            ..CreateRequest::default()
        }
    }

    fn plain(command: &[&str]) -> ExecRequest {
        let command = command.iter().map(ToString::to_string).collect();
        ExecRequest { command, ..ExecRequest::default() }
    }

    #[test]
    fn create_and_delete_name_the_machine_as_the_dialect_wants() {
        let rest = "--from /a/b.smolmachine --cpus 2 --mem 512 --allow-cidr 10.0.0.2/32 --allow-cidr 10.0.1.0/24 -e A=b c -e D=";
        for old in ["0.8.0", "0.9.0", "1.0.1"] {
            assert_eq!(line(speaker(old).create(&full())), format!("machine create m1 {rest}"));
            assert_eq!(line(speaker(old).delete("m1")), "machine delete m1 -f");
            assert_eq!(line(speaker(old).data_dir("m1")), "machine data-dir m1");
        }
        for new in ["1.0.2", "1.9.3", "1.32.2"] {
            assert_eq!(line(speaker(new).create(&full())), format!("machine create --name m1 {rest}"));
            assert_eq!(line(speaker(new).delete("m1")), "machine delete --name m1 -f");
            assert_eq!(line(speaker(new).data_dir("m1")), "machine data-dir --name m1");
        }
    }

    #[test]
    fn pack_create_names_the_image_the_output_and_the_machine() {
        let mut request = PackRequest {
            image: "127.0.0.1:5000/x:y".into(),
            output: "/t/packed".into(),
            cpus: 2,
            memory_mib: 512,
            platform: None,
        };
        let plain = "pack create --image 127.0.0.1:5000/x:y --output /t/packed --cpus 2 --mem 512";
        assert_eq!(line(Ok(speaker("0.8.0").pack(&request))), plain);
        request.platform = Some("linux/arm64".into());
        assert_eq!(line(Ok(speaker("1.32.2").pack(&request))), format!("{plain} --oci-platform linux/arm64"));
        assert_eq!(request.artifact(), Path::new("/t/packed.smolmachine"));
    }

    #[test]
    fn a_bare_create_says_nothing_but_name_and_artifact() {
        let request = CreateRequest { name: "m1".into(), artifact: "/a".into(), ..Default::default() };
        assert_eq!(line(speaker("1.32.2").create(&request)), "machine create --name m1 --from /a");
        assert_eq!(line(speaker("0.8.2").create(&request)), "machine create m1 --from /a");
    }

    #[test]
    fn volumes_ports_and_hosts_are_options_of_create() {
        let request = CreateRequest {
            name: "m1".into(),
            artifact: "/a".into(),
            allow_hosts: vec!["example.org".into()],
            volumes: vec!["/src:/work:ro".parse().unwrap(), "/out:/out".parse().unwrap()],
            ports: vec!["8080:80".parse().unwrap()],
            ..CreateRequest::default()
        };
        let expected = "machine create --name m1 --from /a --allow-host example.org -v /src:/work:ro -v /out:/out -p 8080:80";
        assert_eq!(line(speaker("1.32.2").create(&request)), expected);
    }

    #[test]
    fn labels_are_given_where_they_exist_and_refused_where_not() {
        let request = CreateRequest { labels: vec![("owner".into(), "x".into())], ..full() };
        assert!(line(speaker("1.8.0").create(&request)).ends_with(" --label owner=x"));
        assert!(matches!(speaker("1.7.7").create(&request), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn the_other_commands_take_name_as_an_option_in_both_dialects() {
        for version in ["0.8.0", "1.0.1", "1.0.2", "1.32.2"] {
            let speaker = speaker(version);
            let quiet = if version == "1.32.2" { " --no-workload" } else { "" };
            assert_eq!(line(speaker.start("m1")), format!("machine start --name m1{quiet}"));
            assert_eq!(line(speaker.status("m1")), "machine status --name m1 --json");
            assert_eq!(line(Ok(speaker.list())), "machine ls --json");
            assert_eq!(line(speaker.exec("m1", &plain(&["true"]), None)), "machine exec --name m1 -- true");
        }
    }

    #[test]
    fn stop_and_logs_use_the_options_of_their_version() {
        let grace = Duration::from_secs(2);
        assert_eq!(line(speaker("1.0.1").stop("m1", grace)), "machine stop --name m1");
        assert_eq!(line(speaker("1.9.3").stop("m1", grace)), "machine stop --name m1");
        assert_eq!(line(speaker("1.32.2").stop("m1", grace)), "machine stop --name m1 --timeout 2");
        assert_eq!(line(speaker("1.32.2").logs("m1", Some(5))), "machine logs --name m1 --tail 5");
        assert!(matches!(speaker("1.0.1").logs("m1", None), Err(Error::Unsupported { .. })));
        assert_eq!(line(speaker("1.11.0").egress_events("m1")), "machine egress-events --name m1 --json");
        assert!(matches!(speaker("1.10.1").egress_events("m1"), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn prune_says_how_many_stay_and_only_where_it_spares_what_is_used() {
        assert_eq!(line(speaker("1.32.2").prune(0)), "pack prune --keep 0");
        assert_eq!(line(speaker("1.9.0").prune(3)), "pack prune --keep 3");
        assert!(matches!(speaker("1.8.3").prune(0), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn exec_puts_every_option_before_the_two_dashes() {
        let request = ExecRequest {
            command: vec!["sh".into(), "-c".into(), "exit 3".into()],
            env: vec![("K".into(), "v".into())],
            workdir: Some("/work".into()),
            user: Some("1000:1000".into()),
            secrets: vec!["TOKEN=GH_TOKEN".parse().unwrap()],
        };
        let speak = speaker("1.32.2");
        let head = "machine exec --name m1 -w /work --user 1000:1000 -e K=v --secret-env TOKEN=GH_TOKEN";
        assert_eq!(line(speak.exec("m1", &request, None)), format!("{head} -- sh -c exit 3"));
        assert_eq!(
            line(speak.exec("m1", &request, Some(ExecIo::Stream))),
            format!("{head} --stream -- sh -c exit 3")
        );
        assert_eq!(
            line(speak.exec("m1", &request, Some(ExecIo::Interactive))),
            format!("{head} -i -- sh -c exit 3")
        );
        assert_eq!(
            line(speak.exec("m1", &request, Some(ExecIo::Terminal))),
            format!("{head} -i -t -- sh -c exit 3")
        );
        let old = speaker("1.0.1");
        assert!(matches!(old.exec("m1", &request, None), Err(Error::Unsupported { .. })));
        let request = ExecRequest { user: None, ..request };
        assert!(matches!(old.exec("m1", &request, None), Err(Error::Unsupported { .. })));
        let request = ExecRequest { secrets: vec![], ..request };
        assert_eq!(
            line(old.exec("m1", &request, None)),
            "machine exec --name m1 -w /work -e K=v -- sh -c exit 3"
        );
        assert!(old.exec("m1", &plain(&[]), None).is_err());
    }

    #[test]
    fn a_path_to_copy_is_never_taken_for_a_machine_or_an_option() {
        let guest = CopyPath::Guest { machine: "m1".into(), path: "/tmp/x".into() };
        let copy = |host: &str| line(speaker("1.32.2").copy(&CopyPath::Host(host.into()), &guest));
        assert_eq!(copy("/a/b"), "machine cp /a/b m1:/tmp/x");
        assert_eq!(copy("c:d"), "machine cp ./c:d m1:/tmp/x");
        assert_eq!(copy("-r"), "machine cp ./-r m1:/tmp/x");
        assert!(CopyPath::Host(PathBuf::new()).is_empty() && !guest.is_empty());
    }

    #[test]
    fn names_that_could_be_options_and_bad_variables_are_refused() {
        for name in ["", "-f", "a--b", "a-", "a b", "a/b", "ä", &"x".repeat(129)] {
            assert!(speaker("1.32.2").start(name).is_err(), "{name:?}");
        }
        for (name, value) in [("", "x"), ("A=B", "x"), ("A", "\0")] {
            assert!(environment(&[(name.into(), value.into())]).is_err(), "{name:?}");
        }
    }
}
