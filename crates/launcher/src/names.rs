//! Names of machines.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The longest slug, in bytes.
const SLUG: usize = 40;

/// An agent's name as machines' names may have it: lower-case letters, digits
/// and single hyphens. Words that would make it too long are left out.
pub fn slug(name: &str) -> String {
    let mut slug = String::new();
    for word in name.split(|letter: char| !letter.is_ascii_alphanumeric()) {
        let hyphen = usize::from(!slug.is_empty());
        if !word.is_empty() && slug.len() + hyphen + word.len() <= SLUG {
            if hyphen == 1 {
                slug.push('-');
            }
            slug.push_str(&word.to_ascii_lowercase());
        }
    }
    slug
}

/// A name that no other launch has: `smolcellar-<slug>-<8 random letters>`.
pub fn machine_name(agent: &str) -> String {
    let slug = slug(agent);
    let mut name = String::from("smolcellar-");
    if !slug.is_empty() {
        name.push_str(&slug);
        name.push('-');
    }
    // RandomState is seeded by the system.
    let mut random = RandomState::new().build_hasher().finish();
    for _ in 0..8 {
        let letter = u8::try_from(random % 26).unwrap_or(0);
        name.push(char::from(b'a' + letter));
        random /= 26;
    }
    name
}
