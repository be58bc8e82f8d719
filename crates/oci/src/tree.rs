//! The file tree in memory: what the layers so far add up to.
//!
//! Names point to inodes, as in a file system, so hard links survive whatever
//! later layers do to one of their names. Paths are kept with NUL in place of
//! `/`: byte order is then the order of path components, which is the order of
//! the canonical form, and a folder's descendants are one range.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::error::show;

/// A path within the root: components joined by NUL, none empty, `.` or `..`.
/// The root itself is the empty key.
pub(crate) type Key = Box<[u8]>;

/// How many symlinks a path may lead through, as in Linux (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;

/// What an inode is, and where its contents are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// `size` bytes at `offset` of layer `layer`.
    File {
        layer: u32,
        offset: u64,
        size: u64,
    },
    Directory,
    Symlink(Box<[u8]>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// Extended attributes in the order of their names.
pub(crate) type Xattrs = Box<[(Vec<u8>, Vec<u8>)]>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) content: Content,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Option<Xattrs>,
}

impl Inode {
    /// Root's, from 1970: what stands in for metadata that nobody gave.
    pub(crate) fn plain(content: Content, mode: u16) -> Self {
        Self { content, mode, uid: 0, gid: 0, mtime: 0, xattrs: None }
    }
}

/// A name of an inode, and the layer that last gave it.
#[derive(Debug, Clone, Copy)]
struct Name {
    inode: u32,
    layer: u32,
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    names: BTreeMap<Key, Name>,
    inodes: Vec<Inode>,
}

impl Tree {
    /// Puts an inode at `path`, as unpacking `layer` there would.
    pub(crate) fn insert(&mut self, path: &[u8], inode: Inode, layer: u32) -> Result<(), String> {
        let key = self.resolve(path, layer)?;
        if key.is_empty() {
            // The root's own metadata is not part of the canonical form.
            return match inode.content {
                Content::Directory => Ok(()),
                _ => Err("it would replace the root folder".into()),
            };
        }
        let is_dir = inode.content == Content::Directory;
        if let Some(old) = self.names.get(&key).copied() {
            let old_is_dir = self.inode(old).content == Content::Directory;
            if old.layer == layer && !(is_dir && old_is_dir) {
                return Err("the layer has it twice".into());
            }
            if is_dir && old_is_dir {
                // A folder over a folder gives it new metadata and keeps its children.
                self.inodes[old.inode as usize] = inode;
                self.names.insert(key, Name { layer, ..old });
                return Ok(());
            }
            self.clear_below(&key, None);
        }
        let number = self.push(inode)?;
        self.names.insert(key, Name { inode: number, layer });
        Ok(())
    }

    /// Gives the inode at `target` another name.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8], layer: u32) -> Result<(), String> {
        let target_key = self.resolve(target, layer)?;
        let gone = || format!("it is a hard link to '{}', which is not there", show(target));
        let inode = self.names.get(&target_key).ok_or_else(gone)?.inode;
        if self.inodes[inode as usize].content == Content::Directory {
            return Err(format!("it is a hard link to the folder '{}'", show(target)));
        }
        let key = self.resolve(path, layer)?;
        if key.is_empty() {
            return Err("it would replace the root folder".into());
        }
        if self.names.get(&key).is_some_and(|old| old.layer == layer) {
            return Err("the layer has it twice".into());
        }
        self.clear_below(&key, None);
        self.names.insert(key, Name { inode, layer });
        Ok(())
    }

    /// Removes `path` and what is below it, as far as lower layers gave it.
    pub(crate) fn white_out(&mut self, path: &[u8], layer: u32) -> Result<(), String> {
        let key = self.resolve(path, layer)?;
        self.clear_below(&key, Some(layer));
        if self.names.get(&key).is_some_and(|name| name.layer < layer) {
            match self.has_children(&key) {
                // This layer put something below it: the folder itself is new.
                true => self.put(&key, Inode::plain(Content::Directory, 0o755), layer)?,
                false => drop(self.names.remove(&key)),
            }
        }
        Ok(())
    }

    /// Removes what lower layers put into the folder `path`.
    pub(crate) fn opaque(&mut self, path: &[u8], layer: u32) -> Result<(), String> {
        let key = self.resolve_dir(path, layer)?;
        self.clear_below(&key, Some(layer));
        Ok(())
    }

    /// Puts an inode at a key whose parents exist, replacing what is there.
    pub(crate) fn put(&mut self, key: &[u8], inode: Inode, layer: u32) -> Result<(), String> {
        let number = self.push(inode)?;
        self.names.insert(key.into(), Name { inode: number, layer });
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Inode> {
        self.names.get(key).map(|name| self.inode(*name))
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Inode> {
        let name = self.names.get(key)?;
        self.inodes.get_mut(name.inode as usize)
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.clear_below(key, None);
        self.names.remove(key);
    }

    /// Every name in component-wise order, its inode and the inode's number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, u32, &Inode)> {
        self.names.iter().map(|(key, name)| (key, name.inode, self.inode(*name)))
    }

    /// How many inodes there ever were: numbers are below this.
    pub(crate) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    fn inode(&self, name: Name) -> &Inode {
        &self.inodes[name.inode as usize]
    }

    fn push(&mut self, inode: Inode) -> Result<u32, String> {
        let number =
            u32::try_from(self.inodes.len()).map_err(|_| "the image has more than 2^32 files".to_owned())?;
        self.inodes.push(inode);
        Ok(number)
    }

    fn has_children(&self, key: &[u8]) -> bool {
        self.names.range(below(key)).next().is_some()
    }

    /// Removes the descendants of `key`; with `layer`, only those that lower
    /// layers gave.
    fn clear_below(&mut self, key: &[u8], layer: Option<u32>) {
        let doomed: Vec<Key> = self
            .names
            .range(below(key))
            .filter(|(_, name)| layer.is_none_or(|layer| name.layer < layer))
            .map(|(key, _)| key.clone())
            .collect();
        // Last first: what this layer put below an older folder keeps that
        // folder, as a new one.
        for key in doomed.iter().rev() {
            if layer.is_some() && self.has_children(key) {
                if let Some(name) = self.names.get_mut(key) {
                    name.layer = layer.unwrap_or(name.layer);
                    let inode = name.inode as usize;
                    self.inodes[inode] = Inode::plain(Content::Directory, 0o755);
                }
            } else {
                self.names.remove(key);
            }
        }
    }

    /// The key of an archive's path. Parents that are missing are made; a
    /// parent that a lower layer made a symlink is followed within the root,
    /// as engines do that unpack inside a chroot.
    fn resolve(&mut self, path: &[u8], layer: u32) -> Result<Key, String> {
        let mut parts = components(path)?;
        match parts.pop() {
            None => Ok(Box::from([])),
            Some(name) => {
                let mut key = self.enter(&parts, layer)?;
                if !key.is_empty() {
                    key.push(0);
                }
                key.extend_from_slice(&name);
                Ok(key.into())
            }
        }
    }

    /// As [`Tree::resolve`], but the last component must be a folder too.
    fn resolve_dir(&mut self, path: &[u8], layer: u32) -> Result<Key, String> {
        let parts = components(path)?;
        self.enter(&parts, layer).map(Into::into)
    }

    fn enter(&mut self, parts: &[Vec<u8>], layer: u32) -> Result<Vec<u8>, String> {
        let mut key: Vec<u8> = Vec::new();
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().cloned().collect();
        let mut hops = 0;
        while let Some(part) = pending.pop() {
            if part == b".." {
                // Only symlink targets have these; the root's parent is the root.
                let end = key.iter().rposition(|b| *b == 0).unwrap_or(0);
                key.truncate(end);
                continue;
            }
            let above = key.len();
            if !key.is_empty() {
                key.push(0);
            }
            key.extend_from_slice(&part);
            let Some(name) = self.names.get(key.as_slice()).copied() else {
                self.put(&key, Inode::plain(Content::Directory, 0o755), layer)?;
                continue;
            };
            match &self.inode(name).content {
                Content::Directory => {}
                Content::Symlink(target) if name.layer < layer => {
                    hops += 1;
                    if hops > MAX_SYMLINKS {
                        return Err("its folder leads through too many symlinks".into());
                    }
                    let absolute = target.starts_with(b"/");
                    let target = target.split(|b| *b == b'/').filter(|part| !matches!(part, [] | [b'.']));
                    let target: Vec<Vec<u8>> = target.map(<[u8]>::to_vec).collect();
                    pending.extend(target.into_iter().rev());
                    key.truncate(if absolute { 0 } else { above });
                }
                Content::Symlink(_) => {
                    return Err(format!("it is inside '{}', a symlink of the same layer", path_of(&key)));
                }
                _ => return Err(format!("it is inside '{}', which is not a folder", path_of(&key))),
            }
        }
        Ok(key)
    }
}

/// The descendants of a key start with `key NUL`; the first key after all of
/// them would start with `key 0x01`. Of the root, everything is a descendant.
fn below(key: &[u8]) -> (Bound<Key>, Bound<Key>) {
    if key.is_empty() {
        return (Bound::Unbounded, Bound::Unbounded);
    }
    (Bound::Excluded([key, &[0]].concat().into()), Bound::Excluded([key, &[1]].concat().into()))
}

/// Splits an archive's path; refuses what would leave the root.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if path.starts_with(b"/") {
        return Err("its path is absolute".into());
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            [] | [b'.'] => {}
            [b'.', b'.'] => return Err("its path contains '..'".into()),
            part if part.len() > 255 => return Err("a part of its path is longer than 255 bytes".into()),
            part => parts.push(part.to_vec()),
        }
    }
    Ok(parts)
}

/// A key as a path.
pub(crate) fn path_of(key: &[u8]) -> String {
    show(&key.iter().map(|b| if *b == 0 { b'/' } else { *b }).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tag: u64) -> Inode {
        Inode::plain(Content::File { layer: 0, offset: tag, size: 1 }, 0o644)
    }
    fn dir() -> Inode {
        Inode::plain(Content::Directory, 0o755)
    }
    fn link(target: &str) -> Inode {
        Inode::plain(Content::Symlink(target.as_bytes().into()), 0o777)
    }
    fn names(tree: &Tree) -> Vec<String> {
        tree.iter().map(|(key, _, _)| path_of(key)).collect()
    }
    fn insert(tree: &mut Tree, path: &str, inode: Inode, layer: u32) -> Result<(), String> {
        tree.insert(path.as_bytes(), inode, layer)
    }

    #[test]
    fn order_is_by_component_and_not_by_byte() {
        let mut tree = Tree::default();
        for path in ["a-b", "a/b", "a.c", "a"] {
            let inode = if path == "a" { dir() } else { file(0) };
            insert(&mut tree, path, inode, 0).unwrap();
        }
        assert_eq!(names(&tree), ["a", "a/b", "a-b", "a.c"]);
    }

    #[test]
    fn a_whiteout_removes_what_lower_layers_gave_and_nothing_of_its_own_layer() {
        for whiteout_first in [true, false] {
            let mut tree = Tree::default();
            insert(&mut tree, "d/old", file(1), 0).unwrap();
            insert(&mut tree, "d/sub/old", file(1), 0).unwrap();
            if whiteout_first {
                tree.white_out(b"d", 1).unwrap();
            }
            insert(&mut tree, "d/new", file(2), 1).unwrap();
            if !whiteout_first {
                tree.white_out(b"d", 1).unwrap();
            }
            assert_eq!(names(&tree), ["d", "d/new"], "{whiteout_first}");
        }
    }

    #[test]
    fn an_opaque_folder_hides_lower_children_only_wherever_the_marker_stands() {
        for marker_first in [true, false] {
            let mut tree = Tree::default();
            insert(&mut tree, "d/old/deep", file(1), 0).unwrap();
            insert(&mut tree, "e", file(1), 0).unwrap();
            if marker_first {
                tree.opaque(b"d", 1).unwrap();
            }
            insert(&mut tree, "d/old/new", file(2), 1).unwrap();
            if !marker_first {
                tree.opaque(b"d", 1).unwrap();
            }
            assert_eq!(names(&tree), ["d", "d/old", "d/old/new", "e"], "{marker_first}");
        }
    }

    #[test]
    fn a_hard_link_keeps_its_inode_when_another_name_of_it_is_replaced() {
        let mut tree = Tree::default();
        insert(&mut tree, "a", file(1), 0).unwrap();
        tree.hard_link(b"b", b"a", 1).unwrap();
        insert(&mut tree, "a", file(2), 2).unwrap();
        assert_eq!(tree.get(b"b"), Some(&file(1)));
        assert_eq!(tree.get(b"a"), Some(&file(2)));
    }

    #[test]
    fn a_file_over_a_folder_removes_its_children_and_the_reverse_works() {
        let mut tree = Tree::default();
        insert(&mut tree, "x/y/z", file(1), 0).unwrap();
        insert(&mut tree, "x", file(2), 1).unwrap();
        assert_eq!(names(&tree), ["x"]);
        insert(&mut tree, "x", dir(), 2).unwrap();
        insert(&mut tree, "x/q", file(3), 2).unwrap();
        assert_eq!(names(&tree), ["x", "x/q"]);
    }

    #[test]
    fn a_symlink_of_a_lower_layer_is_followed_inside_the_root() {
        let mut tree = Tree::default();
        insert(&mut tree, "usr/lib", dir(), 0).unwrap();
        insert(&mut tree, "lib", link("usr/lib"), 0).unwrap();
        insert(&mut tree, "up", link("../../../usr"), 0).unwrap();
        insert(&mut tree, "lib/a", file(1), 1).unwrap();
        insert(&mut tree, "up/b", file(1), 1).unwrap();
        assert_eq!(names(&tree), ["lib", "up", "usr", "usr/b", "usr/lib", "usr/lib/a"]);
    }

    #[test]
    fn what_would_leave_the_root_or_repeat_itself_is_refused() {
        let mut tree = Tree::default();
        insert(&mut tree, "l", link("/etc"), 0).unwrap();
        insert(&mut tree, "f", file(0), 0).unwrap();
        insert(&mut tree, "loop", link("loop2"), 0).unwrap();
        insert(&mut tree, "loop2", link("loop"), 0).unwrap();
        for (path, layer) in
            [("/abs", 0), ("a/../b", 0), ("l/passwd", 0), ("f/x", 0), ("f", 0), ("loop/x", 1)]
        {
            assert!(insert(&mut tree, path, file(0), layer).is_err(), "{path}");
        }
        assert!(tree.hard_link(b"h", b"../etc/passwd", 0).is_err());
        assert!(tree.hard_link(b"h", b"nothing", 0).is_err());
        for root in [&b""[..], b".", b"./", b"//"] {
            let error = tree.hard_link(root, b"f", 1).unwrap_err();
            assert_eq!(root != b"//", error.contains("root folder"), "{error}");
        }
        insert(&mut tree, "d", dir(), 0).unwrap();
        insert(&mut tree, "d", dir(), 0).unwrap();
    }
}
