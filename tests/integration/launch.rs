//! `launch` where no machine can boot. Where one can, see `vm`.

use smolcellar_tests::cellar::Cellar;

fn cpu_can() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") || cfg!(target_arch = "aarch64")
}

#[test]
fn without_virtualisation_it_says_exactly_that_and_makes_nothing() {
    if cpu_can() {
        // The launcher's own tests say it there, with a made-up cpuinfo.
        let line = "SKIPPED launch without virtualisation: this processor has it\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        return;
    }
    let cellar = Cellar::new();
    cellar.write("smolcellar.toml", "[agent.a]\ncontext = \"ctx\"\n");
    let ran = cellar.run(["launch", "--", "/agent"]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("no hardware virtualisation") && ran.stderr.contains("vmx"), "{ran:?}");
    assert!(ran.stdout.is_empty());
    assert!(!cellar.cache().exists(), "nothing was made");
}
