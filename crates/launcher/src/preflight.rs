//! Whether a machine can run here at all. Reads only.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why no machine can run here.
#[derive(Debug, thiserror::Error)]
pub enum NoVirtualisation {
    /// The processor cannot, or may not.
    #[error(
        "this CPU has no hardware virtualisation (neither vmx nor svm among its flags), which microVMs need; {}",
        if *.virtual_machine {
            "this is itself a virtual machine: turn on nested virtualisation for it on its host"
        } else {
            "turn on VT-x or AMD-V in the firmware settings"
        }
    )]
    Cpu {
        /// Whether this runs in a virtual machine.
        virtual_machine: bool,
    },
    /// The kernel offers none.
    #[error(
        "{} does not exist: load the kernel module (`sudo modprobe {module}`); in a container, pass the device in \
         (`--device /dev/kvm`)", path.display()
    )]
    NoDevice {
        /// The device.
        path: PathBuf,
        /// The module that would make it.
        module: &'static str,
    },
    /// This user may not.
    #[error("{} may not be opened (mode {mode:04o}, owner {uid}:{gid}): {remedy}", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// Opening it failed otherwise.
    #[error("{} cannot be opened: {source}", path.display())]
    Device {
        /// The device.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// macOS offers none.
    #[error("this Mac offers no Hypervisor.framework (kern.hv_support is not 1), which microVMs need")]
    HypervisorFramework,
}

/// Where virtualisation is looked for.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/proc/cpuinfo`.
    pub cpuinfo: PathBuf,
    /// `/dev/kvm`.
    pub kvm: PathBuf,
    /// `/etc/group`.
    pub groups: PathBuf,
    /// Whether machines run as users of their own: smolvm does that when root
    /// starts it, unless `SMOLVM_VM_UID_DROP=off`.
    pub drops_user: bool,
}

impl Default for Host {
    /// This one.
    fn default() -> Self {
        let kept = std::env::var_os("SMOLVM_VM_UID_DROP").is_some_and(|value| value == "off");
        Self {
            cpuinfo: "/proc/cpuinfo".into(),
            kvm: "/dev/kvm".into(),
            groups: "/etc/group".into(),
            drops_user: rustix::process::geteuid().is_root() && !kept,
        }
    }
}

/// Whether this host can run machines.
///
/// # Errors
/// Says which of the things needed is missing and what to do about it.
pub fn virtualisation() -> Result<(), NoVirtualisation> {
    Host::default().virtualisation()
}

impl Host {
    /// See [`virtualisation`].
    ///
    /// # Errors
    /// See [`virtualisation`].
    pub fn virtualisation(&self) -> Result<(), NoVirtualisation> {
        if cfg!(target_os = "macos") {
            // Where that cannot be told, smolvm will say it.
            return match smolcellar_smolvm::hypervisor_framework() {
                Some(false) => Err(NoVirtualisation::HypervisorFramework),
                _ => Ok(()),
            };
        }
        self.check_device(self.check_cpu()?)
    }

    /// The kernel module for this CPU. The device alone proves nothing: it can
    /// be there without VT-x or AMD-V, and a guest then spins for ever.
    fn check_cpu(&self) -> Result<&'static str, NoVirtualisation> {
        let Ok(cpuinfo) = fs::read_to_string(&self.cpuinfo) else { return Ok("kvm") };
        // Only x86 has a line of this name; ARM's is "Features" and says
        // nothing of virtualisation.
        let line =
            cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'));
        let Some(flags) = line else { return Ok("kvm") };
        let has = |flag| flags.split_ascii_whitespace().any(|word| word == flag);
        match (has("vmx"), has("svm")) {
            (true, _) => Ok("kvm_intel"),
            (_, true) => Ok("kvm_amd"),
            _ => Err(NoVirtualisation::Cpu { virtual_machine: has("hypervisor") }),
        }
    }

    /// The number of the group `kvm` (group(5): `kvm:x:109:`).
    fn kvm_group(&self) -> Option<u32> {
        let groups = fs::read_to_string(&self.groups).ok()?;
        let line = groups.lines().find_map(|line| line.strip_prefix("kvm:"))?;
        line.split(':').nth(1)?.parse().ok()
    }

    fn check_device(&self, module: &'static str) -> Result<(), NoVirtualisation> {
        let path = || self.kvm.clone();
        let metadata = match fs::metadata(&self.kvm) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NoVirtualisation::NoDevice { path: path(), module });
            }
            Err(source) => return Err(NoVirtualisation::Device { path: path(), source }),
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let denied = |remedy| {
            let (uid, gid) = (metadata.uid(), metadata.gid());
            Err(NoVirtualisation::Permission { path: path(), mode, uid, gid, remedy })
        };
        // Root itself may open anything; the user that it becomes may not. Of
        // its groups that user keeps the one called kvm.
        let by_group = mode & 0o060 == 0o060 && self.kvm_group() == Some(metadata.gid());
        if self.drops_user && mode & 0o006 != 0o006 && !by_group {
            return denied(
                "started by root, smolvm runs each machine as a user of its own, which must be able to open it; \
                 run this as an ordinary user, give the device to the group kvm with mode 0660, or `chmod 666` it",
            );
        }
        match open(&self.kvm) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied(
                "add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again); in a container, run as \
                 a user who may",
            ),
            Err(source) => Err(NoVirtualisation::Device { path: path(), source }),
        }
    }
}

/// Opening the device makes nothing; machines are made by requests on it.
fn open(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().read(true).write(true).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::fsio;

    struct Fake {
        dir: tempfile::TempDir,
    }

    impl Fake {
        fn new(flags: &str, mode: Option<u32>) -> (Self, Host) {
            let fake = Self { dir: tempfile::tempdir().unwrap() };
            let host = Host {
                cpuinfo: fake.dir.path().join("cpuinfo"),
                kvm: fake.dir.path().join("kvm"),
                groups: fake.dir.path().join("group"),
                drops_user: false,
            };
            let cpuinfo = format!("processor\t: 0\nvendor_id\t: x\nflags\t\t: {flags}\nbugs\t: none\n");
            fsio::write_atomic(fake.dir.path(), &host.cpuinfo, cpuinfo.as_bytes()).unwrap();
            if let Some(mode) = mode {
                fsio::create_new(&host.kvm).unwrap();
                fs::set_permissions(&host.kvm, fs::Permissions::from_mode(mode)).unwrap();
            }
            (fake, host)
        }
    }

    fn problem(host: &Host) -> String {
        host.virtualisation().unwrap_err().to_string()
    }

    #[test]
    fn a_cpu_that_can_and_a_device_that_may_be_opened_are_enough() {
        for flags in ["fpu vmx sse", "fpu svm"] {
            let (_fake, host) = Fake::new(flags, Some(0o666));
            host.virtualisation().unwrap();
        }
    }

    #[test]
    fn a_cpu_without_virtualisation_is_named_even_when_the_device_is_there() {
        let (_fake, host) = Fake::new("fpu svme notvmx", Some(0o666));
        assert!(problem(&host).contains("neither vmx nor svm") && problem(&host).contains("firmware"));
        let (_fake, host) = Fake::new("fpu hypervisor", Some(0o666));
        assert!(problem(&host).contains("nested virtualisation"));
    }

    #[test]
    fn a_missing_device_names_the_module_of_this_cpu() {
        let (_fake, host) = Fake::new("vmx", None);
        assert!(problem(&host).contains("kvm_intel"), "{}", problem(&host));
        let (_fake, host) = Fake::new("svm", None);
        assert!(problem(&host).contains("kvm_amd"));
    }

    #[test]
    fn a_device_that_machines_may_not_open_names_its_mode_and_the_remedy() {
        let (fake, host) = Fake::new("vmx", Some(0o660));
        let host = Host { drops_user: true, ..host };
        assert!(
            problem(&host).contains("0660") && problem(&host).contains("chmod 666"),
            "{}",
            problem(&host)
        );
        let gid = fs::metadata(&host.kvm).unwrap().gid();
        let groups = format!("root:x:0:\nkvm:x:{gid}:a,b\n");
        fsio::write_atomic(fake.dir.path(), &host.groups, groups.as_bytes()).unwrap();
        host.virtualisation().unwrap();
        let (_fake, host) = Fake::new("vmx", Some(0o000));
        if !rustix::process::geteuid().is_root() {
            assert!(problem(&host).contains("usermod"), "{}", problem(&host));
        }
    }

    #[test]
    fn arm_has_no_flag_to_look_for() {
        let (fake, host) = Fake::new("", Some(0o666));
        let features = b"processor\t: 0\nFeatures\t: fp asimd\n";
        fsio::write_atomic(fake.dir.path(), &host.cpuinfo, features).unwrap();
        host.virtualisation().unwrap();
        let host = Host { cpuinfo: "/nonexistent".into(), ..host };
        host.virtualisation().unwrap();
    }
}
