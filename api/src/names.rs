//! What names, label keys and label values may look like (RFC 1123, RFC 1035 and the Kubernetes rules on top).
//!
//! Each check returns the messages the API gives, none when the text is good.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
const GENERATED_SUFFIX: usize = 5;
/// No vowels and no digits or letters that read alike, so that no word comes out.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const RFC1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED_SHAPE: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and \
end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Label keys and values count bytes in their message, DNS names characters.
fn too_long(max: usize, unit: &str) -> String {
    format!("must be no more than {max} {unit}")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    is_shape(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_shape(text: &str, ends: impl Fn(u8) -> bool, middle: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => ends(first) && ends(last) && bytes.iter().all(|&b| middle(b)),
        _ => false,
    }
}

fn is_qualified_part(text: &str) -> bool {
    is_shape(
        text,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b),
    )
}

fn check(text: &str, max: usize, good: bool, message: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > max {
        out.push(too_long(max, "characters"));
    }
    if !good {
        out.push(message.to_owned());
    }
    out
}

/// RFC 1123 label: names of namespaces, containers, most dotted-free names.
pub fn dns_label(text: &str) -> Vec<String> {
    let dotted = !is_label(text) && text.split('.').all(is_label);
    check(
        text,
        LABEL_MAX,
        is_label(text),
        if dotted {
            "must not contain dots"
        } else {
            DNS_LABEL
        },
    )
}

/// RFC 1123 subdomain: names of most objects.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    check(text, SUBDOMAIN_MAX, text.split('.').all(is_label), DNS_SUBDOMAIN)
}

/// RFC 1035 label: names of Services (starts with a letter).
pub fn rfc1035_label(text: &str) -> Vec<String> {
    let starts = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    check(text, LABEL_MAX, starts && is_label(text), RFC1035)
}

/// Names that only have to fit into a URL path (RBAC objects, for one).
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|bad| text.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// A qualified name, optionally with a DNS prefix: label keys, annotation keys, finalizers, resource names.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let (prefix, name) = match text.split_once('/') {
        None => (None, text),
        Some((prefix, name)) if !name.contains('/') => (Some(prefix), name),
        Some(_) => return vec![QUALIFIED_SHAPE.to_owned()],
    };
    match prefix {
        Some("") => out.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => out.extend(
            dns_subdomain(prefix)
                .into_iter()
                .map(|m| format!("prefix part {m}")),
        ),
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        out.push(format!("name part {}", too_long(LABEL_MAX, "bytes")));
    }
    if !is_qualified_part(name) {
        out.push(QUALIFIED.to_owned());
    }
    out
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > LABEL_MAX {
        out.push(too_long(LABEL_MAX, "bytes"));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        out.push(LABEL_VALUE.to_owned());
    }
    out
}

/// A named port (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| lower_alnum(b) || b == b'-') || text.is_empty() {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must not be empty".to_owned()];
    }
    if text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let mut out = check(
        text,
        SUBDOMAIN_MAX,
        good,
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
         or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
    );
    if text == "." {
        out.push("must not be '.'".to_owned());
    } else if text == ".." {
        out.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        out.push("must not start with '..'".to_owned());
    }
    out
}

/// Whether the text is a port number in 1..=65535.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// The characters that `generateName` gets appended, from `random` (any uniformly random number).
pub fn generate_name_suffix(mut random: u64) -> String {
    let base = ALPHABET.len() as u64;
    let mut out = String::with_capacity(GENERATED_SUFFIX);
    for _ in 0..GENERATED_SUFFIX {
        out.push(char::from(ALPHABET[(random % base) as usize]));
        random /= base;
    }
    out
}

/// The whole generated name: the prefix cut so that the suffix fits into a label's length.
pub fn generate_name(prefix: &str, random: u64) -> String {
    let mut end = prefix.len().min(LABEL_MAX - GENERATED_SUFFIX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], generate_name_suffix(random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_and_bad_names_are_told_apart() {
        for good in ["a", "a-b", "1", "a.b", "x1.y-2.z"] {
            assert!(dns_subdomain(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", &"a".repeat(254)] {
            assert!(!dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(
            dns_label("a.b").len() == 1 && rfc1035_label("1a").len() == 1 && rfc1035_label("a1").is_empty()
        );
        assert!(path_segment("system:node").is_empty() && path_segment("a/b%").len() == 2);
    }

    #[test]
    fn label_keys_may_have_one_prefix() {
        for good in ["a", "app.kubernetes.io/name", "A_b.c-d"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "a/b/c", "/a", "a/", "UPPER.com/a", "-a", &"a".repeat(64)] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("a b").len() == 1);
    }

    #[test]
    fn port_and_key_rules_hold() {
        assert!(port_name("http").is_empty() && port_name("80").len() == 1 && port_name("a--b").len() == 1);
        assert!(config_map_key("a.b_C-1").is_empty() && !config_map_key("..").is_empty());
        assert!(env_var_name("A B").is_empty() && !env_var_name("a=b").is_empty());
    }

    proptest! {
        #[test]
        fn generated_names_are_always_valid_labels(prefix in "[a-z][a-z-]{0,80}", random: u64) {
            let name = generate_name(&prefix, random);
            prop_assert!(dns_label(&name).is_empty());
            prop_assert!(prefix.starts_with(&name[..name.len() - 5]));
        }
    }
}
