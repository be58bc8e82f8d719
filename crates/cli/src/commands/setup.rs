//! `setup`: the smolvm runtime.

use anyhow::Result;
use serde_json::json;
use smolcellar_smolvm::{InstallOptions, Origin, RuntimeConfig};
use smolcellar_store::{Event, Reporter};

use crate::args::Setup;
use crate::exit;
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Setup) -> Result<u8> {
    let store = session.store()?;
    let _end_children = EndChildren::on_signals()?;
    if args.force {
        let config = RuntimeConfig { dir: session.global.smolvm_dir.clone() };
        if smolcellar_smolvm::discard_damaged(&store, &session.progress, &config)? {
            let text = "what was derived from that smolvm was damaged; it is derived again";
            session.progress.report(Event::Warn { text });
        }
    }
    let mut runtime = session.runtime(&store)?;
    if args.force && matches!(runtime.origin, Origin::Wheel { .. }) {
        let options = InstallOptions { force: true, ..session.install_options() };
        runtime = smolcellar_smolvm::install(&store, &session.progress, &options)?;
    }
    let origin = match &runtime.origin {
        Origin::Configured(dir) => format!("the folder {}", dir.display()),
        Origin::Installed(program) => format!("the installed {}", program.display()),
        Origin::Wheel { sha256 } => format!("the pinned PyPI wheel, {sha256}"),
    };
    if session.global.format == Format::Json {
        output::json(&json!({
            "smolvm": runtime.version.to_string(),
            "program": runtime.vmm,
            "agent_rootfs": runtime.rootfs_digest,
            "origin": origin,
        }))?;
    } else {
        output::line(&format!("smolvm {} is ready: {}", runtime.version, runtime.vmm.display()))?;
        output::line(&format!("  from {origin}"))?;
    }
    Ok(exit::OK)
}
