//! Why a stage had to work: which of its inputs is not what it was.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smolcellar_engine::context::ContextDiff;
use smolcellar_oci::ImageId;
use smolcellar_store::Digest;

use crate::facts::BuildFacts;
use crate::outcome::StageName;

/// So many files are named.
const FILES: usize = 10;

/// Why a stage had to work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageWhy {
    /// Which.
    pub stage: StageName,
    /// The inputs that are not what they were at the last build.
    pub changes: Vec<InputChange>,
}

/// An input, then and now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputChange {
    /// Its name: "image", "context", "cpus".
    pub input: String,
    /// What it was; `None` if there was none.
    pub old: Option<Value>,
    /// What it is; `None` if there is none.
    pub new: Option<Value>,
    /// More to say of it, a line each: files, or a reason in words.
    pub lines: Vec<String>,
}

impl InputChange {
    pub(crate) fn new(input: impl Into<String>, old: Option<Value>, new: Option<Value>) -> Self {
        Self { input: input.into(), old, new, lines: Vec::new() }
    }

    /// A change that is told in words.
    pub fn said(input: &str, line: impl Into<String>) -> Self {
        Self { input: input.into(), old: None, new: None, lines: vec![line.into()] }
    }
}

/// What a build was made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made<'a> {
    pub(crate) image: ImageId,
    pub(crate) inputs: &'a BTreeMap<String, Value>,
    pub(crate) facts: Option<&'a BuildFacts>,
}

/// Why each of `missed` had to work, the last build being `old`.
pub(crate) fn explain(old: Option<Made<'_>>, new: Made<'_>, missed: &BTreeSet<StageName>) -> Vec<StageWhy> {
    let why = |stage: StageName| {
        let changes = match old {
            None => vec![InputChange::said("agent", "its first build in this cache, from this folder")],
            Some(old) => of_stage(stage, old, new),
        };
        StageWhy { stage, changes }
    };
    missed.iter().copied().map(why).collect()
}

/// Why each of `missed` had to work, having been told to.
pub(crate) fn forced(missed: &BTreeSet<StageName>, from: StageName) -> Vec<StageWhy> {
    let line = format!("it was asked for: --force={}", from.as_str());
    let why = |stage: &StageName| StageWhy {
        stage: *stage,
        changes: vec![InputChange::said("force", line.clone())],
    };
    missed.iter().map(why).collect()
}

/// What differs between two artifacts: their images, and the inputs of their
/// recipes.
pub fn between(
    (old_image, old): (Digest, &BTreeMap<String, Value>),
    (new_image, new): (Digest, &BTreeMap<String, Value>),
) -> Vec<InputChange> {
    let made = |image, inputs| Made { image: ImageId(image), inputs, facts: None };
    of_stage(StageName::Smolmachine, made(old_image, old), made(new_image, new))
}

fn of_stage(stage: StageName, old: Made<'_>, new: Made<'_>) -> Vec<InputChange> {
    let image = || {
        let changed = old.image != new.image;
        changed.then(|| InputChange::new("image", Some(json!(old.image)), Some(json!(new.image))))
    };
    let mut changes = match stage {
        StageName::Image => {
            let mut changes = match (old.facts, new.facts) {
                (Some(old), Some(new)) => of_facts(old, new),
                _ => Vec::new(),
            };
            match image() {
                Some(image) if changes.is_empty() => {
                    changes.push(image);
                    changes.push(unseen(new.facts));
                }
                Some(_) => {}
                // What may have changed has not changed the image.
                None => changes.clear(),
            }
            changes
        }
        StageName::Tarball | StageName::Registry => image().into_iter().collect(),
        StageName::Smolmachine => image().into_iter().chain(of_inputs(old.inputs, new.inputs)).collect(),
    };
    if changes.is_empty() {
        changes.push(InputChange::said(
            "cache",
            "the inputs are the same; what they made is not there any more",
        ));
    }
    changes
}

/// What differs between what two builds saw.
pub(crate) fn of_facts(old: &BuildFacts, new: &BuildFacts) -> Vec<InputChange> {
    let mut changes = Vec::new();
    for (name, old, new) in [
        ("builder", &old.builder, &new.builder),
        ("target", &old.target, &new.target),
        ("platform", &old.platform, &new.platform),
    ] {
        if old != new {
            changes.push(InputChange::new(name, Some(json!(old)), Some(json!(new))));
        }
    }
    for name in names(&old.build_args, &new.build_args) {
        let (old, new) = (old.build_args.get(name), new.build_args.get(name));
        if old != new {
            // Their values are nobody's to see; whether there is one is.
            let there = |value: Option<&Digest>| value.map(|_| json!("(set)"));
            let mut change = InputChange::new(format!("build-args.{name}"), there(old), there(new));
            if old.is_some() && new.is_some() {
                change.lines.push("another value".into());
            }
            changes.push(change);
        }
    }
    for name in names(&old.bases, &new.bases) {
        let (old, new) = (old.bases.get(name), new.bases.get(name));
        if old != new {
            let id = |id: Option<&Option<Digest>>| id.map(|id| json!(id));
            changes.push(InputChange::new(format!("FROM {name}"), id(old), id(new)));
        }
    }
    match (&old.context, &new.context) {
        (Some(old), Some(new)) => {
            let diff = ContextDiff::between(old, new);
            if !diff.is_empty() {
                let mut change = InputChange::said("context", diff.counts());
                change.lines.extend(diff.lines(FILES));
                changes.push(change);
            }
        }
        (None, None) => {}
        _ => changes.push(InputChange::said("context", "it could be listed only one of the two times")),
    }
    changes
}

/// What differs between the inputs of two recipes.
pub(crate) fn of_inputs(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Vec<InputChange> {
    let differs = |name: &&String| old.get(*name) != new.get(*name);
    let change = |name: &String| InputChange::new(name, old.get(name).cloned(), new.get(name).cloned());
    names(old, new).into_iter().filter(differs).map(change).collect()
}

/// Why an image changed of which nothing that can be seen did.
fn unseen(facts: Option<&BuildFacts>) -> InputChange {
    let Some(facts) = facts else {
        return InputChange::said("archive", "another image than the last time");
    };
    let mut change = InputChange::said(
        "build",
        "nothing that can be seen has changed: a step of the build gave another result, as one that was run again does",
    );
    change.lines.extend(facts.unseen.iter().map(|unseen| format!("not seen: {unseen}")));
    change
}

fn names<'a, V>(old: &'a BTreeMap<String, V>, new: &'a BTreeMap<String, V>) -> BTreeSet<&'a String> {
    old.keys().chain(new.keys()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(cpus: u8, extra: Option<&str>) -> BTreeMap<String, Value> {
        let mut inputs = BTreeMap::from([("cpus".to_owned(), json!(cpus)), ("user".to_owned(), json!("a"))]);
        inputs.extend(extra.map(|name| (name.to_owned(), json!(true))));
        inputs
    }

    fn facts() -> BuildFacts {
        BuildFacts {
            builder: "docker".into(),
            target: String::new(),
            platform: String::new(),
            build_args: BTreeMap::from([("TOKEN".to_owned(), Digest::of(b"one"))]),
            bases: BTreeMap::from([("base:1".to_owned(), Some(Digest::of(b"base")))]),
            context: None,
            unseen: vec!["line 3: a remote ADD".into()],
        }
    }

    fn only(stage: StageName) -> BTreeSet<StageName> {
        BTreeSet::from([stage])
    }

    #[test]
    fn a_changed_setting_is_named_with_what_it_was_and_is() {
        let image = ImageId(Digest::of(b"image"));
        let (old, new) = (inputs(1, None), inputs(2, Some("fresh")));
        let made = |inputs| Made { image, inputs, facts: None };
        let why = explain(Some(made(&old)), made(&new), &only(StageName::Smolmachine));
        let expected = [
            InputChange::new("cpus", Some(json!(1)), Some(json!(2))),
            InputChange::new("fresh", None, Some(json!(true))),
        ];
        assert_eq!(why[0].changes, expected);
    }

    #[test]
    fn a_changed_image_is_explained_by_what_its_build_saw_and_secrets_are_not_told() {
        let inputs = inputs(1, None);
        let (old, mut new) = (facts(), facts());
        new.build_args.insert("TOKEN".into(), Digest::of(b"two"));
        new.bases.insert("base:1".into(), Some(Digest::of(b"newer")));
        let made = |image: &[u8], facts| Made { image: ImageId(Digest::of(image)), inputs: &inputs, facts };
        let stage = only(StageName::Image);
        let why = explain(Some(made(b"1", Some(&old))), made(b"2", Some(&new)), &stage);
        let named: Vec<_> = why[0].changes.iter().map(|change| change.input.as_str()).collect();
        assert_eq!(named, ["build-args.TOKEN", "FROM base:1"]);
        let text = serde_json::to_string(&why).unwrap();
        assert!(!text.contains(&Digest::of(b"two").hex()), "{text}");
        // The same of everything that can be seen, and another image.
        let why = explain(Some(made(b"1", Some(&old))), made(b"2", Some(&old)), &stage);
        assert!(why[0].changes[1].lines[1].contains("line 3: a remote ADD"), "{why:?}");
    }

    #[test]
    fn what_was_removed_and_what_is_new_are_said_to_be() {
        let inputs = inputs(1, None);
        let made = Made { image: ImageId(Digest::of(b"1")), inputs: &inputs, facts: None };
        let gone = explain(Some(made), made, &only(StageName::Tarball));
        assert!(gone[0].changes[0].lines[0].contains("not there any more"));
        let first = explain(None, made, &only(StageName::Tarball));
        assert!(first[0].changes[0].lines[0].contains("first build"));
    }
}
