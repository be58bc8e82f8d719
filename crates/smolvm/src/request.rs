//! What machines are asked to be and to run, and the notations for parts of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

/// What `machine create` is to make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateRequest {
    /// The machine's name.
    pub name: String,
    /// The `.smolmachine` to make it from.
    pub artifact: PathBuf,
    /// Virtual processors; `None`: as the artifact says.
    pub cpus: Option<u32>,
    /// Memory in MiB; `None`: as the artifact says.
    pub memory_mib: Option<u32>,
    /// The addresses that the guest may reach, `10.0.0.2/32`; none of these
    /// and no hosts: no network.
    pub allow_cidrs: Vec<String>,
    /// The hosts that the guest may reach, resolved when it starts.
    pub allow_hosts: Vec<String>,
    /// Host folders in the guest.
    pub volumes: Vec<Volume>,
    /// Guest ports on this host.
    pub ports: Vec<Port>,
    /// The environment of everything in the guest. On the command line, so
    /// never for secrets.
    pub env: Vec<(String, String)>,
    /// Labels, for finding the machine again.
    pub labels: Vec<(String, String)>,
}

/// What `pack create` is to pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackRequest {
    /// The image, as `HOST:PORT/REPOSITORY:TAG`. Of a registry on this
    /// machine's loopback it is pulled in the clear.
    pub image: String,
    /// Where the stub goes; the artifact goes beside it, with `.smolmachine` added.
    pub output: PathBuf,
    /// The machine's virtual processors.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Which image of several, `linux/amd64`; `None`: this machine's.
    pub platform: Option<String>,
}

impl PackRequest {
    /// Where the artifact is afterwards.
    pub fn artifact(&self) -> PathBuf {
        let mut path = self.output.clone().into_os_string();
        path.push(".smolmachine");
        path.into()
    }
}

/// What `machine exec` is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the machine's environment. On the command line, so never for
    /// secrets.
    pub env: Vec<(String, String)>,
    /// Added too, by reference: smolvm takes the values from its own environment.
    pub secrets: Vec<Secret>,
    /// The working folder; `None`: the machine's.
    pub workdir: Option<String>,
    /// The user, a name or `uid[:gid]`; `None`: the machine's.
    pub user: Option<String>,
}

/// A text is no volume, port or secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' {problem}; write it as {form}")]
pub struct NotationError {
    text: String,
    problem: &'static str,
    form: &'static str,
}

/// A folder of the host in the guest: `HOST:GUEST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// The folder on the host.
    pub host: PathBuf,
    /// Where the guest has it; absolute.
    pub guest: String,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{suffix}", self.host.display(), self.guest)
    }
}

impl FromStr for Volume {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        let bad = |problem| NotationError { text: text.to_owned(), problem, form: "HOST:GUEST[:ro]" };
        let parts: Vec<&str> = text.split(':').collect();
        let (host, guest, read_only) = match parts.as_slice() {
            [host, guest] => (host, guest, false),
            [host, guest, "ro"] => (host, guest, true),
            [host, guest, "rw"] => (host, guest, false),
            [_, _, _] => return Err(bad("ends with something else than ro or rw")),
            _ => return Err(bad("is no volume")),
        };
        if host.is_empty() {
            return Err(bad("names no folder of the host"));
        }
        let components = || guest.split('/').skip(1);
        if !guest.starts_with('/') || components().all(str::is_empty) || components().any(|part| part == "..")
        {
            return Err(bad("needs an absolute path below the guest's root, without '..'"));
        }
        Ok(Self { host: host.into(), guest: (*guest).to_owned(), read_only })
    }
}

/// A port of the guest on this host: `HOST:GUEST`, TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Port {
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl FromStr for Port {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        let bad = |problem| NotationError { text: text.to_owned(), problem, form: "HOST:GUEST" };
        let (host, guest) = text.split_once(':').ok_or_else(|| bad("is no pair of ports"))?;
        let number = |port: &str| {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.then(|| port.parse::<u16>().ok()).flatten().filter(|port| *port > 0);
            number.ok_or_else(|| bad("has a port that is no number from 1 to 65535"))
        };
        Ok(Self { host: number(host)?, guest: number(guest)? })
    }
}

/// A secret by reference: `GUEST=HOST`, the names of two variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// What the guest's variable is called.
    pub guest: String,
    /// The variable of this process that has the value.
    pub host: String,
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.guest, self.host)
    }
}

impl FromStr for Secret {
    type Err = NotationError;

    fn from_str(text: &str) -> Result<Self, NotationError> {
        // A value given by mistake must not be repeated in a message.
        let bad =
            |problem| NotationError { text: "the secret".into(), problem, form: "GUEST_NAME=HOST_NAME" };
        let (guest, host) = text.split_once('=').unwrap_or((text, text));
        let name = |name: &str| {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            !name.is_empty() && name.bytes().all(fine) && !name.starts_with(|c: char| c.is_ascii_digit())
        };
        match name(guest) && name(host) {
            true => Ok(Self { guest: guest.to_owned(), host: host.to_owned() }),
            false => Err(bad("is not made of two names of variables")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_read_back_as_they_are_written() {
        for text in ["/a:/b", "./a b:/b/c:ro"] {
            assert_eq!(text.parse::<Volume>().unwrap().to_string(), text);
        }
        assert_eq!("/a:/b:rw".parse::<Volume>().unwrap().to_string(), "/a:/b");
        assert_eq!("8080:80".parse::<Port>().unwrap(), Port { host: 8080, guest: 80 });
        assert_eq!("TOKEN=GH_TOKEN".parse::<Secret>().unwrap().to_string(), "TOKEN=GH_TOKEN");
        assert_eq!("TOKEN".parse::<Secret>().unwrap().to_string(), "TOKEN=TOKEN");
    }

    #[test]
    fn what_is_malformed_is_refused_with_its_form() {
        for text in ["", "/a", ":/b", "/a:b", "/a:/", "/a://", "/a:/b/../c", "/a:/b:x", "/a:/b:ro:ro", "/a:"]
        {
            assert!(text.parse::<Volume>().is_err(), "{text:?}");
        }
        for text in ["", "80", "80:", ":80", "0:80", "80:65536", "+80:80", "80:80/udp", "a:b", "1:2:3"] {
            assert!(text.parse::<Port>().is_err(), "{text:?}");
        }
        assert!("80".parse::<Port>().unwrap_err().to_string().ends_with("write it as HOST:GUEST"));
    }

    #[test]
    fn a_secret_given_by_value_is_not_repeated_in_the_error() {
        for text in ["TOKEN=hunter2!", "=X", "A=", "A=B=C", "1A=B", ""] {
            let error = text.parse::<Secret>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
