//! What only another program of the host can say.

/// Whether macOS offers Hypervisor.framework to this machine: `sysctl -n
/// kern.hv_support`. `None` where that cannot be told, and elsewhere.
pub fn hypervisor_framework() -> Option<bool> {
    #[cfg(target_os = "macos")]
    {
        use smolcellar_run::{Invocation, Limits};
        let run = Invocation {
            operation: "sysctl".into(),
            program: "/usr/sbin/sysctl".into(),
            args: vec!["-n".into(), "kern.hv_support".into()],
            env: vec![],
            stray: None,
        };
        let captured = run.succeed(Limits::within(std::time::Duration::from_secs(5))).ok()?;
        Some(captured.stdout.trim_ascii() == b"1")
    }
    #[cfg(not(target_os = "macos"))]
    None
}
