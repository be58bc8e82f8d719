//! `setup`: the smolvm runtime.

use anyhow::Result;
use serde_json::json;
use smolcellar_smolvm::Origin;
use smolcellar_store::Bucket;

use crate::args::Setup;
use crate::exit;
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Setup) -> Result<u8> {
    let store = session.store()?;
    let _end_children = EndChildren::on_signals()?;
    let mut runtime = session.runtime(&store)?;
    if args.force
        && let Origin::Wheel { sha256 } = &runtime.origin
    {
        store.discard(&store.bucket_dir(Bucket::Runtimes).join(sha256.hex()))?;
        runtime = session.install(&store)?;
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
