//! What is in a remote cache.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use smolcellar_oci::{Selector, Tag};
use smolcellar_store::{Digest, MachineKey};

use crate::artifact::{self, Content, Named, Remote};
use crate::cache::Cache;
use crate::cache_error::{CacheError, CacheResult};
use crate::client::Tags;
use crate::text::{self, clip};

/// Manifests that are asked for at a time.
const CONNECTIONS: usize = 8;
/// The most tags that are looked into.
const MOST: usize = 10_000;
/// The longest that looking into them may take; those that are left are listed
/// by name alone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The fewest digits that name an artifact.
const LEAST: usize = 4;
/// The most characters of a platform's name that are shown.
const SHOWN: usize = 80;

/// A tag, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The tag.
    pub tag: Tag,
    /// The key, if it is an artifact with a receipt.
    pub key: Option<MachineKey>,
    /// The agent that it was first built for.
    pub agent: Option<String>,
    /// The file's size in bytes.
    pub size: Option<u64>,
    /// The file's SHA-256: equal ones take their place once.
    pub sha256: Option<Digest>,
    /// The guest's platform, fit to be shown.
    pub platform: Option<String>,
    /// When it was built, by whoever pushed it: seconds since 1970.
    pub built_at: Option<u64>,
    /// What is wrong with it, if something is; fit to be shown.
    pub problem: Option<String>,
}

/// A remote cache's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// All but pointers, in the order of their tags.
    pub entries: Vec<Listed>,
    /// How many pointers there are.
    pub pointers: usize,
    /// How many tags were left out, being too many.
    pub left_out: usize,
    /// Whether the registry has even more, of which not even the names were read.
    pub more: bool,
}

impl Cache {
    /// All tags, and what their manifests say. One that cannot be read is an
    /// entry with a problem, and no failure.
    ///
    /// # Errors
    /// [`CacheError::Remote`] if the tags cannot be listed.
    pub fn list(&self) -> CacheResult<Listing> {
        self.list_those(|_| true)
    }

    fn list_those(&self, wanted: impl Fn(&Tag) -> bool) -> CacheResult<Listing> {
        let Tags { mut tags, truncated } = self.client.tags()?;
        let mut listing = Listing { more: truncated, ..Listing::default() };
        tags.retain(|tag| {
            let pointer = matches!(artifact::named(tag), Named::Pointer(..));
            listing.pointers += usize::from(pointer);
            !pointer && wanted(tag)
        });
        listing.left_out = tags.len().saturating_sub(MOST);
        tags.truncate(MOST);
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let until = Instant::now() + PATIENCE;
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(tags.len()) {
                scope.spawn(|| {
                    while let Some(tag) = tags.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let listed = match Instant::now() < until {
                            true => self.inspect(tag),
                            false => problem(tag, "the registry is too slow to look into all".into()),
                        };
                        done.lock().unwrap_or_else(PoisonError::into_inner).push(listed);
                    }
                });
            }
        });
        listing.entries = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        listing.entries.sort_by(|a, b| a.tag.cmp(&b.tag));
        Ok(listing)
    }

    fn inspect(&self, tag: &Tag) -> Listed {
        match self.client.manifest(&Selector::Tag(tag.clone())) {
            Ok(Some(fetched)) => describe(tag, &fetched.bytes),
            Ok(None) => problem(tag, "it is gone".into()),
            Err(error) => problem(tag, error.to_string()),
        }
    }

    /// The artifact whose key begins with `text`: `IMAGE` or `IMAGE/RECIPE`,
    /// each the first digits of a digest, four or more of the image's, as in the
    /// store.
    ///
    /// # Errors
    /// [`CacheError::NoEntry`] if nothing has such a key, or several have.
    pub fn find(&self, text: &str) -> CacheResult<MachineKey> {
        let refuse =
            |problem: String| CacheError::NoEntry { wanted: text.to_owned(), at: self.at.clone(), problem };
        let (image, recipe) = text.split_once(['/', '-']).unwrap_or((text, ""));
        let part = |part: &str| part.strip_prefix("sha256:").unwrap_or(part).to_ascii_lowercase();
        let (image, recipe) = (part(image), part(recipe));
        let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if image.len() < LEAST || !hex(&image) || !hex(&recipe) {
            return Err(refuse(format!(
                "a key is IMAGE or IMAGE/RECIPE, the first digits of each ({LEAST} or more of the image's)"
            )));
        }
        let none = "no artifact has such a key; `cargo xtask cache ls --remote` shows all";
        // A whole one needs no list, which may be too long.
        if let (Ok(image), Ok(recipe)) =
            (Digest::parse(&format!("sha256:{image}")), Digest::parse(&format!("sha256:{recipe}")))
        {
            let found = self.look(&MachineKey { image, recipe })?;
            return found.map(|found| found.key()).ok_or_else(|| refuse(none.into()));
        }
        // Of a long one, the tag has only the beginning.
        let begins = |tag: &str, part: &str| tag.starts_with(part) || part.starts_with(tag);
        let listing = self.list_those(|tag| match artifact::named(tag) {
            Named::Machine(i, r) => begins(i, &image) && begins(r, &recipe),
            _ => false,
        })?;
        let fits =
            |key: &MachineKey| key.image.hex().starts_with(&image) && key.recipe.hex().starts_with(&recipe);
        let keys: Vec<_> = listing.entries.iter().filter_map(|entry| entry.key).filter(fits).collect();
        match (keys.as_slice(), listing.entries.iter().find_map(|entry| entry.problem.as_ref())) {
            ([key], _) => Ok(*key),
            ([], None) if listing.more || listing.left_out > 0 => Err(refuse(
                "none of those that were looked into has such a key, and there are more tags than can be; give the \
                 whole key"
                    .into(),
            )),
            ([], None) => Err(refuse(none.into())),
            ([], Some(problem)) => Err(refuse(format!("one may, but {problem}"))),
            (several, _) => {
                let names: Vec<_> = several.iter().take(8).map(|key| format!("\n  {key}")).collect();
                Err(refuse(format!("{} artifacts have such a key:{}", several.len(), names.concat())))
            }
        }
    }
}

/// What a tag's manifest says.
pub(crate) fn describe(tag: &Tag, bytes: &[u8]) -> Listed {
    let remote = match artifact::parse(bytes) {
        Ok(Content::Machine(remote)) => *remote,
        Ok(Content::Index(manifests)) => {
            let platforms = manifests.iter().filter_map(|one| one.platform.as_ref());
            let names: Vec<_> = platforms.map(|has| format!("{}/{}", has.os, has.architecture)).collect();
            return Listed { platform: Some(clip(&names.join(","), SHOWN)), ..empty(tag) };
        }
        Ok(Content::Pointer { .. }) => return problem(tag, "it is a pointer of another name".into()),
        Err(text) => return problem(tag, text),
    };
    let Remote { layer, receipt, built_at, .. } = remote;
    let (size, sha256) = (Some(layer.size), Some(layer.digest));
    let Some(receipt) = receipt else { return Listed { size, sha256, ..empty(tag) } };
    let key = receipt.key();
    if matches!(artifact::named(tag), Named::Machine(..)) && artifact::machine_tag(&key) != *tag {
        return problem(tag, format!("it is the artifact {key}"));
    }
    let platform =
        receipt.inputs.get("platform").and_then(|value| value.as_str()).map(|name| clip(name, SHOWN));
    Listed { key: Some(key), agent: Some(receipt.agent), size, sha256, platform, built_at, ..empty(tag) }
}

fn empty(tag: &Tag) -> Listed {
    Listed {
        tag: tag.clone(),
        key: None,
        agent: None,
        size: None,
        sha256: None,
        platform: None,
        built_at: None,
        problem: None,
    }
}

fn problem(tag: &Tag, problem: String) -> Listed {
    Listed { problem: Some(text::problem(&problem)), ..empty(tag) }
}
