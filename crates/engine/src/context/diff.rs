//! What changed between two listings.

use std::fmt;

use super::listing::{ContextFile, ContextListing};
use super::path::ContextPath;

/// The difference between two listings, each list in the order of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContextDiff {
    /// Only in the newer one.
    pub added: Vec<ContextPath>,
    /// Only in the older one.
    pub removed: Vec<ContextPath>,
    /// In both, and not the same.
    pub changed: Vec<(ContextPath, Change)>,
    /// The Dockerfile's contents changed. It is among `changed` too if it is
    /// in the context.
    pub dockerfile: bool,
}

/// What about a file changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// What it is: a folder became a file.
    pub kind: bool,
    /// Its permission bits.
    pub mode: bool,
    /// Its contents, or a link's target.
    pub contents: bool,
    /// Its extended attributes.
    pub attributes: bool,
}

impl Change {
    fn between(old: &ContextFile, new: &ContextFile) -> Option<Self> {
        let change = Self {
            kind: old.kind != new.kind,
            mode: old.mode != new.mode,
            contents: old.digest != new.digest,
            attributes: old.attributes != new.attributes,
        };
        (change != Self::default()).then_some(change)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.kind, "kind"),
            (self.mode, "mode"),
            (self.contents && !self.kind, "contents"),
            (self.attributes, "attributes"),
        ];
        let named: Vec<&str> = parts.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        f.write_str(&named.join(", "))
    }
}

impl ContextDiff {
    /// What changed from `old` to `new`.
    pub fn between(old: &ContextListing, new: &ContextListing) -> Self {
        let missing = |here: &ContextListing, there: &ContextListing| {
            here.files.keys().filter(|path| !there.files.contains_key(path)).cloned().collect()
        };
        let changed = new.files.iter().filter_map(|(path, file)| {
            let change = Change::between(old.files.get(path)?, file)?;
            Some((path.clone(), change))
        });
        Self {
            added: missing(new, old),
            removed: missing(old, new),
            changed: changed.collect(),
            dockerfile: old.dockerfile.digest != new.dockerfile.digest,
        }
    }

    /// Whether nothing changed: the fingerprints are then the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many there are of each: `3 changed, 1 added`; `nothing changed`.
    pub fn counts(&self) -> String {
        let of =
            [(self.changed.len(), "changed"), (self.added.len(), "added"), (self.removed.len(), "removed")];
        let counts = of.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let dockerfile = self.dockerfile.then(|| "Dockerfile changed".to_owned());
        let parts: Vec<String> = dockerfile.into_iter().chain(counts).collect();
        if parts.is_empty() { "nothing changed".to_owned() } else { parts.join(", ") }
    }

    /// For people: each file and what happened to it, changed ones first, in
    /// at most `limit` lines, the last of which says how many were left out.
    pub fn lines(&self, limit: usize) -> Vec<String> {
        let count = self.changed.len() + self.added.len() + self.removed.len();
        let shown = if count <= limit { limit } else { limit.saturating_sub(1) };
        let changed = self.changed.iter().map(|(path, change)| format!("{path} ({change})"));
        let added = self.added.iter().map(|path| format!("{path} (added)"));
        let removed = self.removed.iter().map(|path| format!("{path} (removed)"));
        let mut lines: Vec<String> = changed.chain(added).chain(removed).take(shown).collect();
        if count > limit && limit > 0 {
            lines.push(format!("… and {} more", count - shown));
        }
        lines
    }

    /// The same in one line: `3 changed, 1 added: src/main.rs (contents), …
    /// and 3 more`.
    pub fn summary(&self, limit: usize) -> String {
        let (counts, lines) = (self.counts(), self.lines(limit));
        if lines.is_empty() { counts } else { format!("{counts}: {}", lines.join(", ")) }
    }
}
