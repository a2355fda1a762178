//! `$(NAME)` references in commands, arguments and values.
//!
//! Kubernetes documentation, "Define Dependent Environment Variables": `$$` is a literal dollar, unknown references
//! stay as they are.

/// Expands `text` with `lookup`.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_a(text: &str) -> String {
        expand(text, |name| (name == "A").then_some("1"))
    }

    #[test]
    fn known_names_are_replaced_and_unknown_ones_stay() {
        assert_eq!(with_a("x$(A)y$(B)z"), "x1y$(B)z");
    }

    #[test]
    fn a_doubled_dollar_escapes_a_reference() {
        assert_eq!(with_a("$$(A) $(A)"), "$(A) 1");
    }

    #[test]
    fn lone_dollars_and_open_parentheses_are_text() {
        assert_eq!(with_a("$A $ $(A"), "$A $ $(A");
    }
}
