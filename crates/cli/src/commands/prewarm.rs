//! `prewarm`: all that later builds and launches want, in the cache beforehand.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use smolcellar_engine::Engine;
use smolcellar_launcher::{Artifact, Backend, Launcher, Signals};
use smolcellar_pipeline::{AgentSpec, Outcome, StageStatus, cache_key, changed, remember_built};
use smolcellar_smolvm::{PINNED_VERSION, RuntimeConfig};
use smolcellar_store::{Event, Lookup, MachineKey, Reporter, Store};
use smolcellar_transfer::{Expected, What, import};

use crate::args::Prewarm;
use crate::commands::build_agent::{How, build_with};
use crate::commands::cache::gc;
use crate::commands::plan;
use crate::config_remote::Place;
use crate::exit::{self, Usage};
use crate::format;
use crate::interrupt::EndChildren;
use crate::output::{self, Format};
use crate::remote::{Remote, Sent};
use crate::session::Session;

pub(crate) fn run(session: &Session, args: &Prewarm) -> Result<u8> {
    let config = session.need_config()?;
    let names: Vec<&str> = match args.names.as_slice() {
        [] => config.names().collect(),
        names => names.iter().map(String::as_str).collect(),
    };
    if names.is_empty() {
        // Says where one would be added.
        config.only()?;
    }
    let agents: Vec<AgentSpec> =
        names.into_iter().map(|name| config.agent(name, None, None)).collect::<Result<_>>()?;
    let from = args.from.as_deref().map(From::of).transpose()?;
    let store = session.store()?;
    let end_children = EndChildren::on_signals()?;
    let imported = match &from {
        Some(From::File(file)) => imported(session, &store, &agents, file)?,
        _ => Vec::new(),
    };
    let plans = agents.iter().map(|agent| plan::of(session, &store, agent)).collect::<Result<Vec<_>>>()?;
    let missing = plans.iter().filter(|plan| !plan.is_cached() && !imported.contains(&plan.agent)).count();
    if args.github_output {
        tell_ci(session, &store, &agents, missing == 0)?;
    }
    if args.check {
        for plan in &plans {
            match session.global.format {
                Format::Json => output::json(&with(plan, json!({ "cached": plan.is_cached() })))?,
                Format::Human if plan.is_cached() => output::line(&format!("{}: in the cache", plan.agent))?,
                Format::Human => plan::lines(plan).iter().try_for_each(|line| output::line(line))?,
            }
        }
        return Ok(if missing == 0 { exit::OK } else { exit::MISS });
    }
    let remote = match &from {
        Some(From::Remote(place)) => Some(Remote::named(session, Some(place.clone()))?.only_read()),
        _ => Remote::of(session, &args.remote)?,
    };
    let push = args.push.clone().map(|place| Remote::named(session, Some(place))).transpose()?;
    // Once, before many want it.
    session.runtime(&store)?;

    let mut warmed = warm(session, &store, &agents, &imported, usize::from(args.jobs), remote.as_ref());
    if let Some(push) = &push {
        warmed.iter_mut().for_each(|one| one.push(&store, push));
    }
    drop(end_children);
    if args.extract {
        extract(session, &store, &mut warmed)?;
    }
    show(session, &warmed)?;
    let built = |one: &Warmed| one.outcome.as_ref().is_some_and(missed);
    if warmed.iter().any(built) {
        let keys = warmed.iter().filter_map(|one| one.key).collect();
        gc::after_build_of(session, &store, Some(&config), keys)?;
    }
    let failed: Vec<&Warmed> = warmed.iter().filter(|one| one.error.is_some()).collect();
    for one in &failed {
        one.error.iter().for_each(output::complain);
    }
    // The first one's: a lock that nobody gave up is worth its own code.
    let code = failed.first().and_then(|one| one.error.as_ref()).map(|error| exit::code_of(error, false));
    Ok(code.unwrap_or(exit::OK))
}

/// Where agents are looked for first.
enum From {
    Remote(Place),
    File(std::path::PathBuf),
}

impl From {
    /// What is a file is one; anything else must be a repository.
    fn of(text: &str) -> Result<Self> {
        if Path::new(text).is_file() {
            return Ok(Self::File(text.into()));
        }
        text.parse().map(Self::Remote).map_err(|problem: String| {
            Usage(format!("--from: there is no file '{text}', and it is no repository either: {problem}"))
                .into()
        })
    }
}

/// Takes an export in; the agents that are launched from it now: those of the
/// configuration whose machines are as it says.
fn imported(session: &Session, store: &Store, agents: &[AgentSpec], path: &Path) -> Result<Vec<String>> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let expected = Expected::default();
    let entries = import(store, &mut file, &path.display().to_string(), &expected, &session.progress)?;
    let mut had = Vec::new();
    for entry in entries {
        let What::Machine { key, agent: name, .. } = entry.what else { continue };
        let Some(agent) = agents.iter().find(|agent| agent.name == name) else { continue };
        let Lookup::Hit(machine) = store.machine(&key, false)? else { continue };
        let changed = changed(agent, &machine.receipt.inputs);
        if changed.is_empty() {
            remember_built(store, &agent.project, &name, &key);
            had.push(name);
        } else {
            let text = format!(
                "the artifact of '{name}' in {} has another {} than the configuration says",
                path.display(),
                changed.join(", ")
            );
            session.progress.report(Event::Note { text: &text });
        }
    }
    Ok(had)
}

/// What became of an agent.
struct Warmed {
    agent: String,
    how: &'static str,
    seconds: f64,
    key: Option<MachineKey>,
    outcome: Option<Outcome>,
    sent: Option<Sent>,
    extracted: Option<bool>,
    error: Option<anyhow::Error>,
}

fn missed(outcome: &Outcome) -> bool {
    outcome.stages.iter().any(|stage| stage.status == StageStatus::Miss)
}

/// Builds all agents, or finds them, some at once.
fn warm(
    session: &Session,
    store: &Store,
    agents: &[AgentSpec],
    imported: &[String],
    jobs: usize,
    remote: Option<&Remote<'_>>,
) -> Vec<Warmed> {
    let queue: Mutex<VecDeque<(usize, &AgentSpec)>> = Mutex::new(agents.iter().enumerate().collect());
    let done: Mutex<Vec<(usize, Warmed)>> = Mutex::default();
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(agents.len()) {
            scope.spawn(|| {
                while let Some((number, agent)) = next() {
                    let one = match imported.contains(&agent.name) {
                        true => found(store, agent),
                        false => build(session, store, agent, remote),
                    };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, one));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, one)| one).collect()
}

fn build(session: &Session, store: &Store, agent: &AgentSpec, remote: Option<&Remote<'_>>) -> Warmed {
    let began = Instant::now();
    let observer = session.progress.of_agent(&agent.name);
    let how = How { remote, ..How::default() };
    let built = build_with(session, store, agent, how, &observer);
    let mut one = Warmed::new(&agent.name, began);
    match built {
        // Let go of at once: nobody waits for a build while it holds what another might want.
        Ok((outcome, _)) => {
            one.how = match (&outcome.pulled, missed(&outcome)) {
                (Some(_), _) => "pulled",
                (None, true) => "built",
                (None, false) => "hit",
            };
            one.key = Some(outcome.key());
            one.outcome = Some(outcome);
        }
        Err(error) => one.error = Some(error),
    }
    one
}

/// What an import just brought.
fn found(store: &Store, agent: &AgentSpec) -> Warmed {
    let mut one = Warmed::new(&agent.name, Instant::now());
    one.how = "imported";
    let Some(pointer) = smolcellar_pipeline::last_built(store, &agent.project, &agent.name) else {
        one.error = Some(anyhow::anyhow!("agent '{}' was imported, and is not there any more", agent.name));
        return one;
    };
    one.key = Some(pointer.key());
    one
}

impl Warmed {
    fn new(agent: &str, began: Instant) -> Self {
        Self {
            agent: agent.to_owned(),
            how: "failed",
            seconds: began.elapsed().as_secs_f64(),
            key: None,
            outcome: None,
            sent: None,
            extracted: None,
            error: None,
        }
    }

    fn push(&mut self, store: &Store, remote: &Remote<'_>) {
        let Some(key) = self.key.filter(|_| self.error.is_none()) else { return };
        let seen = self.outcome.as_ref().and_then(|outcome| outcome.seen);
        match remote.send(store, &key, seen.as_slice()) {
            Ok(sent) => self.sent = Some(sent),
            Err(error) => {
                self.error =
                    Some(error.context(format!("cannot send agent '{}' to the remote cache", self.agent)));
            }
        }
    }
}

/// Has smolvm unpack what was warmed.
fn extract(session: &Session, store: &Store, warmed: &mut [Warmed]) -> Result<()> {
    let tools = session.tools(store, Backend::Smolvm, false)?;
    let signals = Signals::catch()?;
    let launcher = Launcher::new(tools, store, &session.progress, &signals);
    for one in warmed {
        let Some(key) = one.key.filter(|_| one.error.is_none()) else { continue };
        let machine = match store.machine(&key, false) {
            Ok(Lookup::Hit(machine)) => machine,
            Ok(_) => continue,
            Err(error) => {
                one.error = Some(error.into());
                continue;
            }
        };
        let artifact = Artifact { key: key.lock_name(), path: machine.path, sha256: machine.receipt.sha256 };
        match launcher.extract(&one.agent, &artifact) {
            Ok(done) => {
                one.extracted = Some(done);
                if !done {
                    let text = format!(
                        "this smolvm keeps no unpacked copies: '{}' is unpacked at each launch",
                        one.agent
                    );
                    session.progress.report(Event::Warn { text: &text });
                }
            }
            Err(error) => {
                let what = format!("cannot have smolvm unpack agent '{}'", one.agent);
                one.error = Some(anyhow::Error::from(error).context(what));
            }
        }
    }
    Ok(())
}

fn show(session: &Session, warmed: &[Warmed]) -> Result<()> {
    if session.global.format == Format::Json {
        for one in warmed {
            let more = json!({
                "agent": one.agent,
                "how": one.how,
                "pushed": one.sent,
                "extracted": one.extracted,
                "error": one.error.as_ref().map(|error| format!("{error:#}")),
            });
            match &one.outcome {
                Some(outcome) => output::json(&with(outcome, more))?,
                None => output::json(&more)?,
            }
        }
        return Ok(());
    }
    let rows: Vec<Vec<String>> = warmed.iter().map(Warmed::row).collect();
    output::table(
        &["AGENT", "HOW", "SIZE", "TIME", "KEY", ""],
        &[false, false, true, true, false, false],
        &rows,
    )
}

impl Warmed {
    fn row(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(pulled) = self.outcome.as_ref().and_then(|outcome| outcome.pulled.as_ref()) {
            notes.push(format!("{} fetched", format::bytes(pulled.fetched)));
        }
        notes.extend(self.sent.as_ref().map(Sent::text));
        notes.extend((self.extracted == Some(true)).then(|| "unpacked".to_owned()));
        let how = if self.error.is_some() { "failed" } else { self.how };
        vec![
            self.agent.clone(),
            how.to_owned(),
            self.outcome.as_ref().map_or_else(|| "-".into(), |outcome| format::bytes(outcome.size)),
            format::seconds(self.seconds),
            self.key.map_or_else(|| "-".into(), |key| key.to_string()),
            notes.join(", "),
        ]
    }
}

/// One JSON object of two.
fn with(value: &impl serde::Serialize, more: Value) -> Value {
    let mut value = serde_json::to_value(value).unwrap_or_default();
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

/// `key=` and `hit=` for the steps of a workflow that keep the cache folder.
fn tell_ci(session: &Session, store: &Store, agents: &[AgentSpec], hit: bool) -> Result<()> {
    let config = RuntimeConfig { dir: session.global.smolvm_dir.clone() };
    let known = smolcellar_smolvm::known(store, &config)?;
    let smolvm = known.map_or(PINNED_VERSION, |runtime| runtime.version).to_string();
    let choice = session.global.engine.as_deref();
    let engine = Engine::find(choice).unwrap_or_else(|_| Engine::assumed(choice));
    let digest = cache_key(agents, &engine, &smolvm)?;
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let text = format!("key=smolcellar-{os}-{arch}-{}\nhit={hit}\n", &digest.hex()[..32]);
    match std::env::var_os("GITHUB_OUTPUT").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = Path::new(&path);
            let file = File::options().append(true).create(true).open(path);
            let write = |mut file: File| file.write_all(text.as_bytes());
            file.and_then(write).with_context(|| format!("cannot write $GITHUB_OUTPUT, {}", path.display()))
        }
        // Elsewhere than at GitHub, and to look at.
        None => output::line(text.trim_end()),
    }
}
