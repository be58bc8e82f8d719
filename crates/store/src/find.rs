//! Artifacts by what people type: the beginning of a key.

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Result, StoreError};
use crate::machines::{MachineKey, list};
use crate::root::Store;

/// The fewest digits that name an artifact: fewer are a slip, not a name.
const LEAST: usize = 4;

impl Store {
    /// The artifact whose key begins with `text`: `IMAGE` or `IMAGE/RECIPE`,
    /// each the first digits of a digest (four or more of the image's), with or
    /// without `sha256:`. `IMAGE-RECIPE`, as locks and leases have it, is
    /// understood too. Reads names only.
    ///
    /// # Errors
    /// [`StoreError::NoEntry`] if nothing has such a key, or several have;
    /// [`StoreError::Io`].
    pub fn find_machine(&self, text: &str) -> Result<MachineKey> {
        let refuse = |problem: String| StoreError::NoEntry { wanted: text.to_owned(), problem };
        let (image, recipe) = text.split_once(['/', '-']).unwrap_or((text, ""));
        let image = image.strip_prefix("sha256:").unwrap_or(image);
        let recipe = recipe.strip_prefix("sha256:").unwrap_or(recipe);
        let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if image.len() < LEAST || !hex(image) || !hex(recipe) {
            return Err(refuse(format!(
                "a key is IMAGE or IMAGE/RECIPE, the first digits of each ({LEAST} or more of the image's)"
            )));
        }
        let (image, recipe) = (image.to_ascii_lowercase(), recipe.to_ascii_lowercase());
        let mut found = self.machine_keys()?;
        found.retain(|key| key.image.hex().starts_with(&image) && key.recipe.hex().starts_with(&recipe));
        match found.as_slice() {
            [key] => Ok(*key),
            [] => Err(refuse("no artifact has such a key; `cargo xtask cache ls` shows all".into())),
            several => {
                let names: Vec<_> = several.iter().take(8).map(|key| format!("\n  {key}")).collect();
                Err(refuse(format!("{} artifacts have such a key:{}", several.len(), names.concat())))
            }
        }
    }

    /// The keys of all artifacts that have a receipt, in order. Reads names
    /// only.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a folder cannot be listed.
    pub fn machine_keys(&self) -> Result<Vec<MachineKey>> {
        let mut keys = Vec::new();
        for dir in list(&self.bucket_dir(Bucket::Machines))? {
            let Some(image) = hex_name(&dir) else { continue };
            for path in list(&dir)? {
                if path.extension().is_some_and(|extension| extension == "json")
                    && let Some(recipe) = path.file_stem().and_then(|stem| stem.to_str())
                    && let Ok(recipe) = Digest::from_hex(recipe)
                {
                    keys.push(MachineKey { image, recipe });
                }
            }
        }
        Ok(keys)
    }
}

/// The digest that is the last part of a path.
pub(crate) fn hex_name(path: &std::path::Path) -> Option<Digest> {
    path.file_name().and_then(|name| Digest::from_hex(name.to_str()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, fsio};

    #[test]
    fn a_key_is_found_by_its_first_digits_and_only_if_it_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c"), OpenOptions::default()).unwrap();
        let scratch = store.scratch().unwrap();
        let key = |image: u8, recipe: u8| MachineKey {
            image: Digest::from_hex(&format!("{image:02x}").repeat(32)).unwrap(),
            recipe: Digest::from_hex(&format!("{recipe:02x}").repeat(32)).unwrap(),
        };
        for (image, recipe) in [(0xaa, 1), (0xaa, 2), (0xbb, 1)] {
            let key = key(image, recipe);
            let dir = store.bucket_dir(Bucket::Machines).join(key.image.hex());
            fsio::write_atomic(&scratch, &dir.join(format!("{}.json", key.recipe.hex())), b"{}").unwrap();
        }
        assert_eq!(store.find_machine("bbbb").unwrap(), key(0xbb, 1));
        assert_eq!(store.find_machine("sha256:AAAA/02").unwrap(), key(0xaa, 2));
        assert_eq!(store.find_machine(&key(0xaa, 1).lock_name()).unwrap(), key(0xaa, 1));
        let problem = |text: &str| store.find_machine(text).unwrap_err().to_string();
        assert!(problem("aaaa").contains("2 artifacts") && problem("aaaa").contains("aaaaaaaaaaaa/0202"));
        assert!(problem("cccc").contains("cache ls"));
        for text in ["", "bb", "sample", "bbbb/x", "/", "../bb"] {
            assert!(problem(text).contains("first digits"), "{text}");
        }
    }
}
