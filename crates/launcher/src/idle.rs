//! The program that a container of ours runs while nothing else does: it
//! waits for ever. An image may hold one static program and no `sleep`, so we
//! bring our own: an ELF file (System V ABI, chapter 4) of one segment.
//!
//! As process 1 it inherits the orphans of its container, so it first ignores
//! SIGCHLD (17), whereupon the kernel buries them itself (sigaction(2)).

/// The program for an architecture as OCI calls it; `None` where there is none.
pub(crate) fn program(architecture: &str) -> Option<Vec<u8>> {
    let (machine, code): (u16, &[u8]) = match architecture {
        "amd64" => (62, &AMD64),
        "arm64" => (183, &ARM64),
        _ => return None,
    };
    Some(elf(machine, code))
}

/// ```text
/// xor edx, edx; push rdx; push rdx; push rdx; push 1; mov rsi, rsp   // {SIG_IGN, 0, 0, 0}
/// push 17; pop rdi; push 8; pop r10; push 13; pop rax; syscall       // rt_sigaction
/// 1: push 34; pop rax; syscall; jmp 1b                               // pause
/// ```
const AMD64: [u8; 32] = [
    0x31, 0xd2, 0x52, 0x52, 0x52, 0x6a, 0x01, 0x48, 0x89, 0xe6, 0x6a, 0x11, 0x5f, 0x6a, 0x08, 0x41, 0x5a,
    0x6a, 0x0d, 0x58, 0x0f, 0x05, 0x6a, 0x22, 0x58, 0x0f, 0x05, 0xeb, 0xf9, 0x90, 0x90, 0x90,
];

/// ```text
/// sub sp, sp, #32; mov x9, #1; stp x9, xzr, [sp]; stp xzr, xzr, [sp, #16]
/// mov x0, #17; mov x1, sp; mov x2, #0; mov x3, #8; mov x8, #134; svc #0            // rt_sigaction
/// 1: mov x0, #0; mov x1, #0; mov x2, #0; mov x3, #0; mov x4, #8; mov x8, #73; svc #0; b 1b  // ppoll
/// ```
const ARM64: [u8; 72] = [
    0xff, 0x83, 0x00, 0xd1, 0x29, 0x00, 0x80, 0xd2, 0xe9, 0x7f, 0x00, 0xa9, 0xff, 0x7f, 0x01, 0xa9, 0x20,
    0x02, 0x80, 0xd2, 0xe1, 0x03, 0x00, 0x91, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x01, 0x80, 0xd2, 0xc8, 0x10,
    0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80,
    0xd2, 0x03, 0x00, 0x80, 0xd2, 0x04, 0x01, 0x80, 0xd2, 0x28, 0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4,
    0xf9, 0xff, 0xff, 0x17,
];

/// Where the segment is in memory.
const BASE: u64 = 0x40_0000;
const ELF_HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    let entry = ELF_HEADER + PROGRAM_HEADER;
    let size = entry + code.len() as u64;
    // 64-bit, little-endian, version 1, System V.
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    bytes.resize(16, 0);
    let mut put = |parts: &[&[u8]]| bytes.extend(parts.concat());
    // An executable; its entry, its program header, no section headers, no flags.
    put(&[&2u16.to_le_bytes(), &machine.to_le_bytes(), &1u32.to_le_bytes(), &(BASE + entry).to_le_bytes()]);
    put(&[&ELF_HEADER.to_le_bytes(), &0u64.to_le_bytes(), &0u32.to_le_bytes()]);
    for half in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 1, 64, 0, 0] {
        put(&[&half.to_le_bytes()]);
    }
    // All of the file, to be read and executed.
    put(&[&1u32.to_le_bytes(), &5u32.to_le_bytes()]);
    for word in [0, BASE, BASE, size, size, 0x1000] {
        put(&[&word.to_le_bytes()]);
    }
    put(&[code]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    /// Starts, goes on, and ends by a signal: natively, and in QEMU's user mode
    /// where that is installed.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "runs what it made")]
    fn it_waits_until_it_is_killed() {
        for (architecture, interpreter) in [("amd64", "qemu-x86_64-static"), ("arm64", "qemu-aarch64-static")]
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("idle");
            std::fs::write(&path, program(architecture).unwrap()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let native = smolcellar_oci::Platform::guest().architecture == architecture;
            let program = if native { path.clone().into_os_string() } else { interpreter.into() };
            let mut command = std::process::Command::new(program);
            if !native {
                command.arg(&path);
            }
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) if native => panic!("{error}"),
                // Checked when it was written; the bytes have not changed since.
                Err(_) => continue,
            };
            let until = Instant::now() + Duration::from_millis(200);
            while Instant::now() < until {
                assert!(child.try_wait().unwrap().is_none(), "{architecture}: it ended");
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(program("riscv64").is_none());
    }
}
