//! Understanding what engines print. Pure.

use serde::Deserialize;
use smolcellar_store::Digest;

/// What `image inspect` says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The engine's ID of it.
    pub id: Digest,
    /// Whether that is the digest of its config. Not so in Docker's containerd
    /// store, where it is the digest of a manifest or an index.
    pub id_is_config: bool,
    /// Uncompressed bytes, as the engine counts them.
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    size: u64,
    /// Only the containerd store has it.
    descriptor: Option<serde_json::Value>,
}

/// Parses one image's JSON from `image inspect`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn image_info(json: &str) -> Result<ImageInfo, String> {
    let inspected: Inspected = serde_json::from_str(json.trim()).map_err(|error| error.to_string())?;
    let id = image_id(&inspected.id)?;
    Ok(ImageInfo { id, id_is_config: inspected.descriptor.is_none_or(|d| d.is_null()), size: inspected.size })
}

/// Parses an image ID: Docker writes `sha256:` before it, Podman does not.
///
/// # Errors
/// If it is neither.
pub(crate) fn image_id(text: &str) -> Result<Digest, String> {
    let text = text.trim();
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    Digest::from_hex(hex).map_err(|error| error.to_string())
}

/// What an engine's complaint says of why it cannot be reached, without what it
/// said before; `None` if that is not the complaint.
pub(crate) fn unreachable(stderr: &str) -> Option<String> {
    const SIGNS: [&str; 6] = [
        "Cannot connect to the Docker daemon",
        "Is the docker daemon running",
        "permission denied while trying to connect",
        "error during connect",
        "failed to connect to the docker API",
        "Cannot connect to Podman",
    ];
    let is_sign = |line: &str| SIGNS.iter().any(|sign| line.contains(sign));
    let from = stderr.lines().position(is_sign)?;
    Some(stderr.lines().skip(from).collect::<Vec<_>>().join("\n").trim_end().to_owned())
}

/// An engine's output without the notice that it has a better builder.
pub(crate) fn without_notice(output: &str) -> String {
    const NOTICE: [&str; 3] =
        ["DEPRECATED: The legacy builder", "Install the buildx component", "docs.docker.com/go/buildx"];
    let kept = output.lines().filter(|line| !NOTICE.iter().any(|part| line.contains(part)));
    kept.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Whether an engine's complaint is that there is no such image.
pub(crate) fn is_no_such_image(stderr: &str) -> bool {
    let stderr = stderr.to_ascii_lowercase();
    ["no such image", "image not known", "failed to find image"].iter().any(|sign| stderr.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_classic_store_and_the_containerd_store_are_told_apart() {
        let classic = image_info(&format!(r#"{{"Id":"{ID}","Size":5,"RootFS":{{}}}}"#)).unwrap();
        assert!(classic.id_is_config);
        let containerd = format!(
            r#"{{"Id":"{ID}","Descriptor":{{"mediaType":"application/vnd.oci.image.index.v1+json"}}}}"#
        );
        assert!(!image_info(&containerd).unwrap().id_is_config);
    }

    #[test]
    fn the_reason_comes_without_what_was_said_before_it() {
        let said = "DEPRECATED: The legacy builder is deprecated.\n   Install the buildx component to build\n   \
                    https://docs.docker.com/go/buildx/\n\nerror during connect: x\nCannot connect to the Docker daemon.\n";
        assert_eq!(
            unreachable(said).unwrap(),
            "error during connect: x\nCannot connect to the Docker daemon."
        );
        assert_eq!(unreachable("no such image"), None);
        assert_eq!(without_notice(&format!("{said}more")).lines().count(), 3);
    }

    #[test]
    fn podmans_bare_ids_are_ids_and_short_ones_are_not() {
        assert_eq!(image_id(ID), image_id(&format!("{}\n", &ID[7..])));
        assert!(image_id("abc123").is_err());
        assert!(image_info("{}").is_err() && image_info("").is_err());
    }
}
