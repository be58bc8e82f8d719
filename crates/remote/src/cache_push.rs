//! What is put into the remote cache: artifacts, and pointers to images.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use smolcellar_oci::{ImageId, Selector, media};
use smolcellar_store::{Digest, Machine, MachineKey, Reporter, StoreError, fsio};
use smolcellar_transfer::MachineEntry;

use crate::artifact::{self, Content};
use crate::cache::{Cache, Task};
use crate::cache_error::{CacheError, CacheResult};
use crate::delta_fetch::Patience;
use crate::push::Pushed;

/// The task named in events.
const PUSH: &str = "push";

/// What a push came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// It was there.
    Present,
    /// Another artifact of this key is there, whole, with this SHA-256: it stays.
    Other(Digest),
    /// It is there now.
    Done {
        /// Bytes that were sent; 0 if the registry had them under another name.
        bytes: u64,
    },
}

impl Cache {
    /// Puts an artifact there, unless it is. The caller has its use lock, and
    /// found it whole. What is under its tag and is not sound is replaced.
    ///
    /// # Errors
    /// [`CacheError`]. What was sent before may be there; no tag names it.
    pub fn push(&self, machine: &Machine, reporter: &dyn Reporter) -> CacheResult<Push> {
        let receipt = &machine.receipt;
        let entry = MachineEntry::of(receipt);
        let tag = Selector::Tag(artifact::machine_tag(&entry.key()));
        if let Some(fetched) = self.client.manifest(&tag)?
            && let Ok(Content::Machine(remote)) = artifact::parse(&fetched.bytes)
            && let Some(there) = remote.receipt.filter(|there| there.key() == entry.key())
        {
            // Registries lose blobs, or let them be removed, and keep the manifest.
            let whole = self.client.has_blob(&there.sha256)? == Some(there.size);
            match there.sha256 == entry.sha256 {
                true if whole => return Ok(Push::Present),
                false if whole => return Ok(Push::Other(there.sha256)),
                _ => {}
            }
        }
        let read = smolcellar_pack::read(&machine.path)?;
        let config = config_of(&machine.path, read.footer.manifest_offset, read.footer.manifest_size)?;
        let mode = serde_json::to_value(&read.manifest.mode).ok();
        let mode = mode.as_ref().and_then(|mode| mode.as_str()).unwrap_or("container");
        let manifest =
            artifact::manifest(&entry, receipt.built_at, &config, mode).map_err(CacheError::Unfit)?;
        let task = Task::begin(reporter, PUSH, receipt.size);
        let patience = Patience::new(reporter, receipt.size, self.least);
        let stop = Arc::new(AtomicBool::new(false));
        let open = |at: u64| {
            patience.check()?;
            let mut file = File::open(&machine.path)?;
            file.seek(SeekFrom::Start(at))?;
            let file = file.take(receipt.size.saturating_sub(at));
            Ok(Box::new(Stoppable { file, stop: Arc::clone(&stop) }) as Box<dyn Read + Send>)
        };
        let advance = |bytes| {
            task.advance(bytes);
            // Whoever reads cannot ask: it may outlive this call.
            stop.fetch_or(patience.is_over(), Ordering::Relaxed);
        };
        let pushed = self.client.push_blob(&entry.sha256, entry.size, &open, &[], &advance);
        let pushed = pushed.map_err(|error| patience.blame(error.into()))?;
        self.put_small(&config)?;
        self.client.put_manifest(&tag, media::MANIFEST, &manifest.to_bytes())?;
        Ok(Push::Done { bytes: if matches!(pushed, Pushed::Uploaded) { entry.size } else { 0 } })
    }

    fn put_small(&self, bytes: &[u8]) -> CacheResult<()> {
        let open = |at: u64| {
            let rest = bytes.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
            Ok(Box::new(io::Cursor::new(rest.to_vec())) as Box<dyn Read + Send>)
        };
        self.client.push_blob(&Digest::of(bytes), bytes.len() as u64, &open, &[], &|_| ())?;
        Ok(())
    }

    /// The image that somebody's build made of what it saw, and of which there is
    /// an artifact of this recipe: image IDs differ from build to build, and so a
    /// machine that never built it has to be told.
    ///
    /// # Errors
    /// [`CacheError::Unsound`] if something else is under its tag.
    pub fn image_of(&self, seen: &Digest, recipe: &Digest) -> CacheResult<Option<ImageId>> {
        let tag = artifact::pointer_tag(seen, recipe);
        let Some(fetched) = self.client.manifest(&Selector::Tag(tag.clone()))? else { return Ok(None) };
        let unsound = |problem: String| CacheError::unsound(format!("{}:{tag}", self.at), problem);
        match artifact::parse(&fetched.bytes).map_err(unsound)? {
            Content::Pointer { seen: of, key } if of == *seen && key.recipe == *recipe => {
                Ok(Some(ImageId(key.image)))
            }
            _ => Err(unsound("it is no pointer of this name".into())),
        }
    }

    /// Notes what [`Cache::image_of`] tells. The last note counts: who builds
    /// from scratch wants others to have that.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn note_image(&self, seen: &Digest, key: &MachineKey) -> CacheResult<()> {
        if matches!(self.image_of(seen, &key.recipe), Ok(Some(known)) if known.0 == key.image) {
            return Ok(());
        }
        self.put_small(artifact::EMPTY_BLOB)?;
        let manifest = artifact::pointer(seen, key).to_bytes();
        let tag = Selector::Tag(artifact::pointer_tag(seen, &key.recipe));
        self.client.put_manifest(&tag, media::MANIFEST, &manifest)?;
        Ok(())
    }
}

/// The bytes of an artifact's own manifest.
fn config_of(path: &Path, offset: u64, size: u64) -> CacheResult<Vec<u8>> {
    if size > artifact::MAX_CONFIG {
        return Err(CacheError::Unfit(format!("its manifest of {size} bytes is too large for a config")));
    }
    let mut file = fsio::open(path)?;
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(size).read_to_end(&mut bytes));
    read.map_err(StoreError::io("read", path))?;
    Ok(bytes)
}

/// A file that can be told to end in an error.
struct Stoppable {
    file: Take<File>,
    stop: Arc<AtomicBool>,
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the transfer was given up")),
            false => self.file.read(buffer),
        }
    }
}
