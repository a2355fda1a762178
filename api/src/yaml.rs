//! YAML as the API reads it (bodies of server-side apply): one document, booleans of YAML 1.1, repeated keys found.

use serde_saphyr::options::DuplicateKeyPolicy;

use crate::json::{Node, Parsed};

/// The text is not one YAML document.
#[derive(Debug, thiserror::Error)]
#[error("the body is not valid YAML: {0}")]
pub struct ParseError(String);

/// Reads one YAML document.
///
/// # Errors
/// When the text is not YAML, holds more than one document, or expands too far through aliases.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ParseError> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let node: Node = serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|error| ParseError(error.to_string()))?;
    Ok(node.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn booleans_octal_numbers_and_quoted_text_read_as_in_yaml_1_1() {
        let text = "a: yes\nb: off\nc: \"yes\"\nd: 0644\ne: 1.5\nf: ~\ng: 2024-01-01\nh: [1, two]\n";
        let expected = json!({"a": true, "b": false, "c": "yes", "d": 420, "e": 1.5, "f": null, "g": "2024-01-01", "h": [1, "two"]});
        assert_eq!(parse(text.as_bytes()).unwrap().value, expected);
    }

    #[test]
    fn a_repeated_key_is_named_by_its_path() {
        let parsed = parse(b"spec:\n  ports:\n  - port: 1\n    port: 2\n").unwrap();
        assert_eq!(parsed.duplicates, ["spec.ports[0].port"]);
        assert_eq!(parsed.value, json!({"spec": {"ports": [{"port": 2}]}}));
    }

    #[test]
    fn keys_that_are_numbers_become_text() {
        assert_eq!(
            parse(b"data:\n  1: one\n").unwrap().value,
            json!({"data": {"1": "one"}})
        );
    }

    #[test]
    fn json_is_yaml() {
        assert_eq!(
            parse(br#"{"a": {"b": [1, "x"]}}"#).unwrap().value,
            json!({"a": {"b": [1, "x"]}})
        );
    }
}
