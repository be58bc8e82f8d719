//! Debian's docker-registry (the `distribution` project's own server) on this
//! machine's loopback: a registry that we did not write.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::needs::{Need, which};

/// What a test of a real registry needs.
pub const NEEDS: [Need; 3] =
    [Need::Program("docker-registry"), Need::Program("htpasswd"), Need::Program("openssl")];

/// How long the registry may take to answer at first.
const START: Duration = Duration::from_secs(20);

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// By anybody, in the clear.
    Plain,
    /// With [`USER`] and [`PASSWORD`], in the clear.
    Password,
    /// By anybody, over TLS with a certificate of an authority of its own.
    Tls,
}

/// Who may use a registry with [`Access::Password`].
pub const USER: &str = "ada";
/// Their password; a test looks for it where it must not be.
pub const PASSWORD: &str = "needle-4711-pass:word";

/// A registry; gone with all it holds when dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
    access: Access,
}

impl Registry {
    /// Starts an empty one, which answers before this returns.
    ///
    /// # Panics
    /// If it does not within 20 s.
    pub fn start(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        match access {
            Access::Plain => {}
            Access::Password => password_file(dir.path()),
            Access::Tls => certificates(dir.path()),
        }
        // A port that was free may be taken by the time it is used.
        for _ in 0..5 {
            let address = unused_address();
            std::fs::write(dir.path().join("config.yml"), config(dir.path(), address, access)).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new(which("docker-registry").unwrap())
                .args(["serve".as_ref(), dir.path().join("config.yml").as_os_str()])
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            if answers(address, access, &mut child) {
                return Self { dir, child, address, access };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("docker-registry does not answer: {log}");
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// As references begin: with `https://` where it speaks TLS, for loopback is
    /// taken to speak in the clear.
    pub fn prefix(&self) -> String {
        match self.access {
            Access::Tls => format!("https://{}", self.address),
            Access::Plain | Access::Password => self.host(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the authority that vouches for it, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Where it keeps the bytes of a blob; `hex` is its digest without `sha256:`.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Where it keeps everything.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it has logged: every request, with its status.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of loopback where nobody listens.
pub fn unused_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

fn config(dir: &Path, address: SocketAddr, access: Access) -> String {
    let at = dir.display();
    let (tls, auth) = match access {
        Access::Plain => (String::new(), String::new()),
        Access::Tls => {
            (format!("  tls:\n    certificate: {at}/leaf.pem\n    key: {at}/leaf.key\n"), String::new())
        }
        Access::Password => {
            (String::new(), format!("auth:\n  htpasswd:\n    realm: a realm\n    path: {at}/htpasswd\n"))
        }
    };
    format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  delete:\n    enabled: true\n  \
         filesystem:\n    rootdirectory: {at}/data\n  maintenance:\n    uploadpurging:\n      enabled: false\nhttp:\n  \
         addr: {address}\n  secret: of-a-test\n{tls}{auth}"
    )
}

fn password_file(dir: &Path) {
    // Cost 5: this is no place to be slow.
    let line = run(Command::new(which("htpasswd").unwrap()).args(["-C", "5", "-Bbn", USER, PASSWORD]));
    std::fs::write(dir.join("htpasswd"), line).unwrap();
}

/// An authority and a certificate of it: one that signs itself is no server's.
fn certificates(dir: &Path) {
    let settings = "[req]\ndistinguished_name = name\n[name]\n\
                    [ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\n\
                    [leaf]\nbasicConstraints = critical,CA:FALSE\nsubjectAltName = IP:127.0.0.1,DNS:localhost\n\
                    extendedKeyUsage = serverAuth\n";
    std::fs::write(dir.join("openssl.cnf"), settings).unwrap();
    let request =
        "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for rest in [
        "-subj /CN=authority -extensions ca -keyout ca.key -out ca.pem",
        "-subj /CN=localhost -extensions leaf -keyout leaf.key -out leaf.pem -CA ca.pem -CAkey ca.key",
    ] {
        let words = request.split(' ').chain(rest.split(' '));
        run(Command::new(which("openssl").unwrap()).args(words).current_dir(dir));
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Whether it answers before it ends, or its time does.
fn answers(address: SocketAddr, access: Access, child: &mut Child) -> bool {
    let began = Instant::now();
    while began.elapsed() < START {
        if !matches!(child.try_wait(), Ok(None)) {
            return false;
        }
        if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            if access == Access::Tls {
                return true;
            }
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let asked = write!(stream, "GET /v2/ HTTP/1.0\r\nHost: {address}\r\n\r\n");
            let mut answer = [0; 9];
            if asked.is_ok() && stream.read_exact(&mut answer).is_ok() && answer.starts_with(b"HTTP/1.") {
                return true;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
