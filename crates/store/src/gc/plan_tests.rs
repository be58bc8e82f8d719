//! What must hold of every plan, whatever the store and the policy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::digest::Digest;
use crate::gc::*;
use crate::machines::MachineKey;
use crate::pushed::PushedKey;

fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

/// Times are days before a fixed now; some lie in the future.
fn day(days: i64) -> SystemTime {
    let now = now();
    let span = Duration::from_secs(days.unsigned_abs() * 86_400);
    if days < 0 { now + span } else { now - span }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400)
}

fn root() -> impl Strategy<Value = Root> {
    prop_oneof![
        Just(Root::Pinned),
        Just(Root::InUse),
        Just(Root::Leased { machine: "m".into() }),
        Just(Root::Unknown { lease: "l".into() }),
    ]
}

fn machines() -> impl Strategy<Value = Vec<MachineEntry>> {
    let one = (0..4_u8, 0..1000_u64, -4000..4000_i64, option::weighted(0.2, root()));
    btree_map((0..6_u8, 0..4_u8), one, 0..16).prop_map(|map| {
        let entry = |((image, recipe), (agent, allocated, days, root))| MachineEntry {
            key: MachineKey { image: digest(image), recipe: digest(recipe) },
            agent: ["", "a", "b", "c"][usize::from(agent)].into(),
            sha256: None,
            allocated,
            used: day(days),
            roots: Option::into_iter(root).collect(),
        };
        map.into_iter().map(entry).collect()
    })
}

fn images() -> impl Strategy<Value = Vec<ImageEntry>> {
    let one = (0..100_u64, btree_set(0..12_u8, 0..5), -4000..4000_i64, proptest::bool::weighted(0.15));
    btree_map(0..8_u8, one, 0..8).prop_map(|map| {
        let entry = |(image, (allocated, blobs, days, in_use)): (u8, (_, BTreeSet<u8>, _, _))| ImageEntry {
            image: digest(image),
            allocated,
            blobs: blobs.into_iter().map(digest).collect(),
            used: day(days),
            in_use,
        };
        map.into_iter().map(entry).collect()
    })
}

/// In one repository.
fn pushed() -> impl Strategy<Value = Vec<PushedEntry>> {
    let one = (0..100_u64, btree_set(0..12_u8, 0..5), 0..4000_i64, proptest::bool::weighted(0.15));
    btree_map(20..26_u8, one, 0..6).prop_map(|map| {
        let entry =
            |(manifest, (allocated, blobs, days, in_use)): (u8, (_, BTreeSet<u8>, _, _))| PushedEntry {
                key: PushedKey::new("a", digest(manifest)),
                repository: "a".into(),
                allocated,
                blobs: blobs.into_iter().map(digest).collect(),
                children: BTreeSet::new(),
                touched: day(days),
                used: day(days),
                in_use,
            };
        map.into_iter().map(entry).collect()
    })
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let loose = (any::<bool>(), 0..1000_u64, 0..4000_i64).prop_map(|(left, allocated, days)| Loose {
        kind: match left {
            true => LooseKind::LeftOver(MachineKey { image: digest(1), recipe: digest(1) }),
            false => LooseKind::Quarantined,
        },
        path: "each has its own".into(),
        allocated,
        changed: day(days),
    });
    let blobs = btree_map((0..12_u8).prop_map(digest), 0..1000_u64, 0..12);
    let opaque = proptest::bool::weighted(0.1);
    (machines(), images(), pushed(), blobs, vec(loose, 0..4), 0..500_u64, 0..5000_u64, opaque).prop_map(
        |(machines, images, pushed, blobs, loose, fixed, available, opaque)| Inventory {
            disk: Disk { total: 10_000, available },
            machines,
            images,
            pushed,
            blobs,
            loose: loose
                .into_iter()
                .enumerate()
                .map(|(n, loose)| Loose { path: n.to_string().into(), ..loose })
                .collect(),
            fixed,
            opaque: opaque.then(|| "newer".into()).into_iter().collect(),
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let amount = prop_oneof![
        (0..8000_u64).prop_map(Amount::Bytes),
        (0..100_u8).prop_map(|percent| Amount::Percent(f64::from(percent))),
    ];
    let age = (0..3000_u64).prop_map(|days| Duration::from_secs(days * 86_400));
    let all = proptest::bool::weighted(0.1);
    (option::of(age), option::of(amount.clone()), option::of(amount), 0..4_u32, all).prop_map(
        |(max_age, max_size, min_free, keep_last, all)| Policy {
            max_age,
            max_size,
            min_free,
            keep_last,
            all,
        },
    )
}

/// The inventory once a plan was carried out: written apart from the planner.
fn carried_out(inventory: &Inventory, plan: &Plan) -> Inventory {
    let gone: BTreeSet<&Entry> = plan.remove.iter().map(|removal| &removal.entry).collect();
    let mut left = inventory.clone();
    left.machines.retain(|machine| !gone.contains(&Entry::Machine(machine.key)));
    left.images.retain(|image| !gone.contains(&Entry::Image(image.image)));
    left.pushed.retain(|pushed| {
        !gone.iter().any(|entry| matches!(entry, Entry::Pushed { key, .. } if *key == pushed.key))
    });
    left.loose.retain(|loose| !gone.contains(&Entry::Loose(loose.kind, loose.path.clone())));
    let named = |inventory: &Inventory| -> BTreeSet<_> {
        let images = inventory.images.iter().flat_map(|image| image.blobs.clone());
        images.chain(inventory.pushed.iter().flat_map(|pushed| pushed.blobs.clone())).collect()
    };
    let (before, named) = (named(inventory), named(&left));
    let opaque = !inventory.opaque.is_empty();
    left.blobs.retain(|blob, _| {
        let orphaned = before.contains(blob) && !named.contains(blob) && !opaque;
        !orphaned && !gone.contains(&Entry::Blob(*blob))
    });
    left
}

fn removed_machines<'a>(inventory: &'a Inventory, plan: &Plan) -> Vec<(&'a MachineEntry, Reason)> {
    let by_key: BTreeMap<_, _> = inventory.machines.iter().map(|machine| (machine.key, machine)).collect();
    let of = |removal: &Removal| match removal.entry {
        Entry::Machine(key) => Some((by_key[&key], removal.reason)),
        _ => None,
    };
    plan.remove.iter().filter_map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn nothing_that_is_held_goes(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        for (machine, _) in removed_machines(&inventory, &plan) {
            prop_assert_eq!(&machine.roots, &[]);
            // Of an agent's last so many, none is gone.
            let newer = inventory.machines.iter().filter(|other| {
                other.agent == machine.agent
                    && (other.used > machine.used || other.used == machine.used && other.key < machine.key)
            });
            prop_assert!(machine.agent.is_empty() || newer.count() >= policy.keep_last as usize);
        }
        for image in inventory.images.iter().filter(|image| image.in_use) {
            prop_assert!(!plan.remove.iter().any(|removal| removal.entry == Entry::Image(image.image)));
        }
        // A blob that a staying image or manifest names stays.
        let left = carried_out(&inventory, &plan);
        for pushed in inventory.pushed.iter().filter(|pushed| pushed.in_use) {
            prop_assert!(left.pushed.iter().any(|left| left.key == pushed.key));
        }
        let images = left.images.iter().flat_map(|image| &image.blobs);
        for blob in images.chain(left.pushed.iter().flat_map(|pushed| &pushed.blobs)) {
            prop_assert_eq!(left.blobs.get(blob), inventory.blobs.get(blob));
        }
    }

    #[test]
    fn the_bytes_that_it_frees_are_those_that_are_gone(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        prop_assert_eq!(plan.before, inventory.allocated());
        prop_assert_eq!(plan.after, carried_out(&inventory, &plan).allocated());
        prop_assert_eq!(plan.frees(), plan.remove.iter().map(|removal| removal.frees).sum::<u64>());
        let entries: BTreeSet<_> = plan.remove.iter().map(|removal| &removal.entry).collect();
        prop_assert_eq!(entries.len(), plan.remove.len(), "nothing goes twice");
    }

    #[test]
    fn a_limit_is_met_or_all_that_is_left_is_held(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        let left = carried_out(&inventory, &plan);
        let total = inventory.disk.total;
        let small = policy.max_size.is_none_or(|most| left.allocated() <= most.of(total));
        let freed = inventory.allocated() - left.allocated();
        let free = policy.min_free.is_none_or(|least| inventory.disk.available + freed >= least.of(total));
        prop_assert_eq!(plan.unmet.is_empty(), small && free);
        if !plan.unmet.is_empty() {
            let kept: BTreeSet<_> = plan.kept.iter().map(|kept| kept.key).collect();
            prop_assert!(left.machines.iter().all(|machine| kept.contains(&machine.key)));
            prop_assert!(left.images.iter().all(|image| image.in_use));
            prop_assert!(left.pushed.iter().all(|pushed| pushed.in_use));
            prop_assert_eq!(left.loose, vec![]);
        }
    }

    #[test]
    fn nothing_goes_without_need(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        let limits = |removal: &&Removal| {
            matches!(removal.reason, Reason::Damaged(_) | Reason::Derived(_) | Reason::LeastRecent(_))
        };
        if let Some(last) = plan.remove.iter().rfind(limits) {
            // Without the last of them, a limit would be exceeded.
            let after = plan.after + last.frees;
            let total = inventory.disk.total;
            let large = policy.max_size.is_some_and(|most| after > most.of(total));
            let available = inventory.disk.available + plan.frees() - last.frees;
            let tight = policy.min_free.is_some_and(|least| available < least.of(total));
            prop_assert!(large || tight);
        }
        for removal in &plan.remove {
            match removal.reason {
                Reason::Unused(age) | Reason::Quarantined(age) => prop_assert!(policy.max_age.unwrap() < age),
                Reason::All => prop_assert!(policy.all),
                Reason::Damaged(limit) | Reason::Derived(limit) | Reason::LeastRecent(limit) => {
                    let set = match limit {
                        Limit::MaxSize(_) => policy.max_size,
                        Limit::MinFree(_) => policy.min_free,
                    };
                    prop_assert!(set.is_some());
                }
                Reason::Orphan | Reason::LeftOver => {}
            }
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_derived_data_before_it(
        inventory in inventory(), policy in policy(),
    ) {
        let plan = plan(&inventory, &policy, now());
        let recent = |reason: &Reason| matches!(reason, Reason::LeastRecent(_));
        let evicted: Vec<_> =
            removed_machines(&inventory, &plan).into_iter().filter(|(_, reason)| recent(reason)).collect();
        prop_assert!(evicted.windows(2).all(|pair| pair[0].0.used <= pair[1].0.used));
        let left = carried_out(&inventory, &plan);
        let kept: BTreeSet<_> = plan.kept.iter().map(|kept| kept.key).collect();
        if let Some((youngest, _)) = evicted.last() {
            for machine in left.machines.iter().filter(|machine| !kept.contains(&machine.key)) {
                prop_assert!(machine.used >= youngest.used);
            }
        }
        let first = plan.remove.iter().position(|removal| recent(&removal.reason));
        if let Some(first) = first {
            let earlier = |reason| matches!(reason, Reason::Damaged(_) | Reason::Derived(_));
            prop_assert!(plan.remove[first..].iter().all(|removal| !earlier(removal.reason)));
            // By then, no image is left whose artifact is there, unless it is in use.
            let gone = carried_out(&inventory, &Plan { remove: plan.remove[..first].to_vec(), ..plan.clone() });
            let built: BTreeSet<_> = gone.machines.iter().map(|machine| machine.key.image).collect();
            prop_assert_eq!(&gone.loose, &vec![]);
            prop_assert!(gone.images.iter().all(|image| image.in_use || !built.contains(&image.image)));
        }
    }

    #[test]
    fn a_plan_is_done_after_one_round(inventory in inventory(), policy in policy()) {
        let first = plan(&inventory, &policy, now());
        let mut left = carried_out(&inventory, &first);
        left.disk.available += first.frees();
        let second = plan(&left, &policy, now());
        // What one image no longer names may be named by none: never the case after a plan.
        prop_assert_eq!(second.remove, vec![]);
        prop_assert_eq!(second.unmet, first.unmet);
    }
}

#[test]
fn without_any_wish_only_what_nothing_can_use_goes() {
    let machine = MachineEntry {
        key: MachineKey { image: digest(0), recipe: digest(0) },
        agent: "a".into(),
        sha256: None,
        allocated: 100,
        used: day(4000),
        roots: vec![],
    };
    let image = ImageEntry {
        image: digest(0),
        allocated: 1,
        blobs: BTreeSet::from([digest(1)]),
        used: day(4000),
        in_use: false,
    };
    let inventory = Inventory {
        machines: vec![machine],
        images: vec![image],
        blobs: BTreeMap::from([(digest(1), 50), (digest(2), 7)]),
        ..Inventory::default()
    };
    let found = plan(&inventory, &Policy::default(), now());
    let expected = Removal { entry: Entry::Blob(digest(2)), reason: Reason::Orphan, frees: 7 };
    assert_eq!((found.remove, found.before, found.after), (vec![expected], 158, 151));
}

#[test]
fn ten_years_forth_or_back_ages_but_never_endangers() {
    let held = MachineEntry {
        key: MachineKey { image: digest(0), recipe: digest(0) },
        agent: "a".into(),
        sha256: None,
        allocated: 100,
        used: day(0),
        roots: vec![Root::Leased { machine: "m".into() }],
    };
    let free =
        MachineEntry { key: MachineKey { image: digest(1), ..held.key }, roots: vec![], ..held.clone() };
    let inventory = Inventory { machines: vec![held, free], ..Inventory::default() };
    let policy = Policy { max_age: Some(Duration::from_secs(30 * 86_400)), ..Policy::default() };
    let removed = |now| plan(&inventory, &policy, now).remove.len();
    assert_eq!((removed(day(3650)), removed(day(0)), removed(day(-3650))), (0, 0, 1));
}
