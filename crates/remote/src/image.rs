//! An image of the store to a registry: its blobs as they are, so that its
//! digests are those it has here, then its manifest.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use smolcellar_oci::{Descriptor, Manifest, Reference, Selector, media};
use smolcellar_store::{Digest, Event, Reporter, StageReceipt, Store, StoreError};

use crate::client::Client;
use crate::error::{RemoteError, Result};
use crate::mounts::Mounts;
use crate::options::Options;
use crate::push::Pushed;

/// The task named in events.
const TASK: &str = "push";
/// The stage whose receipt names the manifest.
const STAGE: &str = "registry";
/// How many blobs are pushed at once.
const THREADS: usize = 4;

/// How many, and how large together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Count {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// An image that a registry has now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PushedImage {
    /// `HOST/NAME:TAG`.
    pub reference: String,
    /// The digest of its manifest, read back from there.
    pub digest: Digest,
    /// What had to be sent.
    pub uploaded: Count,
    /// What the registry took from another of its repositories.
    pub mounted: Count,
    /// What it had.
    pub present: Count,
    /// How long it took, in whole microseconds.
    pub seconds: f64,
}

/// Whether everything of an image is in the store, so that it can be pushed.
/// Blobs are collected before artifacts.
///
/// # Errors
/// [`RemoteError::Store`] if a receipt is of a newer version.
pub fn is_pushable(store: &Store, image: &Digest, reporter: &dyn Reporter) -> Result<bool> {
    let _in_use = store.lock_use(&image.hex(), reporter)?;
    Ok(whole(store, image)?.is_some())
}

/// The digest of the manifest, its bytes, and the blobs that it needs, each once.
type Whole = (Digest, Vec<u8>, Vec<Descriptor>);

fn whole(store: &Store, image: &Digest) -> Result<Option<Whole>> {
    let receipt: Option<StageReceipt> = match store.stage_receipt(image, STAGE) {
        Ok(receipt) => receipt,
        // As good as none: it is made again.
        Err(StoreError::Damaged { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let manifest = receipt.filter(|receipt| receipt.image == *image).and_then(|receipt| {
        let blob = receipt.blobs.into_iter().find(|blob| blob.role == "manifest")?;
        let bytes = store.blobs().get(&blob.digest).ok()?;
        Manifest::parse(&bytes).ok().map(|manifest| (blob.digest, bytes, manifest))
    });
    Ok(manifest.and_then(|(digest, bytes, manifest)| {
        let mut seen = HashSet::new();
        let blobs: Vec<_> = manifest.blobs().filter(|blob| seen.insert(blob.digest)).cloned().collect();
        let there = blobs.iter().all(|blob| store.blobs().has(&blob.digest, blob.size));
        let own = manifest.config.is_some_and(|config| config.digest == *image);
        (there && own).then_some((digest, bytes, blobs))
    }))
}

/// Pushes an image under the tag of `reference`, `latest` if it has none; a
/// digest in it is not looked at. Blobs that the registry has are left, those
/// that another of its repositories has are mounted. A blob that is damaged
/// here is not pushed, and set aside, so that the next build makes it anew.
///
/// # Errors
/// [`RemoteError::NoImage`] if not everything is in the store; otherwise as
/// [`Client::push_blob`] and [`Client::put_manifest`].
pub fn push_image(
    store: &Store,
    image: &Digest,
    reference: &Reference,
    options: Options,
    reporter: &dyn Reporter,
) -> Result<PushedImage> {
    let result = {
        let _in_use = store.lock_use(&image.hex(), reporter)?;
        push(store, image, reference, options, reporter)
    };
    if let Err(RemoteError::Damaged { digest, problem }) = &result
        && matches!(store.blobs().check(digest), Err(StoreError::Mismatch { .. }))
    {
        store.blobs().quarantine(digest, problem)?;
    }
    result
}

fn push(
    store: &Store,
    image: &Digest,
    reference: &Reference,
    options: Options,
    reporter: &dyn Reporter,
) -> Result<PushedImage> {
    let began = Instant::now();
    let (digest, manifest, mut blobs) = whole(store, image)?.ok_or(RemoteError::NoImage(*image))?;
    let selector = Reference { digest: None, ..reference.clone() }.selector();
    let client = Client::new(&reference.registry, &reference.repository, options)?;
    let mounts = Mounts::read(store, client.registry());
    // The largest first: the last to end is then a small one.
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
    let task = Task::begin(reporter, blobs.iter().map(|blob| blob.size).sum());
    let pushed = push_blobs(store, &client, &mounts, &blobs, &task)?;
    client.put_manifest(&selector, media::MANIFEST, &manifest)?;
    verify(&client, &selector, &digest)?;
    drop(task);
    let digests: Vec<_> = blobs.iter().map(|blob| blob.digest).collect();
    mounts.remember(store, client.repository(), &digests);
    let count = |what: Pushed| {
        let those = pushed.iter().zip(&blobs).filter(|(pushed, _)| **pushed == what);
        those.fold(Count::default(), |sum, (_, blob)| Count {
            blobs: sum.blobs + 1,
            bytes: sum.bytes + blob.size,
        })
    };
    Ok(PushedImage {
        reference: format!("{}/{}:{selector}", reference.registry.host(), reference.repository),
        digest,
        uploaded: count(Pushed::Uploaded),
        mounted: count(Pushed::Mounted),
        present: count(Pushed::Present),
        seconds: (began.elapsed().as_secs_f64() * 1e6).round() / 1e6,
    })
}

/// All blobs, some at once; what became of each. The first error is the error.
fn push_blobs(
    store: &Store,
    client: &Client,
    mounts: &Mounts,
    blobs: &[Descriptor],
    task: &Task<'_>,
) -> Result<Vec<Pushed>> {
    let (next, failed) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let results = Mutex::new(Vec::new());
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(blob) = blobs.get(index) else { return };
            let path = store.blobs().path(&blob.digest);
            let open = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
                let mut file = File::open(&path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(Wanted { file, unwanted: Arc::clone(&failed) }))
            };
            let from = mounts.of(&blob.digest);
            let result =
                client.push_blob(&blob.digest, blob.size, &open, &from, &|bytes| task.advance(bytes));
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(blobs.len()) {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The one that failed first is the cause; what it broke off is not.
    if let Some(at) = results.iter().position(|(_, result)| result.is_err()) {
        results.swap(0, at);
    } else {
        results.sort_by_key(|(index, _)| *index);
    }
    results.into_iter().map(|(_, result)| result).collect()
}

/// A blob's file, as long as pushing it is any use.
struct Wanted {
    file: File,
    unwanted: Arc<AtomicBool>,
}

impl Read for Wanted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.unwanted.load(Ordering::Relaxed) {
            true => Err(io::Error::other("another blob of the image could not be pushed")),
            false => self.file.read(buffer),
        }
    }
}

/// Reads back what the registry has under the tag.
fn verify(client: &Client, selector: &Selector, expected: &Digest) -> Result<()> {
    let what = format!("the manifest {selector} of {}", client.repository());
    let registry = client.registry().to_owned();
    match client.manifest(selector)? {
        Some(fetched) if fetched.digest == *expected => Ok(()),
        Some(fetched) => {
            let problem = format!(
                "manifest {} after it took {expected}; somebody may have pushed there at the same time",
                fetched.digest
            );
            Err(RemoteError::Nonsense { registry, what, problem })
        }
        None => {
            let problem = "that it does not know the manifest it took".into();
            Err(RemoteError::Nonsense { registry, what, problem })
        }
    }
}

/// A task in events, from its begin to its end, whatever happens.
struct Task<'a>(&'a dyn Reporter);

impl<'a> Task<'a> {
    fn begin(reporter: &'a dyn Reporter, total: u64) -> Self {
        reporter.report(Event::Begin { task: TASK, total: Some(total) });
        Self(reporter)
    }

    fn advance(&self, bytes: u64) {
        self.0.report(Event::Advance { task: TASK, bytes });
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.0.report(Event::End { task: TASK });
    }
}
