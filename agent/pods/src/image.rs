//! What to do about a container's image before it is created.

/// The decision by `imagePullPolicy` (Kubernetes documentation, "Images").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAction {
    /// Use what the node has.
    Use,
    /// Ask the registry.
    Pull,
    /// The policy forbids a pull and the image is not here (`ErrImageNeverPull`).
    Refuse,
}

/// Decides for a policy (default by tag when absent) and whether the image is on the node.
#[must_use]
pub fn decide(policy: Option<&str>, image: &str, present: bool) -> ImageAction {
    match (policy.unwrap_or_else(|| default_policy(image)), present) {
        ("Always", _) | ("IfNotPresent", false) => ImageAction::Pull,
        ("Never", false) => ImageAction::Refuse,
        _ => ImageAction::Use,
    }
}

fn default_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    let pinned = last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if pinned { "IfNotPresent" } else { "Always" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_and_the_presence_decide() {
        assert_eq!(decide(Some("Always"), "a", true), ImageAction::Pull);
        assert_eq!(decide(Some("IfNotPresent"), "a", true), ImageAction::Use);
        assert_eq!(decide(Some("IfNotPresent"), "a", false), ImageAction::Pull);
        assert_eq!(decide(Some("Never"), "a", true), ImageAction::Use);
        assert_eq!(decide(Some("Never"), "a", false), ImageAction::Refuse);
    }

    #[test]
    fn without_a_policy_the_tag_decides() {
        assert_eq!(decide(None, "localhost:5000/a", true), ImageAction::Pull);
        assert_eq!(decide(None, "localhost:5000/a:1", true), ImageAction::Use);
        assert_eq!(decide(None, "a:latest", true), ImageAction::Pull);
    }
}
