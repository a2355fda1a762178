//! Links in pages that pods and services serve: what points at the root of the back end must point at the proxied path
//! instead, or a browser leaves the back end with the first click. The rules are those of upstream's proxy transport.

/// Which attributes of which elements hold an address.
const ATTRIBUTES: [(&str, &[&str]); 24] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("video", &["poster", "src"]),
];
/// A tag that is longer is passed on as it is: what is kept of a page has a bound.
const LONGEST_TAG: usize = 16 << 10;

/// Where a page is seen, and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The path of the proxied root, without a slash at its end.
    pub(super) prefix: String,
    /// `host:port` of the back end.
    pub(super) backend: String,
    /// The `Host` that the client asked.
    pub(super) client: String,
}

impl Place {
    /// An address as the client has to ask for it.
    pub(super) fn rewritten(&self, url: &str) -> Option<String> {
        let path = self.own_path(url)?;
        let there = path
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        (!there).then(|| format!("{}{path}", self.prefix))
    }

    /// The path of an address of this back end; other hosts and relative addresses stay as they are.
    fn own_path<'a>(&self, url: &'a str) -> Option<&'a str> {
        let rest = url.strip_prefix("http:").or_else(|| url.strip_prefix("https:"));
        let rest = rest.unwrap_or(url);
        let Some(rest) = rest.strip_prefix("//") else {
            return url.starts_with('/').then_some(url);
        };
        let end = rest.find('/')?;
        let (host, path) = rest.split_at(end);
        (host == self.backend || host == self.client).then_some(path)
    }
}

/// Rewrites a page that comes in pieces.
#[derive(Debug)]
pub(super) struct Rewriter {
    place: Place,
    /// What is not decided yet: a tag whose end has not come.
    kept: Vec<u8>,
    /// The text whose coming ends a comment or a script, in which there are no tags.
    until: Option<&'static str>,
}

impl Rewriter {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            kept: Vec::new(),
            until: None,
        }
    }

    /// Takes a piece, gives what can be sent on.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.kept.extend_from_slice(piece);
        let page = std::mem::take(&mut self.kept);
        let mut out = Vec::with_capacity(page.len() + 256);
        let mut rest = page.as_slice();
        while let Some(used) = self.step(rest, &mut out) {
            rest = rest.get(used..).unwrap_or_default();
        }
        if rest.len() > LONGEST_TAG {
            out.extend_from_slice(rest);
        } else {
            self.kept = rest.to_vec();
        }
        out
    }

    /// What is left at the end of the page.
    pub(super) fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }

    /// Passes text or one tag on and says how many bytes that were; nothing if more has to come first.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if rest.is_empty() {
            return None;
        }
        if let Some(mark) = self.until {
            return self.raw(mark, rest, out);
        }
        let text = rest.iter().position(|b| *b == b'<').unwrap_or(rest.len());
        if text > 0 {
            out.extend_from_slice(rest.get(..text)?);
            return Some(text);
        }
        if rest.len() < 4 && b"<!--".starts_with(rest) {
            return None;
        }
        if rest.starts_with(b"<!--") {
            self.until = Some("-->");
            out.extend_from_slice(b"<!--");
            return Some(4);
        }
        let end = tag_end(rest)?;
        let tag = rest.get(..end)?;
        self.until = until(tag);
        out.extend_from_slice(&rewrite_tag(tag, &self.place));
        Some(end)
    }

    /// Passes text without tags on, up to its mark.
    fn raw(&mut self, mark: &'static str, rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let found = rest
            .windows(mark.len())
            .position(|w| w.eq_ignore_ascii_case(mark.as_bytes()));
        let used = match found {
            Some(at) => {
                self.until = None;
                at
            }
            // The mark may have begun in the last bytes.
            None => rest.len().saturating_sub(mark.len() - 1),
        };
        // A mark at the very beginning uses nothing, but ends the state: go on behind its first byte.
        let used = if found == Some(0) { 1 } else { used };
        out.extend_from_slice(rest.get(..used)?);
        (used > 0).then_some(used)
    }
}

/// Behind the `>` of a tag; one in quotes does not end it.
fn tag_end(tag: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in tag.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

fn name(tag: &[u8]) -> String {
    let name = tag.iter().skip(1).take_while(|b| b.is_ascii_alphanumeric());
    name.map(|b| char::from(b.to_ascii_lowercase())).collect()
}

/// What ends the text behind a tag, if there are no tags in it.
fn until(tag: &[u8]) -> Option<&'static str> {
    match name(tag).as_str() {
        "script" => Some("</script"),
        "style" => Some("</style"),
        "textarea" => Some("</textarea"),
        "title" => Some("</title"),
        _ => None,
    }
}

fn rewrite_tag(tag: &[u8], place: &Place) -> Vec<u8> {
    let wanted = ATTRIBUTES.iter().find(|(element, _)| *element == name(tag));
    let (Some((_, wanted)), Ok(text)) = (wanted, std::str::from_utf8(tag)) else {
        return tag.to_vec();
    };
    let mut out = String::with_capacity(text.len() + place.prefix.len());
    let mut rest = text;
    while let Some(value) = next_value(rest) {
        let (before, behind) = rest.split_at(value.start);
        let (url, behind) = behind.split_at(value.len);
        out.push_str(before);
        let ours = wanted.iter().any(|w| value.attribute.eq_ignore_ascii_case(w));
        let new = ours.then(|| place.rewritten(url.trim())).flatten();
        out.push_str(new.as_deref().unwrap_or(url));
        rest = behind;
    }
    out.push_str(rest);
    out.into_bytes()
}

/// The next attribute's value, without its quotes.
struct Found<'a> {
    attribute: &'a str,
    start: usize,
    len: usize,
}

fn next_value(text: &str) -> Option<Found<'_>> {
    let equals = text.find('=')?;
    let (before, behind) = (text.get(..equals)?, text.get(equals + 1..)?);
    let attribute = before
        .trim_end()
        .rsplit(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '/'))
        .next()?;
    let space = behind.len() - behind.trim_start().len();
    let value = behind.trim_start();
    let (skip, len) = match value.chars().next()? {
        quote @ ('"' | '\'') => (1, value.get(1..)?.find(quote)?),
        _ => (0, value.find(|c: char| c.is_whitespace() || c == '>')?),
    };
    Some(Found {
        attribute,
        start: equals + 1 + space + skip,
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/n/services/s/proxy".into(),
            backend: "192.0.2.7:80".into(),
            client: "localhost:8001".into(),
        }
    }

    fn page(pieces: &[&str]) -> String {
        let mut rewriter = Rewriter::new(place());
        let mut out: Vec<u8> = pieces.iter().flat_map(|p| rewriter.push(p.as_bytes())).collect();
        out.extend(rewriter.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_to_the_root_of_the_back_end_get_the_proxied_path() {
        assert_eq!(
            page(&[r#"<a href="/rewriteme">test</a>"#]),
            r#"<a href="/api/v1/namespaces/n/services/s/proxy/rewriteme">test</a>"#
        );
        assert_eq!(
            page(&["<IMG alt='a > b' SRC = '/x.png'><a href=/y>z"]),
            "<IMG alt='a > b' SRC = '/api/v1/namespaces/n/services/s/proxy/x.png'>\
             <a href=/api/v1/namespaces/n/services/s/proxy/y>z"
        );
        assert_eq!(
            page(&[r#"<a href="http://192.0.2.7:80/a?b#c">"#]),
            r#"<a href="/api/v1/namespaces/n/services/s/proxy/a?b#c">"#
        );
    }

    #[test]
    fn other_hosts_relative_links_and_links_with_the_path_stay() {
        for same in [
            r#"<a href="x/y">"#,
            r#"<a href="https://example.com/x">"#,
            r#"<a href="/api/v1/namespaces/n/services/s/proxy/z">"#,
            r#"<a title="/x">"#,
            r#"<p href="/x">"#,
            r#"<!-- <a href="/x"> -->"#,
            r#"<script>s = '<a href="/x">'</script>"#,
            "a < b and no tag",
            "<a href=",
        ] {
            assert_eq!(page(&[same]), same);
        }
    }

    #[test]
    fn a_page_may_be_cut_anywhere() {
        let whole = r#"<html><!-- c --><script>a<b</script><a href="/x">y</a><a href='/z'>"#;
        let wanted = page(&[whole]);
        assert!(wanted.contains("proxy/x") && wanted.contains("proxy/z"));
        for cut in 1..whole.len() {
            let (one, other) = whole.split_at(cut);
            assert_eq!(page(&[one, other]), wanted, "cut at {cut}");
        }
    }

    #[test]
    fn a_tag_without_end_is_not_kept_for_ever() {
        let mut rewriter = Rewriter::new(place());
        let long = format!("<a href=\"{}", "x".repeat(LONGEST_TAG));
        assert_eq!(rewriter.push(long.as_bytes()).len(), long.len());
        assert!(rewriter.end().is_empty());
    }
}
