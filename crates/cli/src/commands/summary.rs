//! What a launch is about to do, for people, and whether they want it.

use anyhow::Result;
use smolcellar_launcher::{Backend, Plan};

use crate::ask;
use crate::format;

/// The plan as a few lines. Names of variables, never their values.
pub(crate) fn of(plan: &Plan) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<9} {value}\n"));
        }
    };
    let size = match (plan.cpus, plan.memory_mib) {
        (Some(cpus), Some(memory)) => {
            format!("{}, {memory} MiB", format::count(cpus as usize, "CPU", "CPUs"))
        }
        _ => "as the artifact says".to_owned(),
    };
    let backend = match plan.backend {
        Backend::Smolvm => "smolvm",
        Backend::Docker => "a container, no machine of its own",
    };
    row("machine", &format!("{} ({backend}, {size})", plan.machine));
    match (&plan.artifact, &plan.image) {
        (Some(artifact), _) => row("artifact", &artifact.path.display().to_string()),
        (None, Some(image)) => row("artifact", &format!("none yet: {} is built first", image.reference)),
        (None, None) => row("artifact", "none yet: it is built first"),
    }
    let command = match plan.command.is_empty() {
        true => "the image's own".to_owned(),
        false => plan.command.join(" "),
    };
    row("command", &command);
    row("workdir", plan.workdir.as_deref().unwrap_or_default());
    row("user", plan.user.as_deref().unwrap_or_default());
    row("env", &list(plan.env.keys()));
    row("secrets", &list(plan.secrets.iter().map(|secret| &secret.guest)));
    row("volumes", &list(&plan.volumes));
    row("ports", &list(&plan.ports));
    if let Some(sidecar) = &plan.sidecar {
        let built = if sidecar.built { ", built first" } else { "" };
        row("sidecar", &format!("{}{built} ({})", sidecar.image, sidecar.network.subnet));
        row("services", &sidecar.services.join(", "));
        let ports = sidecar.ports.iter().map(|port| format!("{} {}", port.name, port.port));
        row("serving", &list(ports));
    }
    row("prompt", plan.prompt.as_ref().map(|prompt| prompt.from.as_str()).unwrap_or_default());
    if plan.keep {
        row("kept", "yes, until `cargo xtask rm`");
    }
    let egress = list(plan.egress.allow_cidr.iter().chain(&plan.egress.allow_host));
    row("egress", if egress.is_empty() { "none" } else { &egress });
    format!("launch {}\n{text}", plan.agent)
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Shows the plan on standard error and asks.
///
/// # Errors
/// [`crate::exit::Declined`] where there is nobody to ask.
pub(crate) fn confirm(plan: &Plan) -> Result<bool> {
    ask::yes(&format!("{}launch it?", of(plan)))
}
