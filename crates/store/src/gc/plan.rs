//! What should go, and why: a pure function of what there is, what is wanted,
//! and the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::gc::inventory::{ImageEntry, Inventory, Loose, LooseKind, MachineEntry, Root};
use crate::gc::policy::Policy;
use crate::gc::pushed::PushedEntry;
use crate::machines::MachineKey;
use crate::pushed::PushedKey;
use crate::root::Store;

/// Something that can be removed on its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// An artifact, its receipt and its stat seal.
    Machine(MachineKey),
    /// The receipts of an image. Its blobs go with it, unless another image has
    /// them too.
    Image(Digest),
    /// A manifest that was pushed, with its tags. Its blobs go with it, unless
    /// something else has them too.
    Pushed {
        /// Its place.
        key: PushedKey,
        /// The repository's name.
        repository: String,
        /// When it was last changed or used: it stays if it was since.
        touched: SystemTime,
    },
    /// A blob that no receipt names.
    Blob(Digest),
    /// What nothing trusts.
    Loose(LooseKind, PathBuf),
}

/// A limit that the policy sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// [`Policy::max_size`], in bytes.
    MaxSize(u64),
    /// [`Policy::min_free`], in bytes.
    MinFree(u64),
}

/// Why an entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// No receipt names it.
    Orphan,
    /// It is part of something that was never finished, or is no more.
    LeftOver,
    /// It was quarantined so long ago.
    Quarantined(Duration),
    /// It was not used for so long.
    Unused(Duration),
    /// It is damaged and was put aside, and a limit is exceeded.
    Damaged(Limit),
    /// The artifact that it was for is there, and a limit is exceeded.
    Derived(Limit),
    /// Nothing else was used longer ago, and a limit is exceeded.
    LeastRecent(Limit),
    /// All was to go.
    All,
}

/// An entry that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What.
    pub entry: Entry,
    /// Why.
    pub reason: Reason,
    /// The bytes that the disk gets back, when all before it in the plan are
    /// gone: of blobs that images share, those that no other image has.
    pub frees: u64,
}

/// An artifact that stays because something holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub key: MachineKey,
    /// What holds it.
    pub roots: Vec<Root>,
    /// Its allocated bytes.
    pub allocated: u64,
}

/// What should go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which it should.
    pub remove: Vec<Removal>,
    /// What is held, by key.
    pub kept: Vec<Kept>,
    /// Allocated bytes of the store before.
    pub before: u64,
    /// The same when all of `remove` is gone.
    pub after: u64,
    /// Limits that are exceeded even then: everything else is held.
    pub unmet: Vec<Limit>,
}

impl Plan {
    /// The bytes that the disk gets back.
    pub fn frees(&self) -> u64 {
        self.before - self.after
    }
}

/// Plans. What nothing trusts and what no receipt names goes always; then what
/// is too old; then, while a limit is exceeded, first what is damaged and was put
/// aside, then what is derived, then what was used longest ago.
pub fn plan(inventory: &Inventory, policy: &Policy, now: SystemTime) -> Plan {
    let mut planner = Planner::new(inventory, policy);
    planner.untrusted(policy, now);
    planner.aged(policy, now);
    planner.limited();
    planner.finish()
}

struct Planner<'a> {
    inventory: &'a Inventory,
    /// How many images and pushed manifests that stay name a blob.
    names: BTreeMap<Digest, u32>,
    machines: Vec<(&'a MachineEntry, Vec<Root>)>,
    images: Vec<&'a ImageEntry>,
    pushed: Vec<&'a PushedEntry>,
    /// What lies in quarantine and stays so far.
    quarantined: Vec<&'a Loose>,
    limits: Vec<Limit>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(inventory: &'a Inventory, policy: &Policy) -> Self {
        let mut names = BTreeMap::new();
        for blob in Store::named_blobs(inventory) {
            *names.entry(*blob).or_insert(0) += 1;
        }
        let total = inventory.disk.total;
        let limits = [
            policy.max_size.map(|amount| Limit::MaxSize(amount.of(total))),
            policy.min_free.map(|amount| Limit::MinFree(amount.of(total))),
        ];
        let before = inventory.allocated();
        Self {
            inventory,
            names,
            machines: with_roots(inventory, policy.keep_last),
            images: inventory.images.iter().collect(),
            pushed: inventory.pushed.iter().collect(),
            quarantined: Vec::new(),
            limits: limits.into_iter().flatten().collect(),
            plan: Plan { before, after: before, ..Plan::default() },
        }
    }

    fn remove(&mut self, entry: Entry, reason: Reason, frees: u64) {
        self.plan.after -= frees;
        self.plan.remove.push(Removal { entry, reason, frees });
    }

    fn untrusted(&mut self, policy: &Policy, now: SystemTime) {
        for loose in &self.inventory.loose {
            let age = age(loose.changed, now);
            let reason = match loose.kind {
                LooseKind::LeftOver(_) => Some(Reason::LeftOver),
                LooseKind::Quarantined if policy.all => Some(Reason::All),
                LooseKind::Quarantined if policy.max_age.is_some_and(|most| age > most) => {
                    Some(Reason::Quarantined(age))
                }
                LooseKind::Quarantined => None,
            };
            match reason {
                Some(reason) => {
                    self.remove(Entry::Loose(loose.kind, loose.path.clone()), reason, loose.allocated);
                }
                None => self.quarantined.push(loose),
            }
        }
        // A receipt that cannot be read may name any of them.
        if self.inventory.opaque.is_empty() {
            for (digest, allocated) in &self.inventory.blobs {
                if !self.names.contains_key(digest) {
                    self.remove(Entry::Blob(*digest), Reason::Orphan, *allocated);
                }
            }
        }
    }

    fn aged(&mut self, policy: &Policy, now: SystemTime) {
        let reason = |used| match (policy.all, policy.max_age) {
            (true, _) => Some(Reason::All),
            (false, Some(most)) if age(used, now) > most => Some(Reason::Unused(age(used, now))),
            _ => None,
        };
        for index in (0..self.machines.len()).rev() {
            let (machine, roots) = &self.machines[index];
            if let (true, Some(reason)) = (roots.is_empty(), reason(machine.used)) {
                self.remove_machine(index, reason);
            }
        }
        for index in (0..self.images.len()).rev() {
            let image = self.images[index];
            if let (false, Some(reason)) = (image.in_use, reason(image.used)) {
                self.remove_image(index, reason);
            }
        }
        self.sort_pushed();
        for index in (0..self.pushed.len()).rev() {
            let pushed = self.pushed[index];
            if let (false, Some(reason)) = (pushed.in_use, reason(pushed.used)) {
                self.remove_pushed(index, reason);
            }
        }
    }

    /// Oldest last, and of those used at the same time an index behind its parts.
    fn sort_pushed(&mut self) {
        let order =
            |entry: &PushedEntry| (std::cmp::Reverse(entry.used), !entry.children.is_empty(), entry.key);
        self.pushed.sort_by_key(|entry| order(entry));
    }

    fn limited(&mut self) {
        self.quarantined.sort_by_key(|loose| std::cmp::Reverse(loose.changed));
        while let Some(limit) = self.exceeded() {
            let Some(loose) = self.quarantined.pop() else { break };
            let entry = Entry::Loose(loose.kind, loose.path.clone());
            self.remove(entry, Reason::Damaged(limit), loose.allocated);
        }
        // Oldest last, so that it is popped first and the rest keeps its place.
        self.machines.sort_by(|(a, _), (b, _)| b.used.cmp(&a.used).then(a.key.cmp(&b.key)));
        self.images.sort_by(|a, b| b.used.cmp(&a.used).then(a.image.cmp(&b.image)));
        let built: BTreeSet<Digest> = self.machines.iter().map(|(machine, _)| machine.key.image).collect();
        for index in (0..self.images.len()).rev() {
            let Some(limit) = self.exceeded() else { return };
            let image = self.images[index];
            if built.contains(&image.image) && !image.in_use {
                self.remove_image(index, Reason::Derived(limit));
            }
        }
        let (mut machine, mut image, mut pushed) =
            (self.machines.len(), self.images.len(), self.pushed.len());
        while let Some(limit) = self.exceeded() {
            let next_machine = (0..machine).rev().find(|index| self.machines[*index].1.is_empty());
            // Those with an artifact are gone, or in use.
            let next_image = (0..image).rev().find(|index| !self.images[*index].in_use);
            let next_pushed = (0..pushed).rev().find(|index| !self.pushed[*index].in_use);
            let used = [
                next_machine.map(|index| self.machines[index].0.used),
                next_image.map(|index| self.images[index].used),
                next_pushed.map(|index| self.pushed[index].used),
            ];
            let oldest = used.iter().flatten().min();
            let which = used.iter().position(|used| used.as_ref() == oldest);
            let reason = Reason::LeastRecent(limit);
            match (which, next_machine, next_image, next_pushed) {
                (Some(0), Some(index), ..) => {
                    self.remove_machine(index, reason);
                    machine = index;
                }
                (Some(1), _, Some(index), _) => {
                    self.remove_image(index, reason);
                    image = index;
                }
                (Some(2), .., Some(index)) => {
                    self.remove_pushed(index, reason);
                    pushed = index;
                }
                // All else is held.
                _ => break,
            }
        }
    }

    fn remove_machine(&mut self, index: usize, reason: Reason) {
        let (machine, _) = self.machines.remove(index);
        self.remove(Entry::Machine(machine.key), reason, machine.allocated);
    }

    fn remove_image(&mut self, index: usize, reason: Reason) {
        let image = self.images.remove(index);
        let frees = image.allocated + self.let_go(&image.blobs);
        self.remove(Entry::Image(image.image), reason, frees);
    }

    fn remove_pushed(&mut self, index: usize, reason: Reason) {
        let pushed = self.pushed.remove(index);
        let frees = pushed.allocated + self.let_go(&pushed.blobs);
        let (key, repository, touched) = (pushed.key, pushed.repository.clone(), pushed.touched);
        self.remove(Entry::Pushed { key, repository, touched }, reason, frees);
    }

    /// What is free when one less names these blobs.
    fn let_go(&mut self, blobs: &BTreeSet<Digest>) -> u64 {
        let mut frees = 0;
        for blob in blobs {
            if let Some(names) = self.names.get_mut(blob) {
                *names -= 1;
                if *names == 0 && self.inventory.opaque.is_empty() {
                    frees += self.inventory.blobs.get(blob).copied().unwrap_or(0);
                }
            }
        }
        frees
    }

    /// The first limit that is exceeded once all of the plan is gone.
    fn exceeded(&self) -> Option<Limit> {
        self.limits.iter().copied().find(|limit| self.exceeds(*limit))
    }

    fn exceeds(&self, limit: Limit) -> bool {
        match limit {
            Limit::MaxSize(most) => self.plan.after > most,
            Limit::MinFree(least) => self.inventory.disk.available + self.plan.frees() < least,
        }
    }

    fn finish(mut self) -> Plan {
        self.plan.unmet = self.limits.iter().copied().filter(|limit| self.exceeds(*limit)).collect();
        let mut kept: Vec<_> = self.machines.into_iter().filter(|(_, roots)| !roots.is_empty()).collect();
        kept.sort_by_key(|(machine, _)| machine.key);
        let kept = kept.into_iter().map(|(machine, roots)| Kept {
            key: machine.key,
            roots,
            allocated: machine.allocated,
        });
        self.plan.kept = kept.collect();
        self.plan
    }
}

/// The artifacts, and what holds each, the policy included.
fn with_roots(inventory: &Inventory, keep_last: u32) -> Vec<(&MachineEntry, Vec<Root>)> {
    let mut machines: Vec<_> =
        inventory.machines.iter().map(|machine| (machine, machine.roots.clone())).collect();
    machines.sort_by(|(a, _), (b, _)| b.used.cmp(&a.used).then(a.key.cmp(&b.key)));
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for (machine, roots) in &mut machines {
        // Nobody's, if its receipt cannot be read.
        if machine.agent.is_empty() {
            continue;
        }
        let count = seen.entry(&machine.agent).or_default();
        if *count < keep_last {
            *count += 1;
            roots.push(Root::Last { agent: machine.agent.clone() });
        }
    }
    machines
}

/// What was used in the future was used just now.
fn age(used: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(used).unwrap_or_default()
}
