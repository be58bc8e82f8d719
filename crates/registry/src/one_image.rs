//! One image, for one consumer.

use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use smolcellar_oci::{Descriptor, Manifest, Repository, Selector, Tag, media};
use smolcellar_store::{Digest, StoreError};

use crate::error::{RegistryError, Result};
use crate::seen::Seen;
use crate::server::{Options, Server};
use crate::shelf::{FoundBlob, FoundManifest, Shelf};

/// An image to serve: its manifest, and the files of the blobs that this names.
#[derive(Debug, Clone)]
pub struct OneImage {
    /// The bytes of an OCI or Docker image manifest.
    pub manifest: Vec<u8>,
    /// Each blob of the manifest and the file it is in. They are hashed while
    /// they are sent the first time.
    pub blobs: Vec<(Digest, PathBuf)>,
}

/// A running server of one image, read-only. It ends when it is stopped or
/// dropped.
///
/// It listens at a free port of 127.0.0.1, and its repository and tag are
/// random: two at once never collide, and another user of this machine, who can
/// connect to the port, cannot name the image (the catalog is empty).
#[derive(Debug)]
pub struct ServedImage {
    server: Server,
    reference: String,
}

/// For how long a transfer that is under way when it is stopped may go on.
const GRACE: Duration = Duration::from_secs(1);

impl OneImage {
    /// Serves it: when this returns, the server has answered.
    ///
    /// # Errors
    /// [`RegistryError::Image`] if the manifest is none, or a blob of it is not
    /// among the files; [`RegistryError::Start`], [`RegistryError::Bind`],
    /// [`RegistryError::NotReady`] after five seconds.
    pub fn serve(self) -> Result<ServedImage> {
        self.serve_with(Options::default())
    }

    /// The same with other limits. The address is not looked at.
    ///
    /// # Errors
    /// As [`OneImage::serve`].
    pub fn serve_with(self, options: Options) -> Result<ServedImage> {
        let shelf = Shown::new(self)?;
        let (repository, tag) = (shelf.repository.clone(), shelf.tag.clone());
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start(Arc::new(shelf), Options { addr, ..options })?;
        let reference = format!("{}/{repository}:{tag}", server.addr());
        Ok(ServedImage { server, reference })
    }
}

impl ServedImage {
    /// `127.0.0.1:PORT/REPOSITORY:TAG`, to be given to whoever pulls.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// What was asked for so far.
    pub fn seen(&self) -> Seen {
        self.server.seen()
    }

    /// Ends it: at once if nobody transfers anything, within two seconds else.
    /// What was asked for in all.
    pub fn stop(self) -> Seen {
        self.server.stop(GRACE)
    }
}

/// The image as it is served.
struct Shown {
    repository: Repository,
    tag: Tag,
    manifest: FoundManifest,
    blobs: HashMap<Digest, (u64, PathBuf)>,
}

impl Shown {
    fn new(image: OneImage) -> Result<Self> {
        let parsed = Manifest::parse(&image.manifest).map_err(RegistryError::Image)?;
        if parsed.config.is_none() {
            return Err(RegistryError::Image("its manifest has no config; an index cannot be served".into()));
        }
        let files: HashMap<Digest, PathBuf> = image.blobs.into_iter().collect();
        let mut blobs = HashMap::new();
        for blob in parsed.blobs() {
            let missing =
                || RegistryError::Image(format!("the file of its blob {} is not known", blob.digest));
            let path = files.get(&blob.digest).ok_or_else(missing)?;
            blobs.insert(blob.digest, (blob.size, path.clone()));
        }
        let random = random()?;
        // Letters and digits: they cannot be no names.
        let name =
            |text: String| Repository::parse(&text).map_err(|error| RegistryError::Image(error.to_string()));
        let tag = |text: &str| Tag::parse(text).map_err(|error| RegistryError::Image(error.to_string()));
        Ok(Self {
            repository: name(format!("smolcellar/{}", &random[..32]))?,
            tag: tag(&random[32..48])?,
            manifest: FoundManifest {
                digest: Digest::of(&image.manifest),
                media_type: parsed.media_type.unwrap_or_else(|| media::MANIFEST.into()),
                bytes: image.manifest,
            },
            blobs,
        })
    }

    fn is_it(&self, repository: &Repository) -> bool {
        *repository == self.repository
    }
}

/// 64 hex digits that nobody can guess.
pub(crate) fn random() -> Result<String> {
    let mut bytes = [0; 32];
    let failed = |_| RegistryError::Start(std::io::Error::other("the system has no random numbers"));
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(Digest::of(&bytes).hex())
}

impl Shelf for Shown {
    fn manifest(
        &self,
        repository: &Repository,
        which: &Selector,
    ) -> std::result::Result<Option<FoundManifest>, StoreError> {
        let fits = match which {
            Selector::Tag(tag) => *tag == self.tag,
            Selector::Digest(digest) => *digest == self.manifest.digest,
        };
        Ok((self.is_it(repository) && fits).then(|| self.manifest.clone()))
    }

    fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> std::result::Result<Option<FoundBlob>, StoreError> {
        let found = self.blobs.get(digest).filter(|_| self.is_it(repository));
        let Some((size, path)) = found else { return Ok(None) };
        let Some(found) = open(path)? else { return Ok(None) };
        // Another size is damage that costs no hashing.
        Ok((found.metadata.len() == *size).then_some(found))
    }

    fn tags(&self, repository: &Repository) -> std::result::Result<Option<Vec<Tag>>, StoreError> {
        Ok(self.is_it(repository).then(|| vec![self.tag.clone()]))
    }

    /// None: whoever may pull it knows what it is called.
    fn repositories(&self) -> std::result::Result<Vec<Repository>, StoreError> {
        Ok(Vec::new())
    }

    fn referrers(&self, _: &Repository, _: &Digest) -> std::result::Result<Vec<Descriptor>, StoreError> {
        Ok(Vec::new())
    }

    /// Whoever made the files knows what they are: they stay.
    fn damaged(&self, _: &Digest) {}
}

/// Opens a blob's file; `None` if there is none.
pub(crate) fn open(path: &std::path::Path) -> std::result::Result<Option<FoundBlob>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    let metadata = file.metadata().map_err(StoreError::io("examine", path))?;
    // A folder opens too.
    Ok(metadata.is_file().then(|| FoundBlob { file: Arc::new(file), metadata, sound: false }))
}
