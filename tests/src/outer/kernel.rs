//! The kernel and its first file system, both out of Debian's kernel package, which is not installed for it.

use super::{cpio, find_program, output_of, program};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that depends on the newest kernel package.
const META_PACKAGE: &str = "linux-image-amd64";

/// The modules that are loaded, without those they need themselves. `crc32c_generic` is what ext4 asks for
/// without saying so; `dummy` gives tests a network card, `loop` a block device.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "ext4",
    "kvm_amd",
    "virtio_net",
    "vhost_vsock",
    "overlay",
    "fuse",
    "tun",
    "dummy",
    "loop",
];

/// What [`INIT`] calls.
const APPLETS: &[&str] = &["sh", "mount", "umount", "insmod", "usleep", "poweroff", "switch_root"];

const INIT: &str = include_str!("initramfs-init.sh");

/// Everything of the recipe that this module decides. The kernel's version is not in it: a machine that works
/// need not be built again for every update.
pub(super) fn recipe() -> String {
    format!("{META_PACKAGE} {MODULES:?} {APPLETS:?} {INIT}")
}

/// Makes `vmlinux` and `initrd` in the folder `to`.
pub(super) fn fetch(to: &Path, log: &dyn Fn(&str)) -> Result<()> {
    let package = package_name()?;
    log(&format!("downloading the kernel package {package}"));
    let unpacked = to.join("kernel");
    fs::create_dir(&unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
    output_of(program("apt-get")?.args(["download", "-q", &package]).current_dir(&unpacked))?;
    let archive = only_file(&unpacked, |name| name.ends_with(".deb"))?;
    output_of(program("dpkg-deb")?.arg("-x").arg(&archive).arg(&unpacked))?;
    let image = only_file(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    fs::write(to.join("vmlinux"), uncompressed_kernel(&image)?).context("cannot write vmlinux")?;
    // The folder of the modules is `/lib` before Debian 13 and `/usr/lib` after.
    let modules = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.join(folder));
    let modules = modules.iter().find(|folder| folder.is_dir()).context("the package holds no modules")?;
    fs::write(to.join("initrd"), initrd(&only_file(modules, |_| true)?)?).context("cannot write initrd")?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

fn package_name() -> Result<String> {
    let shown = output_of(program("apt-cache")?.args(["show", "--no-all-versions", META_PACKAGE]))
        .context("Debian's package lists are needed (apt-get update)")?;
    let shown = String::from_utf8_lossy(&shown);
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
    let name = depends.and_then(|list| list.split([' ', ',']).find(|word| word.starts_with("linux-image-")));
    Ok(name.with_context(|| format!("{META_PACKAGE} depends on no kernel"))?.to_owned())
}

fn only_file(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            return Ok(entry.path());
        }
    }
    bail!("{} does not hold the file that is looked for", folder.display())
}

/// Takes the kernel proper out of its self-extracting image: unpacking itself in emulation would cost more
/// time than all the rest of the boot.
fn uncompressed_kernel(image: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    // Offsets of the x86 boot protocol: sectors of set-up code, signature, payload.
    let number = |at: usize| {
        let field = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
    };
    let payload = || {
        let sectors = usize::from(*bytes.get(0x1f1)?);
        (bytes.get(0x202..0x206)? == b"HdrS").then_some(())?;
        let start = (sectors + 1) * 512 + number(0x248)?;
        // The build appends the size to the compressed data, as four bytes that no decompressor knows.
        bytes.get(start..(start + number(0x24c)?).checked_sub(4)?)
    };
    let payload = payload().with_context(|| format!("{} is no x86 kernel image", image.display()))?;
    let packed = image.with_extension("payload");
    fs::write(&packed, payload).with_context(|| format!("cannot write {}", packed.display()))?;
    decompress(&packed)
}

/// The contents of a file that xz or zstd compressed; any other file as it is.
fn decompress(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tool = match bytes.get(..4) {
        Some([0xfd, b'7', b'z', b'X']) => "xz",
        Some([0x28, 0xb5, 0x2f, 0xfd]) => "zstd",
        _ => return Ok(bytes),
    };
    let input = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut command: Command = program(tool)?;
    output_of(command.arg("-dc").stdin(Stdio::from(input)))
        .with_context(|| format!("cannot decompress {}", file.display()))
}

fn initrd(modules: &Path) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    collect_modules(modules, &mut files)?;
    let built_in = modules.join("modules.builtin");
    let built_in =
        fs::read_to_string(&built_in).with_context(|| format!("cannot read {}", built_in.display()))?;
    let built_in: Vec<_> = built_in.lines().map(module_name).collect();

    let mut order = Vec::new();
    for module in MODULES {
        if !built_in.iter().any(|name| name == module) {
            add_module(module, &files, &mut order)?;
        }
    }

    let busybox = find_program("busybox").context("busybox is not installed")?;
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "root"] {
        archive.folder(folder);
    }
    archive.program("bin/busybox", &busybox);
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    for (name, bytes) in &order {
        archive.program(&format!("modules/{name}.ko"), bytes);
    }
    let list: String = order.iter().map(|(name, _)| format!("{name}.ko\n")).collect();
    archive.program("modules/order", list.as_bytes());
    archive.program("init", INIT.as_bytes());
    Ok(archive.finish())
}

fn collect_modules(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() {
            collect_modules(&path, files)?;
        } else if name.contains(".ko") {
            files.insert(module_name(&name), path);
        }
    }
    Ok(())
}

/// A module's name as the kernel writes it, from the path of its file.
fn module_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// Adds a module to the list after everything that it needs.
fn add_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let file = files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
    let bytes = decompress(file)?;
    for needed in dependencies(&bytes) {
        add_module(&needed, files, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

/// The modules that a module names in its information section: `depends=a,b`, ended by NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
